"""Torch's own optimizer checks, in torch's own frame, for each composition of STAC.

Torch ships the machinery (``OptimizerInfo``, the ``optims`` decorator, error inputs) but not the
bodies of its tests; these are ours, one for each generic test of its ``TestOptimRenewed``.
"""

# ruff: noqa: PT009  (torch's TestCase compares tensors in assertEqual)

import itertools
import math
import pickle
import tempfile
import warnings
from copy import deepcopy

import pytest
import torch
from stac_torch import STAC
from torch.nn import Parameter
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
    optims,
)
from torch.testing._internal.common_utils import TestCase, parametrize


class AllSign(STAC):
    """Every parameter trained by sign."""

    def __init__(self, params, lr=1e-3, **options):
        super().__init__(params, lr, **({"role": "sign"} | options))


class AllAdamW(STAC):
    """Every parameter trained by AdamW."""

    def __init__(self, params, lr=1e-3, **options):
        super().__init__(params, lr, **({"role": "adamw"} | options))


class Hybrid(STAC):
    """Bare parameters trained by sign but for the last one."""

    def __init__(self, params, lr=1e-3, **options):
        bare = isinstance(params, (list, itertools.chain)) or hasattr(params, "__next__")
        entries = list(params) if bare else params
        plain = bare and len(entries) > 1 and not isinstance(entries[0], dict)
        named = plain and all(isinstance(e, tuple) for e in entries)
        tensors = [e[1] if isinstance(e, tuple) else e for e in entries] if plain else []
        if (
            plain
            and len({id(t) for t in tensors}) == len(tensors)
            and (named or not any(isinstance(e, tuple) for e in entries))
        ):
            entries = [
                {"params": entries[:-1], "role": "sign"},
                {"params": entries[-1:], "role": "adamw"},
            ]
        super().__init__(entries, lr, **({"role": "sign"} | options))


def sign_inputs():
    return [
        OptimizerInput(None, {"sign_momentum": 0.0}, "without momentum"),
        OptimizerInput(None, {"sign_momentum": 0.5, "sign_lr_scale": 0.5}, "scaled"),
        OptimizerInput(None, {"sign_weight_decay": 0.2}, "own weight decay"),
    ]


def adamw_inputs():
    return [
        OptimizerInput(None, {"betas": (0.8, 0.9), "eps": 1e-6}, "other betas"),
        OptimizerInput(None, {"amsgrad": True}, "amsgrad"),
        OptimizerInput(None, {"amsgrad": True, "weight_decay": 0.1}, "amsgrad and weight decay"),
    ]


def shared_inputs(device):
    inputs = [
        OptimizerInput(None, {}, "default"),
        OptimizerInput(None, {"lr": 0.01}, "non-default lr"),
        OptimizerInput(None, {"lr": torch.tensor(0.001)}, "Tensor lr"),
        OptimizerInput(None, {"weight_decay": 0.1}, "nonzero weight_decay"),
        OptimizerInput(None, {"weight_decay": 0.1, "maximize": True}, "maximize"),
        OptimizerInput(None, {"nonfinite": "propagate"}, "propagate"),
    ]
    if str(device).split(":")[0] in ("cuda", "xpu"):
        inputs += [
            OptimizerInput(None, {"capturable": True}, "capturable"),
            OptimizerInput(
                None, {"lr": torch.tensor(0.001), "capturable": True}, "Tensor lr, capturable"
            ),
        ]
    return inputs


def inputs_of(*extra):
    return lambda device, dtype=None: shared_inputs(device) + [i for f in extra for i in f()]


