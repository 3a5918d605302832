"""The workload suite passes on a small honest benchmark and fails on dishonest ones."""

import itertools
import pickle

import numpy as np
import pytest
from optim_conformance import Pair, WorkloadConformance
from optim_conformance.workload import Training, WorkloadAdapter

SIZE = 6


class Run:
    """Least squares by gradient descent with momentum; "blas" and "einsum" are its frameworks."""

    def __init__(self, params, framework, momentum):
        self.p = {key: value.copy() for key, value in params.items()}
        self.m = {key: np.zeros_like(value) for key, value in params.items()}
        self.framework, self.momentum = framework, np.float32(momentum)

    def product(self, a, b):
        return a @ b if self.framework == "blas" else np.einsum("ij,jk->ik", a, b)

    def error(self, x, y):
        return self.product(x, self.p["weight"]) + self.p["bias"] - y

    def loss(self, x, y):
        return np.float32(np.square(self.error(x, y)).mean())

    def descend(self, x, y, rate):
        e = self.error(x, y) * np.float32(2 / y.size)
        for key, g in {"weight": self.product(x.T, e), "bias": e.sum(0)}.items():
            self.m[key] = self.momentum * self.m[key] + g
            self.p[key] = self.p[key] - np.float32(rate) * self.m[key]

    def advance(self, inputs, targets, rates):
        losses = []
        for x, y, rate in zip(inputs, targets, rates, strict=True):
            losses.append(self.loss(x, y))
            self.descend(x, y, rate)
        return np.array(losses)

    def evaluate(self, inputs, targets):
        return float(self.loss(inputs, targets))

    def params(self):
        return {key: value.copy() for key, value in self.p.items()}

    def save(self):
        return pickle.dumps((self.p, self.m))

    def restore(self, blob):
        self.p, self.m = pickle.loads(blob)


class Lines:
    """One workload with examples, and one that is a function."""

    name = "lines"
    plain = "sgd"
    rates = {"line": 0.1, "bowl": 0.1}  # noqa: RUF012 - the protocol's attribute
    frameworks = ("blas", "einsum")
    steady = unsplit = frozenset({"bowl"})
    pairs = tuple(
        Pair("line", framework, optimizer, 0.1, 60, 0.3)
        for framework, optimizer in itertools.product(frameworks, ("sgd", "momentum"))
    )
    schedules = ("constant", "linear")
    run = Run

    def initial(self, workload, seed):
        rng = np.random.default_rng([seed, 1])
        weight = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
        return {"weight": weight, "bias": np.zeros(SIZE, np.float32)}

    def examples(self, workload, rng, count):
        if workload == "bowl":
            return np.eye(SIZE, dtype=np.float32), np.ones((SIZE, SIZE), np.float32)
        x = rng.standard_normal((count, SIZE)).astype(np.float32)
        return x, np.cumsum(x, axis=1)

    def batches(self, workload, seed, sizes):
        rng = np.random.default_rng([seed, 2])
        for size in sizes:
            served = [self.examples(workload, rng, 8) for _ in range(size)]
            yield tuple(np.stack(part) for part in zip(*served, strict=True))

    def evaluation(self, workload, seed, split):
        rng = np.random.default_rng([seed, 3, *split.encode()])
        return self.examples(workload, rng, 50)

    def multipliers(self, schedule, steps):
        return [1.0 if schedule == "constant" else 1 - t / steps for t in range(steps)]

    def start(self, pair, seed):
        momentum = {"sgd": 0.0, "momentum": 0.9}[pair.optimizer]
        return self.run(self.initial(pair.workload, seed), pair.framework, momentum)


class TestLines(WorkloadConformance):
    adapter = Lines()


checked: tuple[type[WorkloadAdapter], type[Training]] = (Lines, Run)


class WideStart(Lines):
    def initial(self, workload, seed):
        return {k: v.astype(np.float64) for k, v in super().initial(workload, seed).items()}


class OneStart(Lines):
    def initial(self, workload, seed):
        return super().initial(workload, 0)


