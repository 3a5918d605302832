"""Check what `optim-bench run` left behind: `python check_main_job.py optim-bench-results`."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

EXPECTED = {"jax/stam", "jax/stam_lite", "jax/adamw", "torch/stac", "torch/adamw"}
LARGEST_PAGE = 3_000_000


def reject(constant: str) -> float:
    """Refuse the constants that strict JSON does not have."""
    raise ValueError(f"results.json holds {constant}, which is not JSON")


def problems(folder: Path) -> Iterator[str]:
    """Files that are missing, optimizers that were not compared, losses that are not finite."""
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for name in ("results.json", "report.html"):
        if not sizes.get(name):
            yield f"{name} is missing or empty"
    if not any(name.endswith((".svg", ".png")) for name in sizes):
        yield "no figure was written"
    if sizes.get("report.html", 0) > LARGEST_PAGE:
        yield f"report.html has {sizes['report.html']} bytes, more than {LARGEST_PAGE}"
    if not sizes.get("results.json"):
        return
    text = (folder / "results.json").read_text(encoding="utf-8")
    cells = json.loads(text, parse_constant=reject)["cells"]
    seen = {f"{cell['framework']}/{cell['optimizer']}" for cell in cells}
    yield from (f"{name} was not compared" for name in sorted(EXPECTED - seen))
    for cell in cells:
        fresh = cell["fresh"]
        if not fresh["planned"] or fresh["ok"] != fresh["planned"]:
            yield f"{cell['name']}: {fresh['ok']} of {fresh['planned']} fresh runs are ok"
        for run in fresh["runs"]:
            losses = [run[metric] for metric in ("train_loss", "val_loss", "test_loss")]
            if any(loss is None or not math.isfinite(loss) for loss in losses):
                yield f"{cell['name']}, seed {run['seed']}: losses are {losses}"


if __name__ == "__main__":
    sys.exit("\n".join(problems(Path(sys.argv[1]))) or None)
