import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("sharded_worker.py")


def test_eight_devices_save_and_two_restore(tmp_path):
    for mode in ("save", "restore"):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), mode, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
