"""The suite of checkpoints that cross from one framework to another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from optim_conformance._compare import identical
from optim_conformance._honesty import Honest
from optim_conformance.adapter import Array
from optim_conformance.checkpoint import (
    CheckpointAdapter,
    blank,
    files,
    places,
    refusals,
    sample,
)


class CheckpointExchange(Honest, suite=True):
    """Every check, for each ordered pair of adapters; a package subclasses it once.

    The adapters must agree on the names of leaves: each gets the tree that the others get.
    """

    adapters: ClassVar[Sequence[CheckpointAdapter]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give `writer` and `reader` every ordered pair of adapters."""
        if "writer" in metafunc.fixturenames:
            pairs = list(permutations(self.adapters, 2))
            ids = [f"{writer.name} to {reader.name}" for writer, reader in pairs]
            metafunc.parametrize(("writer", "reader"), pairs, ids=ids)

    def tree(self, seed: int = 0) -> dict[str, Array]:
        """Return a tree of the dtypes that all adapters store."""
        shared = frozenset.intersection(*(adapter.dtypes for adapter in self.adapters))
        return sample(shared, seed)

    def test_the_right_bits_arrive(
        self, tmp_path: Path, writer: CheckpointAdapter, reader: CheckpointAdapter
    ) -> None:
        """Every shared dtype and shape arrives bit for bit, at the step that was saved."""
        tree = self.tree()
        writer.save(tmp_path, 7, tree)
        step, arrived = reader.restore(tmp_path, blank(tree))
        assert step == 7
        identical(arrived, tree, f"{writer.name} to {reader.name}")

    def test_there_and_back(
        self, tmp_path: Path, writer: CheckpointAdapter, reader: CheckpointAdapter
    ) -> None:
        """What arrived and is saved there comes home as it left."""
        tree = self.tree()
        for name in ("there", "back"):
            (tmp_path / name).mkdir()
        writer.save(tmp_path / "there", 3, tree)
        _, arrived = reader.restore(tmp_path / "there", blank(tree))
        reader.save(tmp_path / "back", 4, arrived)
        step, home = writer.restore(tmp_path / "back", blank(tree))
        assert step == 4
        identical(home, tree, f"{writer.name} to {reader.name} and back")

    def test_both_keep_one_folder(
        self, tmp_path: Path, writer: CheckpointAdapter, reader: CheckpointAdapter
    ) -> None:
        """Two frameworks that take turns in one folder find each other's steps."""
        trees = {step: self.tree(seed=step) for step in (9, 10, 100)}
        for step, saver in ((9, writer), (10, reader), (100, writer)):
            saver.save(tmp_path, step, trees[step])
        for finder in (writer, reader):
            assert finder.restore(tmp_path, blank(trees[9]))[0] == 100
            for step, tree in trees.items():
                found, arrived = finder.restore(tmp_path, blank(tree), step)
                assert found == step
                identical(arrived, tree, f"{writer.name} to {reader.name}, step {step}")

    def test_damage_is_seen_by_the_other(
        self, tmp_path: Path, writer: CheckpointAdapter, reader: CheckpointAdapter
    ) -> None:
        """One flipped bit gives a typed error or the right bits, whoever reads it."""
        tree = self.tree()
        writer.save(tmp_path, 3, tree)
        refused = 0
        for number, (file, place) in enumerate(places(tmp_path, per_file=8)):
            content = (tmp_path / file).read_bytes()
            damaged = bytearray(content)
            damaged[place] ^= 1 << number % 8
            (tmp_path / file).write_bytes(damaged)
            try:
                _, arrived = reader.restore(tmp_path, blank(tree))
            except refusals(reader):
                refused += 1
            else:
                identical(arrived, tree, f"{reader.name}, {file}, byte {place} flipped")
            (tmp_path / file).write_bytes(content)
        assert refused, f"{reader.name}: no flipped bit in {files(tmp_path)} was refused"

    @pytest.mark.parametrize("change", ["renamed", "reshaped", "recast"])
    def test_what_does_not_fit_is_refused(
        self, tmp_path: Path, writer: CheckpointAdapter, reader: CheckpointAdapter, change: str
    ) -> None:
        """Another name, shape or dtype is refused, and the message names the leaf."""
        tree = self.tree()
        writer.save(tmp_path, 3, tree)
        like = blank(tree)
        odd = like.pop("odd")
        if change == "renamed":
            like["even"] = odd
        elif change == "reshaped":
            like["odd"] = odd.T
        else:
            like["odd"] = odd.astype(np.int32)
        with pytest.raises(reader.incompatible, match="odd"):
            reader.restore(tmp_path, like)
