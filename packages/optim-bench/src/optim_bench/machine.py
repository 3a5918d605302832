"""What a machine says about itself, without a framework."""

import platform
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
