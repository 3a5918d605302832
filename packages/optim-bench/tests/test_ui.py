"""The live display on a terminal; plain lines elsewhere are tested with the command line."""

import io

from optim_bench.cli.ui import live_progress
from optim_bench.protocol import Phase
from optim_bench.protocol.campaign import CellProgress, Progress
from rich.console import Console


def test_a_terminal_sees_every_cell_its_phase_and_its_troubles(make_spec, make_record):
    console = Console(force_terminal=True, file=io.StringIO(), width=100)
    cells = {
        "toy/jax/stam": CellProgress(Phase.TUNING, 2, 9),
        "toy/torch/stac": CellProgress(Phase.DONE, 7, 7),
    }
    with live_progress(console) as listener:
        listener(Progress(cells, 9, make_record(make_spec(), None)))
        console.file.truncate(0)
        listener(Progress(cells, 9, None))
    shown = console.file.getvalue()
    for text in ("stam", "2/9", "tuning", "PyTorch", "7/7", "done"):
        assert text in shown
    assert "9 of 16 runs" in shown
    assert "about" in shown
    assert "1 diverged" in shown
