"""Names for an optimizer's state that another tool keeps by number: certain, or refused."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optim_checkpoint._errors import CheckpointWarning, UnsupportedStateError, shown
from optim_checkpoint.migrate._found import Found, listed, named
from optim_checkpoint.torch._names import clean, parameter_names, unwrap
from optim_checkpoint.torch._optimizer import kind
from optim_checkpoint.torch._tensors import identity

Names = Sequence[str] | Sequence[Sequence[str]]
# The state of torch's own optimizers that has its parameter's shape.
_LIKE_PARAMETER = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg"),
    *("acc_delta", "exp_inf", "sum", "prev", "step_size", "ax"),
}
_HOW = "give names=names_of(optimizer, model) (--names FILE), or model= and optimizer="


def names_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[list[str]]:
    """Return the names of an optimizer's parameters, group by group, in its own order.

    What `import_checkpoint` takes as `names`, and, written as JSON, the command line as
    ``--names FILE``. Nothing has to be trained: a new model and optimizer do.

    Args:
        optimizer: The optimizer, built as in the run that is imported.
        model: The model that its parameters are of.

    Returns:
        A list of names for each parameter group.

    Raises:
        ValueError: If a parameter is not one of the model's.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        >>> groups = [{"params": model[1].parameters()}, {"params": model[0].parameters()}]
        >>> names_of(torch.optim.SGD(groups, lr=0.1), model)
        [['1.weight', '1.bias'], ['0.weight', '0.bias']]
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        names = parameter_names(optimizer, model)
    if names.positional:
        raise ValueError(f"a parameter of the {kind(optimizer)} is not one of the model's")
    return names.groups


def add_ties(found: Found, model: torch.nn.Module | None, ties: Mapping[str, str]) -> None:
    """Give tied parameters, of which safetensors keeps one name, their other names.

    Raises:
        UnsupportedStateError: If a tie names what is not there, or is there already.
    """
    pairs = dict(ties)
    if model is not None:
        live = {clean(name): value for name, value in unwrap(model).state_dict().items()}
        memory = [(n, identity(v)) for n, v in live.items() if isinstance(v, torch.Tensor)]
        there = {memory_of: n for n, memory_of in memory if n in found.model and memory_of}
        pairs |= {n: there[m] for n, m in memory if n not in found.model and m in there}
    for name, other in pairs.items():
        if other not in found.model or name in found.model:
            problem = "is there by itself" if name in found.model else f"has no {shown(other)}"
            raise UnsupportedStateError(f"tie {name}={other}", f"the source {problem}")
        found.model[name] = found.model[other]
        found.notes.append(f"model {name} is tied to {other}, under which it was stored")


def name_optimizer(
    found: Found,
    name: str,
    given: Names | None,
    model: torch.nn.Module | None,
    optimizer: torch.optim.Optimizer | None,
) -> list[list[str]]:
    """Return the names of an optimizer's parameters, group by group.

    Raises:
        UnsupportedStateError: Where they are not certain, or do not fit the state.
    """
    where = named("optimizer", name)
    groups = found.optimizers[name]["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    if given is not None:
        names = _grouped(given, sizes, where)
    elif model is not None and optimizer is not None:
        names = _grouped(names_of(optimizer, model), sizes, where)
    elif name in found.names:
        names = _grouped(found.names[name], sizes, where)
    elif all(isinstance(each, str) for group in groups for each in group["params"]):
        names = [[clean(each) for each in group["params"]] for group in groups]
    elif groups and all("param_names" in group for group in groups):
        names = [[clean(each) for each in group["param_names"]] for group in groups]
    else:
        names = [_by_order(found, sizes, model, where)]
    _check(found, found.optimizers[name], names, where)
    return names


def _grouped(given: Names, sizes: list[int], where: str) -> list[list[str]]:
    flat: list[Any] = list(given)
    if all(isinstance(each, str) for each in flat):
        ends = [sum(sizes[: g + 1]) for g in range(len(sizes))]
        groups = [flat[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        counts = [len(flat)], [sum(sizes)]
    else:
        groups = [list(each) for each in flat]
        counts = [len(group) for group in groups], sizes
    if counts[0] != counts[1] or not all(isinstance(n, str) for g in groups for n in g):
        raise UnsupportedStateError(
            where, f"has {counts[1]} parameters by group, names are for {counts[0]}"
        )
    return [[clean(each) for each in group] for group in groups]


def _by_order(
    found: Found, sizes: list[int], model: torch.nn.Module | None, where: str
) -> list[str]:
    if len(sizes) != 1:
        raise UnsupportedStateError(
            where,
            f"numbers its parameters over {len(sizes)} groups, in an order of its own: {_HOW}",
        )
    (size,) = sizes
    if model is not None:
        parameters = {clean(n): p for n, p in unwrap(model).named_parameters()}
        trained = [n for n, p in parameters.items() if p.requires_grad]
        for names in (list(parameters), trained):
            if len(names) == size:
                found.notes.append(f"{where}: named in the order of model.parameters()")
                return names
        raise UnsupportedStateError(
            where,
            f"has {size} parameters, the model {len(parameters)}, {len(trained)} of them trained: "
            + _HOW,
        )
    tensors = {n: v for n, v in found.model.items() if isinstance(v, torch.Tensor)}
    reason = ""
    if not found.ordered:
        reason = "the source does not keep the order of the parameters"
    elif len(tensors) != size:
        reason = (
            f"the model has {len(tensors)} entries and the optimizer {size} parameters, so that "
            "some are buffers, frozen or tied"
        )
    elif not all(v.is_floating_point() or v.is_complex() for v in tensors.values()):
        reason = "some entries of the model are buffers"
    elif len({identity(v) for v in tensors.values() if v.numel()}) != size:
        reason = "some entries of the model are tied"
    if reason:
        raise UnsupportedStateError(where, f"numbers its parameters, and {reason}: {_HOW}")
    found.notes.append(f"{where}: named in the order of the model's state dict")
    return list(tensors)


def _check(found: Found, state: Mapping[str, Any], names: list[list[str]], where: str) -> None:
    flat = [each for group in names for each in group]
    twice = [each for each, count in Counter(flat).items() if count > 1]
    if twice:
        raise UnsupportedStateError(where, f"two parameters would be {listed(twice)}")
    lacking = [each for each in flat if not isinstance(found.model.get(each), torch.Tensor)]
    if lacking:
        raise UnsupportedStateError(
            where, f"has parameters that the model has not: {listed(lacking)}; {_HOW}"
        )
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, name in zip(numbers, flat, strict=True):
        shape = tuple(found.model[name].shape)
        slots = state["state"].get(number, {})
        for slot, value in slots.items() if isinstance(slots, dict) else ():
            if not isinstance(value, torch.Tensor) or slot not in _LIKE_PARAMETER or not value.ndim:
                continue
            if tuple(value.shape) != shape:
                raise UnsupportedStateError(
                    where,
                    f"{slot} of {name} has shape {list(value.shape)}, the parameter {list(shape)}: "
                    f"the names are in another order; {_HOW}",
                )
