"""Torch tensors as stored bytes and back, without changing a bit."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from optim_checkpoint import _parallel
from optim_checkpoint._boxes import Region
from optim_checkpoint._collect import Collector, Staging
from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint._header import ALIGNMENT, TensorInfo
from optim_checkpoint._json import as_array
from optim_checkpoint._numpy import axis_order, copy_bytes, invert, is_order
from optim_checkpoint._typed import EXACT, Leaf, Typed, decode
from optim_checkpoint._views import View
from optim_checkpoint.torch._dtensor import is_dtensor, local_of, pieces_of, replica_of
from optim_checkpoint.torch._layout import Order, empty_in, row_major
from optim_checkpoint.torch._memory import no_memory, traced

DTYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
_PLAIN = (torch.Tensor, torch.nn.Parameter)
# As many as NumPy can see, and one less for the bytes of an element.
_NUMPY_DIMENSIONS = 64
# What torch copies in one thread, in less time than it takes to describe it to another.
_ALONE = 32 << 10


class Direct(Protocol):
    """Live tensors that a read may fill; `_direct.Direct` is one."""

    def take(self, live: object, info: TensorInfo) -> bool:
        """Say whether a stored tensor can be read into a live one, which is then to be read."""
        ...


def is_lazy(tensor: object) -> bool:
    """Say whether a tensor has no shape yet."""
    return isinstance(tensor, UninitializedBuffer | UninitializedParameter)


def check_tensor(tensor: torch.Tensor, path: str, *, subclasses: bool = False) -> None:
    """Refuse a tensor that cannot come back as it is.

    Args:
        tensor: The tensor.
        path: Where it is.
        subclasses: Accept subclasses that hold their own data: right where the values will be
            copied into a live tensor of that class.

    Raises:
        UnsupportedStateError: With the reason.
    """
    wrapper = is_traceable_wrapper_subclass(tensor)
    if (reason := traced(tensor)) is not None:
        raise UnsupportedStateError(path, reason)
    if wrapper or (type(tensor) not in _PLAIN and not subclasses):
        raise UnsupportedStateError(
            path, f"a {type(tensor).__name__} is a tensor subclass; store its plain tensors"
        )
    if is_lazy(tensor):
        raise UnsupportedStateError(path, "is not initialised yet; run the model once first")
    if tensor.is_meta:
        raise UnsupportedStateError(path, "is on the meta device and has no data")
    if (reason := no_memory(tensor)) is not None:
        raise UnsupportedStateError(path, reason)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise UnsupportedStateError(
            path, f"layout {tensor.layout}, dtype {tensor.dtype}: only dense tensors are stored"
        )
    if tensor.dtype not in DTYPES:
        raise UnsupportedStateError(
            path, f"dtype {tensor.dtype} has no equivalent in safetensors; convert it before saving"
        )


def to_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in C order; on the CPU without a copy where it can."""
    plain = tensor.detach()
    if not is_plain(tensor):
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous()
    # One element counts as contiguous whatever its stride, but only stride 1 can be seen as bytes.
    flat = plain.as_strided((plain.numel(),), (1,))
    return memoryview(flat.view(torch.uint8).numpy())


def bytes_in_place(tensor: torch.Tensor) -> Any:
    """Return the memory of a CPU tensor as an array of its shape and the bytes of an element."""
    return tensor.unsqueeze(-1).view(torch.uint8).numpy()