class GlobalStart(Lines):
    rng = np.random.default_rng(0)

    def initial(self, workload, seed):
        return {
            k: v + np.float32(self.rng.random()) for k, v in super().initial(workload, 0).items()
        }


class LentStart(Lines):
    kept = {}  # noqa: RUF012 - shared on purpose

    def initial(self, workload, seed):
        return self.kept.setdefault((workload, seed), super().initial(workload, seed))


class OneStream(Lines):
    def batches(self, workload, seed, sizes):
        return super().batches(workload, 0, sizes)


class StreamPerChunk(Lines):
    def batches(self, workload, seed, sizes):
        for number, size in enumerate(sizes):
            yield from super().batches(workload, 100 * seed + number, [size])


class StuckStream(Lines):
    def batches(self, workload, seed, sizes):
        for x, y in super().batches(workload, seed, sizes):
            yield np.repeat(x[:1], len(x), 0), np.repeat(y[:1], len(y), 0)


class HalfStuckStream(Lines):
    """Each batch twice, wherever the stream is cut."""

    def batches(self, workload, seed, sizes):
        total = sum(sizes)
        x, y = next(super().batches(workload, seed, [total]))
        place = np.arange(total) // 2
        start = 0
        for size in sizes:
            at = place[start : start + size]
            start += size
            yield x[at], y[at]


class OneSplit(Lines):
    def evaluation(self, workload, seed, split):
        return super().evaluation(workload, seed, "val")


class FreshJudges(Lines):
    calls = itertools.count()

    def evaluation(self, workload, seed, split):
        return super().evaluation(workload, next(self.calls), split)


class LentJudges(Lines):
    kept = {}  # noqa: RUF012 - shared on purpose

    def evaluation(self, workload, seed, split):
        key = workload, seed, split
        return self.kept.setdefault(key, super().evaluation(workload, seed, split))


class HoleInJudges(Lines):
    def evaluation(self, workload, seed, split):
        x, y = super().evaluation(workload, seed, split)
        return x, np.where(np.arange(len(y))[:, None] == 3, np.float32(np.nan), y)


class SharedGenerator(Lines):
    """Evaluation sets come out of the stream's own generator."""

    def batches(self, workload, seed, sizes):
        self.rng = np.random.default_rng([seed, 2])
        for size in sizes:
            served = [self.examples(workload, self.rng, 8) for _ in range(size)]
            yield tuple(np.stack(part) for part in zip(*served, strict=True))

    def evaluation(self, workload, seed, split):
        if hasattr(self, "rng"):
            self.rng.random()
        return super().evaluation(workload, seed, split)


class ShortSchedule(Lines):
    def multipliers(self, schedule, steps):
        return super().multipliers(schedule, max(1, steps - 1))


class LowSchedule(Lines):
    def multipliers(self, schedule, steps):
        return [share / 2 for share in super().multipliers(schedule, steps)]


def with_run(**members):
    """Return the benchmark with a dishonest run."""
    return type("Lines", (Lines,), {"run": type("Dishonest", (Run,), members)})()


def transposed(self, params, framework, momentum):
    Run.__init__(self, params, framework, momentum)
    if framework == "einsum":
        self.p["weight"] = self.p["weight"].T.copy()


def summed(self, x, y):
    total = np.square(self.error(x, y))
    return np.float32(total.mean() if self.framework == "blas" else total.sum())


def decayed(self, x, y, rate):
    Run.descend(self, x, y, rate)
    if self.framework == "einsum":
        self.p["weight"] *= np.float32(0.999)


def frozen_bias(self, x, y, rate):
    bias = self.p["bias"]
    Run.descend(self, x, y, rate)
    self.p["bias"] = bias


NOISE = np.random.default_rng(0)


def noisy(self, x, y, rate):
    Run.descend(self, x, y, rate * (1 + 1e-3 * NOISE.random()))


def forgets_at_chunks(self, inputs, targets, rates):
    self.m = {key: np.zeros_like(value) for key, value in self.m.items()}
    return Run.advance(self, inputs, targets, rates)


def losses_after(self, inputs, targets, rates):
    losses = []
    for x, y, rate in zip(inputs, targets, rates, strict=True):
        self.descend(x, y, rate)
        losses.append(self.loss(x, y))
    return np.array(losses)


