"""Faults that a run survives unchanged. More of them: `python -m tools.fault_drill`."""

import json
import math
import re

import pytest

from cjepa_dist.checkpoint import integrity
from tests.training.test_resume import TINY_WORLD, losses, same, weights

WORLD = "cjepa_dist.train_world_model"


@pytest.mark.slow
def test_clock_best_and_budget(command, small_data, tmp_path, monkeypatch):
    run, steps = tmp_path / "run", 8
    off = (
        "ctt.invariance.weight=0",
        "ctt.sufficiency.weight=0",
        f"loop.steps={steps}",
        "loop.keep_checkpoints=1",
    )
    arguments = (
        f"data={small_data}",
        f"run={run}",
        *TINY_WORLD,
        *off,
        "loop.keep_best=true",
        "loop.eval_every=2",
    )
    done = command(
        WORLD,
        *arguments,
        "loop.checkpoint_every_minutes=0.0001",
        "loop.stop_at_step=3",
        "loop.keep_checkpoints=9",
    )
    assert done.returncode == 0, done.stderr
    assert integrity.checkpoint_steps(run / "checkpoints") == [
        2,
        3,
    ]  # asked for after step 1, agreed after step 2; checkpoint_every=4

    monkeypatch.setenv("CJEPA_FAULT", "nan@4")
    done = command(WORLD, *arguments, "loop.max_skipped_steps=0")
    assert (
        done.returncode == 2
        and "more than loop.max_skipped_steps=0" in done.stderr
        and "Traceback" not in done.stderr
    )
    skipped = json.loads((run / "skipped.jsonl").read_text())
    assert skipped["step"] == 5 and len(skipped["samples"]) == 8 and skipped["loss"] == "nan"
    assert all(re.fullmatch(r"video_\d{5}@\d+", name) for name in skipped["samples"])
    assert (
        integrity.checkpoint_steps(run / "checkpoints")[-1] == 6
    )  # noticed with the metrics of step 6
    assert all(math.isfinite(loss) for _, _, loss in losses(run))
    before = losses(run)

    monkeypatch.delenv("CJEPA_FAULT")
    done = command(WORLD, *arguments)
    assert done.returncode == 0 and "resumed from" in done.stdout, done.stderr
    validations = {step: loss for step, kind, loss in losses(run) if kind == "val"}
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert (
        best["step"] == min(validations, key=validations.__getitem__)
        and best["loss"] == validations[best["step"]]
    )
    assert (run / "checkpoints" / best["folder"]).is_dir()
    assert set(integrity.checkpoint_steps(run / "checkpoints")) == {best["step"], steps}
    assert losses(run)[: len(before)] == before
    assert (
        json.loads((run / "checkpoints" / f"step_{steps:08d}" / "meta.json").read_text())["skipped"]
        == 1
    )


@pytest.mark.slow
def test_a_skipped_step_changes_no_weights(command, small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CJEPA_FAULT", "nan@3:rank1")  # rank 0 sees nothing wrong
    run = tmp_path / "run"
    done = command(
        WORLD,
        f"data={small_data}",
        f"run={run}",
        *TINY_WORLD,
        "loop.stop_at_step=5",
        "loop.checkpoint_every=1",
        processes=2,
    )
    assert done.returncode == 0, done.stderr
    three, four, five = ({**weights(run, step)} for step in (3, 4, 5))
    for measured in ("sigma2", "tau", "updates"):  # anew after step 4, on the same weights
        assert all(state.pop(measured) is not None for state in (three, four, five))
    assert same(three, four) and not same(four, five)


@pytest.mark.slow
@pytest.mark.serial  # launchers, workers and their signals, many times
@pytest.mark.timeout(7200)
def test_drill(command, small_data, tmp_path):
    """Each code path once, with the number of processes for which it is hardest."""
    chosen = (
        "SIGUSR1 to rank 0@1",
        "SIGTERM to accelerate launch@1",
        "two runs on one folder@1",
        "disk full@1",
        "disk full for metrics too@2",
        "SIGTERM to the last rank@2",
        "SIGKILL to torchrun@2",
        "kill -9 within a checkpoint@2",
        "nan and a later kill -9@2",
        "hang@2",
    )
    done = command(
        "tools.fault_drill",
        f"data={small_data}",
        f"out={tmp_path}",
        f"only=[{','.join(chosen)}]",
        timeout=7000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(chosen)} faults, 0 of them left a trace" in done.stdout
