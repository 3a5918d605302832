"""Sound files pass; each thing that can be wrong with them is named."""

import io
import tarfile
import zipfile

import check_distributions
import pytest

METADATA = """Metadata-Version: 2.4
Name: stam-jax
Version: 0.1.0
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


def test_metadata_that_indexes_do_not_take_are_named(tmp_path):
    (found,) = problems(wheel(tmp_path, METADATA.replace("2.4", "2.5")))
    assert found == r"its metadata begin with b'Metadata-Version: 2.5'; indexes take version 2.4"


def test_a_missing_licence_is_named(tmp_path):
    assert problems(wheel(tmp_path, licence="LICENSE")) == [f"{LICENCE} is missing"]


def test_a_file_that_the_record_does_not_list_is_named(tmp_path):
    (found,) = problems(wheel(tmp_path, stray=["stam_jax/more.py"]))
    assert found == "stam_jax/more.py is in RECORD or in the archive, and not in both"


def test_a_pure_wheel_has_nothing_compiled(tmp_path):
    stray = "stam_jax/kernels/default.so"
    assert problems(wheel(tmp_path, stray=[stray])) == [
        f"{stray} is in RECORD or in the archive, and not in both",
        f"the compiled files are ['{stray}'], not []",
    ]


LINUX = "stac_torch-0.1.0-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl"
ARM = "stac_torch-0.1.0-py3-none-manylinux_2_17_aarch64.whl"
MAC = "stac_torch-0.1.0-py3-none-macosx_11_0_arm64.whl"
ALL, ONE = ("avx2", "avx512", "default"), ("default",)


def compiled(file, names):
    names = [f"stac_torch/kernels/{name}.so" for name in names]
    return list(check_distributions.compiled_problems(file, names))


@pytest.mark.parametrize(("file", "names"), [(LINUX, ALL), (ARM, ONE), (MAC, ONE)])
def test_the_wheel_of_a_platform_has_what_is_compiled_for_it(file, names):
    assert compiled(file, names) == []
    (found,) = compiled(file, names[1:])
    assert found.startswith("the compiled files are [")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("manylinux1_x86_64.manylinux_2_5", "linux"),  # auditwheel says for which libc it is
        ("manylinux1", "linux"),
        ("py3-none", "cp313-cp313"),
        ("py3-none", "py3-abi3"),
        ("x86_64", "s390x"),
        ("stac_torch", "stam_jax"),
    ],
)
def test_a_tag_that_no_wheel_is_released_under_is_named(old, new):
    (found,) = compiled(LINUX.replace(old, new), ALL)
    assert found.startswith("no wheel of sta")


def test_an_sdist_without_tests_and_licence_is_named(tmp_path):
    path = tmp_path / "stam_jax-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            archive.addfile(tarfile.TarInfo(f"stam_jax-0.1.0/{name}"), io.BytesIO())
        information = tarfile.TarInfo("stam_jax-0.1.0/PKG-INFO")
        information.size = len(METADATA)
        archive.addfile(information, io.BytesIO(METADATA.encode()))
    assert problems(path) == ["LICENSE is missing", "tests is missing"]