def training_judge(self, inputs, targets):
    self.p["bias"] = self.p["bias"] + np.float32(1e-3)
    return float(self.loss(inputs, targets))


def first_rate_only(self, inputs, targets, rates):
    return Run.advance(self, inputs, targets, [rates[0]] * len(rates))


def own_rate(self, x, y, rate):
    Run.descend(self, x, y, 0.1 if rate else 0.0)


def upwards(self, x, y, rate):
    Run.descend(self, x, y, -rate)


def without_momentum(self):
    return pickle.dumps((self.p, {key: np.zeros_like(value) for key, value in self.m.items()}))


class OneSeed(Lines):
    def start(self, pair, seed):
        return super().start(pair, 0)

    def batches(self, workload, seed, sizes):
        return super().batches(workload, 0, sizes)


BROKEN = [
    (WideStart(), "test_initial_parameters"),
    (OneStart(), "test_initial_parameters"),
    (GlobalStart(), "test_initial_parameters"),
    (LentStart(), "test_initial_parameters"),
    (OneStream(), "test_batches_differ"),
    (StreamPerChunk(), "test_batches_are_a_function_of_the_seed"),
    (StuckStream(), "test_batches_differ"),
    (HalfStuckStream(), "test_batches_differ"),
    (OneSplit(), "test_splits_differ"),
    (FreshJudges(), "test_evaluation_sets"),
    (LentJudges(), "test_evaluation_sets"),
    (HoleInJudges(), "test_evaluation_sets"),
    (SharedGenerator(), "test_judging_draws_nothing_from_the_stream"),
    (ShortSchedule(), "test_schedule"),
    (LowSchedule(), "test_schedule"),
    (with_run(__init__=transposed), "test_same_numbers_before_the_first_step"),
    (with_run(loss=summed), "test_same_numbers_before_the_first_step"),
    (with_run(descend=decayed), "test_same_path_under_plain_descent"),
    (with_run(descend=frozen_bias), "test_same_path_under_plain_descent"),
    (with_run(descend=noisy), "test_same_bits_twice"),
    (with_run(evaluate=training_judge), "test_same_bits_twice"),
    (with_run(advance=forgets_at_chunks), "test_same_bits_twice"),
    (OneSeed(), "test_another_seed_is_another_run"),
    (with_run(advance=losses_after), "test_losses_are_those_before_the_step"),
    (with_run(evaluate=training_judge), "test_judging_is_a_read"),
    (with_run(advance=first_rate_only), "test_every_step_has_its_learning_rate"),
    (with_run(descend=own_rate), "test_every_step_has_its_learning_rate"),
    (with_run(save=without_momentum), "test_resume"),
    (with_run(descend=upwards), "test_learns"),
]
# A check of the test class, not of a benchmark: test_suite_rules.py tests it.
OF_THE_CLASS = {"test_no_override"}


def arguments(check):
    """Return every combination that pytest would give a check."""
    names = check.__code__.co_varnames[1 : check.__code__.co_argcount]
    offered = {
        "workload": Lines.rates,
        "sampled": ["line"],
        "divided": ["line"],
        "pair": Lines.pairs,
        "other": Lines.frameworks[1:],
        "schedule": Lines.schedules,
    }
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(offered[name] for name in names))
    ]


@pytest.mark.parametrize(
    ("broken", "check"), BROKEN, ids=[f"{n}-{check}" for n, (_, check) in enumerate(BROKEN)]
)
def test_dishonest_benchmarks_are_caught(broken, check):
    suite = type("Suite", (WorkloadConformance,), {"adapter": broken})()
    failures = 0
    for values in arguments(getattr(WorkloadConformance, check)):
        try:
            getattr(suite, check)(**values)
        except AssertionError:
            failures += 1
    assert failures, f"{check} passes"


def test_every_check_catches_a_dishonest_benchmark():
    checks = {n for n in dir(WorkloadConformance) if n.startswith("test_")} - OF_THE_CLASS
    assert checks == {check for _, check in BROKEN}
