"""STAC as an optax transformation: sign updates on the early layers, AdamW on the last ones.

Each section is a transformation of its own, in ``_sign`` and ``_adamw``; this module puts them
together.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import transforms
from stam_core import HYBRID_SIGN_LR_SCALE, STACHyperparams

from stam_jax._adamw import adamw_section
from stam_jax._layers import LastLayers, Partition, layer_table, roles_of
from stam_jax._means import AxisName
from stam_jax._nonfinite import apply_policy
from stam_jax._optimizer import descending
from stam_jax._rounding import round_updates_stochastically
from stam_jax._sign import sign_section
from stam_jax._tree import flatten_like


def stac(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    sign_momentum: jax.typing.ArrayLike = 0.9,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    partition: Partition = None,
    sign_lr_scale: float | None = None,
    sign_weight_decay: optax.ScalarOrSchedule | None = None,
    adamw_weight_decay: optax.ScalarOrSchedule | None = None,
    mask: Any = None,
    sign_state_dtype: Any = None,
    adamw_state_dtype: Any = None,
    amsgrad: bool = False,
    maximize: bool = False,
    stochastic_rounding: bool = False,
    rounding_seed: int = 0,
    axis_name: AxisName | None = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Return STAC: sign updates on the early layers, AdamW on the last ones.

    Per entry of the sign section, with gradient g, first moment m, parameter p and
    lr_s = sign_lr_scale*lr:

        m = sm*m + (1-sm)*g
        u = -lr_s * (sign(m) + wd_s*p)

    The AdamW section is AdamW. The update u is additive, as everywhere in optax. Moments
    are computed in float32 at least; int8 moments have the same bits as those of
    ``stac_torch.STAC`` under the same gradients.

    Args:
        learning_rate: Step size lr, >= 0, or a schedule of the step count.
        sign_momentum: Decay sm of the sign section's moment, in [0, 1); the number 0 is the
            textbook signSGD, without state.
        b1: Decay of the AdamW section's first moment, in [0, 1).
        b2: Decay of its second moment, in [0, 1).
        eps: Added to the root of the second moment, >= 0.
        weight_decay: Decoupled weight decay of both sections, >= 0, or a schedule.
        partition: None for the last layer by tree order on AdamW; what
            :class:`stam_jax.LastLayers` chooses; any callable from parameters (or updates) to a
            tree of ``"sign"`` and ``"adamw"``; or such a tree, or a prefix of it. A tied embedding
            is one leaf and has one role: name it where it is the head.
        sign_lr_scale: lr_s over lr, >= 0; None is 0.75 where the layers are chosen by their order
            and both sections have leaves, and 1.0 otherwise.
        sign_weight_decay: That of the sign section; None for ``weight_decay``.
        adamw_weight_decay: That of the AdamW section; None for ``weight_decay``.
        mask: Which leaves are decayed: a tree of booleans, or a callable from parameters to one.
        sign_state_dtype: See ``state_dtype`` of :func:`stam_jax.scale_by_sign_momentum`.
        adamw_state_dtype: Storage of the AdamW section's moments: None for the parameter's dtype, a
            floating dtype, or ``"int8"``: 2.03 bytes per entry for both moments of the leaves that
            have codes in the sign section, the second one rounded stochastically.
        amsgrad: Divide by the running maximum of the second moment.
        maximize: Ascend.
        stochastic_rounding: Round bfloat16 leaves stochastically, so that steps below half a unit
            in the last place are not lost: their updates come in float32, and lead to a number that
            bfloat16 holds. The noise depends on seed, step, dotted path and position alone, so
            that replicas agree.
        rounding_seed: Its seed, and that of the noise of moments in codes.
        axis_name: Mapped axes of ``jax.shard_map`` over which gradients are spread, for
            ``nonfinite="skip"`` to agree on.
        nonfinite: "skip" leaves out the whole step, as ``stac_torch.STAC`` does; "zero" replaces
            non-finite gradient entries by 0; "propagate" hands them on as optax does.

    Returns:
        The transformation; its ``update`` needs ``params`` where there is decay or stochastic
        rounding.

    Raises:
        ValueError: A hyperparameter is out of range. ``init`` and ``update``: the partition does
            not fit the parameters.
        TypeError: A hyperparameter is not a number.

    Example:
        >>> import jax, jax.numpy as jnp, optax, stam_jax
        >>> optimizer = stam_jax.stac(learning_rate=0.1)
        >>> params = {"body": {"w": jnp.asarray([1.0, -2.0])}, "head": {"w": jnp.asarray([3.0])}}
        >>> state = optimizer.init(params)
        >>> loss = lambda p: jnp.sum(p["body"]["w"] ** 2) + jnp.sum(p["head"]["w"] ** 2)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(f"{params['body']['w'][0]:.3f} {params['head']['w'][0]:.3f}")
        0.925 2.900
        0.850 2.800
        0.775 2.700

    References:
        The project page of stac-optimizer 0.1.5; the equations' numbers stand in
        ``stam_core._stac``.
    """
    if not callable(learning_rate):
        STACHyperparams(learning_rate=learning_rate)
    if not callable(weight_decay):
        STACHyperparams(weight_decay=weight_decay)
    own = (sign_weight_decay, adamw_weight_decay)
    own_sign, own_adamw = (None if callable(value) else value for value in own)
    STACHyperparams(
        sign_lr_scale=1.0 if sign_lr_scale is None else sign_lr_scale,
        sign_weight_decay=own_sign,
        adamw_weight_decay=own_adamw,
    )
    decays = [weight_decay if value is None else value for value in own]
    ordered = partition is None or isinstance(partition, LastLayers)
    wide = stochastic_rounding
    by_sign = sign_section(
        sign_momentum, sign_state_dtype, maximize=maximize, wide=wide, seed=rounding_seed
    )
    by_adam = adamw_section(
        b1=b1,
        b2=b2,
        eps=eps,
        state_dtype=adamw_state_dtype,
        seed=rounding_seed,
        amsgrad=amsgrad,
        maximize=maximize,
        wide=wide,
    )

    def sections(tree: Any) -> optax.GradientTransformationExtraArgs:
        roles = roles_of(partition, tree)
        scale = sign_lr_scale
        if scale is None:
            hybrid = ordered and len(set(jax.tree.leaves(roles))) == 2
            scale = HYBRID_SIGN_LR_SCALE if hybrid else 1.0
        return transforms.partition(
            {
                "sign": descending(by_sign, _times(scale, learning_rate), decays[0], mask),
                "adamw": descending(by_adam, learning_rate, decays[1], mask),
            },
            # A model that is called would be taken for a function that returns the roles.
            lambda _: roles,
        )

    def init(params: Any) -> Any:
        return sections(params).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is not None:
            grads, treedef = jax.tree.flatten(updates)
            # Each section compares shapes with its own state, of which neither knows the whole.
            flatten_like(treedef, grads, params, "the parameters", lambda _, p: jnp.shape(p))
        return sections(updates).update(updates, state, params, **extra)

    whole = optax.GradientTransformationExtraArgs(init, update)
    if stochastic_rounding:
        whole = optax.chain(whole, round_updates_stochastically(rounding_seed))
    return apply_policy(nonfinite, whole, axis_name)  # type: ignore[arg-type]


