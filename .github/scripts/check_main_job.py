"""Check what `optim-bench run` left in ./optim-bench-results: the files, and finite metrics.

`python check_main_job.py [FOLDER]`
"""

import json
import math
import sys
from pathlib import Path

EXPECTED = {"jax/stam", "jax/stam_lite", "jax/adamw", "torch/stac", "torch/adamw"}
LARGEST_PAGE = 3_000_000


def reject(constant: str) -> float:
    """Refuse the constants that strict JSON does not have."""
    raise ValueError(f"results.json holds {constant}, which is not JSON")


def problems(folder: Path) -> list[str]:
    """What is missing or not finite."""
    found = [
        f"{name} is missing or empty"
        for name in ("results.json", "report.html")
        if not (folder / name).is_file() or (folder / name).stat().st_size == 0
    ]
    if not [*folder.rglob("*.svg"), *folder.rglob("*.png")]:
        found.append("no figure was written")
    if found:
        return found
    page = (folder / "report.html").stat().st_size
    if page > LARGEST_PAGE:
        found.append(f"report.html has {page} bytes, more than {LARGEST_PAGE}")
    text = (folder / "results.json").read_text(encoding="utf-8")
    return found + problems_of_results(json.loads(text, parse_constant=reject))


def problems_of_results(results: dict) -> list[str]:
    """Optimizers that are missing or whose fresh runs did not all end with finite losses."""
    found = []
    seen = {f"{cell['framework']}/{cell['optimizer']}" for cell in results["cells"]}
    found += [f"{name} was not compared" for name in sorted(EXPECTED - seen)]
    for cell in results["cells"]:
        fresh = cell["fresh"]
        if not fresh["planned"] or fresh["ok"] != fresh["planned"]:
            found.append(f"{cell['name']}: {fresh['ok']} of {fresh['planned']} fresh runs are ok")
        for run in fresh["runs"]:
            losses = [run[metric] for metric in ("train_loss", "val_loss", "test_loss")]
            if any(loss is None or not math.isfinite(loss) for loss in losses):
                found.append(f"{cell['name']}, seed {run['seed']}: losses are {losses}")
    return found


def main(arguments: list[str]) -> int:
    """Print every problem and return the exit status."""
    folder = Path(arguments[0] if arguments else "optim-bench-results")
    found = problems(folder)
    print("\n".join(found) or f"{folder}: results, page and figure, every metric finite")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
