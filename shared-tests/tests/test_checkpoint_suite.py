"""The checkpoint suite passes on a correct little format and fails on broken ones."""

import hashlib
import io
import json
from typing import ClassVar

import numpy as np
import pytest
from optim_conformance import CheckpointConformance, CheckpointExchange
from optim_conformance.adapter import numpy_dtype


class CorruptError(Exception):
    pass


class OtherError(Exception):
    pass


class MissingError(Exception):
    pass


class Digested:
    """One file per step: a digest, then a JSON header, then the bits."""

    name = "digested file"
    dtypes = frozenset({"float32", "float64", "bfloat16", "float16", "int8", "int32", "bool"})
    corrupt, incompatible, not_found = CorruptError, OtherError, MissingError
    verify = True

    def save(self, folder, step, tree):
        body = io.BytesIO()
        head = json.dumps({k: [v.dtype.name, v.shape] for k, v in tree.items()}).encode()
        body.write(len(head).to_bytes(8, "little") + head)
        for value in tree.values():
            body.write(value.tobytes())
        digest = hashlib.sha256(body.getvalue()).digest()
        (folder / f"{step:08}.bin").write_bytes(digest + body.getvalue())

    def choose(self, found, step):
        return max(found) if step is None else step

    def restore(self, folder, like, step=None):
        found = {int(p.stem): p for p in folder.glob("*.bin")}
        if not found or (step is not None and step not in found):
            raise MissingError(f"no step {step} in {folder}")
        step = self.choose(found, step)
        blob = found[step].read_bytes()
        if self.verify and hashlib.sha256(blob[32:]).digest() != blob[:32]:
            raise CorruptError(found[step])
        size = int.from_bytes(blob[32:40], "little")
        head, data = json.loads(blob[40 : 40 + size]), blob[40 + size :]
        self.compare(
            {k: (d, tuple(s)) for k, (d, s) in head.items()},
            {k: (v.dtype.name, v.shape) for k, v in like.items()},
        )
        return step, self.arrays(head, data)

    def compare(self, saved, wanted):
        if saved != wanted:
            raise OtherError(sorted(k for k, _ in saved.items() ^ wanted.items()))

    def arrays(self, head, data):
        tree = {}
        for name, (dtype, shape) in head.items():
            kind = numpy_dtype(dtype)
            count = int(np.prod(shape))
            tree[name] = np.frombuffer(data, kind, count).reshape(shape).copy()
            data = data[count * kind.itemsize :]
        return tree


class TestDigested(CheckpointConformance):
    adapter = Digested()


class Unverified(Digested):
    verify = False


class NoComparison(Digested):
    def compare(self, saved, wanted):
        pass


class IgnoresDtype(Digested):
    def compare(self, saved, wanted):
        super().compare(*({k: s for k, (_, s) in t.items()} for t in (saved, wanted)))


class NewestByName(Digested):
    def save(self, folder, step, tree):
        super().save(folder, step, tree)
        (folder / f"{step:08}.bin").rename(folder / f"{step}.bin")

    def choose(self, found, step):
        return int(max(str(s) for s in found)) if step is None else step


class AlwaysNewest(Digested):
    def choose(self, found, step):
        return max(found)


class Canonicalizes(Digested):
    def arrays(self, head, data):
        return {
            k: v + v.dtype.type(0) if v.dtype == np.float32 else v
            for k, v in super().arrays(head, data).items()
        }


class WritesIntoTemplate(Digested):
    def restore(self, folder, like, step=None):
        step, tree = super().restore(folder, like, step)
        for name, value in tree.items():
            like[name][...] = value
        return step, tree


class Timestamped(Digested):
    count = 0

    def save(self, folder, step, tree):
        super().save(folder, step, tree)
        Timestamped.count += 1
        (folder / "when.txt").write_text(str(self.count))


class SkipsTheMissing(Digested):
    def restore(self, folder, like, step=None):
        try:
            return super().restore(folder, like, step)
        except (MissingError, CorruptError):
            return 0, dict(like)


