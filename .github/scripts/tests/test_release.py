"""Each release that must be refused is tried against a small repository and a made-up index."""

import subprocess

import pytest
import release
from packaging.version import Version

PYPROJECT = """[project]
name = "{name}"
version = "0.2.0"
dependencies = [{dependencies}]

[project.optional-dependencies]
jax = [{extra}]
"""


def git(root, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True)


def write(root, name, dependencies="", extra=""):
    folder = root / "packages" / name
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        PYPROJECT.format(name=name, dependencies=dependencies, extra=extra), encoding="utf-8"
    )
    (folder / "CHANGELOG.md").write_text("## 0.2.0 (2026-11-21)\n", encoding="utf-8")
    module = folder / "src" / name.replace("-", "_")
    module.mkdir(parents=True)
    (module / "__init__.py").write_text('"""X."""\n\n__version__ = "0.2.0"\n', encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    git(tmp_path, "init", "--quiet")
    write(tmp_path, "stam-core")
    write(tmp_path, "stam-jax", '"stam-core>=0.2,<0.3"')
    write(tmp_path, "optim-bench", extra='"stam-jax>=0.2,<0.3", "optim-bench[torch]"')
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "x")
    return tmp_path


@pytest.fixture
def index(monkeypatch):
    versions = {"stam-core": {Version("0.1.0"), Version("0.2.0")}}
    monkeypatch.setattr(release, "published", lambda _, package: versions.get(package, set()))
    return versions


def refusal(root, **what):
    arguments = {"tag": None, "package": None, "index": None, **what}
    with pytest.raises(release.RefusedError) as refused:
        release.plan(root, **arguments)
    return str(refused.value)


def test_a_sound_release_is_planned(root, index):
    git(root, "tag", "stam-jax-v0.2.0")
    assert release.plan(root, "stam-jax-v0.2.0", None, None) == ("stam-jax", "0.2.0")
    assert release.plan(root, None, "stam-jax", None) == ("stam-jax", "0.2.0")


@pytest.mark.parametrize("tag", ["v0.2.0", "stam-jax-0.2.0", "stam-v0.2.0", "stam-jax-v0.2"])
def test_a_tag_must_name_a_package_and_a_version(root, index, tag):
    assert "names no release; write <package>-vX.Y.Z" in refusal(root, tag=tag)


def test_an_unknown_package_is_refused(root, index):
    assert "'stam' is no package of this workspace" in refusal(root, package="stam")


def test_a_tag_must_match_the_declared_version(root, index):
    git(root, "tag", "stam-jax-v0.3.0")
    found = refusal(root, tag="stam-jax-v0.3.0")
    assert "the tag says 0.3.0, packages/stam-jax/pyproject.toml says 0.2.0" in found


def test_a_tag_must_be_on_what_is_checked_out(root, index):
    git(root, "tag", "stam-jax-v0.2.0")
    git(root, "commit", "--quiet", "--allow-empty", "--message", "later")
    assert "is not on the commit that is checked out" in refusal(root, tag="stam-jax-v0.2.0")


def test_a_dirty_tree_is_refused(root, index):
    (root / "stray.py").touch()
    assert "the tree is not clean; commit or remove: ?? stray.py" in refusal(
        root, package="stam-jax"
    )


def test_a_missing_changelog_section_is_refused(root, index):
    (root / "packages" / "stam-jax" / "CHANGELOG.md").write_text("## 0.1.0 (2026-01-01)\n")
    assert "CHANGELOG.md has no section for 0.2.0" in refusal(root, package="stam-jax")


def test_fragments_left_over_are_refused(root, index):
    (root / "packages" / "stam-jax" / "changes").mkdir()
    (root / "packages" / "stam-jax" / "changes" / "+a.fixed.md").touch()
    assert "changelog fragments are left over: +a.fixed.md" in refusal(root, package="stam-jax")


def test_a_published_version_is_refused(root, index):
    assert "stam-core 0.2.0 is already published" in refusal(root, package="stam-core")


def test_the_oldest_sibling_accepted_must_be_published(root, index):
    index["stam-core"] = {Version("0.1.0"), Version("0.2.1")}
    assert "stam-core 0.2 is not published; release it first" in refusal(root, package="stam-jax")