def error_inputs(device, dtype):
    """Torch's seven cases, and ours."""
    errors = get_error_inputs_for_all_optims(device, dtype)
    if str(device) != "cpu":
        return errors

    def refused(kwargs, regex, error=ValueError):
        own = OptimizerInput(params=None, kwargs=kwargs, desc=regex)
        errors.append(ErrorOptimizerInput(own, error_type=error, error_regex=regex))

    refused({"lr": -1e-2}, r"lr must be >= 0 and finite, got -0.01")
    refused({"betas": (1.0, 0.0)}, r"betas\[0\] must be in \[0, 1\), got 1.0")
    refused({"betas": (0.0, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1.0")
    refused({"eps": -1.0}, r"eps must be >= 0 and finite, got -1.0")
    refused({"weight_decay": -1}, r"weight_decay must be >= 0 and finite, got -1")
    refused({"sign_momentum": 1.0}, r"sign_momentum must be in \[0, 1\), got 1.0")
    refused({"sign_lr_scale": -0.5}, r"sign_lr_scale must be >= 0 and finite, got -0.5")
    refused({"role": "lion"}, r"role must be 'sign' or 'adamw', got 'lion'")
    refused({"differentiable": True}, r"differentiable=True is refused")
    sparse = Parameter(torch.zeros(3, 2, device=device, dtype=dtype))
    sparse.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2, dtype=dtype), (3, 2))
    errors.append(
        ErrorOptimizerInput(
            OptimizerInput(params=[sparse], kwargs={}, desc="sparse gradient"),
            error_on=OptimizerErrorEnum.STEP_ERROR,
            error_type=RuntimeError,
            error_regex="STAC does not support sparse gradients",
        )
    )
    return errors


def info(cls, *extra):
    return OptimizerInfo(
        cls,
        optim_inputs_func=inputs_of(*extra),
        optim_error_inputs_func=error_inputs,
        supported_impls=("foreach", "fused"),
        supports_fused_on=("cpu", "cuda"),
        not_og_supported_flags=(),
        has_capturable_arg=True,
        supports_sparse=False,
        supports_complex=True,
        scheduler_inputs=(
            [lambda opt: StepLR(opt, gamma=0.9, step_size=2)],
            [lambda opt: ReduceLROnPlateau(opt, patience=0)],
            [
                lambda opt: StepLR(opt, gamma=0.99, step_size=3),
                lambda opt: ExponentialLR(opt, 0.99),
            ],
        ),
    )


DB = [
    info(AllSign, sign_inputs),
    info(AllAdamW, adamw_inputs),
    info(Hybrid, sign_inputs, adamw_inputs),
]


def all_inputs(device, dtype, optim_info):
    """Every configuration in each form that it can have: loop, foreach, fused."""
    found = _get_optim_inputs_including_global_cliquey_kwargs(device, dtype, optim_info)
    if str(device).split(":")[0] == "cpu":
        found = [
            OptimizerInput(None, {**i.kwargs, **form}, f"{i.desc}, {form}")
            for i in optim_info.optim_inputs_func(device)
            for form in ({"foreach": False}, {"foreach": True}, {"fused": True})
            # As in torch's AdamW.
            if not ("fused" in form and dtype.is_complex)
            and not (
                form.get("foreach")
                and torch.is_tensor(i.kwargs.get("lr"))
                and optim_info.optim_cls is not AllSign
            )
        ]
    return [OptimizerInput(None, deepcopy(i.kwargs), i.desc) for i in found]


def problem(device, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    weight = Parameter(torch.randn(10, 5, device=device, dtype=dtype))
    bias = Parameter(torch.randn(10, device=device, dtype=dtype))
    inpt = torch.randn(5, device=device, dtype=dtype)

    def closure():
        for p in (weight, bias):
            p.grad = None
        loss = (weight.mv(inpt) + bias).pow(2).sum()
        loss.backward()
        return loss

    return [weight, bias], closure


def descend(optimizer, closure, makers, steps=6):
    """Return the losses before and after some steps with learning rates as scheduled."""
    schedulers = [make(optimizer) for make in makers]
    losses = []
    for _ in range(steps):
        losses.append(optimizer.step(closure).item())
        for scheduler in schedulers:
            plateau = isinstance(scheduler, ReduceLROnPlateau)
            scheduler.step(*(losses[-1:] if plateau else []))
    return losses[0], closure().item()


def states(optimizer):
    return [
        {k: v.clone() for k, v in optimizer.state[p].items()} if p in optimizer.state else {}
        for group in optimizer.param_groups
        for p in group["params"]
    ]


class TestSTACInTorch(TestCase):
    def assert_equal_states(self, one, other):
        self.assertEqual(len(one), len(other))
        for a, b in zip(one, other, strict=True):
            self.assertEqual(sorted(a), sorted(b))
            for key, value in a.items():
                torch.testing.assert_close(value, b[key], rtol=0, atol=0)

    @optims(DB, dtypes=[torch.float32])
    def test_optim_infos_do_not_specify_global_cliquey_kwargs(self, device, dtype, optim_info):
        for each in optim_info.optim_inputs_func(device=device):
            self.assertFalse({"foreach", "fused", "differentiable"} & set(each.kwargs))

    @optims(DB, dtypes=[torch.float32])
    def test_errors(self, device, dtype, optim_info):
        for error in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = error.optimizer_error_input
            params = given.params
            if params is None:
                params = [Parameter(torch.zeros(2, device=device, dtype=dtype))]
            if error.error_on == OptimizerErrorEnum.STEP_ERROR:
                optimizer = optim_info.optim_cls(params, **given.kwargs)
                before = [p.detach().clone() for p in params]
                with pytest.raises(error.error_type, match=error.error_regex):
                    optimizer.step()
                for p, old in zip(params, before, strict=True):
                    self.assertEqual(p.detach(), old, rtol=0, atol=0)
            elif issubclass(error.error_type, Warning):
                with pytest.warns(error.error_type, match=error.error_regex):
                    optim_info.optim_cls(params, **given.kwargs)
            else:
                with pytest.raises(error.error_type, match=error.error_regex):
                    optim_info.optim_cls(params, **given.kwargs)

    @parametrize("with_lrsched", [True, False])
    @optims(DB, dtypes=[torch.float32])
    def test_goes_right_direction(self, device, dtype, optim_info, with_lrsched):
        schedules = optim_info.scheduler_inputs if with_lrsched else ([],)
        for given, makers in itertools.product(all_inputs(device, dtype, optim_info), schedules):
            if "lr" in given.kwargs and torch.is_tensor(given.kwargs["lr"]) and makers:
                given.kwargs["lr"] = given.kwargs["lr"].clone()
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            first, last = descend(optimizer, closure, makers)
            if given.kwargs.get("maximize"):
                self.assertGreater(last, first, msg=given.desc)
            else:
                self.assertLess(last, first, msg=given.desc)

    @optims(DB, dtypes=[torch.float32])
    def test_param_group_with_lrscheduler_goes_right_direction(self, device, dtype, optim_info):
        for makers in optim_info.scheduler_inputs:
            (weight, bias), closure = problem(device, dtype)
            optimizer = optim_info.optim_cls([{"params": [weight]}, {"params": [bias], "lr": 0.01}])
            first, last = descend(optimizer, closure, makers)
            self.assertLess(last, first)

    @parametrize("num_dim", [0, 1, 2])
    @optims(DB, dtypes=[torch.float32])
    def test_tensor_lr(self, device, dtype, optim_info, num_dim):
        for given in optim_info.optim_inputs_func(device=device):
            if torch.is_tensor(given.kwargs.get("lr")):
                continue
            kwargs = {**given.kwargs, "lr": 0.02, "foreach": False}
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **kwargs)
            lr = torch.full((1,) * num_dim, 0.02)
            tensor_params, tensor_closure = problem(device, dtype)
            tensor_optimizer = optim_info.optim_cls(tensor_params, **{**kwargs, "lr": lr})
            for _ in range(7):
                optimizer.step(closure)
                tensor_optimizer.step(tensor_closure)
            self.assertEqual(tensor_params, params, msg=given.desc)
            for group in tensor_optimizer.param_groups:
                self.assertIs(group["lr"], lr)

    @parametrize("shape", [(3,), (2, 2)])
    @optims(DB, dtypes=[torch.complex64])
    def test_complex(self, device, dtype, optim_info, shape):
        """A complex parameter steps as its real and imaginary part do."""
        for given in all_inputs(device, dtype, optim_info):
            torch.manual_seed(1)
            z = Parameter(torch.randn(shape, device=device, dtype=dtype))
            w = Parameter(torch.randn(shape, device=device, dtype=dtype))
            real_z, real_w = (Parameter(torch.view_as_real(t.detach()).clone()) for t in (z, w))
            optimizer = optim_info.optim_cls([z, w], **deepcopy(given.kwargs))
            real_optimizer = optim_info.optim_cls([real_z, real_w], **deepcopy(given.kwargs))
            for _ in range(4):
                for c, r in ((z, real_z), (w, real_w)):
                    c.grad = torch.randn(shape, device=device, dtype=dtype)
                    r.grad = torch.view_as_real(c.grad)
                optimizer.step()
                real_optimizer.step()
            for c, r in ((z, real_z), (w, real_w)):
                self.assertEqual(torch.view_as_real(c.detach()), r.detach(), msg=given.desc)

    @parametrize("form", ["foreach", "fused"])
    @optims(DB, dtypes=[torch.float64])
    def test_other_forms_match_forloop(self, device, dtype, optim_info, form):
        for given in optim_info.optim_inputs_func(device=device, dtype=dtype):
            tensor_lr = torch.is_tensor(given.kwargs.get("lr"))
            # Torch's AdamW refuses it in one form, and rounds it to float32 in another.
            if tensor_lr and optim_info.optim_cls is not AllSign:
                continue
            results = []
            for chosen in ({"foreach": False}, {form: True}):
                torch.manual_seed(2)
                model = torch.nn.Sequential(
                    torch.nn.Linear(5, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1)
                ).to(device=device, dtype=dtype)
                unused = Parameter(torch.ones(3, device=device, dtype=dtype))
                empty = Parameter(torch.empty((0,), device=device, dtype=dtype))
                zero_d = Parameter(torch.tensor(2.0, device=device, dtype=dtype))
                empty.grad = torch.zeros_like(empty)
                params = [*model.parameters(), unused, empty, zero_d]
                kwargs = deepcopy(given.kwargs) | chosen
                optimizer = optim_info.optim_cls(params, **kwargs)
                for step in range(7):
                    optimizer.zero_grad()
                    inpt = torch.linspace(-1, 1, 5, device=device, dtype=dtype) + 0.1 * step
                    (model(inpt).sum() * zero_d).backward()
                    empty.grad = torch.zeros_like(empty)
                    model[2].bias.requires_grad_(step % 2 == 0)
                    optimizer.step()
                    model[2].bias.requires_grad_(True)
                results.append(([p.detach().clone() for p in params], states(optimizer)))
            for one, other in zip(results[0][0], results[1][0], strict=True):
                self.assertEqual(one, other, rtol=0, atol=1e-12, msg=given.desc)
            self.assert_equal_keys(results[0][1], results[1][1])

    def assert_equal_keys(self, one, other):
        for a, b in zip(one, other, strict=True):
            self.assertEqual(sorted(a), sorted(b))
            for key, value in a.items():
                self.assertEqual(value, b[key], rtol=0, atol=1e-12)

    @optims(DB, dtypes=[torch.float32])
    def test_fused_error_on_params_on_meta(self, device, dtype, optim_info):
        p = Parameter(torch.zeros(2, device="meta", dtype=dtype))
        p.grad = torch.zeros_like(p)
        optimizer = optim_info.optim_cls([p], fused=True)
        match = "`fused=True` requires all the params to be floating point Tensors of supported"
        with pytest.raises(RuntimeError, match=match):
            optimizer.step()

    @optims(DB, dtypes=[torch.float32])
    def test_param_groups_weight_decay(self, device, dtype, optim_info):
        for foreach in (False, True):
            (weight, bias), _ = problem(device, dtype)
            optimizer = optim_info.optim_cls(
                [
                    {"params": [weight], "weight_decay": 0.5},
                    {"params": [bias], "weight_decay": 0.0},
                ],
                lr=0.1,
                foreach=foreach,
            )
            before = weight.detach().clone(), bias.detach().clone()
            weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
            optimizer.step()
            torch.testing.assert_close(weight.detach(), before[0] * (1 - 0.1 * 0.5))
            self.assertEqual(bias.detach(), before[1], rtol=0, atol=0)

    @optims(DB, dtypes=[torch.float32])
    def test_param_groups_lr(self, device, dtype, optim_info):
        for foreach in (False, True):
            (weight, bias), closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(
                [{"params": [weight], "lr": 0.01}, {"params": [bias]}], lr=1e-28, foreach=foreach
            )
            before = weight.detach().clone(), bias.detach().clone()
            for _ in range(3):
                optimizer.step(closure)
            self.assertNotEqual(weight.detach(), before[0])
            self.assertEqual(bias.detach(), before[1], rtol=0, atol=0)

    @optims(DB, dtypes=[torch.float32])
    def test_step_is_noop_when_params_have_no_grad(self, device, dtype, optim_info):
        for given in all_inputs(device, dtype, optim_info):
            params = [Parameter(torch.randn(2, 3, device=device, dtype=dtype)) for _ in range(2)]
            before = [p.detach().clone() for p in params]
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            optimizer.step()
            self.assertEqual([p.detach() for p in params], before, rtol=0, atol=0)
            self.assertEqual(len(optimizer.state), 0)

    @optims(DB, dtypes=[torch.float32])
    def test_step_is_noop_for_zero_grads(self, device, dtype, optim_info):
        for given in all_inputs(device, dtype, optim_info):
            if given.kwargs.get("weight_decay") or given.kwargs.get("sign_weight_decay"):
                continue
            params = [Parameter(torch.randn(2, 3, device=device, dtype=dtype)) for _ in range(2)]
            before = [p.detach().clone() for p in params]
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
            self.assertEqual([p.detach() for p in params], before, rtol=0, atol=0)

    @optims(DB, dtypes=[torch.float32])
    def test_grads_are_never_inplaced_into(self, device, dtype, optim_info):
        for given in all_inputs(device, dtype, optim_info):
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            closure()
            before = [(p.grad, p.grad._version, p.grad.clone()) for p in params]
            optimizer.step()
            for p, (grad, version, values) in zip(params, before, strict=True):
                self.assertIs(p.grad, grad)
                self.assertEqual(grad._version, version, msg=given.desc)
                self.assertEqual(grad, values, rtol=0, atol=0)

    @optims(DB, dtypes=[torch.float32])
    def test_optimizer_can_be_printed(self, device, dtype, optim_info):
        for given in all_inputs(device, dtype, optim_info):
            params, _ = problem(device, dtype)
            text = repr(optim_info.optim_cls(params, **given.kwargs))
            self.assertIn("Parameter Group 0", text)
            self.assertIn("role: ", text)

    @parametrize("is_named", [True, False])
    @optims(DB, dtypes=[torch.float32])
    def test_state_dict_deterministic(self, device, dtype, optim_info, is_named):
        for given in all_inputs(device, dtype, optim_info):
            params, closure = problem(device, dtype)
            named = list(zip(("weight", "bias"), params, strict=True))
            given_params = named if is_named else params
            optimizer = optim_info.optim_cls(given_params, **deepcopy(given.kwargs))
            for _ in range(3):
                optimizer.step(closure)
            saved = deepcopy(optimizer.state_dict())
            self.assertEqual(all("param_names" in g for g in saved["param_groups"]), is_named)
            weight_c, bias_c = (Parameter(p.detach().clone()) for p in params)

            def closure_c(weight_c=weight_c, bias_c=bias_c):
                for p in (weight_c, bias_c):
                    p.grad = None
                torch.manual_seed(0)
                torch.randn(10, 5, device=device, dtype=dtype)
                torch.randn(10, device=device, dtype=dtype)
                inpt = torch.randn(5, device=device, dtype=dtype)
                loss = (weight_c.mv(inpt) + bias_c).pow(2).sum()
                loss.backward()
                return loss

            copies = [weight_c, bias_c]
            named_c = list(zip(("weight", "bias"), copies, strict=True))
            other = optim_info.optim_cls(named_c if is_named else copies, **deepcopy(given.kwargs))
            other.load_state_dict(saved)
            self.assertEqual(other.state_dict(), optimizer.state_dict(), msg=given.desc)
            for _ in range(2):
                optimizer.step(closure)
                other.step(closure_c)
            for copied, p in zip(copies, params, strict=True):
                self.assertTrue(torch.equal(copied, p), msg=given.desc)
            self.assertEqual(other.state_dict(), optimizer.state_dict(), msg=given.desc)

    @optims(DB, dtypes=[torch.float32])
    def test_can_load_older_state_dict(self, device, dtype, optim_info):
        """A state dict from before an option existed takes the option's default."""
        for flag in (
            "foreach",
            "fused",
            "capturable",
            "maximize",
            "stochastic_rounding",
            "stac_format",
        ):
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params)
            optimizer.step(closure)
            saved = deepcopy(optimizer.state_dict())
            for group in saved["param_groups"]:
                del group[flag]
            optimizer.load_state_dict(saved)
            self.assertTrue(all(flag in group for group in optimizer.param_groups))
            optimizer.step(closure)

    @optims(DB, dtypes=[torch.float32])
    def test_can_load_from_to_named_state_dict(self, device, dtype, optim_info):
        for saved_named, loaded_named in itertools.product((True, False), repeat=2):
            optimizers = []
            for is_named in (saved_named, loaded_named):
                params, closure = problem(device, dtype)
                named = list(zip(("weight", "bias"), params, strict=True))
                optimizer = optim_info.optim_cls(named if is_named else params)
                optimizer.step(closure)
                optimizers.append(optimizer)
            saved, loaded = optimizers
            loaded.load_state_dict(deepcopy(saved.state_dict()))
            names = [g.get("param_names") for g in loaded.state_dict()["param_groups"]]
            self.assertEqual(None not in names, saved_named or loaded_named)
            if saved_named or loaded_named:
                self.assertEqual([n for group in names for n in group], ["weight", "bias"])
                live = [g["param_names"] for g in loaded.param_groups]
                self.assertEqual(live, names)
            self.assertEqual(loaded.state_dict()["state"], saved.state_dict()["state"])

    @parametrize("is_named", [True, False])
    @optims(DB, dtypes=[torch.float32])
    def test_save_load_equality_with_weights_only(self, device, dtype, optim_info, is_named):
        for given in all_inputs(device, dtype, optim_info):
            params, closure = problem(device, dtype)
            named = list(zip(("weight", "bias"), params, strict=True))
            optimizer = optim_info.optim_cls(named if is_named else params, **given.kwargs)
            for _ in range(3):
                optimizer.step(closure)
            with tempfile.TemporaryFile() as file:
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                loaded = torch.load(file, weights_only=True)
            self.assertEqual(loaded, optimizer.state_dict())

    @optims(DB, dtypes=[torch.float32])
    def test_load_nontensor_step(self, device, dtype, optim_info):
        params, closure = problem(device, dtype)
        optimizer = optim_info.optim_cls(params)
        for _ in range(3):
            optimizer.step(closure)
        saved = deepcopy(optimizer.state_dict())
        counted = [s for s in saved["state"].values() if "step" in s]
        for state in counted:
            state["step"] = state["step"].item()
        optimizer.load_state_dict(saved)
        optimizer.step(closure)
        steps = [s["step"] for s in optimizer.state.values() if "step" in s]
        self.assertEqual([float(s) for s in steps], [4.0] * len(counted))
        self.assertTrue(all(s.dtype is torch.float32 for s in steps))

    @optims(DB, dtypes=[torch.float32])
    def test_state_dict_hooks(self, device, dtype, optim_info):
        params, closure = problem(device, dtype)
        optimizer = optim_info.optim_cls(params)
        optimizer.step(closure)
        calls = []

        def before(opt):
            calls.append("before")

        def after(opt, state_dict):
            calls.append("after")
            state_dict["extra"] = 1

        handles = [
            optimizer.register_state_dict_post_hook(after),
            optimizer.register_state_dict_pre_hook(before),
        ]
        self.assertEqual(optimizer.state_dict()["extra"], 1)
        self.assertEqual(calls, ["before", "after"])
        for handle in handles:
            handle.remove()
        self.assertNotIn("extra", optimizer.state_dict())

    @optims(DB, dtypes=[torch.float32])
    def test_load_state_dict_hooks_and_prepend(self, device, dtype, optim_info):
        params, closure = problem(device, dtype)
        optimizer = optim_info.optim_cls(params)
        optimizer.step(closure)
        saved = deepcopy(optimizer.state_dict())
        calls = []

        def replace(opt, state_dict):
            calls.append("replace")
            replaced = deepcopy(state_dict)
            for group in replaced["param_groups"]:
                group["lr"] = 0.5
            return replaced

        def look(opt, state_dict):
            calls.append("look")

        handles = [
            optimizer.register_load_state_dict_pre_hook(replace),
            optimizer.register_load_state_dict_pre_hook(look, prepend=True),
            optimizer.register_load_state_dict_post_hook(lambda opt: calls.append("post")),
        ]
        optimizer.load_state_dict(saved)
        self.assertEqual(calls, ["look", "replace", "post"])
        self.assertEqual(
            [g["lr"] for g in optimizer.param_groups], [0.5] * len(saved["param_groups"])
        )
        self.assertNotEqual(saved["param_groups"][0]["lr"], 0.5)
        for handle in handles:
            handle.remove()
        optimizer.load_state_dict(saved)
        self.assertEqual(len(calls), 3)

    @optims(DB, dtypes=[torch.float32])
    def test_step_hooks(self, device, dtype, optim_info):
        params, closure = problem(device, dtype)
        optimizer = optim_info.optim_cls(params)
        calls = []
        local = [
            optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append("pre")),
            optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append("post")),
            register_optimizer_step_pre_hook(lambda opt, args, kwargs: calls.append("global pre")),
            register_optimizer_step_post_hook(
                lambda opt, args, kwargs: calls.append("global post")
            ),
        ]
        optimizer.step(closure)
        self.assertEqual(calls, ["global pre", "pre", "post", "global post"])
        for handle in local:
            handle.remove()
        optimizer.step(closure)
        self.assertEqual(len(calls), 4)

    @optims(DB, dtypes=[torch.float32])
    def test_deepcopy_and_pickle_copy_all_public_attrs(self, device, dtype, optim_info):
        for given in all_inputs(device, dtype, optim_info):
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            optimizer.step(closure)
            params[0].grad = torch.full_like(params[0], math.nan)
            if given.kwargs.get("nonfinite") != "propagate":
                optimizer.step()
            copies = [deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
            for copied in copies:
                public = [{k for k in o.__dict__ if k[0] != "_"} for o in (optimizer, copied)]
                self.assertEqual(public[0], public[1])
                self.assertEqual(copied.state_dict(), optimizer.state_dict())
                self.assertEqual(copied.nonfinite_skipped_steps, optimizer.nonfinite_skipped_steps)
                self.assertEqual(
                    copied.partition.sign_parameter_names, optimizer.partition.sign_parameter_names
                )

    @optims(DB, dtypes=[torch.float32])
    def test_non_empty_state(self, device, dtype, optim_info):
        for given in all_inputs(device, dtype, optim_info):
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            optimizer.step(closure)
            for state in optimizer.state.values():
                self.assertGreater(len(state), 0, msg=given.desc)

    @optims(DB, dtypes=[torch.float32])
    def test_every_lr_scheduler_drives_it(self, device, dtype, optim_info):
        """Those that multiply and those that write values keep one public lr in every group."""
        makers = [
            lambda o: LambdaLR(o, lambda t: 0.9**t),
            lambda o: LinearLR(o, total_iters=3),
            lambda o: CosineAnnealingLR(o, T_max=5),
            lambda o: OneCycleLR(o, max_lr=0.1, total_steps=9),
            lambda o: ReduceLROnPlateau(o, patience=0),
        ]
        for make in makers:
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params)
            scheduler = make(optimizer)
            for _ in range(5):
                loss = optimizer.step(closure).item()
                plateau = isinstance(scheduler, ReduceLROnPlateau)
                scheduler.step(*([loss] if plateau else []))
                self.assertEqual(len({float(g["lr"]) for g in optimizer.param_groups}), 1)

    @optims(DB, dtypes=[torch.float16, torch.bfloat16])
    def test_16_bit_parameters_step(self, device, dtype, optim_info):
        params, closure = problem(device, dtype)
        optimizer = optim_info.optim_cls(params, lr=1e-2)
        first = closure().item()
        for _ in range(20):
            optimizer.step(closure)
        self.assertLess(closure().item(), first)
        for p in params:
            self.assertEqual(optimizer.state[p]["exp_avg"].dtype, dtype)


# Each device type gets a class of its own; CUDA's appear where there is a CUDA device.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    instantiate_device_type_tests(TestSTACInTorch, globals())
