import threading

import numpy as np
import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import _background, _fs
from optim_checkpoint import torch as ckpt
from optim_checkpoint.torch._save import build_document


class SlowOps(_fs.FileOps):
    """Waits before the first write until it is told to go on."""

    def __init__(self):
        self.go = threading.Event()

    def write(self, fd, data):
        assert self.go.wait(30)
        return super().write(fd, data)


def test_a_save_in_the_background_is_a_snapshot(tmp_path, monkeypatch):
    slow = SlowOps()
    monkeypatch.setattr(_fs, "ops", slow)
    model = torch.nn.Linear(3, 2)
    expected = model.weight.detach().clone()
    with ckpt.AsyncCheckpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(1, model=model, extra={"n": 1})
        assert oc.steps(tmp_path) == []
        with torch.no_grad():
            model.weight.fill_(9)
        slow.go.set()
        assert checkpointer.wait() == tmp_path / "step-00000001"
        for step in (2, 3):
            checkpointer.save(step, model=model)
    assert oc.steps(tmp_path) == [2, 3]
    other = torch.nn.Linear(3, 2)
    ckpt.restore(tmp_path, model=other)
    assert (other.weight == 9).all()
    with ckpt.AsyncCheckpointer(tmp_path / "again") as checkpointer:
        checkpointer.save(1, extra={"t": expected})
        expected_copy = expected.clone()
        expected.zero_()
    assert torch.equal(ckpt.restore(tmp_path / "again").extra["t"], expected_copy)


def test_the_snapshot_is_what_was_there_at_the_call(tmp_path, monkeypatch):
    slow = SlowOps()
    monkeypatch.setattr(_fs, "ops", slow)
    tensor = torch.arange(5.0)
    with ckpt.AsyncCheckpointer(tmp_path) as checkpointer:
        checkpointer.save(1, extra={"t": tensor})
        tensor.zero_()
        slow.go.set()
    assert ckpt.restore(tmp_path).extra["t"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_failed_save_surfaces_at_the_next_call(tmp_path):
    checkpointer = ckpt.AsyncCheckpointer(tmp_path)
    checkpointer.save(1, extra={})
    checkpointer.save(1, extra={})
    with pytest.raises(oc.CheckpointExistsError, match="already holds step 1"):
        checkpointer.save(2, extra={})
    checkpointer.save(2, extra={})
    assert checkpointer.wait() == tmp_path / "step-00000002"


def save_twice(folder, then=None):
    with ckpt.AsyncCheckpointer(folder) as checkpointer:
        checkpointer.save(1, extra={})
        checkpointer.save(1, extra={})
        if then is not None:
            raise then


def test_a_failed_save_surfaces_at_the_end_of_the_block(tmp_path):
    with pytest.raises(oc.CheckpointExistsError):
        save_twice(tmp_path)


def test_an_error_in_the_block_is_not_hidden(tmp_path):
    with (
        pytest.warns(oc.CheckpointWarning, match="the pending save failed"),
        pytest.raises(KeyError, match="mine"),
    ):
        save_twice(tmp_path, KeyError("mine"))


def test_what_cannot_be_stored_is_an_error_at_once(tmp_path):
    with ckpt.AsyncCheckpointer(tmp_path) as checkpointer:
        with pytest.raises(oc.UnsupportedStateError):
            checkpointer.save(1, extra={"f": print})
        with pytest.raises(ValueError, match="step is -1"):
            checkpointer.save(-1)
    assert oc.steps(tmp_path) == []


def test_the_staging_memory_is_reused(tmp_path):
    model = torch.nn.Linear(64, 64)
    with ckpt.AsyncCheckpointer(tmp_path) as checkpointer:
        checkpointer.save(1, model=model)
        checkpointer.wait()
        memory = checkpointer._staging.ctypes.data
        checkpointer.save(2, model=model)
        checkpointer.wait()
        assert checkpointer._staging.ctypes.data == memory
    assert checkpointer._staging.nbytes == 0
    checkpointer.save(3, model=model)
    checkpointer.wait()
    assert oc.verify(tmp_path).step == 3


def test_a_save_that_a_signal_handler_starts_is_not_overwritten_by_the_one_it_interrupts(
    tmp_path, monkeypatch
):
    slow = SlowOps()
    monkeypatch.setattr(_fs, "ops", slow)
    checkpointer = ckpt.AsyncCheckpointer(tmp_path)

    class Pending:
        """The save that was being waited for when the signal came."""

        def join(self):
            self.join = lambda: None
            checkpointer.save(1, extra={"t": torch.ones(3)})
            threading.Timer(0.1, slow.go.set).start()

    checkpointer._writer = Pending()
    checkpointer.save(2, extra={"t": torch.zeros(3)})
    checkpointer.wait()
    assert ckpt.restore(tmp_path, 1).extra["t"].tolist() == [1.0, 1.0, 1.0]
    assert ckpt.restore(tmp_path, 2).extra["t"].tolist() == [0.0, 0.0, 0.0]


def test_a_save_inside_of_a_save_is_refused(tmp_path, monkeypatch):
    checkpointer = ckpt.AsyncCheckpointer(tmp_path)
    copy_bytes = _background.copy_bytes

    def interrupted(target, source):
        with pytest.raises(oc.CheckpointWriteError, match="step 2 was not saved: another save"):
            checkpointer.save(2, extra={"t": torch.zeros(3)})
        copy_bytes(target, source)

    monkeypatch.setattr(_background, "copy_bytes", interrupted)
    checkpointer.save(1, rng=False, extra={"t": torch.ones(3)})
    checkpointer.wait()
    monkeypatch.undo()
    checkpointer.save(3, extra={})
    checkpointer.wait()
    assert oc.steps(tmp_path) == [1, 3]
    assert ckpt.restore(tmp_path, 1, rng=False).extra["t"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("number", [torch.tensor(5), np.int64(5), np.array(5)], ids=repr)
def test_a_step_of_any_integer_type_can_be_restored(tmp_path, number):
    assert ckpt.save(tmp_path, number, extra={}).name == "step-00000005"
    with ckpt.AsyncCheckpointer(tmp_path) as checkpointer:
        checkpointer.save(number + 1, extra={})
    assert [ckpt.restore(tmp_path, step).step for step in (5, 6)] == [5, 6]
    # Processes tell each other their step in JSON, which knows no other integers.
    assert type(build_document(number, extra={}).step) is int


def test_a_thread_that_cannot_start_does_not_end_all_saves(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    checkpointer = ckpt.AsyncCheckpointer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(
            oc.CheckpointWriteError, match=r"step 1 .*: can't start new thread; save\(\) needs no"
        ):
            checkpointer.save(1, extra={})
    checkpointer.save(2, extra={})
    assert checkpointer.wait() == tmp_path / "step-00000002"


def test_a_relative_folder_is_that_of_the_start(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with ckpt.AsyncCheckpointer("run") as checkpointer:
        checkpointer.save(1, extra={})
        monkeypatch.chdir("elsewhere")
        checkpointer.save(2, extra={})
    assert oc.steps(tmp_path / "run") == [1, 2]


def test_too_little_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    for step in (1, 2):
        ckpt.save(tmp_path, step, extra={"t": torch.ones(3)}, rng=False)

    def refuse(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", refuse)
        with pytest.raises(MemoryError, match=r"no memory for extra.* of 12 bytes: DefaultCPU"):
            ckpt.restore(tmp_path, rng=False)
    assert ckpt.restore(tmp_path, rng=False).step == 2
