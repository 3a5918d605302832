import re
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optim_checkpoint as oc
import pytest
import safetensors
from optim_checkpoint import jax as ckpt
from optim_checkpoint._collect import Staging, read_staged
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._numpy import array_of
from optim_checkpoint._select import choose
from optim_checkpoint._shard import Entry
from optim_checkpoint.jax import _leaves
from optim_checkpoint.jax._save import build_document


def params_of(seed=0):
    key = jax.random.key(seed)
    return {"dense": {"w": jax.random.normal(key, (4, 3)), "b": jnp.zeros(3)}, "out": [jnp.ones(2)]}


def same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array):
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                assert jax.random.key_impl(a) == jax.random.key_impl(b)
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            assert a.weak_type == b.weak_type
        if hasattr(a, "dtype"):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        else:
            assert repr(a) == repr(b)


def test_a_template_of_shapes_is_enough(tmp_path):
    params = params_of()
    tx = optax.adamw(1e-3)
    state = tx.init(params)
    ckpt.save(tmp_path, 5, params=params, opt_state=state)
    shapes = jax.eval_shape(params_of)
    found = ckpt.restore(tmp_path, params=shapes, opt_state=jax.eval_shape(tx.init, shapes))
    assert (found.step, found.rng, found.extra, found.skipped) == (5, None, None, ())
    same(found.params, params)
    same(found.opt_state, state)


def test_names_are_those_of_the_parameters(tmp_path):
    params = params_of()
    path = ckpt.save(tmp_path, 1, params=params, opt_state=optax.adam(1e-3).init(params))
    with safetensors.safe_open(path / "model" / "model.safetensors", "np") as file:
        assert sorted(file.keys()) == ["dense.b", "dense.w", "out.0"]
    with safetensors.safe_open(path / "optim" / "optim.safetensors", "np") as file:
        names = sorted(file.keys())
    assert "global.0.count" in names
    assert "state.dense.w.0.mu" in names


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "int8",
        "uint8",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e8m0fnu",
        "int32",
        "uint32",
        "float32",
        "complex64",
    ],
)
def test_every_dtype_comes_back_in_its_bits(tmp_path, dtype):
    size = 1 if dtype == "bool" else np.dtype(jnp.dtype(dtype)).itemsize
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 120, (4, 8 * size))
    array = jnp.asarray(raw.astype(np.uint8).view(jnp.dtype(dtype)))
    ckpt.save(tmp_path, 1, params={"x": array}, extra={"x": array})
    found = ckpt.restore(tmp_path, params={"x": array})
    same(found.params, {"x": array})
    same(found.extra, {"x": array})


def test_leaves_of_every_kind_come_back(tmp_path):
    tree = {
        "weak": jnp.asarray(1.5),
        "weak vector": jnp.full((3,), 2.0),
        "numpy": np.arange(3, dtype=np.int64),
        "scalar": np.float64(1.5),
        "int": 3,
        "float": 0.1,
        "flag": True,
        "key": jax.random.key(1),
        "keys": jax.random.split(jax.random.key(2, impl="rbg"), 3),
        "legacy": jax.random.PRNGKey(4),
        "empty": jnp.zeros((0, 3)),
        "none": None,
        1: (jnp.ones(1), [jnp.zeros(())]),
    }
    tree = {"a": {k: v for k, v in tree.items() if k != 1}, "b": {1: tree[1]}}
    ckpt.save(tmp_path, 1, opt_state=tree, rng=(tree["a"]["key"], {"k": tree["a"]["keys"]}))
    found = ckpt.restore(tmp_path, opt_state=tree)
    same(found.opt_state, tree)
    same(found.rng, (tree["a"]["key"], {"k": tree["a"]["keys"]}))


def test_keys_that_print_alike_are_kept_apart(tmp_path):
    tree = {"a.b": jnp.zeros(1), "a": {"b": jnp.ones(1)}, "x/y": jnp.ones(2), "": jnp.ones(3)}
    ckpt.save(tmp_path, 1, params=tree)
    same(ckpt.restore(tmp_path, params=tree).params, tree)
    ckpt.save(tmp_path, 2, params={"0": jnp.ones(2)})
    templates = (([jnp.ones(2)], "an index of a sequence"), ({0: jnp.ones(2)}, "an int key"))
    for template, kind in templates:
        with pytest.raises(oc.IncompatibleCheckpointError) as caught:
            ckpt.restore(tmp_path, params=template)
        said = f"params 0: 0 is a str key in the checkpoint, {kind} in the template"
        assert caught.value.differences == (said,)


