"""On a real Slurm: preemption, lost nodes, a rank that dies, a dependency that never succeeds.

After each of them the weights are those of an uninterrupted run.

Engines take turns: four processes run DDP where they are preempted and FSDP2 elsewhere.
"""

import json
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.slurm.conftest import (
    RUN,
    TEST_LIMIT_S,
    WORLD,
    call,
    ended,
    events,
    held,
    ids,
    kinds,
    log,
    queue,
    run_command,
    submit,
    wait_for,
    wait_for_hold,
    write,
)
from tests.training.test_resume import same, weights

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(TEST_LIMIT_S)]
STEPS = 8
TWO, FOUR = {"processes_per_node": 2}, {"nodes": 2, "processes_per_node": 2}
FSDP2, ZERO1 = {"loop.engine": "fsdp2"}, {"loop.engine": "zero1", "optimizer.name": "adamw"}


def start(folder, data, *holds, cluster=None, **fields):
    """A short training whose starts hold at these steps; the folder of its runs."""
    folder.mkdir()
    path = write(
        folder,
        data,
        cluster={**held(folder, *holds), **(cluster or {})},
        world_model={**WORLD, "loop.steps": STEPS, **fields},
    )
    submit(path, "stage=world_model")
    return folder / "runs"


def node_of(runs):
    return call("squeue", "-h", "-j", ids(runs)[RUN], "-o", "%N").stdout.strip()


def nodes_of(runs):
    return call("scontrol", "show", "hostnames", node_of(runs)).stdout.split()


def pinned(*nodes):
    """Fields of a cluster: the first start of a job is on these nodes; see `unpin`."""
    return {"options": {"nodelist": ",".join(nodes)}}


def unpin(*all_runs):
    """Jobs that wait to start again may do so on any node."""
    for runs in all_runs:
        number = ids(runs)[RUN]
        wait_for(lambda number=number: queue("-j", number, "-o", "%T") == ["PENDING"], number)
        done = call("scontrol", "update", f"JobId={number}", "ReqNodeList=")
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def lost(clean_queue, slurm, small_data, tmp_path_factory):
    """A job whose node Slurm has lost, while its processes go on. It runs beside a test."""
    folder = tmp_path_factory.mktemp("lost") / "job"
    runs = start(folder, small_data, 3, cluster=pinned("node3"))
    wait_for_hold(runs)
    assert slurm("lose", "node3").returncode == 0
    unpin(runs)
    yield runs
    slurm("up")


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
    assert same(weights(lost / RUN, STEPS), uninterrupted(STEPS))


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
        wait_for(nodes_answer, "nodes do not answer")
        yield
    finally:
        conf.write_text(before)
        call("scontrol", "reconfigure")
        wait_for(nodes_answer, "nodes do not answer")


def nodes_answer():
    return "*" not in call("sinfo", "-h", "-N", "-o", "%T").stdout


@contextmanager
def preempting(tmp_path, nodes):
    """A job of more right to `nodes`; in the block it has them."""
    over = tmp_path / f"over_{nodes}"
    options = [
        "--partition=high",
        f"--nodelist={nodes}",
        f"--nodes={len(nodes.split(','))}",
        "--exclusive",
        "--output=/dev/null",
    ]
    wait = f"until [ -e {over} ]; do sleep 0.2; done"
    done = call("sbatch", "--parsable", *options, f"--wrap={wait}")
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    wait_for(lambda: queue("-j", number, "-o", "%T") == ["RUNNING"], "it does not preempt")
    yield
    over.touch()
    wait_for(lambda: not queue("-j", number, "-o", "%T"), "it does not end")


def test_preempted_with_and_without_the_signal(slurm, tmp_path, small_data, uninterrupted):
    """2 x 2 processes get USR2, 1 x 2 only Slurm's SIGTERM. Both stop at a step and resume."""
    signalled = start(
        tmp_path / "signalled", small_data, 3, cluster={**FOUR, **pinned("node1", "node2")}
    )
    plain = start(tmp_path / "plain", small_data, 3, cluster={**TWO, **pinned("node3")})
    wait_for_hold(signalled, processes=4), wait_for_hold(plain, processes=2)
    with preempting(tmp_path, "node1,node2"), ExitStack() as stack:
        with no_user_signal():  # no job starts while the options change: all nodes are taken
            stack.enter_context(preempting(tmp_path, "node3"))
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
    first, second = 3, 5
    one = start(tmp_path / "one", small_data, first, cluster=pinned("node1"))
    both = start(
        tmp_path / "both",
        small_data,
        first,
        second,
        cluster={**FOUR, **pinned("node1", "node2")},
        **FSDP2,
    )
    wait_for_hold(one), wait_for_hold(both, processes=4)
    try:
        assert slurm("crash", "node1").returncode == 0
        unpin(one, both)
        wait_for_hold(both, processes=4, start=1)
        tail = nodes_of(both)[1]
        assert slurm("crash", tail).returncode == 0
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
            assert same(weights(runs / RUN, STEPS), uninterrupted(STEPS, processes, **fields))
    finally:
        slurm("up")
