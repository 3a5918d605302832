"""Whatever changes on disk is found: no damaged byte is ever handed out."""

import shutil

import numpy as np
import optim_checkpoint as oc
import pytest

FILES = ("manifest.json", "model/model.safetensors", "optim/optim.safetensors")


def assert_found(folder, load):
    with pytest.raises(oc.CorruptCheckpointError):
        load(folder, 2)
    with pytest.raises(oc.CorruptCheckpointError):
        oc.verify(folder, 2)


def flip(path, bit):
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def bits_of(file, path, count):
    """Return bits to flip: the first and last 64, and `count` random ones."""
    total = path.stat().st_size * 8
    rng = np.random.default_rng(len(file))
    ends = [*range(64), *range(total - 64, total)]
    return sorted({*ends, *rng.integers(0, total, count).tolist()})


def flip_each(run_folder, load, file, count):
    path = run_folder / "step-00000002" / file
    sound = path.read_bytes()
    bits = bits_of(file, path, count)
    for bit in bits:
        flip(path, bit)
        try:
            load(run_folder, 2)
        except oc.CorruptCheckpointError:
            pass
        else:
            pytest.fail(f"flipping bit {bit} of {file} was not noticed")
        path.write_bytes(sound)
    load(run_folder, 2)
    return len(bits)


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_found(run_folder, load, file):
    assert flip_each(run_folder, load, file, 200) > 250


@pytest.mark.nightly
@pytest.mark.parametrize("file", FILES)
def test_ten_thousand_flipped_bits_are_found(run_folder, load, file, tally):
    flipped = flip_each(run_folder, load, file, 4500)
    assert flipped > 3000
    tally("flipped bit", trials=flipped)


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_is_found(run_folder, load, file):
    path = run_folder / "step-00000002" / file
    sound = path.read_bytes()
    for size in {*range(0, len(sound), 97), len(sound) - 1}:
        path.write_bytes(sound[:size])
        assert_found(run_folder, load)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("page", [64, 512])
def test_every_zeroed_page_is_found(run_folder, load, file, page):
    path = run_folder / "step-00000002" / file
    sound = path.read_bytes()
    for start in range(0, len(sound), page):
        damaged = bytearray(sound)
        damaged[start : start + page] = bytes(len(sound[start : start + page]))
        if damaged != sound:
            path.write_bytes(damaged)
            assert_found(run_folder, load)


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_another_step_is_found(run_folder, load, file):
    shutil.copy(run_folder / "step-00000001" / file, run_folder / "step-00000002" / file)
    assert_found(run_folder, load)


def test_swapped_parts_are_found(run_folder, load):
    folder = run_folder / "step-00000002"
    model, optim = folder / "model" / "model.safetensors", folder / "optim" / "optim.safetensors"
    first, second = model.read_bytes(), optim.read_bytes()
    model.write_bytes(second)
    optim.write_bytes(first)
    assert_found(run_folder, load)


def test_two_tensors_of_one_size_cannot_change_places(tmp_path, load):
    from optim_checkpoint._commit import Document, commit
    from optim_checkpoint._shard import Entry

    data = {"a": bytes(range(64)), "b": bytes(range(64, 128))}
    entries = [Entry(k, "U8", (64,), lambda v=v: memoryview(v)) for k, v in data.items()]
    path = commit(tmp_path, Document(2, {}, {}, {"model": entries}))
    file = path / "model" / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-128] + raw[-64:] + raw[-128:-64])
    assert_found(tmp_path, load)


def test_a_missing_manifest_is_found(run_folder, load):
    (run_folder / "step-00000002" / "manifest.json").unlink()
    assert_found(run_folder, load)


def test_the_error_names_file_tensor_and_difference(run_folder):
    path = run_folder / "step-00000002" / "optim" / "optim.safetensors"
    flip(path, path.stat().st_size * 8 - 1)
    with pytest.raises(
        oc.CorruptCheckpointError,
        match=r"^step-00000002/optim/optim\.safetensors, tensor 'state\.a\.weight\.mu': "
        r"its digest is [0-9a-f]{32}, [0-9a-f]{32} was written$",
    ) as caught:
        oc.verify(run_folder)
    assert caught.value.tensor == "state.a.weight.mu"
    assert caught.value.file == "step-00000002/optim/optim.safetensors"


def test_a_file_that_shrinks_while_it_is_read_is_found(run_folder, load):
    path = run_folder / "step-00000002" / "model" / "model.safetensors"

    def read(generation):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 8)
        return generation.read(lambda part, key, info: None)

    with pytest.raises(oc.CorruptCheckpointError, match="ends at byte"):
        oc._select.choose(run_folder, 2, read)
