"""The class interface of the ancestor's page: updates that are subtracted from the parameters.

These classes live in a module of their own, because ``optax.apply_updates``, ``optax.chain`` and
``nnx.Optimizer`` would accept them and silently ascend. With those, use :func:`stam_jax.stam` and
:func:`stam_jax.stam_lite`.
"""

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, Concatenate, ParamSpec

import jax
import optax

from stam_jax._arguments import parameters, section
from stam_jax._stac import stac
from stam_jax._stam import stam
from stam_jax._stam_lite import stam_lite

__all__ = ["STAC", "STAM", "STAMLite"]

P = ParamSpec("P")


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


def _with_arguments_of(
    make: Callable[P, Any],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give an ``__init__`` the arguments of an optimizer, and their description."""

    def decorate(init: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        itself = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        init.__signature__ = Signature([itself, *parameters(make)])  # type: ignore[attr-defined]
        init.__doc__ = f"{section(make, 'Args')}\n\n{section(make, 'Raises')}\n"
        return init

    return decorate


class STAM(_Descent):
    """STAM with updates that are subtracted: ``params = p - u`` for every leaf.

    The arguments are those of :func:`stam_jax.stam`.

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

    @_with_arguments_of(stam)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(stam(*args, **kwargs))


class STAMLite(_Descent):
    """STAMLite with updates that are subtracted: ``params = p - u`` for every leaf.

    The arguments are those of :func:`stam_jax.stam_lite`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = STAMLite(learning_rate=0.1)
        >>> params = {"w": jnp.asarray([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> print(updates["w"])
        [ 0.0642... -0.1284...]
    """

    @_with_arguments_of(stam_lite)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(stam_lite(*args, **kwargs))


class STAC(_Descent):
    """STAC with updates that are subtracted: ``params = p - u`` for every leaf.

    The arguments are those of :func:`stam_jax.stac`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = STAC(learning_rate=0.1)
        >>> params = {"body": jnp.asarray([1.0, -2.0]), "head": jnp.asarray([3.0])}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> print(updates["head"])
        [0.1]
    """

    @_with_arguments_of(stac)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(stac(*args, **kwargs))
