"""The class interface of the ancestor's page: updates that are subtracted from the parameters.

These classes live in a module of their own, because ``optax.apply_updates``, ``optax.chain`` and
``nnx.Optimizer`` would accept them and silently ascend. With those, use :func:`stam_jax.stam` and
:func:`stam_jax.stam_lite`.
"""

from typing import Any

import jax
import optax

from stam_jax._layers import Partition
from stam_jax._means import AxisName
from stam_jax._stac import stac
from stam_jax._stam import stam
from stam_jax._stam_lite import stam_lite
from stam_jax._tree import StatAxes

__all__ = ["STAC", "STAM", "STAMLite"]


class _Descent:
    """An optax optimizer behind ``init`` and ``update``, with the sign of the updates turned."""

    def __init__(self, transformation: optax.GradientTransformationExtraArgs) -> None:
        self._transformation = transformation

    def init(self, params: Any) -> Any:
        """Return the state before the first step."""
        return self._transformation.init(params)

    def update(self, grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        """Return the updates to subtract from the parameters, and the new state.

        Args:
            grads: Gradients, the parameters' tree.
            state: What :meth:`init` or this method returned.
            params: The parameters; needed unless ``weight_decay`` is 0.

        Raises:
            ValueError: ``params`` are missing, or the trees do not match.
            TypeError: A leaf is neither floating nor complex.
        """
        updates, state = self._transformation.update(grads, state, params)
        return jax.tree.map(lambda u: -u, updates), state


class STAM(_Descent):
    """STAM with updates that are subtracted: ``params = p - u`` for every leaf.

    Args:
        learning_rate: As all the arguments, see :func:`stam_jax.stam`.
        b1_base: Largest decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        adapt_strength: How far beta1 may fall below ``b1_base``.
        tau_decay: Decay of the running scale.
        fallback_threshold: Cap on the normalised variance.
        mask: Which leaves are decayed.
        variance_eps: Added to the squared scale.
        statistics: "published" or "corrected".
        stat_sample: How many entries of a tensor the means read; None for all.
        stat_axes: Axes along which statistics are kept apart.
        axis_name: Mapped axes over which tensors are spread.
        mu_dtype: Storage dtype of the first moment.
        nu_dtype: Storage dtype of the second moment.
        nonfinite: "propagate", "zero" or "skip".
        parity: None, or the version of the published package to reproduce.
        eps_root: Added to the second moment under the root.

    Raises:
        ValueError: A hyperparameter is out of range.
        TypeError: A hyperparameter is not a number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = STAM(learning_rate=0.1)
        >>> params = {"w": jnp.asarray([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(params, state, params)  # gradient of |w|^2/2
        ...     params = jax.tree.map(lambda p, u: p - u, params, updates)
        ...     print(f"{params['w'][0]:.4f} {params['w'][1]:.4f}")
        0.8990 -1.8980
        0.7989 -1.7965
        0.7003 -1.6956
    """

    def __init__(
        self,
        learning_rate: optax.ScalarOrSchedule = 1e-3,
        b1_base: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: optax.ScalarOrSchedule = 0.01,
        adapt_strength: optax.ScalarOrSchedule = 0.2,
        tau_decay: float = 0.99,
        fallback_threshold: float = 100.0,
        *,
        mask: Any = None,
        variance_eps: jax.typing.ArrayLike = 1e-8,
        statistics: str = "published",
        stat_sample: int | None = None,
        stat_axes: StatAxes | None = None,
        axis_name: AxisName | None = None,
        mu_dtype: Any = None,
        nu_dtype: Any = None,
        nonfinite: str = "propagate",
        parity: str | None = None,
        eps_root: jax.typing.ArrayLike = 0.0,
    ) -> None:
        transformation = stam(
            learning_rate,
            b1_base,
            b2,
            eps,
            weight_decay,
            adapt_strength=adapt_strength,
            tau_decay=tau_decay,
            fallback_threshold=fallback_threshold,
            mask=mask,
            variance_eps=variance_eps,
            statistics=statistics,
            stat_sample=stat_sample,
            stat_axes=stat_axes,
            axis_name=axis_name,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            nonfinite=nonfinite,
            parity=parity,
            eps_root=eps_root,
        )
        super().__init__(transformation)


class STAMLite(_Descent):
    """STAMLite with updates that are subtracted: ``params = p - u`` for every leaf.

    Args:
        learning_rate: As all the arguments, see :func:`stam_jax.stam_lite`.
        b1_base: Largest decay of the first moment.
        eps: Added to the denominators.
        weight_decay: Decoupled weight decay.
        adapt_strength: How far beta1 may fall below ``b1_base``.
        moment_decay: Decay of the gradient's moments.
        beta1_update_interval: Steps between two updates of beta1.
        state_dtype: Storage dtype of the first moment.
        mask: Which leaves are decayed.
        stat_sample: How many entries of a tensor the means read; None for all.
        stat_axes: Axes along which statistics are kept apart.
        axis_name: Mapped axes over which tensors are spread.
        nonfinite: "propagate", "zero" or "skip".
        parity: None, or the version of the published package to reproduce.
        eps_root: Added to the mean square under the root.

    Raises:
        ValueError: A hyperparameter is out of range.
        TypeError: A hyperparameter is not a number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = STAMLite(learning_rate=0.1)
        >>> params = {"w": jnp.asarray([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> print(updates["w"])
        [ 0.0642... -0.1284...]
    """

    def __init__(
        self,
        learning_rate: optax.ScalarOrSchedule = 1e-3,
        b1_base: float = 0.9,
        eps: float = 1e-8,
        weight_decay: optax.ScalarOrSchedule = 0.01,
        adapt_strength: optax.ScalarOrSchedule = 0.2,
        moment_decay: float = 0.99,
        beta1_update_interval: int = 5,
        state_dtype: Any = "float32",
        *,
        mask: Any = None,
        stat_sample: int | None = None,
        stat_axes: StatAxes | None = None,
        axis_name: AxisName | None = None,
        nonfinite: str = "propagate",
        parity: str | None = None,
        eps_root: jax.typing.ArrayLike = 0.0,
    ) -> None:
        transformation = stam_lite(
            learning_rate,
            b1_base,
            eps,
            weight_decay,
            adapt_strength=adapt_strength,
            moment_decay=moment_decay,
            beta1_update_interval=beta1_update_interval,
            state_dtype=state_dtype,
            mask=mask,
            stat_sample=stat_sample,
            stat_axes=stat_axes,
            axis_name=axis_name,
            nonfinite=nonfinite,
            parity=parity,
            eps_root=eps_root,
        )
        super().__init__(transformation)


class STAC(_Descent):
    """STAC with updates that are subtracted: ``params = p - u`` for every leaf.

    Args:
        learning_rate: As all the arguments, see :func:`stam_jax.stac`.
        sign_momentum: Decay of the sign section's moment.
        b1: Decay of the AdamW section's first moment.
        b2: Decay of its second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay of both sections.
        partition: Which leaves are trained by sign, and which by AdamW.
        sign_lr_scale: Step size of the sign section over the learning rate.
        sign_weight_decay: Decay of the sign section.
        adamw_weight_decay: Decay of the AdamW section.
        mask: Which leaves are decayed.
        sign_state_dtype: Storage of the sign section's moment.
        adamw_state_dtype: Storage of the AdamW section's moments.
        amsgrad: Divide by the running maximum of the second moment.
        maximize: Ascend.
        stochastic_rounding: Round bfloat16 leaves stochastically.
        rounding_seed: Its seed.
        axis_name: Mapped axes over which gradients are spread.
        nonfinite: What a gradient with nan or infinity does.

    Raises:
        ValueError: A hyperparameter is out of range.
        TypeError: A hyperparameter is not a number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = STAC(learning_rate=0.1)
        >>> params = {"body": jnp.asarray([1.0, -2.0]), "head": jnp.asarray([3.0])}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> print(updates["head"])
        [0.1]
    """

    def __init__(
        self,
        learning_rate: optax.ScalarOrSchedule = 1e-3,
        sign_momentum: float = 0.9,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
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
    ) -> None:
        transformation = stac(
            learning_rate,
            sign_momentum,
            b1,
            b2,
            eps,
            weight_decay,
            partition=partition,
            sign_lr_scale=sign_lr_scale,
            sign_weight_decay=sign_weight_decay,
            adamw_weight_decay=adamw_weight_decay,
            mask=mask,
            sign_state_dtype=sign_state_dtype,
            adamw_state_dtype=adamw_state_dtype,
            amsgrad=amsgrad,
            maximize=maximize,
            stochastic_rounding=stochastic_rounding,
            rounding_seed=rounding_seed,
            axis_name=axis_name,
            nonfinite=nonfinite,
        )
        super().__init__(transformation)
