"""What comes from outside is identified by its source, however it is written."""

import dataclasses
import functools
import importlib
import linecache
import sys

import numpy as np
import pytest
from optim_bench.executors.train import train
from optim_bench.optimizers import OPTIMIZERS, OptimizerInfo, learning_rate, resolve
from optim_bench.protocol import Plan
from optim_bench.protocol.catalog import Request, build_plan
from optim_bench.records import RunSpec
from optim_bench.results import source
from optim_bench.results.source import source_of
from optim_bench.tasks.built_in import WORKLOADS, get

FILES = {
    "src_mine.py": """
import functools
import importlib
import math
from src_pack.sub import helper
from src_pack import rates as r
import src_decorate

dynamic = importlib.import_module("src_dynamic")
take = dynamic.value

def plain(learning_rate):
    import src_lazy
    return helper(learning_rate)

class Made:
    def __init__(self, learning_rate): ...

def outer(scale):
    def inner(learning_rate):
        return scale * learning_rate
    return inner

closure = outer(2.0)
anonymous = lambda learning_rate: learning_rate
bound = functools.partial(plain)
decorated = src_decorate.twice(plain)
method = Made.__init__
""",
    "src_pack/__init__.py": "",
    "src_pack/sub.py": "from . import deep\ndef helper(x):\n    return deep.more(x)\n",
    "src_pack/deep.py": "def more(x):\n    return x\n",
    "src_pack/rates.py": "base = 1\n",
    "src_pack/unused.py": "",
    "src_lazy.py": "x = 1\n",
    "src_decorate.py": (
        "import functools\n"
        "def twice(f):\n"
        "    @functools.wraps(f)\n"
        "    def g(learning_rate):\n"
        "        return f(f(learning_rate))\n"
        "    return g\n"
    ),
    "src_dynamic.py": "def value():\n    return 1\n",
}
NAMES = ["plain", "Made", "closure", "anonymous", "bound", "method", "decorated"]
SEEN = ["src_mine.py", "src_pack/sub.py", "src_pack/deep.py", "src_pack/rates.py", "src_lazy.py"]


def forget():
    for name in [name for name in sys.modules if name.startswith("src_")]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "src_pack").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def identity(name: str, workload: str = "digits-cnn") -> str | None:
    forget()
    return source_of(resolve(name, "jax"), name, get(workload))


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_factory_is_known_by_all_it_is_written_in(folder, name):
    reference = f"src_mine:{name}"
    before = identity(reference)
    assert before.startswith("sha256:")
    assert identity(reference) == before
    for file in [*SEEN, "src_dynamic.py", "src_decorate.py"]:
        path = folder / file
        path.write_text(path.read_text() + "# edited\n")
        assert identity(reference) != before, file
        path.write_text(FILES[file])
    (folder / "src_pack/unused.py").write_text("edited = 1\n")
    (folder / "src_mine.py").write_bytes(FILES["src_mine.py"].replace("\n", "\r\n").encode())
    assert identity(reference) == before


def test_an_installed_factory_is_known_by_its_version(monkeypatch):
    found = identity("optax:sgd")
    assert found is None  # recorded with every run
    monkeypatch.setattr(source, "_RECORDED", source._RECORDED - {"optax"})
    assert identity("optax:sgd") == f"optax=={source.metadata.version('optax')}"


def test_a_declaration_is_known_by_its_factory_and_by_where_it_is_declared(folder):
    text = """
from optim_bench.optimizers import OptimizerInfo, learning_rate
INFO = OptimizerInfo("short", "jax", "Mine", "third-party", "src_lazy:x",
                     {"learning_rate": learning_rate(1)})
"""
    (folder / "src_info.py").write_text(text)
    before = identity("src_info:INFO")
    (folder / "src_lazy.py").write_text("x = 2\n")
    changed = identity("src_info:INFO")
    (folder / "src_info.py").write_text(text.replace("rate(1)", "rate(2)"))
    assert len({before, changed, identity("src_info:INFO")}) == 3


