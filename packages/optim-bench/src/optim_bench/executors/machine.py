"""What a machine says about itself, without a framework."""

import platform
import shutil
import subprocess
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/version")


def processor() -> str:
    """Return the model of the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a user's path
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def driver() -> str:
    """Return the version line of the NVIDIA driver, "unknown" where there is none."""
    try:
        return _DRIVER.read_text(encoding="utf-8").splitlines()[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return "unknown"


def commit(folder: Path) -> str:
    """Return the commit that a folder is at, empty where it is in no repository."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603 - git, and a folder
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
