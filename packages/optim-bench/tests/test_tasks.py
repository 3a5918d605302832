"""Tasks of the user: they train as they say, and bad ones are named before a sweep is spent."""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from optim_bench import JaxTask, TaskError, TorchTask
from optim_bench.errors import UsageError
from optim_bench.executors.train import train
from optim_bench.records import RunSpec
from optim_bench.tasks import enter_task, find_task
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

X = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0], np.float32) + 0.1)[:, None]
HALF = {"val": slice(0, 32), "test": slice(32, 64)}


def batches(seed):
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.integers(0, 32, 8)
        yield X[rows], Y[rows]


def torch_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def torch_evaluate(model, split):
    x, y = (torch.from_numpy(array[HALF[split]].copy()) for array in (X, Y))
    error = F.mse_loss(model(x), y).item()
    return {"loss": error, "score": 1 / (1 + error)}


def torch_task(**changes):
    functions = (lambda seed: torch.nn.Linear(4, 1), batches, torch_loss, torch_evaluate)
    named = dict(zip(("model", "batches", "loss", "evaluate"), functions, strict=True))
    return TorchTask(**{**named, "steps": 40, "name": "lines", **changes})


def jax_loss(params, batch, key):
    return jnp.mean((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2)


def jax_evaluate(params, split):
    return {"loss": float(jax_loss(params, (X[HALF[split]], Y[HALF[split]]), None))}


def jax_init(key):
    return {"w": jax.random.normal(key, (4, 1)), "b": jnp.zeros(1)}


def jax_task(**changes):
    named = {"init": jax_init, "batches": batches, "loss": jax_loss, "evaluate": jax_evaluate}
    return JaxTask(**{**named, "steps": 40, "name": "lines", **changes})


MAKE = {"torch": torch_task, "jax": jax_task}
frameworks = pytest.mark.parametrize("framework", MAKE)


def run(task, *, seed=0, optimizer="adamw", rate=0.1):
    reference = enter_task(task)
    found = find_task(reference)
    return train(
        RunSpec(
            found.name, found.version or 0, task.framework, optimizer, {"learning_rate": rate},
            seed, task.steps, task.schedule_name, task=reference,
        )
    )  # fmt: skip


@frameworks
def test_a_task_trains_and_is_reported_by_its_own_metrics(framework):
    record = run(MAKE[framework]())
    assert (record.status, record.error) == ("ok", None)
    assert record.metrics["test_loss"] < 0.9 * record.curve["val_loss"][0]
    assert record.curve["val_loss"][-1] == record.metrics["val_loss"]
    assert record.parameters == 5
    if framework == "torch":
        assert record.metrics["val_score"] == 1 / (1 + record.metrics["val_loss"])


@frameworks
def test_every_optimizer_of_a_seed_starts_from_the_same(framework):
    task = MAKE[framework]()
    starts = {run(task, optimizer=name).start for name in ("adamw", "lion")}
    assert len(starts) == 1
    assert run(task, seed=1).start not in starts


@frameworks
def test_runs_repeat_bit_for_bit_and_draw_from_the_seed(framework):
    task = MAKE[framework]()
    assert run(task).metrics == run(task).metrics != run(task, seed=1).metrics


def test_the_model_is_drawn_from_the_seeded_generator_and_the_callers_goes_on():
    before = torch.get_rng_state(), random.getstate()
    seen = []
    task = torch_task(model=lambda seed: seen.append(torch.rand(1)) or torch.nn.Linear(4, 1))
    run(task, seed=7)
    torch.manual_seed(7)
    assert {value.item() for value in seen} == {torch.rand(1).item()}
    torch.set_rng_state(before[0])
    run(task)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@frameworks
def test_accumulated_batches_are_one_large_one(framework):
    def wide(seed):
        stream = batches(seed)
        while True:
            parts = [next(stream) for _ in range(4)]
            yield tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    large = run(MAKE[framework](batches=wide), optimizer="sgd", rate=0.01)
    small = run(MAKE[framework](accumulate=4), optimizer="sgd", rate=0.01)
    assert small.metrics["val_loss"] == pytest.approx(large.metrics["val_loss"], rel=1e-4)
    plain = run(MAKE[framework](), optimizer="sgd", rate=0.01)
    assert small.metrics["val_loss"] != pytest.approx(plain.metrics["val_loss"], rel=1e-3)


@frameworks
def test_gradients_are_clipped_by_their_global_norm(framework):
    task = dataclasses.replace(MAKE[framework](), steps=1, schedule="constant", evaluate_every=1)
    plain, clipped = (
        run(dataclasses.replace(task, clip_norm=norm), optimizer="sgd", rate=1e-6)
        for norm in (None, 1e-3)
    )
    # One plain step is along the gradient: a thousandth of it moves the loss less, not elsewhere.
    start = run(task, optimizer="sgd", rate=1e-12).metrics["train_loss"]
    assert plain.metrics["train_loss"] == clipped.metrics["train_loss"] == start
    far, near = (
        run(dataclasses.replace(task, clip_norm=norm), optimizer="sgd", rate=1.0).metrics[
            "val_loss"
        ]
        for norm in (None, 1e-3)
    )
    still = run(task, optimizer="sgd", rate=1e-12).metrics["val_loss"]
    assert abs(near - still) < 0.01 * still < abs(far - still)


def test_autocast_compile_move_and_on_step_reach_the_run():
    seen = []

    def loss(model, batch):
        found = model(batch["x"])
        seen.append(found.dtype)
        return F.mse_loss(found.float(), batch["y"])

    def move(batch, device):
        return dict(zip(("x", "y"), map(torch.from_numpy, batch), strict=True))

    steps = []
    task = torch_task(
        loss=loss, move=move, on_step=lambda model, step: steps.append(step),
        autocast=torch.bfloat16, steps=5,
    )  # fmt: skip
    assert run(task).error is None
    assert set(seen) == {torch.bfloat16}
    assert steps[-5:] == [1, 2, 3, 4, 5]


@frameworks
def test_a_schedule_of_the_tasks_own_reaches_the_steps(framework):
    still = MAKE[framework](schedule=lambda step, steps: 0.0)
    record = run(still)
    assert record.spec.schedule == "own"
    assert len(set(record.curve["val_loss"])) == 1
    assert run(MAKE[framework]()).curve["val_loss"][-1] != record.curve["val_loss"][-1]


def test_batches_may_be_nested_and_held_in_dictionaries():
    def nested(seed):
        for x, y in batches(seed):
            yield {"inputs": [torch.from_numpy(x)], "y": y, "name": "row"}

    def loss(model, batch):
        return F.mse_loss(model(batch["inputs"][0]), batch["y"])

    assert run(torch_task(batches=nested, loss=loss)).metrics == run(torch_task()).metrics


@frameworks
def test_a_task_without_a_test_split_reports_its_validation(framework):
    task = MAKE[framework](splits=("val",))
    metrics = run(task).metrics
    assert metrics["test_loss"] == metrics["val_loss"]
    assert task.facts()["verdict_on"] == "val"


def test_what_is_judged_need_not_be_a_loss():
    def evaluate(model, split):
        return {"score": torch_evaluate(model, split)["score"]}

    record = run(torch_task(evaluate=evaluate, judged="score", larger_is_better=True))
    assert record.status == "ok"
    assert record.metrics["val_loss"] is record.metrics["test_loss"] is None
    assert 0 < record.metrics["test_score"] <= 1
    assert record.curve["val_score"][-1] == record.metrics["val_score"]


def test_a_stream_is_judged_by_the_mean_of_its_second_half():
    seen = []

    def evaluate(model, split, seed, step):
        seen.append((split, seed, step))
        return {"loss": float(step)}

    record = run(torch_task(evaluate=evaluate, stream=True, evaluate_every=10), seed=3)
    assert record.metrics["test_loss"] == 35.0
    assert ("test", 3, 40) in seen
    assert ("test", 3, 10) not in seen


def test_several_steps_in_one_call_take_the_same_path():
    one, many = (run(jax_task(steps_per_call=n)).metrics["val_loss"] for n in (1, 7))
    assert one == pytest.approx(many, rel=1e-5)


def test_every_step_has_a_key_of_its_own_however_steps_are_called():
    def loss(params, batch, key):
        return jax_loss(params, batch, key) + 0 * jnp.sum(params["b"]), jax.random.uniform(key)

    def noisy(params, batch, key):
        return jax_loss(params, batch, key) * jax.random.uniform(key)

    assert run(jax_task(loss=loss)).metrics == run(jax_task(loss=loss)).metrics
    one, many = (run(jax_task(loss=noisy, steps_per_call=n)).metrics for n in (1, 5))
    assert one["train_loss"] == pytest.approx(many["train_loss"], rel=1e-5)
    assert one["train_loss"] != run(jax_task()).metrics["train_loss"]


def shrinking():
    counter = itertools.count(1)
    return lambda seed: torch.nn.Linear(4, 1, bias=bool(torch.rand(1) * 0 + next(counter) % 2))


def drifting():
    counter = itertools.count()
    return lambda model, batch: torch_loss(model, batch) * (1 + next(counter))


def unseeded(seed):
    yield from batches(random.SystemRandom().randrange(10**9))


def judged_anew():
    counter = itertools.count()
    return lambda model, split: {"loss": 1.0 + next(counter)}


BAD = [
    (
        "torch",
        {"loss": lambda m, b: (m(b[0]) - b[1]) ** 2},
        "loss returned a tensor of shape (8, 1); reduce it, for example by .mean()",
    ),
    (
        "torch",
        {"loss": lambda m, b: 1.0},
        "loss returned a float; it has to be a 0-d tensor",
    ),
    (
        "jax",
        {"loss": lambda p, b, k: (b[0] @ p["w"]) ** 2},
        "loss returned an array of shape (8, 1); reduce it, for example by .mean()",
    ),
    (
        "torch",
        {"evaluate": lambda m, s: {"acc": 0.5}},
        (
            "evaluate(…, 'val') returned 'acc', which lacks the metric 'loss'; return it, or say "
            "what is judged: judged=..."
        ),
    ),
    (
        "torch",
        {"evaluate": lambda m, s: 0.5},
        (
            "evaluate(…, 'val') returned a float; return a dictionary of numbers, such as "
            "{'loss': 0.5}"
        ),
    ),
    (
        "torch",
        {"evaluate": lambda m, s: {"loss": [1, 2]}},
        "evaluate(…, 'val') returned {'loss': [1, 2]}; every value has to be one number",
    ),
    (
        "jax",
        {"evaluate": lambda p, s: {"loss": -1.0}},
        (
            "evaluate(…, 'val') returned loss = -1; verdicts are about ratios, so what is judged "
            "has to be positive: judge an error or a loss"
        ),
    ),
    (
        "torch",
        {"batches": lambda seed: itertools.islice(batches(seed), 30)},
        (
            "batches ended after 30 batches, and a run of 40 steps takes 40; start over when the "
            "data end: while True: yield from ..."
        ),
    ),
    (
        "jax",
        {"batches": lambda seed: itertools.islice(batches(seed), 1)},
        "batches ended after 1 batches, and a run of 40 steps takes 40; start over",
    ),
    (
        "torch",
        {"batches": lambda seed: 3},
        "batches returned a int; it has to yield batches",
    ),
    (
        "torch",
        {"model": lambda seed: [1]},
        "model returned a list; it has to be a torch.nn.Module",
    ),
    (
        "jax",
        {"init": lambda key: {"n": jnp.arange(3)}},
        "init returned no array of floating point to train",
    ),
    (
        "jax",
        {"init": lambda key: jax_init(key) | {"b": jnp.full(1, random.SystemRandom().random())}},
        (
            "init gives another model when it is called again for seed 0; draw its parameters "
            "from the seed alone"
        ),
    ),
    (
        "torch",
        {"batches": unseeded},
        (
            "batches gives another first batch when it is called again for seed 0; draw the order "
            "of the data from the seed alone"
        ),
    ),
]
LATE = [
    ({"model": shrinking}, "model gives another model when it is called again for seed 0"),
    ({"loss": drifting}, "loss gives other numbers on a second run of seed 0 ("),
    ({"evaluate": judged_anew}, "evaluate gives other numbers on a second run of seed 0 (l"),
]


@pytest.mark.parametrize(("framework", "changes", "message"), BAD)
def test_a_bad_task_is_one_sentence_with_its_function_and_the_remedy(framework, changes, message):
    record = run(MAKE[framework](**changes))
    assert record.status == "failed"
    assert record.error.startswith(f"TaskError: lines: {message}")


def faulty(*arguments, **keywords):
    return {}["missing"]


@pytest.mark.parametrize("function", ["model", "batches", "loss", "evaluate"])
def test_a_function_that_raises_is_named_with_its_line(function):
    line = faulty.__code__.co_firstlineno + 1
    record = run(torch_task(**{function: faulty}))
    assert record.error == (
        f"TaskError: lines: {function} raises KeyError: 'missing' (line {line} of test_tasks.py)"
    )


@pytest.mark.parametrize(("makers", "message"), LATE)
def test_what_only_a_second_run_shows_is_found_in_the_first(makers, message):
    record = run(torch_task(**{name: make() for name, make in makers.items()}))
    assert record.error.startswith(f"TaskError: lines: {message}")


@frameworks
def test_a_factory_that_returns_no_optimizer_is_told_what_to_return(framework):
    from optim_bench.optimizers import enter_optimizer

    def forgot(*module, learning_rate):
        return None

    error = run(MAKE[framework](), optimizer=enter_optimizer(forgot, framework)).error
    assert error.startswith("FactoryError: forgot: the factory returned a NoneType; return a")


def test_an_optimizer_that_draws_unseeded_noise_is_named_with_the_loss():
    class Noisy(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] *= random.SystemRandom().random()
            super().step(closure)

    from optim_bench.optimizers import enter_optimizer

    def noisy(model, learning_rate):
        return Noisy(model.parameters(), lr=learning_rate)

    record = run(torch_task(), optimizer=enter_optimizer(noisy, "torch"))
    assert "loss, or the optimizer noisy, gives other numbers on a second run" in record.error


DECLARED = [
    ({"steps": 0}, "steps is 0; it has to be a whole number, at least 1"),
    ({"steps": 1.5}, "steps is 1.5; it has to be a whole number"),
    ({"accumulate": 0}, "accumulate is 0; it has to be a whole number"),
    ({"evaluate_every": 0}, "evaluate_every is 0; it has to be a whole number"),
    ({"schedule": "step"}, "schedule is 'step'; it has to be one of cosine, constant, linear, w"),
    ({"splits": ("test",)}, "splits is ('test',); it has to be one of ('val',), ('val', 'test'),"),
    ({"clip_norm": -1.0}, "clip_norm is -1.0; it has to be positive, or None"),
    ({"name": "a/b"}, "name is 'a/b'; leave '/' out of it"),
    ({"loss": 3}, "loss is a int; it has to be a function"),
]


@pytest.mark.parametrize(("changes", "message"), DECLARED)
@frameworks
def test_a_declaration_out_of_range_is_refused_where_it_is_made(framework, changes, message):
    with pytest.raises(TaskError) as caught:
        MAKE[framework](**changes)
    assert str(caught.value).startswith(message)


def test_float16_without_scaling_and_a_long_loop_are_refused():
    with pytest.raises(TaskError, match=r"autocast is torch\.float16; without loss scaling"):
        torch_task(autocast=torch.float16)
    with pytest.raises(TaskError, match="steps_per_call is 33; it has to be 1 to 32"):
        jax_task(steps_per_call=33)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tasks_none:task", "", "module tasks_none has no task"),
        ("tasks_number:task", "task = 3", "tasks_number:task is a int; it has to be a TorchTask"),
        ("sub/own.py:task", "1 / 0", "cannot be imported: ZeroDivisionError: division by zero, li"),
        ("tasks_gone.py:task", None, "there is no file tasks_gone.py in "),
        ("statistics.py:task", "", "would be the module statistics, and there is another one of t"),
        ("digit-cnn", None, "unknown workload 'digit-cnn'; did you mean 'digits-cnn'?"),
    ],
)
def test_what_names_no_task_is_one_sentence(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / name.partition(":")[0]
    if text is not None:
        file.parent.mkdir(exist_ok=True)
        file.with_suffix(".py").write_text(text)
    with pytest.raises(UsageError) as caught:
        find_task(name)
    assert message in str(caught.value)


def test_a_file_that_was_edited_is_loaded_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        "from optim_bench import TorchTask\n"
        "f = lambda *a: None\ntask = TorchTask(f, f, f, f, steps=5)\n"
    )
    (tmp_path / "edited_task.py").write_text(text)
    assert find_task("edited_task.py:task").steps == 5
    assert find_task("edited_task.py:task") is find_task("edited_task.py:task")
    (tmp_path / "edited_task.py").write_text(text.replace("5", "6"))
    assert find_task("edited_task.py:task").steps == 6
    assert find_task("edited_task.py:task").name == "edited_task"


