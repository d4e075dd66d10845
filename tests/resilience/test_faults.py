"""Faults that a run survives unchanged. More of them: `python -m tools.fault_drill`."""

import errno
import json
import math
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from cjepa_dist.checkpoint import integrity
from cjepa_dist.checkpoint.loading import load_checkpoint, newest_checkpoint
from cjepa_dist.checkpoint.run import read_config
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config import merge, schema
from cjepa_dist.errors import EXIT_PREEMPTED, UserError
from cjepa_dist.resilience.disk_full import disk_full_as_user_error
from cjepa_dist.resilience.nonfinite import (
    propagate_nonfinite,
    update_if_finite,
    update_then_revert,
)
from cjepa_dist.resilience.preemption import SIGNALS, Preemption
from cjepa_dist.training.logger import RunLogger
from cjepa_dist.training.run_dir import check_run_dir, lock_run_dir, open_run_dir
from tests.training.test_resume import TINY_WORLD, losses, same, weights

WORLD = "cjepa_dist.train_world_model"


def optimizers(model, kind):
    if kind == "muon":
        return [
            torch.optim.Muon([model.weight], lr=0.1),
            torch.optim.AdamW([model.bias], lr=0.1, foreach=True),
        ]
    return [torch.optim.AdamW(model.parameters(), lr=0.1, **{kind: True})]


def best_folder(checkpoints):
    """The folder that best.json names; it must exist."""
    if not (checkpoints / "best.json").exists():
        return None
    name = json.loads((checkpoints / "best.json").read_text())["folder"]
    assert (checkpoints / name).is_dir()
    return name


def snapshot(model, parts):
    tensors = [*model.state_dict().values()]
    tensors += [
        value for part in parts for state in part.state.values() for value in state.values()
    ]
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("kind", ["foreach", "fused", "muon"])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_nonfinite_step_changes_nothing(kind, bad):
    """As on a CPU (value read first) and as on a GPU (reverted): the same bits as without it."""
    torch.manual_seed(0)
    found = []
    for how in (update_if_finite, update_then_revert, None):
        model = nn.Linear(4, 3)
        model.register_buffer("statistics", torch.zeros(()))
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(torch.arange(value.numel()).reshape(value.shape) / 10)
        parts = optimizers(model, kind)

        def update(model=model, parts=parts):
            for part in parts:
                part.step()
            model.statistics += model.weight.grad.sum()

        for step in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan if step == bad else step - 1.5)
            good = model.weight.grad.isfinite().all()
            if how:
                how(good, update, model, parts)
            elif good:
                update()
        found.append(snapshot(model, parts))
    for tensors in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], tensors)) and len(tensors) == len(
            found[0]
        )


def test_nonfinite_losses_get_nonfinite_gradients():
    """A mean square that overflows has finite gradients. A finite loss stays as it is."""
    for size, finite in ((1e25, False), (0.3, True)):
        x = torch.tensor([size, 0.1], requires_grad=True)
        loss = x.square().mean()
        (plain,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert plain.isfinite().all() and loss.isfinite() == finite
        (found,) = torch.autograd.grad(propagate_nonfinite(loss), x)
        assert torch.equal(found, plain) if finite else found.isnan().all()


def test_a_checkpoint_in_the_background_is_of_its_step(tmp_path, monkeypatch):
    """The weights change while it is written; an error of the writer is raised by the next save."""
    model = nn.Linear(3, 3)
    parts = [torch.optim.AdamW(model.parameters())]
    model(torch.ones(3)).sum().backward()
    parts[0].step()
    go_on, really = threading.Event(), dcp.save
    monkeypatch.setattr(
        dcp, "save", lambda *args, **kwargs: (go_on.wait(30), really(*args, **kwargs))
    )
    with CheckpointWriter(tmp_path, keep=3, background=True) as writer:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        writer.save(model, parts, step=1, meta={})
        assert newest_checkpoint(tmp_path) is None
        parts[0].step()
        go_on.set()
        writer.wait()
        after = nn.Linear(3, 3)
        load_checkpoint(newest_checkpoint(tmp_path), after, [torch.optim.AdamW(after.parameters())])
        assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())
        assert not torch.equal(after.weight, model.weight)

        monkeypatch.setattr(
            dcp,
            "save",
            lambda *args, **kwargs: (_ for _ in ()).throw(
                OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            ),
        )
        writer.save(model, parts, step=2, meta={})
        with pytest.raises(UserError, match="no room for a checkpoint"):
            writer.save(model, parts, step=3, meta={})
        assert integrity.checkpoint_steps(tmp_path) == [1]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("other", [FULL, RuntimeError("Connection closed by peer")])
def test_a_full_disk_is_reported_by_the_checkpoint_that_filled_it(tmp_path, monkeypatch, other):
    """A line of metrics fails, or another rank is gone, while that checkpoint is still written."""
    model, met = nn.Linear(3, 3), threading.Event()
    parts = [torch.optim.AdamW(model.parameters())]

    def fill(*args, checkpoint_id, **kwargs):
        (checkpoint_id / "half").touch()
        met.wait(30)
        raise FULL

    with pytest.raises(
        UserError, match=r"no room for a checkpoint in \S+: it needs about \d+ bytes, \d+ are free"
    ):
        with (
            disk_full_as_user_error(tmp_path),
            CheckpointWriter(tmp_path, keep=3, background=True) as writer,
        ):
            writer.save(model, parts, step=1, meta={})
            writer.wait()
            monkeypatch.setattr(dcp, "save", fill)
            writer.save(model, parts, step=2, meta={})
            met.set()
            raise other
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"] and newest_checkpoint(
        tmp_path
    )