def test_a_worker_finds_a_declaration_by_what_it_was_named_by(folder):
    text = FILES["src_mine.py"] + (
        "\nfrom optim_bench.optimizers import OptimizerInfo, learning_rate\n"
        "INFO = OptimizerInfo('short', 'jax', 'Mine', 'third-party', plain,"
        " {'learning_rate': learning_rate(1)})\n"
    )
    (folder / "src_mine.py").write_text(text)
    plan = build_plan(Request("smoke", ("digits-cnn",), ("src_mine:INFO",)))
    mine = next(cell for cell in plan.cells if cell.label == "short")
    assert (mine.optimizer, mine.framework) == ("src_mine:INFO", "jax")
    assert resolve(mine.optimizer, "jax").name == "short"


def test_objects_are_unwrapped():
    def local(learning_rate):
        return learning_rate

    class Callable:
        def __call__(self, learning_rate):
            return learning_rate

    workload = get("digits-cnn")
    rate = {"learning_rate": learning_rate(1.0)}
    found = {
        source_of(OptimizerInfo("o", "jax", "o", "third-party", factory, rate), "o", workload)
        for factory in (local, functools.partial(local), Callable(), Callable().__call__)
    }
    assert len({files(each) for each in found}) == 1
    assert "sha256:" in next(iter(found))


def files(found):
    """Return what an identity says of files, without which function of them was used."""
    return " ".join(word for word in found.split() if not word.startswith("used:"))


def test_what_is_made_in_one_file_is_known_apart():
    def made(width, *data):
        def build(learning_rate, depth=width):
            return learning_rate * width, data

        return build

    def same(learning_rate):
        return learning_rate

    class Held:
        def __init__(self, width):
            self.width = width

        def __call__(self, learning_rate):
            return self.width * learning_rate

    one, two = lambda rate: rate + 1, lambda rate: rate + 2
    factories = [made(1), made(2), made(1, np.ones(2)), made(1, np.zeros(2)), same, one, two, Held]
    factories += [functools.partial(same, momentum=m) for m in (0.5, 0.9)]
    factories += [Held(1), Held(2), Held(3).__call__, Held(4).__call__]
    found = [identity_of(factory) for factory in factories]
    assert len(set(found)) == len(found)
    assert [identity_of(factory) for factory in factories] == found
    assert identity_of(made(1)) == found[0]


def test_what_fills_up_in_training_makes_nothing_else():
    cache = {}

    def build(learning_rate):
        return cache.setdefault(learning_rate, learning_rate)

    before = identity_of(build)
    build(1.0)
    assert identity_of(build) == before


def test_a_decorator_of_another_module_is_seen_without_the_reference(folder):
    workload = get("digits-cnn")
    rate = {"learning_rate": learning_rate(1.0)}

    def found():
        forget()
        factory = importlib.import_module("src_mine").decorated
        info = OptimizerInfo("o", "jax", "o", "third-party", factory, rate)
        return source_of(info, "o", workload)

    before = found()
    path = folder / "src_decorate.py"
    path.write_text(path.read_text().replace("f(f(", "f(2 * f("))
    assert found() != before


def identity_of(factory) -> str | None:
    rate = {"learning_rate": learning_rate(1.0)}
    info = OptimizerInfo("o", "jax", "o", "third-party", factory, rate)
    return source_of(info, "o", get("digits-cnn"))


def of_itself():
    def build(learning_rate, depth=0):
        return build(learning_rate, depth + 1) if depth < 2 else learning_rate

    return build


def of_each_other():
    def even(learning_rate):
        return odd(learning_rate)

    def odd(learning_rate):
        return even(learning_rate)

    return even


def of_a_name_without_a_value(assigned=False):
    def build(learning_rate):
        return later(learning_rate)

    if assigned:
        later = abs
    return build


def in_a_circle_of_partials():
    inner = functools.partial(of_itself)
    inner.__setstate__((of_itself, (functools.partial(inner),), {"again": inner}, {}))
    return inner


def in_a_circle_of_wrappers():
    def build(learning_rate):
        return learning_rate

    build.__wrapped__ = build
    return build


def in_a_long_chain():
    factory = of_itself()
    for _ in range(sys.getrecursionlimit()):
        factory = _around(factory)
    return factory


def _around(inner):
    return lambda learning_rate: inner(learning_rate)