BROKEN = [
    (Unverified, "test_every_flipped_bit_is_seen"),
    (Unverified, "test_truncation_is_seen"),
    (NoComparison, "test_incompatible_template"),
    (IgnoresDtype, "test_incompatible_template"),
    (NewestByName, "test_steps"),
    (AlwaysNewest, "test_steps"),
    (Canonicalizes, "test_round_trip"),
    (WritesIntoTemplate, "test_inputs_are_not_touched"),
    (Timestamped, "test_reproducible"),
    (SkipsTheMissing, "test_nothing_to_restore"),
    (SkipsTheMissing, "test_missing_file_is_seen"),
]


# A check of the test class, not of a format: test_suite_rules.py tests it.
OF_THE_CLASS = {"test_no_override"}


@pytest.mark.parametrize(("broken", "check"), BROKEN)
def test_broken_formats_are_caught(broken, check, tmp_path):
    class Suite(CheckpointConformance):
        adapter = broken()

    arguments = (
        [{"change": c} for c in ("renamed", "missing", "extra", "reshaped", "recast")]
        if check == "test_incompatible_template"
        else [{}]
    )
    failures = 0
    for number, extra in enumerate(arguments):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            getattr(Suite(), check)(folder, **extra)
        except (AssertionError, pytest.fail.Exception, ValueError, TypeError):
            failures += 1
    assert failures, f"{broken.__name__} passes {check}"


def test_every_check_catches_a_broken_format():
    checks = {n for n in dir(CheckpointConformance) if n.startswith("test_")} - OF_THE_CLASS
    assert checks == {check for _, check in BROKEN}


class Marked(Digested):
    """A correct format that also leaves an empty marker file."""

    def save(self, folder, step, tree):
        super().save(folder, step, tree)
        (folder / "lock").touch()


class TestMarked(CheckpointConformance):
    adapter = Marked()


class Other(Digested):
    """The same format in another framework, which has no float64."""

    name = "digested file, elsewhere"
    dtypes = Digested.dtypes - {"float64"}


class TestExchange(CheckpointExchange):
    adapters = (Digested(), Other())


class OwnFiles(Other):
    """Sees only what it wrote itself."""

    written: ClassVar = set()

    def save(self, folder, step, tree):
        super().save(folder, step, tree)
        self.written.add((folder, step))

    def restore(self, folder, like, step=None):
        own = [s for f, s in self.written if f == folder]
        found = [int(p.stem) for p in folder.glob("*.bin")]
        return super().restore(folder, like, step or max(own or found))


class WidensHalves(Other):
    def restore(self, folder, like, step=None):
        step, tree = super().restore(folder, like, step)
        return step, {
            k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in tree.items()
        }


class SavesPlainZeros(Other):
    def save(self, folder, step, tree):
        plain = {k: v + np.float32(0) if v.dtype == np.float32 else v for k, v in tree.items()}
        super().save(folder, step, plain)


BROKEN_EXCHANGE = [
    (WidensHalves, "test_the_right_bits_arrive"),
    (SavesPlainZeros, "test_there_and_back"),
    (OwnFiles, "test_both_keep_one_folder"),
    (type("Trusting", (Other,), {"verify": False}), "test_damage_is_seen_by_the_other"),
    (
        type("Indifferent", (Other,), {"compare": lambda self, saved, wanted: None}),
        "test_what_does_not_fit_is_refused",
    ),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN_EXCHANGE)
def test_broken_exchanges_are_caught(broken, check, tmp_path):
    here, there = Digested(), broken()
    suite = type("Suite", (CheckpointExchange,), {"adapters": (here, there)})()
    extra = {"change": "recast"} if check == "test_what_does_not_fit_is_refused" else {}
    failures = 0
    for number, (writer, reader) in enumerate(((here, there), (there, here))):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            getattr(suite, check)(folder, writer, reader, **extra)
        except (AssertionError, pytest.fail.Exception, ValueError, TypeError):
            failures += 1
    assert failures, f"{broken.__name__} passes {check}"


def test_every_check_catches_a_broken_exchange():
    checks = {n for n in dir(CheckpointExchange) if n.startswith("test_")} - OF_THE_CLASS
    assert checks == {check for _, check in BROKEN_EXCHANGE}
