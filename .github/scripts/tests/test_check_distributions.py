"""Sound files pass; each thing that can be wrong with them is named."""

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
LICENCE = "stam_jax-0.1.0.dist-info/licenses/LICENSE"
RECORD = "stam_jax-0.1.0.dist-info/RECORD"


def wheel(folder, metadata=METADATA, licence=LICENCE, stray=()):
    path = folder / "stam_jax-0.1.0-py3-none-any.whl"
    files = {"stam_jax-0.1.0.dist-info/METADATA": metadata, licence: "", RECORD: ""}
    files[RECORD] = "".join(f"{name},,\n" for name in files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, **dict.fromkeys(stray, "")}.items():
            archive.writestr(name, text)
    return path


def problems(path):
    return list(check_distributions.problems(path))


def test_a_sound_wheel_passes(tmp_path):
    assert problems(wheel(tmp_path)) == []


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
    (found,) = problems(wheel(tmp_path, METADATA.replace(old, new)))
    assert problem in found


def test_a_missing_licence_is_named(tmp_path):
    assert problems(wheel(tmp_path, licence="LICENSE")) == [f"{LICENCE} is missing"]


def test_a_file_that_the_record_does_not_list_is_named(tmp_path):
    (found,) = problems(wheel(tmp_path, stray=["stam_jax/more.py"]))
    assert found == "stam_jax/more.py is in RECORD or in the archive, and not in both"


def test_an_sdist_without_tests_and_licence_is_named(tmp_path):
    path = tmp_path / "stam_jax-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            archive.addfile(tarfile.TarInfo(f"stam_jax-0.1.0/{name}"), io.BytesIO())
        information = tarfile.TarInfo("stam_jax-0.1.0/PKG-INFO")
        information.size = len(METADATA)
        archive.addfile(information, io.BytesIO(METADATA.encode()))
    assert problems(path) == ["the tests are missing", "LICENSE is missing"]
