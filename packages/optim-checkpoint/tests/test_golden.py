"""Files of format 1 are read for ever, and the same document is still written to the same bytes."""

from pathlib import Path

import optim_checkpoint as oc
from optim_checkpoint._commit import commit

GOLDEN = Path(__file__).with_name("golden")


def test_format_1_is_read(load, check):
    assert oc.verify(GOLDEN / "v1-numpy").tensors == 7
    check(load(GOLDEN / "v1-numpy").value, 1, 30)


def test_format_1_is_still_written_to_the_same_bytes(tmp_path, make_document):
    written = commit(tmp_path, make_document(1, 30))
    golden = GOLDEN / "v1-numpy" / "step-00000001"
    files = sorted(path.relative_to(golden) for path in golden.rglob("*") if path.is_file())
    assert len(files) == 3
    for file in files:
        assert (written / file).read_bytes() == (golden / file).read_bytes(), file


def test_the_golden_files_of_both_frameworks_verify():
    for name in ("v1-torch", "v1-jax"):
        assert oc.verify(GOLDEN / name).step == 1
