"""Trainings in two processes, under PyTorch's torchrun: one run, one writer, and one clear line if a process ends."""

import signal
import socket
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.pipeline.project import EPOCHS, command_line, wait_for

pytestmark = [pytest.mark.pipeline, pytest.mark.scale]

TWO = "--nproc-per-node 2"


def worker(project, rank: str) -> psutil.Process:
    """The process of this number in the training that runs."""

    def found() -> psutil.Process | None:
        for process in project.processes():
            with suppress(psutil.Error):
                if "pipeline/train.py" in command_line(process) and process.environ().get("RANK") == rank:
                    return process
        return None

    return wait_for(found)


def test_a_killed_process_ends_the_run_and_the_next_start_makes_it_whole_with_the_same_bits(project):
    """The environment alone asks for two processes: params.yaml and dvc.yaml have no trace of it, but the record has.
    The training that was not killed runs on two nodes with one process each, and gives the same bits too."""
    project.params(train={"seed": 21})
    before = project.runs()
    with project.after_one_epoch(lambda: project.train("killed", TORCHRUN=TWO)) as training:
        (run,) = wait_for(lambda: project.runs().keys() - before.keys())
        wait_for(lambda: project.epochs(run))
        worker(project, "1").kill()
        done = training.finish()
    assert done.returncode == 1
    assert done.stderr == "error: process 1 of the training was killed (SIGKILL); run the same command to go on\n"
    wait_for(lambda: project.status(run) != "RUNNING")
    assert project.status(run) in ("FAILED", "KILLED")
    assert not (project.folder / "killed/vae.safetensors").exists()

    assert "resuming after epoch 1" in project.dvc("repro", TORCHRUN=TWO).stdout
    assert project.recorded() == run  # the same run goes on
    tags = project.assert_whole(run).data.tags
    assert project.epochs(run) == list(range(1, EPOCHS + 1))
    assert tags["machine.processes"] == tags["model.processes"] == "2"
    assert tags["model.device"] == "cpu"
    project.dvc("repro")  # one process again: nothing has changed
    assert project.runs().keys() - before.keys() == {run}

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [f"--nnodes 2 --node-rank {node} --master-addr 127.0.0.1 --master-port {port}" for node in range(2)]
    elsewhere = str(project.folder / "elsewhere")  # has no checkpoint and other cores
    first, second = (project.train(f"node{i}", TORCHRUN=node, DVC_ROOT=elsewhere) for i, node in enumerate(nodes))
    assert "epoch 1 of" in first.ended()
    assert second.ended() == ""
    assert not (project.folder / "node1").exists()  # process 0 alone writes
    for name in ("models/vae.safetensors", "metrics/train.csv"):
        assert (project.folder / name).read_bytes() == (project.folder / "node0" / Path(name).name).read_bytes()


def test_a_killed_torchrun_leaves_no_process_behind(project):
    project.params(train={"seed": 23, "epochs": 100000})
    before = project.runs()
    training = project.train("orphans", TORCHRUN=TWO)
    (run,) = wait_for(lambda: project.runs().keys() - before.keys())
    training.process.kill()
    training.ended(-signal.SIGKILL)
    wait_for(lambda: not project.processes())
    assert project.status(run) in ("FAILED", "KILLED")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--nproc-per-node 0", "the number of processes must be 1 or more"),
        ("--nproc-per-node many", "Unsupported nproc_per_node value: many"),
        ("--processes 2", "unrecognized arguments: --processes"),
        (TWO, "2 processes, but train.batch_size is 1; start fewer"),
    ],
)
def test_a_wrong_number_of_processes(project, options, reason):
    project.params(train={"batch_size": 1})
    done = project.train("wrong", TORCHRUN=options).finish()
    assert done.returncode == 1
    assert done.stderr.startswith("error: TORCHRUN")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
