"""SLURM through submitit: the contract on its local executor, and a stand-in for the cluster."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from optim_bench.errors import BenchError, UsageError
from optim_bench.executors import Placement, _submitit, make_executor

# Jobs of a killed comparison end after seconds, not minutes.
IMPATIENT = (
    "import optim_bench.executors._submitit as s; s.LEASE_SECONDS = 4; s._BEAT_SECONDS = 0.5"
)
REFUSED = [
    ({"cluster": "pbs"}, "cluster is 'pbs'; submitit runs on slurm or local"),
    (
        {"cluster": "local", "partition": "gpu"},
        "cluster=local takes no partition; they belong to slurm",
    ),
    ({"nodes": "2"}, r"submitit has no option nodes; choose from cluster, partition, .* SBATCH_"),
    ({}, "this machine has no sbatch and srun; start it on a node that submits to SLURM, or try"),
]
# What the cluster does, as far as a comparison sees it: a job is a process of its own, its script
# runs srun, which runs the command. Each job leaves its script behind.
ON_DEVICE = """
def train(spec, *, data_dir=None, device="cpu"):
    (Path(__file__).parent / "device").write_text(f"{device} {os.environ['CUDA_VISIBLE_DEVICES']}")
    return plain(spec)


def plain(spec):"""
SBATCH = """#!/bin/sh
cp "$1" "$FAKE_SLURM/script"
grep -q refused "$1" && { echo "sbatch: error: invalid partition" >&2; exit 1; }
id=$(date +%N | sed 's/^0*//')
SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 \\
    SLURM_JOB_NUM_NODES=1 setsid /bin/bash "$1" >/dev/null 2>"$FAKE_SLURM/log" &
echo $! > "$FAKE_SLURM/pid-$id"
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* || $1 == -* ]]; do
    case $1 in --output|--error) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for file in "$FAKE_SLURM"/pid-*; do
    if kill -0 "$(cat "$file")" 2>/dev/null; then state=RUNNING; else state=FAILED; fi
    echo "${file##*-}|$state|here"