def over_a_method_of_a_c_type():
    join = str.join

    def build(learning_rate):
        return join(",", [str(learning_rate)])

    return build


def called_through_an_instance():
    class Inner:
        def __call__(self, learning_rate):
            return learning_rate

    class Outer:
        __call__ = Inner()

    return Outer()


@pytest.mark.parametrize(
    "make",
    [
        of_itself,
        of_each_other,
        of_a_name_without_a_value,
        in_a_circle_of_partials,
        in_a_circle_of_wrappers,
        in_a_long_chain,
        over_a_method_of_a_c_type,
        called_through_an_instance,
    ],
)
def test_what_a_factory_holds_need_not_come_to_an_end(make):
    assert files(identity_of(make())) == files(identity_of(of_itself))


def test_a_long_chain_of_modules_is_followed_to_its_end(folder):
    length = sys.getrecursionlimit() + 1
    (folder / "src_chain").mkdir()
    (folder / "src_chain/__init__.py").touch()
    for i in range(length):
        text = f"def build(learning_rate):\n    import src_chain.m{i + 1}\n"
        (folder / f"src_chain/m{i}.py").write_text(text)
    last = folder / f"src_chain/m{length}.py"
    last.write_text("x = 1\n")
    before = identity("src_chain.m0:build")
    last.write_text("x = 2\n")
    assert identity("src_chain.m0:build") != before


@pytest.fixture
def identity_after(monkeypatch):
    def identity_after(*cells):
        space = {"__name__": "src_notebook"}
        for number, text in enumerate(cells):
            name = f"<cell {id(space)} {number}>"
            # As IPython keeps the text of a cell.
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), space)
        monkeypatch.setitem(sys.modules, "src_notebook", None)
        monkeypatch.delitem(sys.modules, "src_notebook")
        return identity_of(space["build"])

    return identity_after


def test_every_function_of_a_notebook_counts_with_what_it_uses(identity_after):
    helper = "def helper(x):\n    return x\n"
    build = "def build(learning_rate):\n    helper(WIDTH)\n"
    before = identity_after(helper, "WIDTH = 8\n", build)
    assert identity_after(helper, "WIDTH = 8\n", build) == before
    assert identity_after(helper, "WIDTH = 9\n", build) != before
    assert identity_after(helper.replace("x\n", "2 * x\n"), "WIDTH = 8\n", build) != before


USED = ["numpy.array({})", "jax.numpy.asarray({})", "torch.tensor({})"]
# A large array prints alike whatever stands in its middle.
LARGE = "numpy.where(numpy.arange(5000) == 2000, {}, 0)"


@pytest.mark.parametrize("made", [*USED, LARGE, "torch.tensor({}, dtype=torch.bfloat16)"])
@pytest.mark.parametrize("held", ["{}", "(1, {})", "[{}]", "{{'x': [{}]}}"])
def test_the_arrays_that_a_notebook_uses_count_by_their_numbers(identity_after, made, held):
    build = "def build(learning_rate):\n    DATA\n"
    data = [held.format(made.format(value)) for value in (1.0, 1.0, 2.0)]
    cells = [f"import jax, numpy, torch\nDATA = {text}\n" for text in data]
    found = [identity_after(cell, build) for cell in cells]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("numpy.zeros(4)", "numpy.zeros((2, 2))"),
        ("numpy.zeros(2)", "numpy.zeros(4, 'f4')"),
        ("[8, 8]", "[8, 9]"),
        ("{8, 9}", "{8}"),
        ("jax.random.key(0)", "jax.random.key(1)"),
    ],
)
def test_what_else_tells_values_of_a_notebook_apart(identity_after, one, other):
    cells = ("import jax, numpy\nDATA = {}\n", "def build(learning_rate):\n    DATA\n")
    found = [identity_after(cells[0].format(value), cells[1]) for value in (one, one, other)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "made",
    [
        "def build(learning_rate, data={}): ...\n",
        "def build(learning_rate, *, data={}): ...\n",
        "def outer(d):\n    def build(learning_rate): d\n    return build\nbuild = outer({})\n",
    ],
)
@pytest.mark.parametrize("value", ["WIDTH", "numpy.array([WIDTH])"])
def test_what_a_function_of_a_notebook_keeps_counts(identity_after, made, value):
    build = made.format(value)
    found = [identity_after(f"import numpy\nWIDTH = {width}\n", build) for width in (8, 8, 9)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "made", ["numpy.array([object()])", "torch.eye(2).to_sparse()", "torch.ones(2, device='meta')"]
)
def test_an_array_whose_numbers_cannot_be_read_is_refused(identity_after, made):
    cell = f"import numpy, torch\nDATA = {made}\n"
    with pytest.raises(ValueError, match=r"an array of a notebook .* make it in a file"):
        identity_after(cell, "def build(learning_rate):\n    DATA\n")


