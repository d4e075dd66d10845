"""Odd environments: variables that are empty, wrong, alone or left over end in one line."""

import socket
import subprocess
import sys

import pytest

from cjepa_dist.config import command_line, schema
from cjepa_dist.engines.build import build_engine, resolve_precision
from cjepa_dist.errors import UserError
from cjepa_dist.resilience.run_lock import RunLock
from cjepa_dist.runtime import environment
from slurm.jobs.spec import SlurmContext
from tests.fork_server import PROJECT

WHOLE = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*environment.RANGES, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def test_whole_launches_and_none_pass(monkeypatch):
    environment.check_launch()
    for name, value in {**WHOLE, "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    environment.check_launch()


def test_empty_is_not_set(monkeypatch, tmp_path):
    for name in environment.RANGES:
        monkeypatch.setenv(name, " ")
    for name in ("SLURM_RESTART_COUNT", "SLURM_NODEID", "SLURM_NNODES"):
        monkeypatch.setenv(name, "")
    environment.check_launch()
    assert RunLock(tmp_path).identity["restart"] == 0
    assert SlurmContext.from_environment() == SlurmContext()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is in the environment, but RANK, LOCAL_RANK, MASTER"),
        ({"PMI_SIZE": "4"}, "PMI_SIZE=4 is in the environment, but MASTER_ADDR is not"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 is in the environment, but RANK, WORLD_SIZE, MASTER"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0: must be a number from 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a number"),
        ({"RANK": "-1"}, "RANK=-1: must be a number"),
        ({"PMI_SIZE": "\u0664"}, "PMI_SIZE=\u0664: must be a number"),
        ({**WHOLE, "MASTER_PORT": "99999"}, "MASTER_PORT=99999: must be a number from 1 to 65535"),
        ({**WHOLE, "RANK": "2"}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({**WHOLE, "LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8 does not fit WORLD_SIZE=2"),
    ],
)
def test_what_does_not_fit_names_the_variable(given, message, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    config = command_line.parse(schema.TrainWorldModel, ["data=d", "run=r"])
    with pytest.raises(UserError, match=message):
        build_engine(config)


@pytest.mark.parametrize("asked", ["fp16", "fp8", "FP16"])
def test_a_precision_that_is_not_trained_in_is_refused(asked, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    for precision in ("auto", "bf16"):
        config = command_line.parse(
            schema.TrainWorldModel, ["data=d", f"run={tmp_path}", f"loop.precision={precision}"]
        )
        with pytest.raises(UserError, match=f"mixed_precision {asked.lower()} .*MIXED_PRECISION"):
            resolve_precision(tmp_path, config)
            build_engine(config)


STALE = """
from cjepa_dist.config import command_line, schema
from cjepa_dist.engines.build import build_engine
from cjepa_dist.runtime import environment
environment.WAITING = 0.1
build_engine(command_line.parse(schema.TrainWorldModel, ["data=d", "run=r", "loop.precision=fp32"]))
"""


def test_a_process_that_waits_for_others_says_so(monkeypatch):
    """Left over from another launch: nobody starts the other process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {**WHOLE, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with subprocess.Popen(
        [sys.executable, "-c", STALE], cwd=PROJECT, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "waits for 2 processes" in line:
                break
        process.kill()
    assert f"waits for 2 processes at 127.0.0.1:{port} (RANK=0 and WORLD_SIZE=2" in lines[-1]
    assert "unset RANK WORLD_SIZE" in lines[-1]


def test_a_meeting_that_fails_is_one_line(monkeypatch):
    import torch.distributed as dist

    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UserError, match=r"2 processes did not meet at .*: late"),
        environment.meeting(),
    ):
        raise dist.DistStoreError("late")
