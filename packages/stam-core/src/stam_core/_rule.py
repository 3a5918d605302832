"""One record per update rule: its hyperparameters, what it keeps, and pure functions over ``xp``.

A rule is that of ONE tensor. With gradient g and parameter p, a step is

    g, its sign turned or its bad entries replaced               prepare       (1)
    x = what is averaged over the tensor, entry by entry         observe       (2)
    means of x over the tensor                                   means         (3)
    statistics, one number per tensor, averaged over time        advance       (4)
    moments, shaped as the parameter, averaged over time         accumulate    (5)
    direction d                                                  direction     (6)
    p <- p*(1 - lr*wd) - lr*d                                    decayed_step  (7)

A rule without statistics has (1) and (5) to (7) alone, one without any state (1), (6) and (7).
Frameworks call the functions, and bring the loop over tensors, the storage of the state, and the
means across devices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from stam_core._hyperparams import Hyperparams
from stam_core._means import strided_sample
from stam_core._typing import AS_WRITTEN, Array, Exact, Mean, Namespace, Scalar

H = TypeVar("H", bound=Hyperparams)
H_contra = TypeVar("H_contra", bound=Hyperparams, contravariant=True)

Slots: TypeAlias = Mapping[str, Array]
"""Moments or statistics of one tensor, by name."""


class Moment(NamedTuple):
    """A slot of state that is shaped as the parameter and starts at 0.

    Attributes:
        name: Its name here and in JAX.
        torch: Its key in the state of a torch optimizer.
        real: Whether it holds magnitudes, which are real for a complex parameter.
        wide: Whether it is stored in at least float32 unless asked otherwise.
        given: The hyperparameter without which there is no such slot: False, or the number 0.
        square: Whether it holds squares, of which a code keeps that they are not 0.
    """

    name: str
    torch: str
    real: bool = False
    wide: bool = False
    given: str | None = None
    square: bool = False


class Statistic(NamedTuple):
    """A slot of state that is one number per tensor, in at least float32.

    Attributes:
        name: Its name, the same everywhere.
        initial: Where it starts: a number, or the hyperparameter that says so.
        complex: Whether it is complex for a complex parameter.
    """

    name: str
    initial: float | str
    complex: bool = False


class Report(NamedTuple):
    """What the statistics of a tensor say, in words that rules share.

    Attributes:
        beta1: Decay of the first moment in the last step.
        z: Normalised variance of the last step, from which beta1 follows.
        variance: The variance that the rule measures, not corrected for its bias.
        scale: What it is compared with, likewise.
    """

    beta1: Array
    z: Array
    variance: Array
    scale: Array


class Prepare(Protocol[H_contra]):
    """Return the gradient that the rule goes on with."""

    def __call__(self, g: Array, hp: H_contra, /, *, xp: Namespace) -> Array: ...


class Observe(Protocol[H_contra]):
    """Return what is averaged, entry by entry, of a gradient and the moments that are read."""

    def __call__(self, g: Array, moments: Slots, hp: H_contra, /, *, xp: Namespace) -> Array: ...


class Means(Protocol):
    """Return means over a tensor of what was observed."""

    def __call__(self, observed: Array, /, *, xp: Namespace, mean: Mean) -> tuple[Array, ...]: ...


class Advance(Protocol[H_contra]):
    """Return all statistics after a step, elementwise over any common shape.

    ``count`` is the step being taken, 1, 2, ..., a 0-d array of any real dtype.
    """

    def __call__(
        self,
        statistics: Slots,
        means: tuple[Array, ...],
        count: Array,
        hp: H_contra,
        /,
        *,
        xp: Namespace,
    ) -> dict[str, Array]: ...


class Accumulate(Protocol[H_contra]):
    """Return the moments after a step; the statistics are those after it.

    ``exact`` keeps operations apart under a compiler, for rules whose moments have the same bits
    everywhere.
    """

    def __call__(
        self,
        g: Array,
        moments: Slots,
        statistics: Slots,
        hp: H_contra,
        /,
        *,
        xp: Namespace,
        exact: Exact,
    ) -> dict[str, Array]: ...


class Direction(Protocol[H_contra]):
    """Return the descent direction; moments and statistics are those after the step."""

    def __call__(
        self,
        g: Array,
        moments: Slots,
        statistics: Slots,
        count: Array,
        hp: H_contra,
        /,
        *,
        xp: Namespace,
    ) -> Array: ...


def _first(g: Array, *others: Any, **options: Any) -> Array:
    del others, options
    return g


def _none(*given: Any, **options: Any) -> tuple[Array, ...]:
    del given, options
    return ()


def _empty(*given: Any, **options: Any) -> dict[str, Array]:
    del given, options
    return {}


# Equal to itself alone, so that a compiler's cache can hold it without hashing what it holds.
@dataclass(frozen=True, eq=False)
class Rule(Generic[H]):
    """The update rule of one tensor.

    Attributes:
        name: Its name in suites and tables.
        hyperparams: The class of its hyperparameters.
        direction: Function (6) of the module's list.
        moments: What it keeps per entry; see :meth:`moments_of`.
        accumulate: Function (5).
        statistics: What it keeps per tensor; then the hyperparameters have ``stat_sample``.
        prepare: Function (1).
        reads: Names of the moments that ``observe`` reads.
        observe: Function (2); without one the gradient itself.
        means: Function (3).
        advance: Function (4).
        report: From the statistics to a :class:`Report`; None where there is nothing to say.
        by_parts: Whether the real and the imaginary part of a complex entry are two entries.

    Example:
        >>> import numpy as np
        >>> from stam_core import STAM
        >>> hp = STAM.hyperparams(learning_rate=0.1)
        >>> p, g = np.asarray([1.0, 2.0]), np.asarray([0.5, -0.25])
        >>> state = STAM.init(p, hp, xp=np)
        >>> p, state = STAM.step(p, g, state, np.asarray(1), hp, xp=np, mean=np.mean)
        >>> p.round(4).tolist(), round(float(state["beta1"]), 4)
        ([0.899, 2.098], 0.7349)
    """

    name: str
    hyperparams: type[H]
    direction: Direction[H]
    moments: tuple[Moment, ...] = ()
    accumulate: Accumulate[H] = _empty
    statistics: tuple[Statistic, ...] = ()
    prepare: Prepare[H] = _first
    reads: tuple[str, ...] = ()
    observe: Observe[H] = _first
    means: Means = _none
    advance: Advance[H] = _empty
    report: Callable[[Slots, Namespace], Report] | None = None
    by_parts: bool = False

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The names of the statistics, in the order in which they are stored."""
        return tuple(statistic.name for statistic in self.statistics)

    def moments_of(self, hp: H) -> tuple[Moment, ...]:
        """Return the moments that are kept under these hyperparameters.

        Example:
            >>> from stam_core import ADAMW
            >>> [m.name for m in ADAMW.moments_of(ADAMW.hyperparams(amsgrad=True))]
            ['mu', 'nu', 'nu_max']
        """
        return tuple(m for m in self.moments if m.given is None or _is_given(getattr(hp, m.given)))

    def init(self, p: Array, hp: H, *, xp: Namespace) -> dict[str, Array]:
        """Return the state before the first step, in the dtype of ``p`` or its real one."""
        real = xp.abs(p)
        state: dict[str, Array] = {
            m.name: xp.zeros_like(real if m.real else p) for m in self.moments_of(hp)
        }
        for s in self.statistics:
            start = getattr(hp, s.initial) if isinstance(s.initial, str) else s.initial
            state[s.name] = xp.sum(xp.zeros_like(p if s.complex else real)) + start
        return state

    def update(
        self,
        g: Array,
        moments: Slots,
        statistics: Slots,
        count: Array,
        hp: H,
        *,
        xp: Namespace,
        exact: Exact = AS_WRITTEN,
    ) -> tuple[Array, dict[str, Array]]:
        """Return direction and moments after a step, (5) and (6).

        Args:
            g: Gradient, from ``prepare``.
            moments: The moments before the step, shape of ``g``.
            statistics: The statistics after it, each broadcasting against ``g``.
            count: Step being taken, from 1, a 0-d array.
            hp: The hyperparameters.
            xp: The array namespace.
            exact: How to keep operations apart under a compiler.
        """
        new = self.accumulate(g, moments, statistics, hp, xp=xp, exact=exact)
        return self.direction(g, new, statistics, count, hp, xp=xp), new

    def step(
        self, p: Array, g: Array, state: Slots, count: Array, hp: H, *, xp: Namespace, mean: Mean
    ) -> tuple[Array, dict[str, Array]]:
        """Take one step on one tensor, all of (1) to (7).

        Args:
            p: Parameter.
            g: Gradient, shape and dtype of ``p``.
            state: State of this tensor.
            count: Step being taken, from 1, a 0-d array.
            hp: The hyperparameters, none of them a schedule.
            xp: The array namespace.
            mean: The mean to use for the statistics.

        Returns:
            The new parameter and the new state.
        """
        moments = {m.name: state[m.name] for m in self.moments_of(hp)}
        statistics = {s.name: state[s.name] for s in self.statistics}
        g = self.prepare(g, hp, xp=xp)
        if self.statistics:
            observed = self.observe(
                _sampled(g, hp, xp),
                {m: _sampled(moments[m], hp, xp) for m in self.reads},
                hp,
                xp=xp,
            )
            means = self.means(observed, xp=xp, mean=mean)
            statistics = self.advance(statistics, means, count, hp, xp=xp)
        if self.by_parts and xp.isdtype(g.dtype, "complex floating"):
            parts = {name: _parts(x, xp) for name, x in moments.items()}
            d, parts = self.update(_parts(g, xp), parts, statistics, count, hp, xp=xp)
            d, moments = _whole(d), {name: _whole(x) for name, x in parts.items()}
        else:
            d, moments = self.update(g, moments, statistics, count, hp, xp=xp)
        return decayed_step(p, d, hp.learning_rate, hp.weight_decay), {**moments, **statistics}