@pytest.mark.parametrize(
    ("saved", "live", "kind"),
    [
        (1, 0.5, "float32[]"),
        (0.5, 1, "int32[]"),
        (True, 1, "int32[]"),
        (1, jnp.ones(2), "float32[2]"),
    ],
)
def test_a_number_of_another_kind_is_refused_under_shapes(tmp_path, saved, live, kind):
    ckpt.save(tmp_path, 1, params={}, opt_state={"scale": saved})
    shapes = jax.eval_shape(lambda: {"scale": live})
    said = f"scale is the {type(saved).__name__} {saved} in the checkpoint, {re.escape(kind)} here"
    with pytest.raises(oc.IncompatibleCheckpointError, match=said):
        ckpt.restore(tmp_path, opt_state=shapes)
    shapes = jax.eval_shape(lambda: {"scale": saved})
    found = ckpt.restore(tmp_path, opt_state=shapes).opt_state["scale"]
    assert (found, type(found)) == (saved, type(saved))


class Packed(NamedTuple):
    """A state with one number per parameter in a vector."""

    mu: dict
    tau: jax.Array
    rows: jax.Array

    __packed_fields__ = ("tau", "rows")


def packed_of(names):
    values = {name: float(i + 1) for i, name in enumerate(sorted(names))}
    return Packed(
        {name: jnp.zeros(2) for name in names},
        jnp.array([values[name] for name in sorted(names)]),
        jnp.array([[values[name]] * 2 for name in sorted(names)]),
    )


def test_packed_vectors_are_stored_per_parameter(tmp_path):
    state = packed_of(["a", "b", "c"])
    path = ckpt.save(tmp_path, 1, params=state.mu, opt_state=state)
    with safetensors.safe_open(path / "optim" / "optim.safetensors", "np") as file:
        assert file.get_tensor("state.b.tau") == 2.0
        assert file.get_tensor("state.c.rows").tolist() == [3.0, 3.0]
    same(ckpt.restore(tmp_path, opt_state=packed_of(["a", "b", "c"])).opt_state, state)


def test_packed_vectors_follow_their_parameters_into_another_order(tmp_path):
    def listed(order):
        return Packed([{name: jnp.zeros(2)} for name in order], jnp.zeros(3), jnp.zeros((3, 2)))

    # A list keeps its order, a dict is sorted by key: the same names lie in other places.
    state = packed_of(["a", "b", "c"])
    ckpt.save(tmp_path, 1, opt_state=state)
    renamed = Packed(
        {"b": jnp.zeros(2), "c": jnp.zeros(2), "d": jnp.zeros(2)}, jnp.zeros(3), jnp.zeros((3, 2))
    )
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        ckpt.restore(tmp_path, opt_state=renamed)
    assert "opt_state tau has an entry for a, which is not here" in str(caught.value)
    assert "opt_state tau has no entry for d in the checkpoint" in str(caught.value)
    with pytest.raises(oc.IncompatibleCheckpointError):
        ckpt.restore(tmp_path, opt_state=listed("abc"))


def test_packed_entries_are_renamed_and_left_out_one_by_one(tmp_path):
    ckpt.save(tmp_path, 1, params=packed_of("abc").mu, opt_state=packed_of("abc"))
    live = Packed({name: jnp.ones(2) for name in "bcde"}, jnp.full(4, 9.0), jnp.full((4, 2), 9.0))
    r = ckpt.restore(tmp_path, opt_state=live, strict=False, rename={"a": "d"}, only="!c")
    assert r.opt_state.tau.tolist() == [2, 9, 1, 9]
    assert r.opt_state.rows[:, 0].tolist() == [2, 9, 1, 9]
    assert r.opt_state.mu["d"].tolist() == [0, 0]
    assert r.opt_state.mu["c"].tolist() == [1, 1]
    report = r.report["opt_state"]
    assert {"opt_state tau of c", "mu.c"} <= {*report.left_out}
    assert {"opt_state tau of e", "mu.e"} <= {*report.missing}


