"""executor=local: the same graph without Slurm, one job after another or several side by side."""

import json

import pytest

from tests.slurm.conftest import RUN, WORLD, background, log, ours, paused, wait_for_checkpoints


@pytest.mark.slow
def test_a_failed_branch_stops_nothing_else_and_the_report_says_so(experiment, tmp_path):
    """`odd` fails at its first step: the batch does not divide into CTT's fraction."""
    config = "configs/world_model/quickstart"
    arms = {
        "baseline": {"config": f"{config}.yaml"},
        "odd": {"config": f"{config}_ctt.yaml", "loop.global_batch_size": 6},
    }
    path, runs = experiment(arms=arms, executor="local", at_once=2, graphs=False), tmp_path / "runs"

    done = ours("submit", path, "dry_run=true")
    assert done.returncode == 0 and "world_model/odd/seed_0" in done.stdout and not runs.exists(), (
        done.stderr
    )

    done = ours("submit", path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "error: 2 of 5 jobs failed: evaluate/world_model/odd/seed_0, world_model/odd/seed_0"
        in done.stderr
    )
    assert (
        "evaluate/world_model/odd/seed_0: skipped, it needs world_model/odd/seed_0" in done.stdout
    )
    assert json.loads((runs / "world_model/baseline/seed_0/done.json").read_text())["step"] == 6
    told = done.stdout.splitlines()
    assert told.index("world_model/odd/seed_0 ...") < next(
        i for i, line in enumerate(told) if " done after" in line
    )  # side by side
    text = (runs / "report/report.md").read_text()
    assert (
        "# Missing: 2 of 4 jobs" in text
        and "ctt.fraction=0.25 of the 6 windows" in text
        and "| seed_0 | predictor |" in text
    )
    assert "graphs_val.json" not in text, "graphs were not asked for"

    status = ours("status", runs)
    assert (
        status.returncode == 1
        and "world_model/odd/seed_0: cjepa_dist.train_world_model ended with exit code 2"
        in status.stdout
    )
    assert "3 of 5 jobs done" in status.stdout and "6/6" in status.stdout

    done = ours("submit", path, "world_model.loop.steps=8")
    assert (
        done.returncode == 2
        and "world_model/baseline/seed_0 was made with other settings than today's" in done.stderr
    )
    done = ours("submit", path, "stage=evaluate")
    assert (
        done.returncode == 2
        and "evaluate/world_model/odd/seed_0 needs world_model/odd/seed_0" in done.stderr
    )


@pytest.mark.slow
def test_watched_cancelled_and_resumed(experiment, tmp_path):
    path, runs = (
        experiment(
            executor="local",
            graphs=False,
            cluster=paused(8),
            world_model={**WORLD, "loop.steps": 8},
        ),
        tmp_path / "runs",
    )
    with background("submit", path) as submitted:
        wait_for_checkpoints(runs)
        with background("status", runs, "watch=true", "seconds=0.2") as watcher:
            refused = ours("submit", path)
            assert (
                refused.returncode == 2 and f"is in use: process {submitted.pid}" in refused.stderr
            )
            assert (
                f"process {submitted.pid}, which runs the jobs on this machine"
                in ours("cancel", runs).stdout
            )
            assert submitted.wait(60) == 75
            seen, _ = watcher.communicate(timeout=60)
    assert (
        watcher.returncode == 1
        and "│ RUNNING" in seen
        and "│ PENDING" in seen
        and f"{RUN}: stopped by SIGTERM" in seen
    )
    assert "no job of this experiment" in ours("cancel", runs).stdout
    done = ours("resume", runs)
    assert done.returncode == 0, done.stderr
    assert json.loads((runs / RUN / "done.json").read_text())[
        "step"
    ] == 8 and "resumed from" in log(runs)
    assert ours("status", runs, "watch=true").returncode == 0
