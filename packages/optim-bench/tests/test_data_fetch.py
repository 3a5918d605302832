"""Fetching data: from a server on loopback, on request alone, and only what it should be."""

import hashlib
import http.server
import io
import socket
import tarfile
import threading

import pytest
from optim_bench.cli import build_app, run_app
from optim_bench.cli import data as cli_data
from optim_bench.tasks import data
from optim_bench.tasks.data import Download, FetchError, RemoteFile

CONTENT = b"the numbers" * 1000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"../outside/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def server():
    """Serve a dictionary on loopback; gives the address, the dictionary, and what was asked for."""
    served: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = served.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", served, asked
        running.shutdown()
        thread.join()


@pytest.fixture
def bench(capfd):
    def run(*arguments):
        status = run_app(build_app(), [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_named_set_is_fetched_checked_and_its_licence_printed(
    server, bench, tmp_path, monkeypatch
):
    address, served, asked = server
    served["/a.gz"], served["/b.gz"] = CONTENT, b"labels"
    files = tuple(RemoteFile(f"{address}{p}", sha256(c), len(c)) for p, c in served.items())
    toy = Download("A toy", "CC0 (nobody)", "mnist-cnn", files)
    monkeypatch.setattr(cli_data, "DOWNLOADS", {"toy": toy})
    folder = tmp_path / "data"
    status, out, err = bench("data", "fetch", "toy", "--data-dir", folder)
    assert (status, err) == (0, "")
    assert "Licence: CC0 (nobody)\n" in out
    assert f"sha256 {sha256(CONTENT)}" in out
    assert f"Ready: optim-bench run --workload mnist-cnn --data-dir {folder}\n" in out
    assert (folder / "a.gz").read_bytes() == CONTENT
    assert (folder / "a.gz").stat().st_mode & 0o777 == 0o644
    assert names(folder) == {"a.gz", "b.gz"}
    # Again: what is there and right is not asked for; what was damaged is.
    (folder / "b.gz").write_bytes(b"damaged")
    assert bench("data", "fetch", "toy", "--data-dir", folder)[0] == 0
    assert asked == ["/a.gz", "/b.gz", "/b.gz"]
    assert (folder / "b.gz").read_bytes() == b"labels"


def test_an_archive_gives_its_named_files_and_nothing_outside_the_folder(server, tmp_path):
    address, served, _ = server
    served["/set.tar.gz"] = packed = archive(one=b"1", two=b"2")
    file = RemoteFile(f"{address}/set.tar.gz", sha256(packed), len(packed), ("one",))
    folder = tmp_path / "data"
    data.fetch((file,), folder, lambda line: None)
    assert names(folder) == {"set.tar.gz", "one"}
    assert names(tmp_path) == {"data"}
    lacking = RemoteFile(file.url, file.sha256, members=("three",))
    with pytest.raises(FetchError, match=r"set\.tar\.gz holds no three"):
        data.fetch((lacking,), folder, lambda line: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sha256": "0" * 64},
            r"gave 11,000 bytes with sha256 .*; 0{64} were expected, so nothing",
        ),
        ({"size": 10}, r"sha256 .*"),
        ({"url": "/absent"}, r"/absent cannot be fetched \(Not Found\)"),
        ({"url": "file:///etc/hostname"}, r"'file:///etc/hostname' is no http or https address"),
    ],
)
def test_what_is_not_what_it_should_be_leaves_nothing(server, tmp_path, change, message):
    address, served, _ = server
    served["/a"] = CONTENT
    fields = {"url": "/a", "sha256": sha256(CONTENT), "size": None, **change}
    if fields["size"] is not None:
        served["/a"] = CONTENT * 200  # longer than it says, with a digest of something shorter
    if fields["url"].startswith("/"):
        fields["url"] = address + fields["url"]
    with pytest.raises(FetchError, match=message):
        data.fetch((RemoteFile(**fields),), tmp_path / "data", lambda line: None)
    assert names(tmp_path / "data") == set()


def test_a_file_of_the_users_own_is_fetched_only_with_its_digest(server, bench, tmp_path):
    address, served, asked = server
    served["/shard?raw"] = CONTENT
    fetch = ("data", "fetch", "train.bin", "--data-dir", tmp_path)
    for extra, message in (
        (("--url", f"{address}/x"), "--url and --sha256 come together: what is fetched is always"),
        (("--sha256", "0" * 64), "--url and --sha256 come together"),
        (("--url", f"{address}/x", "--sha256", "abc"), "--sha256 is 'abc'; it has to be 64 hex"),
        ((), "unknown data set 'train.bin'; choose from cifar10, fashion-mnist, mnist"),
    ):
        status, _, err = bench(*fetch, *extra)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
    assert asked == []
    status, out, _ = bench(*fetch, "--url", f"{address}/shard?raw", "--sha256", sha256(CONTENT))
    assert status == 0
    assert "Licence: that of whoever publishes the file" in out
    assert (tmp_path / "train.bin").read_bytes() == CONTENT
    outside = ("data", "fetch", "../x", "--data-dir", tmp_path, "--url", address, "--sha256")
    assert "'../x' is no file name" in bench(*outside, sha256(CONTENT))[2]


def test_nobody_at_the_address_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    file = RemoteFile(f"http://127.0.0.1:{port}/a", "0" * 64)
    with pytest.raises(FetchError, match=r"cannot be fetched \(\[Errno \d+\] Connection refused\)"):
        data.fetch((file,), tmp_path, lambda line: None)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match=r"cannot write to .*file.*exist"):
        data.fetch((), tmp_path / "file", lambda line: None)


def test_a_run_never_fetches(bench, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(data._fetch.urllib.request, "urlopen", refuse)
    command = ("run", "--workload", "mnist-cnn", "--framework", "torch", "--data-dir", tmp_path)
    status, _, err = bench(*command, "--output", tmp_path / "out")
    assert status == 1
    assert "optim-bench data fetch mnist --data-dir DIR" in err


def test_the_named_sets_are_complete():
    for download in data.DOWNLOADS.values():
        assert download.licence
        for file in download.files:
            assert len(file.sha256) == 64
            assert file.size
    for name in ("mnist", "fashion-mnist"):
        fetched = {file.name.removesuffix(".gz") for file in data.DOWNLOADS[name].files}
        assert fetched == set(_workload("mnist-cnn").files)
    assert set(data.DOWNLOADS["cifar10"].files[0].members) == set(_workload("cifar10-cnn").files)


def _workload(name):
    from optim_bench.tasks.built_in import WORKLOADS

    return WORKLOADS[name]