class Reordered(NamedTuple):
    """The same names, flattened in the order of insertion."""

    mu: object
    tau: jax.Array

    __packed_fields__ = ("tau",)


class Insertion(dict):
    """A dict that JAX flattens in the order of insertion."""


jax.tree_util.register_pytree_with_keys(
    Insertion,
    lambda d: ([(jax.tree_util.DictKey(k), v) for k, v in d.items()], tuple(d)),
    lambda keys, values: Insertion(zip(keys, values, strict=True)),
)


class Twins(list):
    """A node that gives its children one name."""


jax.tree_util.register_pytree_with_keys(
    Twins,
    lambda node: ([(jax.tree_util.GetAttrKey("child"), child) for child in node], None),
    lambda _, children: Twins(children),
)


def test_a_reordered_leaf_keeps_its_own_statistic(tmp_path):
    first = Insertion(b=jnp.zeros(1), a=jnp.ones(1))
    second = Insertion(a=jnp.zeros(1), b=jnp.zeros(1))
    ckpt.save(tmp_path, 1, opt_state=Reordered(first, jnp.array([20.0, 10.0])))
    found = ckpt.restore(tmp_path, opt_state=Reordered(second, jnp.zeros(2))).opt_state
    assert found.tau.tolist() == [10.0, 20.0]
    assert float(found.mu["a"][0]) == 1.0


def test_statistics_along_axes_are_kept_whole_and_refuse_another_order(tmp_path):
    first = Insertion(b=jnp.zeros(1), a=jnp.ones(1))
    state = Reordered(first, jnp.arange(5.0))
    ckpt.save(tmp_path, 1, opt_state=state)
    same(ckpt.restore(tmp_path, opt_state=state).opt_state, state)
    other = Reordered(Insertion(a=jnp.zeros(1), b=jnp.zeros(1)), jnp.zeros(5))
    with pytest.raises(
        oc.IncompatibleCheckpointError, match="its parameters came in another order"
    ):
        ckpt.restore(tmp_path, opt_state=other)


def test_every_difference_is_listed(tmp_path):
    params = params_of()
    ckpt.save(tmp_path, 1, params=params, opt_state=optax.adabelief(1e-3).init(params))
    template = {
        "dense": {"w": jnp.zeros((4, 2), jnp.bfloat16), "bias": jnp.zeros(3)},
        "out": [1.0],
    }
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        ckpt.restore(tmp_path, params=template, opt_state=optax.adam(1e-3).init(params))
    for expected in (
        "params dense.b is in the checkpoint but not in the template",
        "params dense.bias is not in the checkpoint",
        "params dense.w has shape [4, 3] in the checkpoint, [4, 2] here",
        "params dense.w has dtype float32 in the checkpoint, bfloat16 here",
        "params out.0 is an array in the checkpoint, a float here",
        "opt_state 0 is a ScaleByBeliefState in the checkpoint, a ScaleByAdamState here",
    ):
        assert f"  - {expected}" in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": jnp.zeros(4, jnp.int4)}, r"^params a: dtype int4 has no equivalent"),
        ({"a": object()}, r"^params a: a builtins.object cannot be stored"),
        ({(1, 2): jnp.zeros(1)}, r"^params: the pytree key DictKey\(key=\(1, 2\)\) cannot"),
        ({"\ud800": jnp.zeros(1)}, r"^params: the pytree key DictKey\(key='\\ud800'\) cannot"),
        ({"a": np.ma.array([1, 2], mask=[0, 1])}, r"^params a: a MaskedArray is an array subclass"),
        (Twins([jnp.zeros(1), 1]), r"^params: two leaves have the path child$"),
    ],
    ids=["int4", "object", "key", "surrogate", "masked", "one path twice"],
)
def test_what_cannot_be_stored_is_named(tmp_path, tree, message):
    with pytest.raises(oc.UnsupportedStateError, match=message):
        ckpt.save(tmp_path, 1, params=tree)


