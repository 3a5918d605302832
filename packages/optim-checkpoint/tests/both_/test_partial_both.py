"""Parts of the other framework's models; their optimizers are converted whole."""

import jax.numpy as jnp
import numpy as np
import optax
import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import jax as jax_ckpt
from optim_checkpoint import torch as torch_ckpt


def test_a_part_of_a_jax_model_goes_into_a_torch_model(tmp_path):
    params = {"net": {"weight": jnp.ones((2, 3)), "bias": jnp.ones(2)}}
    jax_ckpt.save(tmp_path, 1, params=params, opt_state=optax.sgd(0.1, 0.9).init(params))
    model = torch.nn.Linear(3, 2)
    bias = model.bias.detach().clone()
    report = torch_ckpt.restore(tmp_path, model=model, rename={"net": ""}, only="weight").report[
        "model"
    ]
    assert (report.loaded, report.left_out) == (("weight",), ("bias",))
    assert torch.equal(model.weight, torch.ones(2, 3))
    assert torch.equal(model.bias, bias)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with pytest.raises(oc.IncompatibleCheckpointError, match="saved by jax: it is restored whole"):
        torch_ckpt.restore(tmp_path, model=model, optimizer=optimizer, rename={"net": ""})


def test_a_part_of_a_torch_model_goes_into_a_tree(tmp_path):
    model = torch.nn.Linear(3, 2)
    torch_ckpt.save(tmp_path, 1, model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    tree = {"net": {"weight": jnp.zeros((2, 3), jnp.bfloat16)}, "new": jnp.zeros(1)}
    r = jax_ckpt.restore(
        tmp_path, params=tree, strict=False, rename=lambda name: f"net.{name}", cast=jnp.bfloat16
    )
    report = r.report["params"]
    assert (report.loaded, report.missing, report.unexpected) == (
        ("net.weight",), ("new",), ("bias",)
    )  # fmt: skip
    assert report.cast == {"net.weight": ("F32", "BF16")}
    expected = model.weight.detach().bfloat16().float().numpy()
    np.testing.assert_array_equal(r.params["net"]["weight"].astype(jnp.float32), expected)
    state = optax.sgd(0.1).init(tree)
    with pytest.raises(oc.IncompatibleCheckpointError, match="saved by torch: it is restored whol"):
        jax_ckpt.restore(tmp_path, params=tree, opt_state=state, strict=False)
