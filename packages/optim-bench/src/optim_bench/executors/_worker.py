"""A worker process: specs in, records out, as JSON lines.

Started as `python -m optim_bench.executors._worker`. The first line says how to start:
`{"trainer", "data_dir", "core", "path", "device"}`. Frameworks print to the standard output now and
then; the records travel over a copy of it, and the original goes to the log.

The standard input ends when the parent wants no more or is gone, however it went. A thread of its
own waits for that: a run of minutes must not outlive the process that asked for it.
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path

from optim_bench.executors._base import Trainer, failed_record, load_trainer, run_spec
from optim_bench.executors._devices import pin
from optim_bench.records import RunRecord, RunSpec


def main() -> None:
    """Serve until the standard input ends."""
    records = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    start = json.loads(sys.stdin.readline())
    if start["core"] is not None:
        pin(start["core"])
    sys.path.extend(entry for entry in start["path"] if entry not in sys.path)
    data_dir = None if start["data_dir"] is None else Path(start["data_dir"])
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    trainer: Trainer | None = None
    while True:
        spec = RunSpec.from_json(json.loads(lines.get()))
        record: RunRecord
        try:
            trainer = trainer or load_trainer(start["trainer"])
        except Exception as error:  # noqa: BLE001 - reported in the record
            record = failed_record(spec, f"{type(error).__name__}: {error}")
        else:
            record = run_spec(trainer, spec, data_dir, start["device"])
        records.write(json.dumps(record.to_json(), allow_nan=False) + "\n")
        records.flush()


def _listen(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