def _times(scale: Any, rate: optax.ScalarOrSchedule) -> Any:
    if callable(rate):
        return lambda count: scale * rate(count)
    return rate if isinstance(scale, int | float) and scale == 1 else scale * rate


def describe(params: Any, partition: Partition = None, **options: Any) -> str:
    """Return the partition of STAC as a table: layer, role, parameters, bytes of state.

    Args:
        params: The parameters, or their shapes and dtypes.
        partition: As for :func:`stac`.
        **options: The other arguments of :func:`stac`; those about storage change the bytes.

    Raises:
        ValueError: The partition does not fit the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> zeros = jnp.zeros
        >>> params = {"a": {"w": zeros((64, 64)), "b": zeros(64)}, "b": {"w": zeros((64, 4))}}
        >>> print(describe(params, sign_state_dtype="int8"))
        layer  role   parameters  state bytes
        a      sign        4,160        4,608
        b      adamw         256        2,048
        total              4,416        6,656
    """
    roles = roles_of(partition, params)

    def moments(leaf: Any, role: str) -> int:
        optimizer = stac(partition=lambda _: {"leaf": role}, **options)
        state = jax.tree.leaves(jax.eval_shape(optimizer.init, {"leaf": leaf}))
        # Counters are not a leaf's: every section has its own whatever it holds.
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in state if x.dtype != jnp.int32)

    return layer_table(params, roles, jax.tree.leaves(jax.tree.map(moments, params, roles)))
