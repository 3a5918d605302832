"""Names in errors: each difference is listed, whatever the names are and however many."""

import difflib

import optim_checkpoint as oc
from optim_checkpoint._names import name_differences


def test_the_nearest_name_is_found_among_many():
    new = [f"blocks.{i}.norm.bias" for i in range(5000)]
    found = name_differences("x", ["blocks.4321.norm.bins"], new, "the live one")
    assert len(found) == 5001
    assert found[0] == (
        "x blocks.4321.norm.bins is in the checkpoint but not in the live one "
        "(nearest: blocks.4321.norm.bias)"
    )


def test_a_model_of_other_names_is_compared_no_longer_than_a_few_seconds(monkeypatch):
    """To compare each of 400 names with 400 others takes most of a minute."""
    compared = []
    match = difflib.get_close_matches

    def count(name, others, *options):
        compared.append(len(others))
        return match(name, others[:1], *options)

    monkeypatch.setattr(difflib, "get_close_matches", count)
    lost = [f"model.layers.{i}.proj.weight" for i in range(400)]
    found = name_differences("x", lost, [f"net.{name}" for name in lost], "the live one")
    assert len(found) == 800
    assert found[0].endswith("(nearest: net.model.layers.0.proj.weight)")
    assert 0 < sum(compared) <= 20_000


def test_names_from_a_file_cannot_steer_a_terminal():
    error = oc.IncompatibleCheckpointError(["x \x1b[2J\u202e\ud800 größe is missing"])
    assert error.differences == ("x \\x1b[2J\\u202e\\ud800 größe is missing",)
    assert "\x1b" not in str(error)
