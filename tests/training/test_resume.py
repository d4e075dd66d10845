"""A resumed run equals an undisturbed one: bit for bit, or within tolerance on other processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.fork_server import PROJECT

TINY_WORLD = (
    "predictor.width=32", "predictor.depth=2", "predictor.heads=2", "predictor.mlp_dim=64",
    "predictor.dropout=0.1", "loop.steps=12",
    "loop.global_batch_size=8", "loop.checkpoint_every=4", "loop.log_every=3",
    "loop.keep_checkpoints=9", "val_windows=64", "optimizer.name=muon",
    "ctt.invariance.weight=0.2", "ctt.sufficiency.weight=0.1", "ctt.invariance.start=0.3",
)  # fmt: skip
TINY_ALOE = (
    "aloe.frames=6", "stride=20", "aloe.width=32", "aloe.depth=1", "aloe.heads=2",
    "aloe.mlp_dim=64", "loop.steps=9", "loop.global_batch_size=8",
    "loop.checkpoint_every=3", "loop.log_every=3", "loop.keep_checkpoints=9",
)  # fmt: skip
WORLD, ALOE = "cjepa_dist.train_world_model", "cjepa_dist.train_aloe"
CASES = {WORLD: TINY_WORLD, ALOE: TINY_ALOE}


def weights(run, step):
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["kind"], line["loss"]) for line in lines]


@pytest.mark.parametrize("module", CASES)
def test_killed_and_resumed_is_bit_identical(module, command, small_data, tmp_path):
    arguments, steps = (
        CASES[module],
        int(next(a for a in CASES[module] if a.startswith("loop.steps")).split("=")[1]),
    )
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    done = command(module, f"data={small_data}", f"run={complete}", *arguments)
    assert done.returncode == 0, done.stderr

    # kill -9 as soon as the first checkpoint is there, wherever the step then is
    process = subprocess.Popen(
        [sys.executable, "-m", module, f"data={small_data}", f"run={interrupted}", *arguments],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list((interrupted / "checkpoints").glob("step_????????")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (interrupted / "done.json").exists()
    done = command(module, f"data={small_data}", f"run={interrupted}", *arguments)
    assert done.returncode == 0 and "resumed from" in done.stdout, done.stderr
    assert same(weights(complete, steps), weights(interrupted, steps))
    assert [x for x in losses(complete) if x[0] == steps] == [
        x for x in losses(interrupted) if x[0] == steps
    ]

    again = command(module, f"data={small_data}", f"run={interrupted}", *arguments)
    assert again.returncode == 0 and "nothing to do" in again.stdout


@pytest.mark.slow
def test_four_processes_sum_in_the_same_order_after_a_stop(command, small_data, tmp_path):
    """DDP lays out its buckets again after its first backward pass: another order of sums."""
    arguments = (f"data={small_data}", *TINY_WORLD, "loop.precision=fp32", "loop.steps=6")
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    for run, *extra in ((complete,), (interrupted, "loop.stop_at_step=3"), (interrupted,)):
        done = command(WORLD, f"run={run}", *arguments, *extra, processes=4)
        assert done.returncode == 0, done.stderr
    assert same(weights(complete, 6), weights(interrupted, 6))


def test_a_damaged_checkpoint_is_skipped(command, small_data, tmp_path):
    module, run = "cjepa_dist.train_world_model", tmp_path / "run"
    arguments = (f"data={small_data}", f"run={run}", *TINY_WORLD)
    assert command(module, *arguments).returncode == 0
    final = weights(run, 12)
    file = next((run / "checkpoints" / "step_00000012").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = command(module, *arguments)
    assert (
        done.returncode == 0
        and "is damaged" in done.stdout
        and "resumed from" in done.stdout
        and "step_00000008" in done.stdout
    )
    assert same(final, weights(run, 12))


def test_a_run_waits_for_checkpoints_that_are_away(command, small_data, tmp_path):
    """It begins nothing anew and changes nothing; once they are back, it goes on.

    As after a move to another cluster, it then reads and computes in another way.
    """
    run = tmp_path / "run"
    arguments = (f"data={small_data}", f"run={run}", *TINY_WORLD)
    done = command(WORLD, *arguments, "loop.stop_at_step=4")
    assert done.returncode == 0, done.stderr
    for name in ("elsewhere", "damaged"):
        (run / "checkpoints").rename(run / "elsewhere")
        if name == "damaged":
            shutil.copytree(run / "elsewhere", run / "checkpoints")
            (run / "checkpoints" / "step_00000004" / "meta.json").write_text("{}")
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        done = command(WORLD, *arguments)
        assert done.returncode == 2 and f"remove {run}" in done.stderr, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (run / "elsewhere").rename(run / "checkpoints")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write("\n  garbled\n")
    moved = ("reading.kind=streaming", "loop.gradient_accumulation=2", "loop.cuda_graph=false")
    done = command(WORLD, *arguments, *moved, "loop.stop_at_step=6")
    assert done.returncode == 0 and "resumed from" in done.stdout, done.stderr
    assert "reading.kind=streaming, before in_memory: the steps to come see" in done.stdout
    assert [step for step, kind, _ in losses(run) if kind == "train"] == [3, 4, 6]


def test_run_of_another_config_is_refused(command, small_data, tmp_path):
    module, run = "cjepa_dist.train_world_model", tmp_path / "run"
    assert (
        command(
            module, f"data={small_data}", f"run={run}", *TINY_WORLD, "loop.stop_at_step=1"
        ).returncode
        == 0
    )
    before = (run / "config.yaml").read_bytes()
    done = command(module, f"data={small_data}", f"run={run}", *TINY_WORLD, "optimizer.lr=0.5")
    assert done.returncode == 2 and "optimizer.lr" in done.stderr
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "terms"), [(WORLD, "terms"), (WORLD, "no terms"), (ALOE, "no terms")]
)
def test_two_processes_equal_one(module, terms, command, small_data, tmp_path):
    """In float32 without dropout, neither processes nor accumulation change losses and weights."""
    dropout = "predictor.dropout=0" if "world" in module else "aloe.dropout=0"
    arguments = (*CASES[module], dropout, "loop.precision=fp32", "optimizer.name=adamw")
    one, two, parts = tmp_path / "one", tmp_path / "two", tmp_path / "parts"
    if "world" in module and terms == "no terms":
        arguments += ("ctt.invariance.weight=0", "ctt.sufficiency.weight=0")
    for run, processes, extra in (
        (one, 0, ()),
        (two, 2, ()),
        (parts, 0, ("loop.gradient_accumulation=2",)),
    ):
        done = command(
            module, f"data={small_data}", f"run={run}", *arguments, *extra, processes=processes
        )
        assert done.returncode == 0, done.stderr
    steps = max(step for step, _, _ in losses(one))
    for run in (two, parts):
        for (step, kind, a), (_, _, b) in zip(losses(one), losses(run)):
            assert a == pytest.approx(b, rel=2e-4), (run, step, kind)
        for name, value in weights(one, steps).items():
            torch.testing.assert_close(
                weights(run, steps)[name],
                value,
                atol=2e-4,
                rtol=1e-3,
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_weights_of_zero_are_the_baseline(command, small_data, tmp_path):
    module, base, zero = "cjepa_dist.train_world_model", tmp_path / "base", tmp_path / "zero"
    off = ("ctt.invariance.weight=0", "ctt.sufficiency.weight=0", "loop.steps=4")
    assert command(module, f"data={small_data}", f"run={base}", *TINY_WORLD, *off).returncode == 0
    assert (
        command(
            module,
            f"data={small_data}",
            f"run={zero}",
            *TINY_WORLD,
            *off,
            "ctt.kind=published",
            "ctt.fraction=0.25",
        ).returncode
        == 0
    )
    assert same(weights(base, 4), weights(zero, 4))
