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
WHEEL = "stam_jax-0.1.0.dist-info/WHEEL"


def wheel(folder, metadata=METADATA, licence=LICENCE, stray=(), pure="true"):
    path = folder / "stam_jax-0.1.0-py3-none-any.whl"
    files = {"stam_jax-0.1.0.dist-info/METADATA": metadata, licence: "", RECORD: ""}
    files[WHEEL] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: {pure}\n"
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


def test_a_pure_wheel_has_nothing_compiled(tmp_path):
    stray = "stam_jax/kernels/default.so"
    found = problems(wheel(tmp_path, stray=[stray], pure="false"))
    assert f"the compiled files are ['{stray}'], not []" in found
    assert "WHEEL does not say Root-Is-Purelib: true" in found


LINUX = "stac_torch-0.1.0-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl"
ARM = "stac_torch-0.1.0-py3-none-manylinux_2_17_aarch64.whl"
MAC = "stac_torch-0.1.0-py3-none-macosx_11_0_arm64.whl"
ALL, ONE = ("avx2", "avx512", "default"), ("default",)
OF_PLATFORM = "Root-Is-Purelib: false\n"


def compiled(file, names, wheel=OF_PLATFORM):
    names = [f"stac_torch/kernels/{name}.so" for name in names]
    return list(check_distributions.compiled_problems(file, names, wheel))


@pytest.mark.parametrize(("file", "names"), [(LINUX, ALL), (ARM, ONE), (MAC, ONE)])
def test_the_wheel_of_a_platform_has_what_is_compiled_for_it(file, names):
    assert compiled(file, names) == []
    (found,) = compiled(file, names[1:])
    assert found.startswith("the compiled files are [")
    (found,) = compiled(file, names, "Root-Is-Purelib: true\n")
    assert found == "WHEEL does not say Root-Is-Purelib: false"


def test_the_tag_of_a_wheel_is_one_that_an_index_takes():
    (found,) = compiled(LINUX.replace("manylinux1_x86_64.manylinux_2_5", "linux"), ALL)
    assert "does not say for which libc" in found
    (found,) = compiled(LINUX.replace("py3-none", "cp313-cp313"), ALL)
    assert "is for one Python alone" in found
    for file in (LINUX.replace("stac_torch", "stam_jax"), LINUX.replace("x86_64", "s390x")):
        (found,) = compiled(file, ALL)
        assert "has no wheel for many" in found


def test_an_sdist_without_tests_and_licence_is_named(tmp_path):
    path = tmp_path / "stam_jax-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            archive.addfile(tarfile.TarInfo(f"stam_jax-0.1.0/{name}"), io.BytesIO())
        information = tarfile.TarInfo("stam_jax-0.1.0/PKG-INFO")
        information.size = len(METADATA)
        archive.addfile(information, io.BytesIO(METADATA.encode()))
    assert problems(path) == ["the tests are missing", "LICENSE is missing"]
