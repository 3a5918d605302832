"""What the rehearsal of a release changes in its clone before it starts."""

import shutil

import release
import release_check
from workspace import PACKAGES, ROOT


def test_what_was_released_before_is_rehearsed_again(tmp_path):
    for package in PACKAGES:
        folder = tmp_path / "packages" / package
        folder.mkdir(parents=True)
        for name in ("pyproject.toml", "CHANGELOG.md"):
            shutil.copy(ROOT / "packages" / package / name, folder / name)
    core = tmp_path / "packages" / "stam-core"
    text = (core / "pyproject.toml").read_text(encoding="utf-8")
    version = release.project(tmp_path, "stam-core")["version"]
    text = text.replace(f'version = "{version}"', 'version = "0.1.7"')
    (core / "pyproject.toml").write_text(text, encoding="utf-8")
    older = "## 0.1.6 (2026-01-01)\n\n- before\n"
    changes = f"# Changelog\n\n## 0.1.7 (2026-02-01)\n\n- now\n\n{older}"
    (core / "CHANGELOG.md").write_text(changes, encoding="utf-8")

    release_check.before_release(tmp_path)

    assert (core / "CHANGELOG.md").read_text(encoding="utf-8") == f"# Changelog\n\n{older}"
    assert list((core / "changes").iterdir())
    assert "stam-core>=0.1.7,<0.2" in release.project(tmp_path, "stam-jax")["dependencies"]
    extras = release.project(tmp_path, "optim-bench")["optional-dependencies"]
    jax = release.project(tmp_path, "stam-jax")["version"]
    assert f"stam-jax>={jax},<0.2" in extras["jax"]
