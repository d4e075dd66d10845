"""On a real Slurm: preemption, lost nodes, a rank that dies, a dependency that never succeeds.

After each of them the weights are those of an uninterrupted run.

Engines take turns: four processes run DDP where they are preempted and FSDP2 elsewhere.
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.conftest import (
    RUN,
    WORLD,
    call,
    ended,
    events,
    ids,
    log,
    paused,
    queue,
    run_command,
    saved,
    submit,
    wait_for,
    wait_for_checkpoints,
    write,
)
from tests.training.test_resume import same, weights

pytestmark = pytest.mark.slow
STEPS, LONG = 8, 40
TWO, FOUR = {"processes_per_node": 2}, {"nodes": 2, "processes_per_node": 2}
FSDP2, ZERO1 = {"loop.engine": "fsdp2"}, {"loop.engine": "zero1", "optimizer.name": "adamw"}


def start(folder, data, *, steps=STEPS, cluster=None, **fields):
    """A short paused training of its own; the folder of its runs."""
    folder.mkdir()
    path = write(
        folder,
        data,
        cluster={**paused(steps), **(cluster or {})},
        world_model={**WORLD, "loop.steps": steps, **fields},
    )
    submit(path, "stage=world_model")
    return folder / "runs"


def kinds(runs):
    return [event["event"] for event in events(runs)]


def node_of(runs):
    return call("squeue", "-h", "-j", ids(runs)[RUN], "-o", "%N").stdout.strip()


def nodes_of(runs):
    return call("scontrol", "show", "hostnames", node_of(runs)).stdout.split()


def is_down(node):
    return "down" in call("sinfo", "-h", "-n", node, "-o", "%T").stdout


@pytest.fixture(scope="module")
def lost(slurm, small_data, tmp_path_factory):
    """A job whose node Slurm has lost, while its processes go on. It runs beside a test."""
    runs = start(tmp_path_factory.mktemp("lost") / "job", small_data, steps=LONG)
    wait_for_checkpoints(runs)
    node = node_of(runs)
    assert slurm("lose", node).returncode == 0
    wait_for(lambda: is_down(node), 120, "Slurm does not miss the node")
    return runs


def test_a_rank_that_dies_and_what_waits_for_it(lost, tmp_path, small_data, uninterrupted):
    """The job fails at once; jobs that need it leave the queue; the report names both.

    Submitted again, it ends with the weights of an uninterrupted run.
    """

    def begin(name, fault, **fields):
        (tmp_path / name).mkdir()
        mark = tmp_path / name / "once"
        once = f"[ -e {mark} ] || {{ touch {mark}; export CJEPA_FAULT={fault}; }}"
        facts = {**(FOUR if name == "four" else TWO), "setup": [once]}
        return write(
            tmp_path / name,
            small_data,
            cluster=facts,
            world_model={**WORLD, "loop.steps": STEPS, **fields},
            graphs=False,
        )

    two, four = begin("two", "kill@3:rank1", **ZERO1), begin("four", "kill@3:rank3", **FSDP2)
    submit(two, "stage=world_model,evaluate,report"), submit(four, "stage=world_model")
    for runs in (two.parent / "runs", four.parent / "runs"):
        status = ended(runs)
        assert (
            status.returncode == 1
            and f"{RUN}: cjepa_dist.train_world_model ended with exit code 1" in status.stdout
        ), status.stdout
    page = (two.parent / "runs" / "report" / "report.md").read_text()
    assert (
        "# Missing: 2 of 2 jobs" in page
        and f"| evaluate/{RUN} | CANCELLED | never started: it needs {RUN} (failed) |" in page
    )
    assert "3 jobs submitted" in run_command("resume", two.parent / "runs").stdout
    submit(four, "stage=world_model")
    for path, processes, fields in ((two, 2, ZERO1), (four, 4, FSDP2)):
        status = ended(path.parent / "runs")
        assert status.returncode == 0, status.stdout
        assert same(
            weights(path.parent / "runs" / RUN, STEPS), uninterrupted(STEPS, processes, **fields)
        )


def test_a_node_that_is_lost_but_works_on(lost, slurm, uninterrupted):
    """Slurm takes the node for dead and starts the job elsewhere, while the first start lives.

    They never train at the same time.
    """
    status = ended(lost)
    assert slurm("up").returncode == 0
    assert status.returncode == 0, status.stdout
    assert kinds(lost) == ["start", "start", "done"]
    text = log(lost)
    left, went_on = text.index("stopped by SIGTERM after step"), text.index("resumed from")
    assert text.index(", start 2, ") < left < went_on
    assert same(weights(lost / RUN, LONG), uninterrupted(LONG))


@contextmanager
def no_user_signal():
    """A cluster that does not send a job's own signal when it preempts.

    To be entered while no job starts: slurmd does not answer for a moment.
    """
    conf = Path(os.environ["SLURM_CONF"])
    before = conf.read_text()
    try:
        conf.write_text(before.replace("preempt_send_user_signal", "power_save_interval=10"))
        assert call("scontrol", "reconfigure").returncode == 0
        yield
    finally:
        conf.write_text(before)
        call("scontrol", "reconfigure")


def preempt(nodes, seconds):
    """A job of more right to `nodes`, once it runs."""
    options = [
        "--partition=high",
        f"--nodelist={nodes}",
        f"--nodes={len(nodes.split(','))}",
        "--exclusive",
        "--output=/dev/null",
    ]
    done = call("sbatch", "--parsable", *options, f"--wrap=sleep {seconds}")
    assert done.returncode == 0, done.stderr
    wait_for(
        lambda: queue("-j", done.stdout.strip(), "-o", "%T") in ([], ["RUNNING"]),
        120,
        "it does not preempt",
    )


def test_preempted_with_and_without_the_signal(slurm, tmp_path, small_data, uninterrupted):
    """2 x 2 processes get USR2, 1 x 2 only Slurm's SIGTERM. Both stop at a step and resume."""
    signalled = start(
        tmp_path / "signalled", small_data, cluster={**FOUR, "options": {"nodelist": "node1,node2"}}
    )
    plain = start(tmp_path / "plain", small_data, cluster={**TWO, "options": {"nodelist": "node3"}})
    wait_for_checkpoints(signalled, plain)
    preempt("node1,node2", seconds=5)
    with no_user_signal():
        preempt("node3", seconds=1)
        found = [ended(runs) for runs in (signalled, plain)]
    assert [status.returncode for status in found] == [0, 0], "\n".join(
        status.stdout for status in found
    )
    for runs, reason, processes, fields in (
        (signalled, "SIGUSR2", 4, {}),
        (plain, "SIGTERM", 2, {}),
    ):
        assert (
            kinds(runs) == ["start", "stopped", "start", "done"]
            and events(runs)[1]["reason"] == reason
        )
        assert (
            "resumed from" in log(runs)
            and json.loads((runs / RUN / "environment.json").read_text())["processes"] == processes
        )
        assert same(weights(runs / RUN, STEPS), uninterrupted(STEPS, processes, **fields))