def test_donated_and_traced_arrays_are_refused(tmp_path):
    array = jnp.arange(3.0)
    array.delete()
    with pytest.raises(oc.UnsupportedStateError, match="params a: was donated or deleted"):
        ckpt.save(tmp_path, 1, params={"a": array})

    @jax.jit
    def inside(x):
        ckpt.save(tmp_path, 1, params={"a": x})
        return x

    with pytest.raises(oc.UnsupportedStateError, match="params a: is traced; save outside of jit"):
        inside(jnp.zeros(2))


def test_missing_sections_are_said(tmp_path):
    ckpt.save(tmp_path, 1, params={"a": jnp.zeros(1)})
    with pytest.raises(oc.IncompatibleCheckpointError, match="the checkpoint holds no opt_state"):
        ckpt.restore(tmp_path, opt_state={"a": jnp.zeros(1)})


def test_a_save_in_the_background_survives_donation(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.arange(64.0)
    with ckpt.AsyncCheckpointer(tmp_path, keep=2) as checkpointer:
        for number in range(4):
            checkpointer.save(number, params={"a": array})
            array = step(array)
    assert oc.steps(tmp_path) == [2, 3]
    found = ckpt.restore(tmp_path, 2, params={"a": array})
    assert found.params["a"].tolist() == [float(i + 2) for i in range(64)]


def test_a_relative_folder_is_that_of_the_start(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with ckpt.AsyncCheckpointer("run") as checkpointer:
        checkpointer.save(1, params={"a": jnp.zeros(3)})
        monkeypatch.chdir("elsewhere")
        checkpointer.save(2, params={"a": jnp.zeros(3)})
    assert oc.steps(tmp_path / "run") == [1, 2]


def test_damage_falls_back_to_the_step_before(tmp_path):
    for step in (1, 2):
        ckpt.save(tmp_path, step, params={"a": jnp.full(3, step)})
    file = tmp_path / "step-00000002" / "model" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 128
    file.write_bytes(raw)
    with pytest.warns(oc.CheckpointWarning, match="skipped a damaged checkpoint"):
        found = ckpt.restore(tmp_path, params={"a": jnp.full(3, 0)})
    assert found.step == 1
    assert found.params["a"].tolist() == [1, 1, 1]


def test_restored_arrays_are_the_memory_of_the_read_and_may_be_donated(tmp_path, monkeypatch):
    handed_out = []

    def remember(*arguments):
        array, memory = array_of(*arguments)
        handed_out.append(array)
        return array, memory

    monkeypatch.setattr(_leaves, "array_of", remember)
    params = {"w": jnp.arange(1000.0), "b": jnp.ones((7, 3), jnp.bfloat16)}
    ckpt.save(tmp_path, 1, params=params)
    restored = ckpt.restore(tmp_path, params=jax.eval_shape(lambda: params)).params
    addresses = {array.ctypes.data for array in handed_out}
    assert {leaf.unsafe_buffer_pointer() for leaf in restored.values()} == addresses
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    doubled = step(restored)
    assert doubled["w"][3] == 6
    # The memory still belongs to NumPy: a donated array must not be computed into.
    assert sorted(float(array.reshape(-1)[-1]) for array in handed_out) == [1.0, 999.0]


def test_a_manifest_that_gives_one_tensor_two_kinds_is_refused(tmp_path):
    """Only one of the two would be read, the other would be whatever the memory held."""
    entry = Entry("x", "F32", (2,), lambda: memoryview(bytes(8)))
    both = {"list": [{"array": "x"}, {"ndarray": "x"}]}
    sections = {"train": {"extra": {"dict": [[{"str": "a"}, both]]}}}
    commit(tmp_path, Document(1, {"name": "jax"}, sections, {"train": [entry]}))
    with pytest.raises(oc.CorruptCheckpointError, match="tensor 'x': stands for two kinds"):
        ckpt.restore(tmp_path)


class Spread:
    """The sharding of a vector of four over two processes, seen from the first."""

    is_fully_addressable = False

    def addressable_devices_indices_map(self, shape):
        return {"device": (slice(0, 2),)}


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [("whole part", [1, 2, 3, 4]), ("part whole", [1, 2, 3, 4]), ("part", [1, 2, -1, -1])],
)
def test_a_tensor_that_two_leaves_want_in_part_and_whole_is_read_whole(tmp_path, leaves, expected):
    stored = np.arange(1, 5, dtype=np.float32)
    entry = Entry("x", "F32", (4,), lambda: memoryview(stored).cast("B"))
    commit(tmp_path, Document(1, {}, {}, {"model": [entry]}))
    templates = {
        "whole": jax.ShapeDtypeStruct((4,), jnp.float32),
        "part": types.SimpleNamespace(sharding=Spread()),
    }

    def read(generation):
        staging = Staging.of(generation, "model")
        leaf = _leaves.pending_leaf(staging)
        for name in leaves.split():
            leaf("array", "x").narrow(templates[name])
        leaf("array", "x").array[:] = -1
        read_staged(generation, staging)
        return leaf("array", "x").array.tolist()

    assert choose(tmp_path, 1, read).value == expected


@pytest.mark.parametrize("number", [jnp.array(5), np.int64(5)], ids=repr)
def test_a_step_of_any_integer_type_becomes_an_integer(number):
    assert type(build_document(number, extra={}).step) is int


def saved_as_jax(folder, part, leaf, dtype, nbytes):
    """Commit a step that holds one tensor, as parameter ``x`` or as all of `extra`."""
    sections = {
        "model": {"model": {"leaves": [{"path": [["key", "x"]], "leaf": leaf}], "nodes": []}},
        "train": {"train": {"extra": leaf}},
    }
    entry = Entry("x", dtype, (3,), lambda: memoryview(bytes(nbytes)))
    sections = {"train": {}, **sections[part]}
    commit(folder, Document(1, {"name": "jax"}, sections, {part: [entry]}))


@pytest.mark.parametrize(
    "template",
    [None, {"x": jax.ShapeDtypeStruct((3,), np.float64)}],
    ids=["extra", "shape"],
)
def test_64_bits_are_not_narrowed_nor_taken_for_damage(tmp_path, template):
    saved_as_jax(tmp_path, "model" if template else "train", {"array": "x"}, "F64", 24)
    with pytest.raises(
        oc.IncompatibleCheckpointError, match="is float64 in the checkpoint, which needs jax_enable"
    ):
        ckpt.restore(tmp_path, params=template)


def test_64_bits_come_back_under_an_array_of_numpy(tmp_path):
    saved_as_jax(tmp_path, "model", {"array": "x"}, "F64", 24)
    found = ckpt.restore(tmp_path, params={"x": np.ones(3)}).params["x"]
    assert (type(found), found.dtype, found.tolist()) == (np.ndarray, np.float64, [0.0] * 3)


def test_the_template_decides_class_and_placement(tmp_path):
    tree = {"numpy": np.arange(4, dtype=np.float32), "jax": jnp.arange(3), "one": np.float32(2)}
    ckpt.save(tmp_path, 1, params=tree)
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = {
        "numpy": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=placed),
        "jax": np.zeros(3, np.int32),
        "one": jnp.zeros(()),
    }
    found = ckpt.restore(tmp_path, params=template).params
    expected = {"numpy": jnp.arange(4.0), "jax": np.arange(3, dtype=np.int32)}
    expected["one"] = jnp.asarray(np.float32(2))
    same(found, expected)
    assert found["numpy"].sharding == placed
    found["jax"][0] = 9
    template["numpy"], template["one"] = jnp.zeros(4), np.zeros((), np.float32)
    found = ckpt.restore(tmp_path, params=template).params
    same(found, {**expected, "one": np.array(2, np.float32)})
    same(ckpt.restore(tmp_path, params=tree).params, tree)
    # eval_shape() makes one of NumPy arrays too: it says nothing of the class.
    same(ckpt.restore(tmp_path, params=jax.eval_shape(lambda: tree)).params, tree)


def test_keys_of_an_implementation_that_is_not_registered_are_not_damage(tmp_path):
    saved_as_jax(tmp_path, "train", {"prng": ["mine", "x"]}, "U32", 12)
    with pytest.raises(
        oc.IncompatibleCheckpointError, match="'mine' is no PRNG implementation of this JAX"
    ):
        ckpt.restore(tmp_path)