def test_the_key_of_a_run_does_not_hang_on_where_its_task_lies_but_on_what_it_is():
    rate = {"learning_rate": 0.1}
    spec = RunSpec(
        "lines", 0, "torch", "adamw", rate, 0, 40, "cosine", "v1", "sha256:1", "a.py:task"
    )
    moved = dataclasses.replace(spec, task="elsewhere/a.py:task")
    assert moved.key() == spec.key()
    assert RunSpec.from_json(moved.to_json()) == moved
    assert dataclasses.replace(spec, source="sha256:2").key() != spec.key()


def test_settings_and_functions_are_a_tasks_identity_and_a_version_pins_it():
    from optim_bench.optimizers import OPTIMIZERS
    from optim_bench.results.source import source_of

    def identity(task):
        return source_of(OPTIMIZERS["torch/adamw"], "adamw", task)

    plain = identity(torch_task())
    assert "sha256:" in plain
    assert identity(torch_task()) == plain
    assert identity(torch_task(clip_norm=1.0)) != plain
    assert identity(torch_task(judged="score")) != plain
    # A title is for people, and the horizon is in the spec of every run.
    assert identity(torch_task(title="Lines", steps=50)) == plain
    assert "sha256:" not in identity(torch_task(version=1))


def test_an_installed_package_offers_tasks_by_its_entry_points(monkeypatch):
    from importlib import metadata

    task = torch_task(name="")
    point = metadata.EntryPoint("theirs", "somewhere:task", "optim_bench.tasks")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: task)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    assert find_task("theirs").name == "theirs"
    with pytest.raises(UsageError, match="unknown workload 'their'; did you mean 'theirs'"):
        find_task("their")