def test_nodes_crash(slurm, tmp_path, small_data, uninterrupted):
    """First a node of both jobs, then the last node of one job: each time they start elsewhere.

    They resume from the last complete checkpoint.
    """
    steps = 2 * STEPS
    one = start(tmp_path / "one", small_data, steps=steps)
    both = start(tmp_path / "both", small_data, steps=steps, cluster=FOUR, **FSDP2)
    wait_for_checkpoints(one, both)
    node, before = node_of(one), len(saved(both))
    assert node in nodes_of(both)
    try:
        assert slurm("crash", node).returncode == 0
        wait_for(
            lambda: kinds(both).count("start") == 2 and len(saved(both)) > before,
            180,
            lambda: run_command("status", both).stdout,
        )
        tail = nodes_of(both)[1]
        assert slurm("crash", tail).returncode == 0
        wait_for(
            lambda: is_down(tail), 120, "Slurm does not miss the node"
        )  # else it comes back as if it had never been away
        assert slurm("up").returncode == 0
        for runs, processes, starts, fields in ((one, 1, (2, 3), {}), (both, 4, (3,), FSDP2)):
            status = ended(runs)
            assert status.returncode == 0, status.stdout
            # What survives of a job loses its peer before Slurm does, and says so.
            said = [kind for kind in kinds(runs) if kind != "failed"]
            assert len(said) - 1 in starts and set(said[:-1]) == {"start"} and said[-1] == "done", (
                kinds(runs)
            )
            assert len({event["job"] for event in events(runs)}) == 1
            assert same(weights(runs / RUN, steps), uninterrupted(steps, processes, **fields))
    finally:
        slurm("up")