def decayed_step(p: Array, d: Array, learning_rate: Scalar, weight_decay: Scalar) -> Array:
    """Return the parameter after a step along ``-d`` with decoupled decay, (7).

    Example:
        >>> decayed_step(1.0, 0.5, 0.1, 0.1)
        0.94
    """
    return p * (1 - learning_rate * weight_decay) - learning_rate * d


def zero_nonfinite(g: Array, *, xp: Namespace) -> Array:
    """Return ``g`` with NaN and infinite entries replaced by 0.

    Example:
        >>> import numpy as np
        >>> zero_nonfinite(np.asarray([1.0, np.nan, -np.inf]), xp=np).tolist()
        [1.0, 0.0, 0.0]
    """
    return xp.where(xp.isfinite(g), g, xp.zeros_like(g))


def _is_given(value: Any) -> bool:
    # An array may be 0 at one step and not at another.
    return not isinstance(value, int | float) or value != 0


def _sampled(x: Array, hp: Any, xp: Namespace) -> Array:
    return strided_sample(x, hp.stat_sample, xp=xp)


def _parts(x: Array, xp: Namespace) -> Array:
    return xp.stack([xp.real(x), xp.imag(x)])


def _whole(x: Array) -> Array:
    return x[0, ...] + 1j * x[1, ...]
