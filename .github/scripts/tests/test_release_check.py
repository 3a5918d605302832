"""What the rehearsal of a release changes in its clone before it starts."""

import shutil

import release_check
from workspace import PACKAGES, ROOT, project


def test_what_was_released_before_is_rehearsed_again(tmp_path):
    for package in PACKAGES:
        folder = tmp_path / "packages" / package
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "packages" / package / "pyproject.toml", folder)
    core = tmp_path / "packages" / "stam-core" / "pyproject.toml"
    version = project(tmp_path / "packages" / "stam-core")["version"]
    text = core.read_text(encoding="utf-8")
    core.write_text(text.replace(f'version = "{version}"', 'version = "0.1.7rc1"'), "utf-8")

    release_check.raise_floors(tmp_path)

    assert release_check.coming(tmp_path, "stam-core") == "0.1.8"
    assert "stam-core>=0.1.8,<0.2" in project(tmp_path / "packages" / "stam-jax")["dependencies"]
    extras = project(tmp_path / "packages" / "optim-bench")["optional-dependencies"]
    assert f"stam-jax>={release_check.coming(tmp_path, 'stam-jax')},<0.2" in extras["jax"]
