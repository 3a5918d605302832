"""Builds the CPU kernel into the wheel: C libraries that know neither Python's ABI nor torch's.

There is one for each set of vector instructions, under the name that torch gives that set, and a
process loads the one for its processor (`stac_torch._kernel`). Without a C compiler (`CC`, else
`cc`, `gcc` or `clang`), on Windows, or with `STAC_TORCH_PURE=1`, the wheel is pure and has none.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILERS = ("cc", "gcc", "clang")
# Each operation rounds by itself, so that the kernel has the bits of the plain path; the other two
# let square roots and roundings be vectorised and change no value.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# What torch asks a processor for before it speaks of these. NEON needs no flag.
SETS = {"x86_64": {"default": (), "avx2": AVX2, "avx512": AVX512}}
PLACE = "stac_torch/kernels"


class KernelHook(BuildHookInterface):
    """The build hook of hatchling's wheel target."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernel into the source tree, and from there into the wheel."""
        folder = Path(self.root, "src", PLACE)
        compiler, lacking = find_compiler()
        if lacking:
            self.app.display_warning(f"stac-torch without the CPU kernel, the pure form: {lacking}")
            if version == "editable":
                shutil.rmtree(folder, ignore_errors=True)
            return
        folder.mkdir(exist_ok=True)
        names = [f"{name}.so" for name in build(compiler, Path(self.root, "csrc"), folder)]
        build_data["tag"] = f"py3-none-{platform_tag()}"
        build_data["pure_python"] = False
        if version != "editable":
            for name in names:
                build_data["force_include"][str(folder / name)] = f"{PLACE}/{name}"


def find_compiler() -> tuple[list[str], str]:
    """Return the command of the C compiler, or why there is to be none."""
    if os.environ.get("STAC_TORCH_PURE", "0") not in ("", "0"):
        return [], "STAC_TORCH_PURE is set"
    if sys.platform == "win32":
        return [], "it is not built on Windows"
    chosen = shlex.split(os.environ.get("CC", ""))
    for candidate in [chosen] if chosen else [[name] for name in COMPILERS]:
        if found := shutil.which(candidate[0]):
            return [found, *candidate[1:]], ""
    return [], f"no C compiler ({shlex.join(chosen) or ', '.join(COMPILERS)}) is on the PATH"


def build(compiler: list[str], sources: Path, folder: Path) -> list[str]:
    """Build every library, side by side, and then move them to their places at once."""
    sets = SETS.get(platform.machine(), {"default": ()})
    if sys.platform == "darwin":
        os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", "11.0")
    with tempfile.TemporaryDirectory(dir=folder) as new:
        command = [*compiler, *FLAGS, str(sources / "sign.c"), "-o"]
        running = [
            subprocess.Popen([*command, str(Path(new, f"{name}.so")), *flags])  # noqa: S603
            for name, flags in sets.items()
        ]
        statuses = [process.wait() for process in running]
        if any(statuses):
            msg = (
                "the C compiler failed; name another in CC, or set STAC_TORCH_PURE=1 for no kernel"
            )
            raise RuntimeError(msg)
        for name in sets:
            Path(new, f"{name}.so").replace(folder / f"{name}.so")
    return [*sets]


def platform_tag() -> str:
    """Return the platform that the libraries are for; auditwheel says which Linux that is."""
    if sys.platform == "darwin":
        system = os.environ["MACOSX_DEPLOYMENT_TARGET"].replace(".", "_")
        return f"macosx_{system}_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
