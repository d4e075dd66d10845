"""Experiments on this machine, without Slurm: one job after another, or several at a time."""

import json
import os
import subprocess
import sys

import pytest

from tests.fork_server import PROJECT
from tests.slurm.conftest import (
    ALOE,
    LIMIT_S,
    RUN,
    WORLD,
    background,
    events,
    log,
    release,
    run_command,
    wait_for_hold,
)


@pytest.mark.slow
def test_a_failed_branch_stops_nothing_else_and_the_report_says_so(experiment, tmp_path):
    """`odd` fails at its first step: the batch does not divide into CTT's fraction."""
    config = "configs/world_model/quickstart"
    arms = {
        "baseline": {"config": f"{config}.yaml"},
        "odd": {"config": f"{config}_ctt.yaml", "loop.global_batch_size": 6},
    }
    path, runs = experiment(arms=arms, executor="local", at_once=2, graphs=False), tmp_path / "runs"

    done = run_command("submit", path, "dry_run=true")
    assert done.returncode == 0 and "world_model/odd/seed_0" in done.stdout and not runs.exists(), (
        done.stderr
    )

    done = run_command("submit", path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "error: 2 of 5 jobs failed: evaluate/world_model/odd/seed_0, world_model/odd/seed_0"
        in done.stderr
    )
    assert "evaluate/world_model/odd/seed_0 skipped, it needs world_model/odd/seed_0" in " ".join(
        done.stdout.split()
    )
    assert "error: world_model/odd/seed_0: cjepa_dist.train_world_model ended" in done.stdout
    assert json.loads((runs / "world_model/baseline/seed_0/done.json").read_text())["step"] == 6
    first = {
        arm: events(runs, f"world_model/{arm}/seed_0")[0]["time"] for arm in ("baseline", "odd")
    }
    ended = events(runs, "world_model/baseline/seed_0")[-1]["time"]
    assert first["odd"] <= ended, "not side by side"
    text = (runs / "report/report.md").read_text()
    assert (
        "# Missing: 2 of 4 jobs" in text
        and "ctt.fraction=0.25 of the 6 windows" in text
        and "| seed_0 | predictor |" in text
    )
    assert "graphs_val.json" not in text, "graphs were not asked for"

    status = run_command("status", runs)
    assert (
        status.returncode == 1
        and "world_model/odd/seed_0: cjepa_dist.train_world_model ended with exit code 2"
        in status.stdout
    )
    assert "3 of 5 jobs done" in status.stdout and "6/6" in status.stdout

    done = run_command("submit", path, "world_model.loop.steps=8")
    assert (
        done.returncode == 2
        and "world_model/baseline/seed_0 was made with other settings than today's" in done.stderr
    )
    done = run_command("submit", path, "stage=evaluate")
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
            cluster={"environment": {"CJEPA_FAULT": f"hold@3:{tmp_path}/hold_0"}},
            world_model={**WORLD, "loop.steps": 8},
        ),
        tmp_path / "runs",
    )
    with background("submit", path) as submitted:
        wait_for_hold(runs)
        with background("status", runs, "watch=true", "seconds=0.2") as watcher:
            refused = run_command("submit", path)
            assert (
                refused.returncode == 2 and f"is in use: process {submitted.pid}" in refused.stderr
            )
            assert (
                f"process {submitted.pid}, which runs the jobs on this machine"
                in run_command("cancel", runs).stdout
            )
            assert submitted.wait(LIMIT_S) == 75
            seen, _ = watcher.communicate(timeout=LIMIT_S)
    assert (
        watcher.returncode == 1
        and "│ RUNNING" in seen
        and "│ PENDING" in seen
        and f"{RUN}: stopped by SIGTERM" in seen
    )
    assert "no job of this experiment" in run_command("cancel", runs).stdout
    release(runs)
    done = run_command("resume", runs)
    assert done.returncode == 0, done.stderr
    assert json.loads((runs / RUN / "done.json").read_text())[
        "step"
    ] == 8 and "resumed from" in log(runs)
    assert run_command("status", runs, "watch=true").returncode == 0


@pytest.mark.slow
def test_quickstart_from_another_folder(tmp_path):
    """The experiment of tools/quickstart.sh, by its name and at a tiny size, to its report."""
    fields = [
        *(f"prepare_fields.{split}={videos}" for split, videos in (("train", 16), ("val", 8))),
        "prepare_fields.test=8",
        *(f"world_model.{key}={value}" for key, value in {**WORLD, "loop.steps": 4}.items()),
        *(f"aloe.{key}={value}" for key, value in ALOE.items()),
        *("evaluate.bootstrap_draws=10", "evaluate.videos=4", "evaluate.windows=32"),
        *("evaluate_graph.windows=32", "evaluate_graph.bootstrap_draws=5"),
        "evaluate_graph.estimators=[attention,distance]",
    ]
    command = [sys.executable, "-m", "slurm.run", "quickstart", "runs=made", "at_once=2", *fields]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    def run():
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )

    done, runs = run(), tmp_path / "made"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report: made/report/report.html" in done.stdout and "--logdir made" in done.stdout
    assert 'class="card plot"' in (runs / "report" / "report.html").read_text()
    text = (runs / "report" / "report.md").read_text()
    assert "# Missing" not in text and "Warning" not in text
    for part in ("own slot only", "| attention |", "descriptive", "world_model/ctt/seed_0"):
        assert part in text, part
    end = done.stdout[done.stdout.index("\nworld model ") :].splitlines()
    assert len(end) <= 25, "the summary fits on a screen"
    for part in ("Slot error on colliding", "Counterfactual options", "Descriptive questions"):
        assert any(line.startswith(part) for line in end), done.stdout
    status = run_command("status", runs)
    assert status.returncode == 0 and "12 of 12 jobs done" in status.stdout, status.stdout
    again = run()
    assert again.returncode == 0 and "nothing to run" in again.stdout, again.stdout + again.stderr


@pytest.mark.slow
def test_arms_are_compared_over_seeds(experiment, tmp_path):
    config = "configs/world_model/quickstart.yaml"
    arms = {"a": {"config": config}, "b": {"config": config, "optimizer.lr": 0}}
    fields = {"graphs": False, "seed": [0, 1], "evaluate": {"windows": 64, "bootstrap_draws": 10}}
    fields["world_model"] = {**WORLD, "loop.steps": 2}
    done = run_command("run", experiment(arms=arms, at_once=2, **fields))
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "## World models over seeds" in text and "| b | 2 |" in text
    assert "paired over seeds and videos" in text and "| no claim: 2 of 6 pairs |" in text
    wrong = run_command("run", experiment(arms={"b": {"config": config, "optimizer.rl": 0}}))
    assert wrong.returncode == 2 and "optimizer.rl" in wrong.stderr