done
"""
SCANCEL = """#!/bin/bash
touch "$FAKE_SLURM/cancelled-$1"
kill -9 -- -"$(cat "$FAKE_SLURM/pid-$1")"
"""


@pytest.fixture(autouse=True)
def _local_files(monkeypatch):
    """This file system shows a record at once: a dead job need not be waited for."""
    monkeypatch.setattr(_submitit, "_GRACE_SECONDS", 0.5)


@pytest.fixture
def kind(make_kind):
    return make_kind("submitit", {"cluster": "local"}, IMPATIENT)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


def test_contract(any_case, kind, build, make_spec):
    any_case(kind, build, make_spec)


def test_contract_of_workers(worker_case, kind, build, make_spec):
    worker_case(kind, build, make_spec)


def test_a_job_that_dies_costs_the_run_it_was_at(kind, build, make_spec):
    executor = build(kind, jobs=1)
    for spec in (make_spec(0), make_spec(1, trouble="hang"), make_spec(2)):
        executor.submit(spec)
    assert executor.wait().spec.seed == 0
    deadline = time.monotonic() + 60
    while not Path("hanging").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int(Path("hanging").read_text())
    job = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(job, signal.SIGKILL)
    lost, fine = executor.wait(), executor.wait()
    assert lost.spec.seed == 1
    assert lost.error.startswith("the job died (")
    assert (fine.spec.seed, fine.status) == (2, "ok")


def test_jobs_that_gave_up_are_sent_again(build, kind, make_spec, monkeypatch):
    # While the comparison waits it renews the lease, however long a job takes to start.
    monkeypatch.setattr(_submitit, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(_submitit, "_BEAT_SECONDS", 0.2)
    executor = build(kind, "fake_trainer:slow", jobs=1)
    # Longer than the lease and a look at it: 0.4 s each.
    for seed in range(9):
        executor.submit(make_spec(seed))
    seeds = {executor.wait().spec.seed}
    time.sleep(3)  # longer than the lease, as on a laptop that sleeps
    records = [executor.wait() for _ in range(8)]
    assert {r.status for r in records} == {"ok"}
    assert seeds | {r.spec.seed for r in records} == set(range(9))
    assert executor._submitted > 1


def test_a_cluster_where_no_job_starts_is_an_error_of_one_line(build, kind, make_spec, monkeypatch):
    executor = build(kind, jobs=1)
    # As on a node that does not see this machine's Python packages.
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    Path("optim_bench.py").write_text("raise ImportError('this node has no optim-bench')")
    executor.submit(make_spec())
    with pytest.raises(BenchError, match=r"no job gets as far as training \(.*; its log lies in"):
        executor.wait()


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_options_are_refused_with_what_to_do(tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=message):
        make_executor("submitit", "json:loads", folder=tmp_path, options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "1h"}, "time is '1h'; it has to be a whole number of minutes"),
        ({"memory": "0"}, "memory is '0'; it has to be a whole number of GB"),
    ],
)
def test_numbers_are_checked_before_slurm_sees_them(slurm, tmp_path, options, message):
    with pytest.raises(BenchError, match=message):
        make_executor("submitit", "json:loads", folder=tmp_path, options=options)


def test_slurm_gets_the_options_and_gives_the_records(slurm, make_kind, build, make_spec):
    options = {
        "partition": "short",
        "account": "lab",
        "qos": "low",
        "constraint": "avx",
        "time": "7",
        "memory": "3",
    }
    executor = build(make_kind("submitit", options), jobs=1)
    # A job may begin runs for four of its seven minutes.
    assert executor._start["seconds"] == 240
    executor.submit(make_spec(0))
    executor.submit(make_spec(1, trouble="raise"))
    assert [executor.wait().status, executor.wait().status] == ["ok", "failed"]
    script = (slurm / "script").read_text()
    for line in (
        "--partition=short",
        "--account=lab",
        "--qos=low",
        "--constraint=avx",
        "--time=7",
        "--mem=3GB",
        "--cpus-per-task=1",
        "--job-name=optim-bench",
    ):
        assert f"#SBATCH {line}\n" in script
    assert sys.executable in script


@pytest.mark.parametrize(
    ("options", "line"), [({}, "--gres=gpu:1"), ({"gres": "gpu:a100:1"}, "--gres=gpu:a100:1")]
)
def test_a_job_asks_slurm_for_a_gpu_and_its_run_is_told_of_it(
    slurm, make_kind, build, make_spec, monkeypatch, options, line
):
    module = Path("fake_trainer.py")
    module.write_text(module.read_text().replace("def train(spec, *, data_dir=None):", ON_DEVICE))
    # What SLURM sets on a node that has given a GPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    executor = build(make_kind("submitit", options), jobs=1, placement=Placement("cuda"))
    executor.submit(make_spec())
    assert executor.wait().status == "ok"
    assert f"#SBATCH {line}\n" in (slurm / "script").read_text()
    assert Path("device").read_text() == "cuda 5"


def test_slurm_gives_a_gpu_to_one_job(tmp_path):
    with pytest.raises(UsageError, match="SLURM gives a GPU to one job"):
        make_executor("submitit", "json:loads", folder=tmp_path, placement=Placement("cuda", 2))


def test_a_job_whose_time_is_nearly_over_leaves_its_runs_to_another(
    slurm, make_kind, build, make_spec
):
    executor = build(make_kind("submitit"), jobs=1)
    executor._start["seconds"] = 0.5
    for seed in range(3):
        executor.submit(make_spec(seed, trouble="nap"))
    records = [executor.wait() for _ in range(3)]
    assert {r.spec.seed: r.status for r in records} == {0: "ok", 1: "ok", 2: "ok"}
    assert len(list(slurm.glob("pid-*"))) > 1


def test_an_answer_that_is_no_record_is_a_failed_run(kind, build, make_spec):
    executor = build(kind, jobs=1)
    (executor._folder / "records" / f"{make_spec(0).key()}.json").write_text('{"spec": 1}')
    executor.submit(make_spec(0))
    executor.submit(make_spec(1))
    records = {r.spec.seed: r for r in (executor.wait() for _ in range(2))}
    assert records[0].error.startswith("the job's answer is no record (RunRecord lacks curve")
    assert records[1].status == "ok"


def test_an_answer_of_another_run_is_a_failed_run(kind, build, make_spec, make_kind):
    other = build(make_kind("inline"))
    other.submit(make_spec(7))
    executor = build(kind, jobs=1)
    path = executor._folder / "records" / f"{make_spec(0).key()}.json"
    path.write_text(json.dumps(other.wait().to_json()))
    executor.submit(make_spec(0))
    assert executor.wait().error.startswith("the answer is of another run (seed is 7, not 0); a tr")


def test_closing_cancels_what_slurm_still_has(slurm, make_kind, build, make_spec):
    executor = build(make_kind("submitit"), jobs=1)
    executor.submit(make_spec(0))
    executor.submit(make_spec(1, trouble="hang"))
    executor.wait()
    executor.close()
    assert len(list(slurm.glob("cancelled-*"))) == 1


def test_what_slurm_says_no_to_is_an_error_of_one_line(slurm, make_kind, build, make_spec):
    executor = build(make_kind("submitit", {"partition": "refused"}), jobs=1)
    executor.submit(make_spec())
    with pytest.raises(BenchError, match=r"the cluster refuses a job: .*invalid partition"):
        executor.wait()