def test_wrappers_in_a_circle_without_a_file_are_refused():
    space = {"__name__": "src_typed"}
    exec("def typed(learning_rate): ...\ntyped.__wrapped__ = typed", space)
    with pytest.raises(ValueError, match=r"the source of typed cannot be found.*into a file"):
        identity_of(space["typed"])


def test_what_was_typed_and_cannot_be_read_again_is_refused():
    space = {"__name__": "__main__"}
    exec("def typed(learning_rate): ...", space)
    info = OptimizerInfo(
        "o", "jax", "o", "third-party", space["typed"], {"learning_rate": learning_rate(1.0)}
    )
    with pytest.MonkeyPatch.context() as patch:
        main = type(sys)("__main__")
        main.__spec__ = None
        patch.setitem(sys.modules, "__main__", main)
        with pytest.raises(ValueError, match=r"the source of typed cannot be found.*into a file"):
            source_of(info, "o", get("digits-cnn"))


def test_loaded_code_keeps_its_identity_until_it_is_loaded_anew(folder):
    before = identity("src_mine:plain")
    (folder / "src_mine.py").write_text(FILES["src_mine.py"] + "more = 1\n")
    info = resolve("src_mine:plain", "jax")
    assert source_of(info, "src_mine:plain", get("digits-cnn")) == before
    importlib.reload(sys.modules["src_mine"])
    assert source_of(info, "src_mine:plain", get("digits-cnn")) != before


@pytest.mark.parametrize("workload", WORKLOADS)
def test_what_this_package_brings_has_no_source_and_keeps_its_keys(workload):
    assert {source_of(info, info.name, get(workload)) for info in OPTIMIZERS.values()} == {None}


def test_a_workload_from_outside_is_known_by_its_source(folder, monkeypatch):
    (folder / "src_task.py").write_text("def task(data_dir):\n    return data_dir\n")
    module = importlib.import_module("src_task")
    mine = dataclasses.replace(get("digits-cnn"), name="mine", arrays=module.task)
    info = OPTIMIZERS["jax/adamw"]
    before = source_of(info, "adamw", mine)
    assert before.startswith("sha256:")
    (folder / "src_task.py").write_text("def task(data_dir):\n    return None\n")
    forget()
    edited = importlib.import_module("src_task").task
    assert source_of(info, "adamw", dataclasses.replace(mine, arrays=edited)) != before


def test_a_source_is_part_of_the_key_and_absent_where_there_is_none():
    spec = RunSpec("digits-cnn", 1, "jax", "adamw", {"learning_rate": 1e-3}, 0, 100, "cosine")
    assert "source" not in spec.to_json()
    other = dataclasses.replace(spec, source="sha256:1")
    assert other.key() != spec.key()
    assert RunSpec.from_json(other.to_json()) == other
    assert RunSpec.from_json(spec.to_json()) == spec


def test_a_plan_without_sources_is_written_as_before(folder):
    plan = build_plan(Request("smoke", ("digits-cnn",), ("stam", "src_mine:plain"), ("jax",)))
    cells = plan.to_json()["cells"]
    assert ["source" in cell for cell in cells] == [False, True, False]
    assert Plan.from_json(plan.to_json()) == plan


def test_a_run_of_another_source_is_refused_where_it_would_train(folder):
    rate = {"learning_rate": 1e-3}
    spec = RunSpec("digits-cnn", 1, "jax", "src_mine:plain", rate, 0, 10, "cosine", source="old")
    with pytest.raises(ValueError, match="src_mine:plain or of digits-cnn is not what it was when"):
        train(spec)
