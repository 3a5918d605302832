"""Each rule of the workspace is broken once, and the check must say so."""

import subprocess

import check_workspace
import pytest
import workspace

LICENCE = b"MIT"
PYPROJECT = """
[project]
name = "stam-jax"
version = "0.1.0"
dependencies = ["{requirement}", "numpy>=1.26"]
urls = {urls}
"""


def pyproject(requirement="stam-core>=0.1,<0.2", address=workspace.ADDRESS):
    pairs = (f'{name} = "{url}"' for name, url in workspace.urls("stam-jax", address).items())
    return PYPROJECT.format(requirement=requirement, urls=f"{{ {', '.join(pairs)} }}")


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "packages" / "stam-jax"
    (folder / "src" / "stam_jax").mkdir(parents=True)
    (folder / "src" / "stam_jax" / "py.typed").touch()
    (folder / "LICENSE").write_bytes(LICENCE)
    (folder / "CHANGELOG.md").write_text(check_workspace.MARKER)
    (folder / "pyproject.toml").write_text(pyproject())
    return folder


def found(folder):
    return list(check_workspace.package_problems(folder, LICENCE))


def test_a_sound_package_has_no_problem(package):
    assert found(package) == []


@pytest.mark.parametrize("requirement", ["stam-core", "stam-core>=0.1", "stam-core<0.2"])
def test_a_sibling_needs_both_bounds(package, requirement):
    (package / "pyproject.toml").write_text(pyproject(requirement))
    assert [line for line in found(package) if "floor and a ceiling" in line]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("LICENSE", "BSD", "LICENSE differs"),
        ("CHANGELOG.md", "## 0.1.0", "below which releases are written"),
    ],
)
def test_a_wrong_file_is_named(package, name, text, problem):
    (package / name).write_text(text)
    assert [line for line in found(package) if problem in line]


def test_a_missing_type_marker_is_named(package):
    (package / "src" / "stam_jax" / "py.typed").unlink()
    assert found(package) == ["src/stam_jax/py.typed is missing"]


def test_an_address_of_its_own_is_named(package):
    (package / "pyproject.toml").write_text(pyproject(address="https://else.invalid/x"))
    (problem,) = found(package)
    assert "[project.urls] is not that of workspace.py" in problem


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("#heading", None),
        ("https://else.example/x", None),
        (f"{workspace.ADDRESS}/blob/main/packages/stam-jax/LICENSE#x", None),
        ("GUIDE.md", "README.md links to GUIDE.md: write https://"),
    ],
)
def test_links_of_a_readme_work_on_an_index(package, target, problem):
    (package / "README.md").write_text(f"[x]({target})")
    found = list(check_workspace.readme_problems(package.parents[1], "stam-jax"))
    assert len(found) == (problem is not None)
    assert all(line.startswith(problem) for line in found)


def test_the_index_of_findings_is_held_to_the_folder(tmp_path):
    (tmp_path / "one.sh").touch()
    (tmp_path / "two.sh").touch()
    (tmp_path / "README.md").write_text("| [one](one.sh) | two.sh |")
    assert list(check_workspace.finding_problems(tmp_path)) == [
        "findings/README.md does not list two.sh"
    ]


def test_a_package_that_no_list_names_is_missed_in_each():
    root = check_workspace.ROOT
    assert list(check_workspace.list_problems(root, ["stam-core", "optim-bench"])) == []
    missed = list(check_workspace.list_problems(root, ["stam-new"]))
    assert len(missed) == len(check_workspace.LISTS) + 1
    assert '.github/workflows/release.yml does not name stam-new (as "stam-new-v*")' in missed
    assert any(line.startswith("import-linter has no contract for stam-new") for line in missed)


def tracked(folder, name, text=""):
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for command in ("init", "add"):
        subprocess.run(["git", "-C", str(folder), command, "."], check=True)
    return list(check_workspace.tracked_problems(folder, "index.example"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("packages/stam-jax/tests/__init__.py", "importlib mode"),
        ("packages/x/tests_parity/a/__init__.py", "importlib mode"),
        ("packages/x/uv.lock", "names index hosts"),
        ("packages/x/src/x/__init__.py", None),
    ],
)
def test_a_forbidden_name_is_named(tmp_path, name, problem):
    found = tracked(tmp_path, name)
    assert [problem in line for line in found] == [True] * bool(problem)


@pytest.mark.parametrize(
    "line",
    [
        "index = 'https://index.example/simple'",
        "cd " + "/home" + "/someone/project",
        "'/root" + "/x'",
        "/root" + "/x",
    ],
)
def test_hosts_and_machine_paths_are_named(tmp_path, line):
    (found,) = tracked(tmp_path, "a/f.py", f"fine\n{line}\n")
    assert found == f"a/f.py:2:{line}: names an index host, or a path of one machine"


def test_relative_paths_are_not_machine_paths(tmp_path):
    text = "packages/root/x and ../work/y and data/home/me/z and indexXexample"
    assert tracked(tmp_path, "a/f.py", text) == []
