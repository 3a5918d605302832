"""The Triton kernels without a GPU: interpreted bit for bit, and compiled for what they move."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stac_torch import _fused, _sign
from stac_torch._records import Slot

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch alone")

SCRIPT = Path(__file__).parent / "triton_script.py"


@pytest.mark.slow
def test_the_bits_of_the_plain_path():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 4 * 5 + 5


def tensors(shapes, dtype, moment):
    slots = []
    for shape in shapes:
        state = {} if moment is None else {"exp_avg": torch.zeros(shape, dtype=moment)}
        if moment is torch.int8:
            state["exp_avg_scale"] = torch.zeros(shape[0], -(-shape[1] // 256))
        slots.append(Slot(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), state))
    return slots


def planned(shapes, dtype=torch.float32, moment=torch.float32, **given):
    from stac_torch import _fused_cuda

    options = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "maximize": False, **given}
    return _fused_cuda.launches(tensors(shapes, dtype, moment), _sign.SignOptions(**options))


def assembly(launch):
    """Compile a launch for compute capability 9.0, which needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compiled

    types = {torch.int64: "*i64", torch.int32: "*i32", torch.float32: "*fp32", torch.bool: "*u1"}
    signature, constants = {}, {}
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(parameter.num,)] = "constexpr", value
        else:
            is_tensor = isinstance(value, torch.Tensor)
            signature[parameter.name] = types[value.dtype] if is_tensor else "fp32"
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants)
    options = {"num_warps": 8, "enable_fp_fusion": False}
    return compiled(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def bytes_per_entry(ptx, kind, entries):
    """Bytes that all 256 threads of a program load or store in vectors, over the tile's entries."""
    found = re.findall(rf"{kind}\.global\.v(\d)\.b(\d+)", ptx)
    return 256 * sum(int(width) * int(bits) // 8 for width, bits in found) / entries


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "moment", "read", "written"),
    [
        (torch.float32, torch.float32, 12, 8),
        (torch.float32, torch.bfloat16, 10, 6),
        (torch.float32, None, 8, 4),
        (torch.bfloat16, torch.bfloat16, 6, 4),
        (torch.float32, torch.int8, 9, 5),
    ],
)
def test_each_byte_is_moved_once_in_whole_vectors(dtype, moment, read, written):
    from stac_torch import _fused_cuda

    (launch,) = planned([(64, 256)], dtype, moment, skip=torch.tensor(False))
    ptx = assembly(launch)
    int8 = _fused_cuda.INT8_BLOCKS * 256
    entries = int8 if moment is torch.int8 else _fused_cuda.TILE
    assert bytes_per_entry(ptx, "ld", entries) == read
    assert bytes_per_entry(ptx, "st", entries) == written
    # With one the bits would not be those of the plain path.
    assert "fma." not in ptx


def test_a_step_is_a_handful_of_launches():
    shapes = [(64, 256)] * 3000
    for moment in (torch.float32, torch.int8, None):
        (launch,) = planned(shapes, moment=moment)
        programs = launch.arguments["chunks"]
        assert launch.programs == len(programs)
        assert programs[:, 0].unique().tolist() == list(range(3000))
    mixed = planned([(64, 256)] * 5 + [(3, 5)] * 5 + [(0, 4)])
    # Those whose length is no multiple of 16 take loads of single entries.
    assert [launch.arguments["ALIGNED"] for launch in mixed] == [True, False]


def test_chunks_cover_each_entry_once():
    from stac_torch import _fused_cuda

    per_chunk = _fused_cuda.TILE * _fused_cuda.TILES
    (launch,) = planned([(16, per_chunk), (1, 16), (16, per_chunk // 16 + 1)])
    found = launch.arguments["chunks"].tolist()
    assert found == [[0, i] for i in range(16)] + [[1, 0]] + [[2, 0], [2, 1]]
    (launch,) = planned([(5, 512), (100, 32)], moment=torch.int8)
    assert launch.arguments["chunks"].tolist() == [[0, 0], [0, 1]] + [[1, i] for i in range(13)]


def test_a_default_device_is_not_where_tables_are_made():
    """On it they could not be pinned."""
    from stac_torch import _fused_cuda

    options = _sign.SignOptions(lr=1e-3, weight_decay=0.1, momentum=0.9, maximize=False)
    for moment in (torch.float32, torch.int8):
        held = tensors([(9, 700)], torch.float32, moment)
        with torch.device("meta"):
            (launch,) = _fused_cuda.launches(held, options)
        assert {launch.arguments[name].device.type for name in ("table", "chunks")} == {"cpu"}


def test_the_table_is_copied_again_only_when_an_address_changes():
    from stac_torch import _fused_cuda

    held = tensors([(64, 256)] * 3, torch.float32, torch.float32)
    options = _sign.SignOptions(lr=1e-3, weight_decay=0.1, momentum=0.9, maximize=False)
    tables = [_fused_cuda.launches(held, options)[0].arguments["table"] for _ in range(2)]
    assert tables[0] is tables[1]
    held[1] = held[1]._replace(grad=torch.ones(64, 256))
    (launch,) = _fused_cuda.launches(held, options)
    assert launch.arguments["table"] is not tables[0]
    assert launch.arguments["chunks"].tolist() == [[0, 0], [1, 0], [2, 0]]


def test_what_a_capture_copies_serves_no_other_step(monkeypatch):
    """Inside a capture nothing runs, so its table holds nothing before the first replay."""
    from stac_torch import _fused_cuda

    held = tensors([(64, 256), (32, 256)], torch.float32, torch.float32)
    options = _sign.SignOptions(lr=1e-3, weight_decay=0.1, momentum=0.9, maximize=False)
    monkeypatch.setattr(_fused_cuda, "_captured", [])
    with monkeypatch.context() as inside:
        inside.setattr(_fused_cuda, "_capturing", lambda device: True)
        (captured,) = _fused_cuda.launches(held, options)
    (after,) = _fused_cuda.launches(held, options)
    for name in ("table", "chunks"):
        assert after.arguments[name] is not captured.arguments[name]
        assert any(captured.arguments[name] is kept for kept in _fused_cuda._captured[0])


def test_a_new_learning_rate_compiles_nothing_new():
    """Everything that a kernel is specialised on is a constant of the launch or a dtype."""
    first, second = (planned([(64, 256)], lr=lr)[0] for lr in (1e-3, 1.0))
    differing = {k for k in first.arguments if first.arguments[k] is not second.arguments[k]}
    assert differing <= {"lr", "decay", "momentum", "fresh", "largest", "table"}
    assert all(isinstance(launch.arguments["lr"], float) for launch in (first, second))


def test_without_triton_cuda_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match="fused=True on CUDA needs Triton, which cannot be"):
        _fused.require_triton()


def test_copies_of_gradients_outlive_the_launch():
    """The table holds addresses alone: of two copies one would have the other's memory."""
    from stac_torch import _fused_cuda

    held = tensors([(64, 256)] * 4, torch.float32, torch.float32)
    held = [slot._replace(grad=torch.full((256, 64), float(i)).t()) for i, slot in enumerate(held)]
    options = _sign.SignOptions(lr=1e-3, weight_decay=0.1, momentum=0.9, maximize=False)
    (launch,) = _fused_cuda.launches(held, options)
    assert launch.arguments["table"][:, 1].tolist() == [g.data_ptr() for g in launch.kept]
    assert [g.unique().tolist() for g in launch.kept] == [[0.0], [1.0], [2.0], [3.0]]
    assert all(g.is_contiguous() for g in launch.kept)