def test_the_siblings_of_an_extra_must_be_published_too(root, index):
    assert "stam-jax 0.2 is not published; release it first" in refusal(root, package="optim-bench")
    index["stam-jax"] = {Version("0.2.0")}
    assert release.plan(root, None, "optim-bench", None) == ("optim-bench", "0.2.0")


def test_a_plan_is_printed_as_the_workflow_reads_it(root, index, monkeypatch, capsys):
    monkeypatch.setattr(release, "ROOT", root)
    assert release.main(["plan", "--package", "stam-jax"]) == 0
    planned = 'package=stam-jax\nversion=0.2.0\nrunners=["ubuntu-24.04"]\n'
    assert capsys.readouterr().out == planned
    assert release.main(["plan", "--package", "optim-bench"]) == 1
    refused = capsys.readouterr()
    assert refused.out == ""
    assert refused.err == "refused:\nstam-jax 0.2 is not published; release it first\n"


def test_a_package_with_compiled_parts_is_built_on_every_platform(root, index, monkeypatch, capsys):
    monkeypatch.setattr(release, "ROOT", root)
    monkeypatch.setattr(release, "PURE", {"stam-core": "X"})
    index.clear()
    assert release.main(["plan", "--package", "stam-core"]) == 0
    runners = capsys.readouterr().out.splitlines()[-1]
    assert runners == 'runners=["ubuntu-24.04", "ubuntu-24.04-arm", "macos-15"]'


def test_a_pure_wheel_is_not_released_as_that_of_a_platform(tmp_path):
    with pytest.raises(release.RefusedError, match=r"x-1-py3-none-any\.whl is pure: install a C"):
        release.add_platform(tmp_path / "x-1-py3-none-any.whl", tmp_path / "out", {})


def test_a_placeholder_is_no_address(root, index):
    pyproject = root / "packages" / "stam-core" / "pyproject.toml"
    text = pyproject.read_text() + f'[project.urls]\nSource = "{release.ADDRESS}"\n'
    pyproject.write_text(text)
    git(root, "commit", "--quiet", "--all", "--message", "x")
    assert f"{release.ADDRESS} is no address; set the true one" in refusal(
        root, package="stam-core"
    )


def test_an_address_is_written_everywhere(root, index):
    scripts = root / ".github" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "workspace.py").write_text(f'ADDRESS = "{release.ADDRESS}"\n')
    for package in release.PACKAGES:
        folder = root / "packages" / package
        folder.mkdir(exist_ok=True)
        (folder / "pyproject.toml").write_text(f'Source = "{release.ADDRESS}/tree"\n')
        (folder / "README.md").write_text(f"[it]({release.ADDRESS}/blob/main/x.md)")
    git(root, "add", "--all")
    release.set_address(root, "https://there.example/x")
    assert (scripts / "workspace.py").read_text() == 'ADDRESS = "https://there.example/x"\n'
    texts = {path.read_text() for path in root.glob("packages/*/pyproject.toml")}
    assert texts == {'Source = "https://there.example/x/tree"\n'}
    texts = {path.read_text() for path in root.glob("packages/*/README.md")}
    assert texts == {"[it](https://there.example/x/blob/main/x.md)"}


def test_a_version_is_set_in_the_project_and_the_module(root, index, monkeypatch):
    ran = []
    monkeypatch.setattr(release.subprocess, "run", lambda command, **_: ran.append(command))
    release.prepare(root, "stam-core", "0.3.0")
    folder = root / "packages" / "stam-core"
    assert '\nversion = "0.3.0"\n' in (folder / "pyproject.toml").read_text()
    module = (folder / "src" / "stam_core" / "__init__.py").read_text()
    assert module == '"""X."""\n\n__version__ = "0.3.0"\n'
    assert "0.3.0" in ran[0]


def test_every_reason_is_given_at_once(root, index):
    index.clear()
    (root / "packages" / "stam-jax" / "CHANGELOG.md").write_text("")
    assert len(refusal(root, package="stam-jax").splitlines()) == 3
