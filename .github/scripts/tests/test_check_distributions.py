"""A sound wheel passes; each thing that can be wrong with it is named."""

import io
import tarfile
import zipfile

import check_distributions
import pytest

METADATA = """Metadata-Version: 2.4
Name: stam-jax
Version: 0.1.0
License-Expression: MIT
Requires-Dist: stam-core<0.2,>=0.1
"""
INFORMATION = "stam_jax-0.1.0.dist-info"
FILES = ("stam_jax/__init__.py", "stam_jax/py.typed", f"{INFORMATION}/licenses/LICENSE")


def wheel(folder, metadata=METADATA, without="", extra=()):
    path = folder / "stam_jax-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{INFORMATION}/METADATA", metadata)
        for name in (*FILES, *extra):
            if name != without:
                archive.writestr(name, "")
    return path


def test_a_sound_wheel_passes(tmp_path):
    assert check_distributions.problems_of_wheel(wheel(tmp_path)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Metadata-Version: 2.4", "Metadata-Version: 2.5", "Metadata-Version is 2.5"),
        ("MIT", "BSD", "License-Expression is BSD"),
        ("stam-core<0.2,>=0.1", "stam-core", "without both bounds: stam-core"),
        ("stam-core<0.2,>=0.1", "stam-core>=0.1", "without both bounds: stam-core>=0.1"),
    ],
)
def test_wrong_metadata_is_named(tmp_path, old, new, problem):
    (found,) = check_distributions.problems_of_wheel(wheel(tmp_path, METADATA.replace(old, new)))
    assert problem in found


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    found = check_distributions.problems_of_wheel(wheel(tmp_path, without=name))
    assert found == [f"{name} is missing"]


def test_a_stray_file_is_named(tmp_path):
    found = check_distributions.problems_of_wheel(wheel(tmp_path, extra=["tests/test_x.py"]))
    assert found == ["tests/test_x.py does not belong in the wheel"]


def test_an_sdist_without_tests_is_named(tmp_path):
    path = tmp_path / "stam_jax-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "PKG-INFO"):
            archive.addfile(tarfile.TarInfo(f"stam_jax-0.1.0/{name}"), io.BytesIO())
    found = check_distributions.problems_of_sdist(path)
    assert found == ["LICENSE is missing", "the tests are missing"]
