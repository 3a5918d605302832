"""Ray: the contract on a real cluster of this machine, and where that cluster listens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from optim_bench.errors import BenchError
from optim_bench.executors import Placement, _ray, make_executor

LISTEN = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_contract(any_case, cluster, kind, build, make_spec):
    any_case(kind, build, make_spec)


def test_contract_of_workers(worker_case, cluster, kind, build, make_spec):
    worker_case(kind, build, make_spec)


def descendants() -> set[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening() -> dict[str, str]:
    """Return socket inode -> address of what listens for TCP on this machine."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[9]: row[1].partition(":")[0] for row in rows if row[3] == LISTEN}


def test_the_cluster_listens_on_loopback_alone_without_a_dashboard(cluster):
    sockets = listening()
    addresses = set()
    commands = []
    for pid in descendants():
        try:
            commands.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
        addresses |= {sockets[inode] for inode in inodes & sockets.keys()}
    assert any("raylet" in command for command in commands)
    assert not [c for c in commands if "dashboard.py" in c and "--disable-frontend" not in c]
    assert addresses
    assert addresses <= LOOPBACK


def test_actors_stay_with_their_worker(cluster, kind, build, make_spec):
    executor = build(kind, jobs=1)
    for seed in range(3):
        executor.submit(make_spec(seed, trouble="pid"))
    for _ in range(3):
        executor.wait()
    assert len({path.read_text() for path in Path().glob("pid-*")}) == 1


def test_more_jobs_than_cores_hold_nothing_back(cluster, kind, build, make_spec):
    executor = build(kind, jobs=6)  # the cluster has 2
    for seed in range(6):
        executor.submit(make_spec(seed))
    assert {executor.wait().spec.seed for _ in range(6)} == set(range(6))


def test_an_actor_that_dies_costs_its_run_alone(cluster, kind, build, make_spec):
    executor = build(kind, jobs=1)
    for spec in (make_spec(0), make_spec(1, trouble="die with parent"), make_spec(2)):
        executor.submit(spec)
    records = {r.spec.seed: r for r in (executor.wait() for _ in range(3))}
    assert [records[seed].status for seed in range(3)] == ["ok", "failed", "ok"]
    assert records[1].error.startswith("the actor died (")


class Elsewhere:
    """Ray whose nodes have another version of this package."""

    def __init__(self, ray):
        self._ray = ray

    def __getattr__(self, name):
        return getattr(self._ray, name)

    def get(self, reference):
        answer = self._ray.get(reference)
        return answer and {**answer, "mood": "good"}


def test_an_answer_of_another_version_fails_its_run(cluster, kind, build, make_spec, monkeypatch):
    executor = build(kind, jobs=1)
    monkeypatch.setattr(executor, "_ray", Elsewhere(executor._ray))
    executor.submit(make_spec())
    record = executor.wait()
    assert record.status == "failed"
    assert record.error.startswith("the actor's answer is no record (RunRecord has unknown fields")


def test_a_cluster_that_starts_no_actor_is_given_up(cluster, kind, build, make_spec, monkeypatch):
    executor = build(kind, jobs=1)
    # A cluster of our own, and no patience with it.
    monkeypatch.setattr(executor, "_ours", True)
    monkeypatch.setattr(_ray, "_START_SECONDS", -1.0)
    executor.submit(make_spec())
    with pytest.raises(BenchError, match=r"no Ray actor starts within -1 s; the newest logs below"):
        executor.wait()
    monkeypatch.setattr(executor, "_ours", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "gpu"}, "ray has no option partition; it takes address"),
        ({"address": "ray://head"}, "address is 'ray://head'; write host:port of the head node"),
        (
            {"address": "127.0.0.1:1"},
            r"no Ray cluster answers at 127\.0\.0\.1:1 \(connection refused",
        ),
    ],
)
def test_bad_options_get_one_line(options, message):
    with pytest.raises(BenchError, match=message):
        make_executor("ray", "json:loads", jobs=1, options=options)


def test_a_running_cluster_is_joined_and_left_running(cluster, make_spec, trainer):
    import ray

    code = (
        "import sys\n"
        "from optim_bench.executors import make_executor\n"
        "from optim_bench.records import RunSpec\n"
        "options = {'address': sys.argv[1]}\n"
        "executor = make_executor('ray', sys.argv[2], jobs=1, path=['.'], options=options)\n"
        "rate = {'learning_rate': 1e-3}\n"
        "executor.submit(RunSpec('toy', 1, 'jax', 'adamw', rate, 7, 40, 'cosine'))\n"
        "print(executor.wait().status)\n"
        "executor.close()"
    )
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", code.replace("'.'", repr(str(Path.cwd()))), address, trainer],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ok\n"
    assert ray.cluster_resources()["CPU"] == 2


class Asked:
    """Ray that only writes down what an actor or a cluster is asked for."""

    class exceptions:  # noqa: N801 - Ray's own name for its module
        RayError = OSError

    def __init__(self):
        self.options = {}

    def remote(self, *arguments, **options):
        self.options |= options
        return self

    def init(self, **options):
        self.options |= options

    def __getattr__(self, name):
        return self

    def __call__(self, *arguments):
        return self


def test_an_actor_asks_for_its_share_of_a_gpu(cluster, make_spec, trainer, monkeypatch):
    executor = make_executor("ray", trainer, jobs=1, placement=Placement("cuda", 4))
    asked = Asked()
    monkeypatch.setattr(executor, "_ray", asked)
    executor.submit(make_spec())
    executor._dispatch()
    assert asked.options == {"num_cpus": 1, "num_gpus": 0.25, "max_restarts": 0}
    assert executor._options["placement"] == Placement("cuda")
    executor._seats.clear()


def test_a_cluster_of_this_machine_offers_the_gpus_that_are_asked_for():
    asked = Asked()
    _ray._connect(asked, None, 6, 3)
    assert (asked.options["num_cpus"], asked.options["num_gpus"]) == (6, 3)
