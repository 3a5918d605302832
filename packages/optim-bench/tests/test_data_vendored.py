"""The files in the wheel are the ones that were checked, and their licences travel with them."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from optim_bench.tasks import built_in as workloads
from optim_bench.tasks import data
from optim_bench.tasks.data import _vendored

# name -> (array, dtype, shape, smallest, largest)
CONTENTS = {
    "digits": [
        ("images", "|u1", (1797, 8, 8), 0, 16),
        ("labels", "|u1", (1797,), 0, 9),
        ("order", "<i2", (1797,), 0, 1796),
    ],
    "diamonds": [
        ("carat", "<u2", (53775,), 20, 501),
        ("price", "<u2", (53775,), 326, 18823),
        ("x", "<u2", (53775,), 373, 1074),
        ("cut", "|u1", (53775,), 0, 4),
        ("color", "|u1", (53775,), 0, 6),
        ("clarity", "|u1", (53775,), 0, 7),
        ("order", "<u2", (53775,), 0, 53774),
    ],
    "photos": [
        ("china", "|u1", (427, 640), 0, 255),
        ("flower", "|u1", (427, 640), 5, 227),
    ],
    "shakespeare": [
        ("train", "|u1", (887037,), 10, 125),
        ("val", "|u1", (114878,), 10, 122),
        ("test", "|u1", (125230,), 10, 123),
    ],
}


def manifest() -> dict[str, dict[str, str]]:
    text = (resources.files("optim_bench.tasks.data") / "files" / "manifest.json").read_text(
        "ascii"
    )
    return json.loads(text)


def test_every_vendored_file_is_declared_listed_and_tested():
    folder = resources.files("optim_bench.tasks.data") / "files"
    packed = {entry.name for entry in folder.iterdir() if entry.name.endswith(".xz")}

    assert packed == {f"{name}.npz.xz" for name in data.SOURCES}
    assert set(manifest()) == set(data.SOURCES) == set(CONTENTS)


@pytest.mark.parametrize("name", CONTENTS)
def test_file_has_the_recorded_digest(name):
    packed = (resources.files("optim_bench.tasks.data") / "files" / f"{name}.npz.xz").read_bytes()

    assert hashlib.sha256(packed).hexdigest() == manifest()[name]["sha256"]


@pytest.mark.parametrize("name", CONTENTS)
def test_arrays_have_the_expected_shapes_and_ranges(name):
    arrays = data.load(name)

    for key, dtype, shape, low, high in CONTENTS[name]:
        array = arrays[key]
        assert (array.dtype.str, array.shape) == (dtype, shape), key
        assert (int(array.min()), int(array.max())) == (low, high), key


@pytest.mark.parametrize("name", CONTENTS)
def test_arrays_have_the_content_digest_that_the_build_script_computes(name):
    digest = hashlib.sha256()
    for key, array in sorted(data.load(name).items()):
        digest.update(f"{key} {array.dtype.str} {array.shape} ".encode("ascii"))
        digest.update(array.tobytes())

    assert digest.hexdigest() == manifest()[name]["content_sha256"]


@pytest.mark.parametrize("name", ["digits", "diamonds"])
def test_stored_order_is_a_permutation(name):
    order = data.load(name)["order"]

    assert np.array_equal(np.sort(order), np.arange(len(order)))


def test_diamonds_hold_no_stone_twice():
    arrays = data.load("diamonds")
    table = np.stack([arrays[key].astype(np.int64) for key in sorted(arrays) if key != "order"])

    assert len(np.unique(table, axis=1).T) == 53775


def test_texts_are_plain_ascii():
    for text in data.load("shakespeare").values():
        text.tobytes().decode("ascii")
    assert data.load("shakespeare")["val"].tobytes().startswith(b"TWELFTH NIGHT; OR, WHAT YOU WILL")


def test_loaded_arrays_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        data.load("digits")["images"][0, 0, 0] = 1


def test_a_damaged_file_is_refused_with_the_remedy():
    with pytest.raises(
        data.DamagedDataError,
        match=r"^digits\.npz\.xz has sha256 [0-9a-f]{64}, the "
        r"manifest says 00: reinstall optim-bench$",
    ):
        _vendored._unpack("digits", b"not xz at all", "00")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match="no vendored data named 'iris'; there are digits, "):
        data.load("iris")


@pytest.mark.parametrize("name", CONTENTS)
def test_notice_names_each_file_and_its_licence(name):
    notice = data.notice()
    licences = {
        "digits": "Creative Commons Attribution 4.0",
        "diamonds": "Permission is hereby granted, free of charge",
        "photos": "Creative Commons Attribution 2.0",
        "shakespeare": "Creative Commons Attribution 2.5",
    }
    section = notice.partition(f"## {name}.npz.xz")[2].partition("\n## ")[0]

    assert licences[name] in section
    assert data.SOURCES[name].origin in section


def test_real_workloads_name_their_sources_and_licences():
    for workload in workloads.WORKLOADS.values():
        if workload.kind == "real" and workload.sources:
            assert set(workload.sources) <= set(data.SOURCES)
            assert workload.licence


def test_build_script_pins_every_artefact_by_digest():
    path = Path(__file__).parents[1] / "tools" / "build_data.py"
    text = path.read_text("utf-8")

    for source in data.SOURCES.values():
        name, version = source.origin.split()
        assert f'"{name}=={version}"' in text