def copy_all(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy into each first tensor the second, a CPU tensor of the same shape.

    The copy of torch splits every tensor over its threads and waits for all of them: with another
    process on one of two cores, 96 tensors of 4 MiB took 0.6 s. Here a thread copies whole tensors,
    and none waits for another until the end.
    """
    jobs: list[_parallel.Job] = []
    for live, saved in pairs:
        if live.dtype != saved.dtype or not (is_plain(live) and is_plain(saved)):
            live.copy_(saved)
            continue
        if live.data_ptr() == saved.data_ptr():
            # It was read into.
            continue
        if live.nbytes <= _ALONE:
            live.copy_(saved)
            continue
        if not live.is_inference():
            # As copy_ does: autograd refuses to use what it saved before the change.
            torch.autograd.graph.increment_version(live)
        jobs.append((live.nbytes, partial(copy_bytes, to_bytes(live), to_bytes(saved))))
    _parallel.run(jobs)


def is_plain(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is nothing but its bytes in memory, in C order."""
    return (
        type(tensor) in _PLAIN
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def identity(tensor: torch.Tensor) -> Hashable:
    """Return a value equal for tensors that are one memory, or None for those that have none."""
    if tensor.numel() == 0 or traced(tensor) is not None:
        return None
    if is_dtensor(tensor):
        # A shard may be empty here and not in other processes: its storage tells it apart.
        local = local_of(tensor)
        storage = local.untyped_storage()._cdata
        return (storage, local.storage_offset(), tuple(tensor.shape), local.stride(), tensor.dtype)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        return None
    if type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor):
        return None
    if no_memory(tensor) is not None:
        return None
    return (
        tensor.device,
        tensor.data_ptr(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def add_tensor(
    collector: Collector, key: str, tensor: torch.Tensor, path: str, *, subclasses: bool = False
) -> str:
    """Add a tensor to a save and return its key; of a DTensor, the part that is here."""
    if is_dtensor(tensor):
        return _add_shards(collector, key, tensor, path)
    check_tensor(tensor, path, subclasses=subclasses)
    return collector.add(
        key,
        DTYPES[tensor.dtype],
        tuple(tensor.shape),
        lambda: to_bytes(tensor),
        identity(tensor),
    )


def _add_shards(collector: Collector, key: str, tensor: torch.Tensor, path: str) -> str:
    local = local_of(tensor)
    check_tensor(local, path)
    dtype, shape = DTYPES[local.dtype], tuple(tensor.shape)
    if tensor.numel() == 0:
        return collector.add(key, dtype, shape, lambda: memoryview(b""))
    replica = replica_of(tensor)
    boxes = [
        (offset, tuple(local[cut].shape), partial(to_bytes, local[cut]), replica)
        for offset, cut in pieces_of(tensor, path)
    ]
    return collector.add_shards(key, dtype, shape, boxes, identity(tensor))


def tensor_leaf(collector: Collector, prefix: str, *, exact: bool = False) -> Leaf:
    """Return an `encode` hook that stores torch tensors and NumPy arrays under `prefix`.

    With `exact`, a tensor's class, `requires_grad` and order of axes in memory are kept, which
    otherwise are those of what it is loaded into.
    """
    numpy_leaf = collector.numpy_leaf(prefix, exact=exact)

    def leaf(value: object, path: str) -> Typed | None:
        if exact and type(value) in _PLAIN:
            return add_exact(collector, f"{prefix}{path}", value, path)
        if isinstance(value, torch.Tensor):
            return {"tensor": add_tensor(collector, f"{prefix}{path}", value, path)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        return numpy_leaf(value, path)

    return leaf


def add_exact(collector: Collector, key: str, tensor: Any, path: str) -> Typed:
    """Add a tensor for which nothing live will give class, gradient and order of axes."""
    check_tensor(tensor, path)
    order = axis_order(tensor.stride(), tensor.shape)
    if order == tuple(range(tensor.ndim)):
        order = ()
    moved = tensor.detach().permute(order) if order else tensor
    typed: Typed = {"tensor": add_tensor(collector, key, moved, path)}
    _add_view(collector, moved, path)
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    if not (order or is_parameter or tensor.requires_grad):
        return typed
    collector.features.add(EXACT)
    kind = "Parameter" if is_parameter else "Tensor"
    return {"torch": [kind, tensor.requires_grad, typed["tensor"], *order]}


def _add_view(collector: Collector, tensor: torch.Tensor, path: str) -> None:
    memory = identity(tensor)
    if memory is None:
        return
    begin = tensor.data_ptr()
    last = sum(stride * (n - 1) for stride, n in zip(tensor.stride(), tensor.shape, strict=True))
    end = begin + (last + 1) * tensor.element_size()
    array = None
    resolved = not (tensor.is_conj() or tensor.is_neg())
    if tensor.device.type == "cpu" and tensor.ndim < _NUMPY_DIMENSIONS and resolved:
        array = tensor.detach().unsqueeze(-1).view(torch.uint8).numpy()
    collector.views.append(View(str(tensor.device), begin, end, path, memory, array))


@dataclass
class TorchStaging:
    """Hands out CPU tensors that the read of a part will fill; one per key, so aliases stay one.

    Attributes:
        staging: The part.
        direct: Which live tensors it may fill; None where everything is staged.
    """

    staging: Staging
    direct: Direct | None = None
    _tensors: dict[tuple[str, Order | None], torch.Tensor] = field(default_factory=dict)
    _made: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    _pool: dict[str, tuple[torch.Tensor, memoryview]] = field(default_factory=dict)

    def pool(self, keys: Iterable[str]) -> None:
        """Take the memory of tensors that are copied and then forgotten from one allocation.

        NumPy asks for huge pages for it: to touch 384 MiB took 0.05 s, and 0.2 s in 96 tensors.
        """
        infos = {key: self.staging.info(key) for key in keys}
        # No bytes at all have a stride of 0, and cannot be seen as wider ones.
        infos = {key: info for key, info in infos.items() if info.nbytes}
        places: dict[str, int] = {}
        size = 0
        for key, info in infos.items():
            places[key] = size
            size += -(-info.nbytes // ALIGNMENT) * ALIGNMENT
        memory = torch.from_numpy(np.empty(size, np.uint8))
        view = memoryview(memory.numpy())
        for key, start in places.items():
            end = start + infos[key].nbytes
            self._pool[key] = memory[start:end], view[start:end]

    def into(self, key: str, live: object) -> bool:
        """Let the read fill a live tensor itself, where that is wanted and can be done."""
        if self.direct is None or (key, None) in self._tensors:
            return False
        if not self.direct.take(live, self.staging.info(key)):
            return False
        tensor: Any = live
        self.staging.claim(key, to_bytes(tensor))
        self._tensors[key, None] = tensor.detach()
        return True

    def tensor(self, key: object, order: Order | None = None) -> torch.Tensor:
        """Return the tensor stored under `key`; its data is there after the read.

        Args:
            key: The key.
            order: How it is to lie in memory; None is C order.
        """
        info = self.staging.info(key)
        name = str(key)
        if order is not None and order == row_major(info.shape):
            order = None
        if (name, order) not in self._tensors:
            memory = None
            try:
                dtype = BY_NAME[info.dtype]
                if order is not None:
                    tensor = empty_in(order, info.shape, dtype)
                elif name in self._pool:
                    flat, memory = self._pool.pop(name)
                    tensor = flat.view(dtype).view(info.shape)
                else:
                    tensor = torch.empty(info.shape, dtype=dtype, device="cpu")
            except RuntimeError as error:
                if info.nbytes:
                    # Not damage: the file is as long as its header says.
                    raise MemoryError(
                        f"no memory for {name} of {info.nbytes} bytes: {error}"
                    ) from error
                raise CorruptCheckpointError(
                    self.staging.file, f"cannot be allocated: {shown(str(error))}", tensor=name
                ) from None
            if order is None:
                self.staging.claim(name, to_bytes(tensor) if memory is None else memory)
            else:
                self.staging.want(name, Region((0,) * tensor.ndim, bytes_in_place(tensor)))
            self._tensors[name, order] = tensor
        return self._tensors[name, order]

    def leaf(self, tag: str, content: object) -> object:
        """Decode what `tensor_leaf` wrote."""
        if tag == "tensor":
            return self.tensor(content)
        items = as_array(content) or []
        if tag == "torch" and len(items) >= 3:
            tensor = self._exact((items[0], items[1], items[2]), items[3:])
            if tensor is not None:
                return tensor
        if tag == "dtype":
            dtype = getattr(torch, content, None) if isinstance(content, str) else None
            if isinstance(dtype, torch.dtype):
                return dtype
        return self.staging.numpy_leaf(tag, content)

    def _exact(self, what: tuple[object, object, object], order: list[Any]) -> torch.Tensor | None:
        kind, grad, key = what
        tensor = self.tensor(key)
        floating = tensor.is_floating_point() or tensor.is_complex()
        known = kind in ("Parameter", "Tensor") and isinstance(grad, bool)
        if not known or (order and not is_order(order, tensor.ndim)) or (grad and not floating):
            return None
        same = (str(kind), grad, str(key), *order)
        if same not in self._made:
            # Of the same memory, which the read will fill.
            made = tensor.permute(invert(order)) if order else tensor.detach()
            self._made[same] = (
                torch.nn.Parameter(made, bool(grad))
                if kind == "Parameter"
                else made.requires_grad_(bool(grad))
            )
        return self._made[same]

    def decode(self, typed: object) -> object:
        """Decode a typed value with tensors in it."""
        return decode(typed, self.staging.file, self.leaf)
