"""A real S3 protocol on loopback: moto's server, reached by s3fs."""

import logging
import os
import threading

import fsspec
import optim_checkpoint as oc
import pytest
from fsspec.config import conf
from optim_checkpoint import _place
from optim_checkpoint._options import Options

BUCKET = "checkpoints"


@pytest.fixture(scope="module")
def server():
    moto = pytest.importorskip("moto.server", reason="moto's server is not installed")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="module")
def bucket(server):
    """Configure S3 as a user does, by fsspec's own configuration, and make a bucket."""
    conf["s3"] = {"key": "a", "secret": "b", "endpoint_url": server}
    fs = fsspec.filesystem("s3")
    fs.call_s3("create_bucket", Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    del conf["s3"]
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_run_in_s3(bucket, make_document, load, check):
    url = f"{bucket}/runs/one"
    assert oc.steps(url) == []
    for step in range(1, 4):
        _place.commit(url, make_document(step), Options(keep=2))
    oc.pin(url, 2, "for later")
    _place.commit(url, make_document(4), Options(keep=1))
    assert oc.steps(url) == [2, 4]
    for step in (2, 4):
        check(load(url, step).value, step)
        assert oc.verify(url, step).tensors == 7
    assert oc.inspect(url).step == oc.latest_step(url) == 4
    folders = {key.split("/")[3] for key in fsspec.filesystem("s3").find(url)}
    assert len([name for name in folders if name.startswith("step-")]) == 2


@pytest.mark.slow
def test_torch_in_s3(bucket):
    torch = pytest.importorskip("torch")
    from optim_checkpoint import torch as ckpt

    def run():
        model = torch.nn.Linear(4, 2)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}

    saved, restored = run(), run()
    saved["model"](torch.ones(4)).sum().backward()
    saved["optimizer"].step()
    with ckpt.AsyncCheckpointer(f"{bucket}/torch", keep=1) as checkpointer:
        checkpointer.save(1, **saved)
        checkpointer.save(2, **saved)
    assert ckpt.restore(f"{bucket}/torch", **restored).step == 2
    assert torch.equal(saved["model"].weight, restored["model"].weight)
    fresh = torch.nn.Linear(4, 2)
    report = ckpt.restore(f"{bucket}/torch", model=fresh, only=["weight"]).report["model"]
    assert report.left_out == ("bias",)
    assert torch.equal(saved["model"].weight, fresh.weight)


@pytest.mark.slow
def test_a_file_of_several_parts(bucket, make_document, load, check):
    url = f"{bucket}/large"
    # Twice s3fs's part of 50 MiB is where it begins to put parts.
    _place.commit(url, make_document(1, 10_000_000))
    check(load(url).value, 1, 10_000_000)


def test_two_writers_at_once(bucket, make_document, load, check):
    url = f"{bucket}/two"
    _place.commit(url, make_document(1))
    ends = {}
    begin = threading.Barrier(2)

    def save(step):
        begin.wait()
        try:
            ends[step] = _place.commit(url, make_document(step), Options(keep=3))
        except oc.CheckpointWriteError as error:
            ends[step] = error

    for base in (10, 20, 30):
        threads = [threading.Thread(target=save, args=(base + i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    committed = [step for step, end in ends.items() if isinstance(end, str)]
    refused = [str(end) for end in ends.values() if not isinstance(end, str)]
    assert {*committed} <= {*oc.steps(url)}
    assert len(committed) >= 3
    assert all("another writer saved" in text for text in refused)
    for step in oc.steps(url):
        check(load(url, step).value, step)


def test_what_s3_refuses_is_one_sentence(bucket, make_document, monkeypatch):
    missing = "s3://no-such-bucket/run"
    assert oc.steps(missing) == []
    with pytest.raises(
        oc.CheckpointWriteError, match=r"cannot be written: .*bucket does not exist"
    ):
        _place.commit(missing, make_document(1))
    monkeypatch.setitem(conf, "s3", {"endpoint_url": conf["s3"]["endpoint_url"]})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(
        oc.CheckpointReadError, match=r"cannot be read: EIO .*credentials"
    ) as caught:
        oc.steps(f"{bucket}/one")
    assert "\n" not in str(caught.value)
    with pytest.raises(oc.CheckpointWriteError, match=r"cannot be written: .*credentials"):
        _place.commit(f"{bucket}/secret", make_document(1))
