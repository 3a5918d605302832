"""The checks of the reader are needed: without one, its damage would go unnoticed.

A file's size is checked twice, by the manifest and by the header's layout; so it is not here.
"""

import shutil
from pathlib import Path

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _generation, _manifest, _place, _reading

# For each check: its module, the code, what stands there without it, and the damage it alone finds.
MUTANTS = {
    "tensor digest": (
        _generation,
        "if actual != written:",
        "if False:",
        "flip data",
    ),
    "header digest": (
        _generation,
        "if actual != record.header:",
        "if False:",
        "add metadata",
    ),
    "step of the folder": (
        _generation,
        "if manifest.step != self.name.step:",
        "if False:",
        "rename",
    ),
    "symbolic links": (
        _reading,
        "_OPEN = os.O_RDONLY | os.O_NOFOLLOW",
        "_OPEN = os.O_RDONLY",
        "link",
    ),
    "manifest digest": (_manifest, "if recorded != actual:", "if False:", "edit manifest"),
    "canonical manifest": (_manifest, "if dumps(body) != raw:", "if False:", "space manifest"),
}


def model_file(folder):
    return folder / "step-00000002" / "model" / "model.safetensors"


def edit(path, change):
    raw = path.read_bytes()
    damaged = change(raw)
    assert damaged != raw
    path.write_bytes(damaged)


def flip_data(folder):
    edit(model_file(folder), lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]))


def add_metadata(folder):
    edit(model_file(folder), lambda raw: raw.replace(b'"format":"pt"', b'"format":"xx"'))


def rename(folder):
    shutil.rmtree(folder / "step-00000001")
    (folder / "step-00000002").rename(folder / "step-00000001")


def link(folder):
    path = model_file(folder)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def edit_manifest(folder):
    path = folder / "step-00000002" / "manifest.json"
    edit(path, lambda raw: raw.replace(b'"kind":"none"', b'"kind":"nono"'))


def space_manifest(folder):
    edit(folder / "step-00000002" / "manifest.json", lambda raw: raw + b" ")


DAMAGE = {
    "flip data": flip_data,
    "add metadata": add_metadata,
    "rename": rename,
    "link": link,
    "edit manifest": edit_manifest,
    "space manifest": space_manifest,
}


def newest_is_sound(folder):
    try:
        oc.verify(folder)
    except oc.CorruptCheckpointError:
        return False
    return True


def mutated(module, old, new):
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1
    namespace = dict(vars(module))
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", MUTANTS)
def test_without_the_check_the_damage_would_pass(run_folder, monkeypatch, name, tally):
    module, old, new, damage = MUTANTS[name]
    DAMAGE[damage](run_folder)
    assert not newest_is_sound(run_folder)
    namespace = mutated(module, old, new)
    if module is _manifest:
        monkeypatch.setattr(_manifest, "parse", namespace["parse"])
    elif module is _reading:
        monkeypatch.setattr(_reading, "open_regular", namespace["open_regular"])
    else:
        monkeypatch.setattr(_place, "Generation", namespace["Generation"])
    assert newest_is_sound(run_folder)
    tally("check taken out of the reader", trials=1)