@pytest.mark.parametrize("what", ["lines", "events"])
def test_disk_full_for_metrics(tmp_path, what):
    """A record that was cut off harms neither metrics.jsonl nor TensorBoard of the resumed run."""
    config = merge.build(schema.TrainWorldModel, {"data": "D", "run": str(tmp_path)})
    logger = RunLogger(tmp_path, config, start=0, steps=9)
    logger.log(1, {"loss": 0.5})
    owner, name = (logger, "lines") if what == "lines" else (logger.events, "path")
    file = getattr(owner, name)
    setattr(owner, name, Path("/dev/full"))
    logger.add_image(2, "picture", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=rf"no room in {tmp_path} .*, \d+ are free"):
        logger.log(2, {"loss": 0.25})
    with file.open("ab") as stream:
        stream.write(b'{"step": 2, "ki')

    logger = RunLogger(tmp_path, config, start=1, steps=9)
    logger.log(2, {"loss": 0.125})
    assert losses(tmp_path) == [(1, "train", 0.5), (2, "train", 0.125)]
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.125)]


@pytest.mark.parametrize("moment", ["write_text", "replace"])
def test_disk_full_for_a_run_directory(tmp_path, monkeypatch, moment):
    """Whichever file fills the disk, the user is told, and the same command works afterwards."""
    run, room = tmp_path / "run", 0
    config = merge.build(schema.TrainWorldModel, {"data": "D", "run": str(run)})
    owner = Path if moment == "write_text" else os
    really = getattr(owner, moment)

    def full(*args, **kwargs):
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(*args, **kwargs)

    for files in range(4):  # .lock.json, config.yaml, environment.json, given.yaml
        room = files
        with monkeypatch.context() as patch, pytest.raises(UserError, match=f"no room in {run} "):
            patch.setattr(owner, moment, full)
            with lock_run_dir(run):
                open_run_dir(run, config, {})
        check_run_dir(run, config)
    with lock_run_dir(run):
        open_run_dir(run, config, {})
    assert read_config(run) == config


def test_retention(tmp_path):
    model = nn.Linear(2, 2)
    parts = [torch.optim.AdamW(model.parameters())]

    def save(step, best=None, keep=2):
        CheckpointWriter(tmp_path, keep=keep).save(
            model, parts, step=step, meta={"best": best and {"step": best, "loss": 0.5}}
        )
        return integrity.checkpoint_steps(tmp_path)

    assert best_folder(tmp_path) is None
    save(1)
    assert save(2, best=2) == [1, 2] and best_folder(tmp_path) == "step_00000002"
    save(3, best=2)
    save(4, best=2)
    assert save(5, best=2) == [2, 4, 5]
    assert save(6, best=6) == [5, 6] and best_folder(tmp_path) == "step_00000006"
    # 6 is damaged, so the run was resumed from 5: its new checkpoint must not be removed for 6.
    assert save(6, best=5, keep=1) == [5, 6]
    (tmp_path / "step_00000006" / "meta.json").write_text("{}")
    assert newest_checkpoint(tmp_path).name == "step_00000005"
    CheckpointWriter(tmp_path, keep=1).save(model, parts, step=5, meta={})
    assert integrity.checkpoint_steps(tmp_path) == [5] and best_folder(tmp_path) is None


def test_a_dead_owner_does_not_block_and_a_second_one_is_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".lock.json").write_text("not JSON")
    with lock_run_dir(run):
        with (
            pytest.raises(UserError, match=rf"in use: process {os.getpid()} on \S+, since"),
            lock_run_dir(run),
        ):
            pass
    with lock_run_dir(run):
        pass


def test_signals_and_clock_are_noted_and_handlers_restored(tmp_path):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    (tmp_path / "resume.json").write_text("{}")
    with Preemption(tmp_path, minutes=1e-9) as preemption:
        assert not (tmp_path / "resume.json").exists()
        assert preemption.agreed() == 0 and not preemption.checkpoint_due
        assert preemption.agreed() == 0 and preemption.checkpoint_due  # one step later
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        preemption.agreed()
        assert preemption.agreed() == signal.SIGUSR1
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    try:
        with Preemption(tmp_path, minutes=0) as preemption:
            assert preemption.exit_code(signal.SIGUSR1, 7) == EXIT_PREEMPTED == 75
        assert json.loads((tmp_path / "resume.json").read_text())["reason"] == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGUSR1)  # ignored while the process ends
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    assert same(weights(run, 3), weights(run, 4)) and not same(weights(run, 4), weights(run, 5))


@pytest.mark.slow
@pytest.mark.timeout(3600)
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
        timeout=3500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(chosen)} faults, 0 of them left a trace" in done.stdout
