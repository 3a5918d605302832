"""Every optimizer held to the float64 oracle, in each of its forms."""

import io
import math
from collections.abc import Mapping
from inspect import isclass, signature

import ml_dtypes
import numpy as np
import pytest
import stac_torch
import torch
from optim_conformance import OptimizerConformance
from optim_conformance.rules import RULES, SLOTS

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
}
SLOTS_HERE = {slot.torch or name: name for name, slot in SLOTS.items()}
CLASSES = {name.lower(): found for name, found in vars(stac_torch).items() if isclass(found)}


def optimizer_class(opt):
    """Return the class of the rule's name, or of the optimizer that the rule is a part of."""
    part = RULES[opt].part_of
    return CLASSES.get((part[0] if part else opt).replace("_", ""))


def arguments(opt, hparams, leaves):
    """Return hyperparameters as torch spells them; decays are one tuple."""
    own = RULES[opt].spelt("torch", hparams, leaves)
    if "learning_rate" in own:
        own["lr"] = own.pop("learning_rate")
    if any(name in own for name in RULES[opt].betas):
        own["betas"] = tuple(own.pop(name, RULES[opt].default(name)) for name in RULES[opt].betas)
    return own


def to_torch(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(tensor):
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


class TorchRun:
    """Steps of one optimizer; its parameters are made in the order of the tree."""

    def __init__(self, opt, hparams, params, options):
        self.again = (opt, hparams, options)
        self.leaves = {name: torch.nn.Parameter(to_torch(p)) for name, p in params.items()}
        self.counted = RULES[opt].counted(hparams, params)
        own = arguments(opt, hparams, params)
        groups = list(self.leaves.items())
        if "roles" in own:
            roles = own.pop("roles")
            groups = [
                {"params": [(n, self.leaves[n]) for n in params if roles[n] == role], "role": role}
                for role in dict.fromkeys(roles[n] for n in params)
            ]
        self.optimizer = optimizer_class(opt)(groups, **own, **options)

    def step(self, grads, *, lr=None):
        for name, leaf in self.leaves.items():
            leaf.grad = to_torch(np.asarray(grads[name]))
        usual = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        self.optimizer.step()
        for group, before in zip(self.optimizer.param_groups, usual, strict=True):
            group["lr"] = before

    def params(self):
        return {name: to_numpy(leaf) for name, leaf in self.leaves.items()}

    def state(self):
        slots = {}
        counts = []
        for group in self.optimizer.param_groups:
            for leaf in group["params"]:
                name = next(n for n, p in self.leaves.items() if p is leaf)
                # A state appears with the first step; before it, what it will be.
                section = self.optimizer._family.section(group)
                state = self.optimizer.state.get(leaf) or section.new_state(group, leaf)
                counts += [state["step"]] if "step" in state else []
                slots |= {
                    f"{SLOTS_HERE[key]}/{name}": to_numpy(value)
                    for key, value in state.items()
                    if key in SLOTS_HERE
                }
        return slots | ({"count": np.asarray(int(counts[0]))} if self.counted else {})

    def codes(self):
        found = {}
        for name, leaf in self.leaves.items():
            for key, value in self.optimizer.state[leaf].items():
                moment = key.removesuffix("_scale")
                if moment != "step":
                    slot = SLOTS_HERE[moment] + key.removeprefix(moment)
                    found[f"{slot}/{name}"] = to_numpy(value).reshape(len(value), -1)
        return found

    def save(self):
        blob = io.BytesIO()
        torch.save((self.params(), self.optimizer.state_dict()), blob)
        return blob.getvalue()

    def restore(self, blob):
        params, state = torch.load(io.BytesIO(blob), weights_only=False)
        opt, hparams, options = self.again
        run = type(self)(opt, hparams, params, options)
        run.optimizer.load_state_dict(state)
        return run

    def compilations(self):
        return None


class CompiledRun(TorchRun):
    """Every step in a graph that Dynamo captures; its operations are run one by one."""

    def __init__(self, opt, hparams, params, options):
        # Dynamo is imported only where its checks are run.
        from torch._dynamo.testing import CompileCounter

        torch._dynamo.reset()
        super().__init__(opt, hparams, params, options)
        self.counter = CompileCounter()
        self.take = torch.compile(
            lambda: self.optimizer.step(), fullgraph=True, backend=self.counter
        )
        self.usual = self.optimizer.defaults["lr"]
        self.rate = torch.tensor(self.usual, dtype=torch.float64)
        self.let_the_rate_be_a_tensor()

    def let_the_rate_be_a_tensor(self):
        """A graph holds a number for ever: only the value of a tensor can change."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def step(self, grads, *, lr=None):
        for name, leaf in self.leaves.items():
            leaf.grad = to_torch(np.asarray(grads[name]))
        self.rate.fill_(self.usual if lr is None else lr)
        self.take()

    def restore(self, blob):
        run = super().restore(blob)
        run.let_the_rate_be_a_tensor()
        return run

    def compilations(self):
        return self.counter.frame_count


class TorchAdapter:
    framework = "torch"
    capabilities = frozenset(
        {
            "f64",
            "digits",
            "bf16",
            "f16",
            "mu_dtype",
            "codes",
            "complex",
            "resume",
            "lr",
            "lr0",
            "maximize",
            "amsgrad",
            "corrected",
            "stat_sample",
            "parity",
            "propagate",
            "skip",
            "raise",
        }
    )

    def __init__(self, name, capabilities=capabilities, run=TorchRun, **options):
        self.name = name
        self.run = run
        self.capabilities = capabilities
        self.options = options

    def optimizers(self):
        """Return what exists and has this form."""
        found = {opt: optimizer_class(opt) for opt in RULES if optimizer_class(opt)}
        return frozenset(
            opt
            for opt, kind in found.items()
            if self.options.keys() <= signature(kind).parameters.keys()
        )

    def start(self, opt, hparams: Mapping, params, *, dtype):
        return self.run(opt, hparams, params, self.options)


# The same functions, one tensor after the other: the newest Python's session is enough.
@pytest.mark.slow
class TestLoop(OptimizerConformance):
    adapter = TorchAdapter("stac-torch loop", foreach=False)


class TestForeach(OptimizerConformance):
    adapter = TorchAdapter("stac-torch foreach", foreach=True)


class TestFused(OptimizerConformance):
    adapter = TorchAdapter(
        "stac-torch fused", TorchAdapter.capabilities - {"complex", "codes"}, fused=True
    )


# A factor of 1: the norm is the check of every step, and nothing else differs.
@pytest.mark.slow
class TestClipped(OptimizerConformance):
    # A nan makes the factor nan, as in `clip_grad_norm_`: test_clipping.py holds that.
    adapter = TorchAdapter(
        "stac-torch clipped", TorchAdapter.capabilities - {"propagate"}, max_grad_norm=math.inf
    )


# Each run takes Dynamo a second or two: conftest.py says which checks wait for the nightly session.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Guards may run slower")
@pytest.mark.filterwarnings("ignore:Profiler record function")
class TestCompiled(OptimizerConformance):
    # What raises cannot be captured. In a graph torch's AdamW corrects its bias with its own step
    # count, which is float32: there a float64 run is right to seven digits, theirs and ours, and
    # early updates to five.
    adapter = TorchAdapter(
        "stac-torch compiled",
        TorchAdapter.capabilities - {"raise", "f64", "digits"} | {"jit"},
        CompiledRun,
    )
