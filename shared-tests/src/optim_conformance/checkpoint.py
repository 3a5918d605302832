"""The suite of a checkpoint format, whatever framework it serves.

An adapter saves and restores flat trees of arrays. The suite never reads a file's content: it
flips bytes, cuts files, removes them, and demands the right bits or a typed error.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import pytest

from optim_conformance._compare import identical
from optim_conformance._honesty import Honest
from optim_conformance.adapter import Array, Tree, numpy_dtype

Refusal = type[Exception] | tuple[type[Exception], ...]


class CheckpointAdapter(Protocol):
    """One format in one framework.

    Attributes:
        name: For the report.
        dtypes: Names of the dtypes that can be stored.
        corrupt: What a damaged checkpoint raises.
        incompatible: What other names, shapes or dtypes raise.
        not_found: What an empty folder or an unknown step raises.
    """

    name: str
    dtypes: frozenset[str]
    corrupt: Refusal
    incompatible: Refusal
    not_found: Refusal

    def save(self, folder: Path, step: int, tree: Tree) -> None:
        """Commit a checkpoint of `tree` under `folder`."""
        ...

    def restore(self, folder: Path, like: Tree, step: int | None = None) -> tuple[int, Tree]:
        """Return the step and the tree; `like` gives names, shapes and dtypes, not values."""
        ...


class CheckpointConformance(Honest, suite=True):
    """Every check; a package subclasses it once per adapter and sets `adapter`."""

    adapter: ClassVar[CheckpointAdapter]

    def test_round_trip(self, tmp_path: Path) -> None:
        """Every dtype and shape comes back bit for bit, NaN payloads and signed zeros included."""
        tree = sample(self.adapter.dtypes)
        self.adapter.save(tmp_path, 7, tree)
        step, back = self.adapter.restore(tmp_path, blank(tree))
        assert step == 7
        identical(back, tree, f"{self.adapter.name}, restored")

    def test_steps(self, tmp_path: Path) -> None:
        """The newest step is the default, by number and not by name; an older one can be had."""
        trees = {step: sample(self.adapter.dtypes, seed=step) for step in (9, 10, 100)}
        for step, tree in trees.items():
            self.adapter.save(tmp_path, step, tree)
        like = blank(trees[9])
        assert self.adapter.restore(tmp_path, like)[0] == 100
        for step, tree in trees.items():
            found, back = self.adapter.restore(tmp_path, like, step)
            assert found == step
            identical(back, tree, f"{self.adapter.name}, step {step}")

    def test_inputs_are_not_touched(self, tmp_path: Path) -> None:
        """Neither the saved tree nor the template changes, and the result shares no memory."""
        tree = sample(self.adapter.dtypes)
        kept, like = copied(tree), blank(tree)
        self.adapter.save(tmp_path, 1, tree)
        _, first = self.adapter.restore(tmp_path, like)
        for array in first.values():
            if array.flags.writeable:
                array[...] = array.dtype.type(1)
        identical(tree, kept, f"{self.adapter.name}, the tree that was saved")
        identical(like, blank(tree), f"{self.adapter.name}, the template")
        identical(self.adapter.restore(tmp_path, like)[1], kept, f"{self.adapter.name}, again")

    def test_every_flipped_bit_is_seen(self, tmp_path: Path) -> None:
        """One flipped bit, anywhere in any file, gives a typed error or the right bits.

        The right bits are possible where a byte carries nothing, as padding does; wrong ones never.
        """
        tree, like = self._saved(tmp_path / "good")
        refused = 0
        for number, (file, place) in enumerate(places(tmp_path / "good", per_file=24)):
            damaged = tmp_path / f"flip{number}"
            shutil.copytree(tmp_path / "good", damaged)
            with (damaged / file).open("r+b") as stream:
                stream.seek(place)
                byte = stream.read(1)[0]
                stream.seek(place)
                stream.write(bytes([byte ^ (1 << number % 8)]))
            refused += self._right_or_refused(damaged, like, tree, f"{file}, byte {place} flipped")
            shutil.rmtree(damaged)
        assert refused, f"{self.adapter.name}: no flipped bit was refused"

    def test_truncation_is_seen(self, tmp_path: Path) -> None:
        """A file that lost its last byte, its half or all of it gives a typed error."""
        tree, like = self._saved(tmp_path / "good")
        for file in files(tmp_path / "good"):
            size = (tmp_path / "good" / file).stat().st_size
            for keep in sorted({0, size // 2, size - 1} & set(range(size))):
                damaged = tmp_path / "cut"
                shutil.copytree(tmp_path / "good", damaged)
                with (damaged / file).open("r+b") as stream:
                    stream.truncate(keep)
                what = f"{file} cut to {keep} of {size} bytes"
                assert self._right_or_refused(damaged, like, tree, what), what
                shutil.rmtree(damaged)

    def test_missing_file_is_seen(self, tmp_path: Path) -> None:
        """A checkpoint that lost a file is refused."""
        tree, like = self._saved(tmp_path / "good")
        for file in files(tmp_path / "good"):
            if (tmp_path / "good" / file).stat().st_size == 0:
                continue  # A lock or a marker holds nothing that could be lost.
            damaged = tmp_path / "lost"
            shutil.copytree(tmp_path / "good", damaged)
            (damaged / file).unlink()
            assert self._right_or_refused(damaged, like, tree, f"{file} removed"), file
            shutil.rmtree(damaged)

    @pytest.mark.parametrize("change", ["renamed", "missing", "extra", "reshaped", "recast"])
    def test_incompatible_template(self, tmp_path: Path, change: str) -> None:
        """Another name, shape or dtype is refused, and the message names the leaf."""
        _, like = self._saved(tmp_path)
        like = dict(like)
        odd = like.pop("odd")
        if change == "renamed":
            like["even"] = odd
        elif change == "extra":
            like |= {"odd": odd, "more": odd}
        elif change == "reshaped":
            like["odd"] = np.zeros((odd.shape[0] + 1, *odd.shape[1:]), odd.dtype)
        elif change == "recast":
            like["odd"] = odd.astype(np.float64)
        named = "more" if change == "extra" else "odd"
        with pytest.raises(self.adapter.incompatible, match=named):
            self.adapter.restore(tmp_path, like)

    def test_nothing_to_restore(self, tmp_path: Path) -> None:
        """An empty folder, a missing one and an unknown step are refused."""
        tree, like = self._saved(tmp_path / "good")
        (tmp_path / "empty").mkdir()
        for folder in ("empty", "never"):
            with pytest.raises(self.adapter.not_found, match=folder):
                self.adapter.restore(tmp_path / folder, like)
        with pytest.raises(self.adapter.not_found, match="41"):
            self.adapter.restore(tmp_path / "good", like, 41)
        identical(self.adapter.restore(tmp_path / "good", like)[1], tree, self.adapter.name)

    def test_reproducible(self, tmp_path: Path) -> None:
        """The same tree gives the same files, byte for byte."""
        for name in ("one", "two"):
            self._saved(tmp_path / name)
        assert files(tmp_path / "one") == files(tmp_path / "two")
        for file in files(tmp_path / "one"):
            first, second = ((tmp_path / n / file).read_bytes() for n in ("one", "two"))
            assert first == second, f"{self.adapter.name}: {file} differs between two saves"

    def _saved(self, folder: Path) -> tuple[Tree, dict[str, Array]]:
        folder.mkdir(exist_ok=True)
        tree = sample(self.adapter.dtypes)
        self.adapter.save(folder, 3, tree)
        return tree, blank(tree)

    def _right_or_refused(self, folder: Path, like: Tree, tree: Tree, what: str) -> bool:
        """Return whether a damaged checkpoint was refused; fail on wrong bits or another error."""
        try:
            _, back = self.adapter.restore(folder, like)
        except refusals(self.adapter):
            return True
        identical(back, tree, f"{self.adapter.name}, {what}")
        return False


def sample(dtypes: frozenset[str], seed: int = 0) -> dict[str, Array]:
    """Return a tree with all these dtypes, odd shapes and values that compare badly."""
    rng = np.random.default_rng([50, seed])
    tree: dict[str, Array] = {"odd": rng.standard_normal((3, 5)).astype(np.float32)}
    for name in sorted(dtypes):
        bits = rng.integers(0, 256, 24 * numpy_dtype(name).itemsize, dtype=np.uint8)
        if name == "bool":
            bits &= 1
        tree[f"bits/{name}"] = bits.view(numpy_dtype(name)).reshape(2, 3, 4)
        tree[f"scalar.{name}"] = np.ones((), numpy_dtype(name))
    tree["none"] = np.zeros((0, 3), np.float32)
    tree["special"] = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45], np.float32)
    tree["large"] = rng.standard_normal((70, 130)).astype(np.float32)
    return tree


def blank(tree: Tree) -> dict[str, Array]:
    """Return a template: the same names, shapes and dtypes, other values."""
    return {k: np.zeros(v.shape, v.dtype) for k, v in tree.items()}


def copied(tree: Tree) -> dict[str, Array]:
    """Return an independent copy."""
    return {k: v.copy() for k, v in tree.items()}


def files(folder: Path) -> list[Path]:
    """Return all files below a folder, relative to it."""
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def places(folder: Path, per_file: int) -> Iterator[tuple[Path, int]]:
    """Yield places spread over every file, its first and last bytes included."""
    for file in files(folder):
        size = (folder / file).stat().st_size
        yield from (
            (file, place)
            for place in sorted({int(x) for x in np.linspace(0, size - 1, per_file)})
            if size
        )


def refusals(adapter: CheckpointAdapter) -> tuple[type[Exception], ...]:
    """Return everything that an adapter raises instead of giving wrong bits."""
    kinds = (adapter.corrupt, adapter.not_found, adapter.incompatible)
    return tuple(kind for k in kinds for kind in (k if isinstance(k, tuple) else (k,)))
