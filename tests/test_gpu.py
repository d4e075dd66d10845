"""What only a GPU can show; skipped without one.

No host sync in a step, the CPU's numbers, exact resume, engines over NCCL:
`python -m pytest tests/test_gpu.py` on a machine with a GPU. CI has none.
"""

import json

import pytest
import torch

from cjepa_dist.config import command_line, schema
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.resilience.nonfinite import (
    count_steps_on_device,
    propagate_nonfinite,
    update_if_finite,
)
from cjepa_dist.tasks.vqa import VqaTask
from tests.steps import run_step
from tests.test_no_device_sync import ARMS, make
from tests.training.test_resume import ALOE, CASES, WORLD, losses, same, weights

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU here: these tests show what only a GPU can"
)
SHAPE = {"history_frames": 3, "pred_frames": 1, "frameskip": 5}


def on_gpu(batch):
    return {name: value.cuda() for name, value in batch.items()}


@pytest.fixture
def plain_float32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def questions(small_data, **fields):
    model = (
        "aloe.frames=6",
        "aloe.width=32",
        "aloe.depth=2",
        "aloe.heads=2",
        "aloe.mlp_dim=64",
        "aloe.dropout=0",
    )
    config = command_line.parse(
        schema.TrainAloe,
        [f"data={small_data}", "run=r", *model, *(f"{k}={v}" for k, v in fields.items())],
    )
    torch.manual_seed(0)
    source = InMemoryQuestions(small_data, "train", frames=6, stride=20, eval_start=3)
    return VqaTask(config), VideoQuestions(source).get_batch([0, 3, 5], [0, 1, 2])


def tasks(arm, small_data):
    return (
        questions(small_data, **{"aloe.shared_vision": arm == "shared"})
        if arm in ("aloe", "shared")
        else make(arm, 0.0, depth=2)
    )


@pytest.mark.parametrize("arm", [*ARMS, "aloe", "shared"])
def test_a_step_never_waits_for_the_gpu(arm, small_data):
    """Forward with all losses, backward, clipping, a guarded update of weights.

    As the loop and its engine do it.
    """
    task, batch = tasks(arm, small_data)
    task, batch = task.cuda().train(), on_gpu(batch)
    parts = build_optimizers(task, schema.OptimizerConfig(name="muon"))
    count_steps_on_device(parts)

    def step(number):
        with torch.autocast("cuda", torch.bfloat16):
            outcome = run_step(task, batch, number, 0.9)
            loss = propagate_nonfinite(outcome.loss)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0, foreach=True)

        def move():
            for part in parts:
                part.step()

        update_if_finite(norm.isfinite(), move, task, parts)
        for part in parts:
            part.zero_grad(set_to_none=True)

    step(0)  # state is made and kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in task.parameters())


@pytest.mark.parametrize("arm", [*ARMS, "aloe", "shared"])
def test_the_same_numbers_as_on_a_cpu(arm, small_data, plain_float32):
    found = []
    for device in ("cpu", "cuda"):
        task, batch = tasks(arm, small_data)
        task.to(device).train()
        batch = {name: value.to(device) for name, value in batch.items()}
        outcome = run_step(task, batch, 3, 0.9)
        outcome.loss.backward()
        found.append([outcome.loss, *(p.grad for p in task.parameters())])
    for expected, value in zip(*found):
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["cuda graph", "eager", "device memory"])
@pytest.mark.parametrize("module", CASES)
def test_stopped_and_resumed_is_bit_identical(module, kind, command, small_data, tmp_path):
    """Also what a checkpoint in the background holds: it is copied while the next step runs."""
    if module == ALOE and kind == "device memory":
        pytest.skip("ALOE reads from host memory")
    extra = {
        "cuda graph": "loop.cuda_graph=true",
        "eager": "loop.cuda_graph=false",
        "device memory": "reading.kind=device",
    }[kind]
    complete, broken = tmp_path / "complete", tmp_path / "broken"
    for run, *more in ((complete,), (broken, "loop.stop_at_step=5"), (broken,)):
        done = command(module, f"run={run}", f"data={small_data}", *CASES[module], extra, *more)
        assert done.returncode == 0, done.stderr
    assert "device: cuda" in done.stdout and "resumed from" in done.stdout
    last = max(step for step, _, _ in losses(complete))
    assert same(weights(complete, last), weights(broken, last))
    line = json.loads((complete / "metrics.jsonl").read_text().splitlines()[-2])
    assert line["memory_gb"] > 0 and (
        "H100" not in torch.cuda.get_device_name() or 0 < line["mfu"] < 1
    )


@pytest.mark.parametrize("module", CASES)
def test_a_cuda_graph_equals_eager_steps(module, command, small_data, tmp_path):
    """Losses of every line, without dropout, in float32 and with AdamW.

    All kinds of batches and of loss terms come up.
    """
    dropout = "predictor.dropout=0" if module == WORLD else "aloe.dropout=0"
    plain = (
        f"data={small_data}",
        *CASES[module],
        dropout,
        "loop.precision=fp32",
        "optimizer.name=adamw",
        "loop.log_every=1",
    )
    for run in ("true", "false"):
        done = command(module, f"run={tmp_path / run}", *plain, f"loop.cuda_graph={run}")
        assert done.returncode == 0, done.stderr
    for (step, kind, a), (_, _, b) in zip(losses(tmp_path / "true"), losses(tmp_path / "false")):
        assert a == pytest.approx(b, rel=1e-3), (step, kind)


def test_windows_in_device_memory_equal_those_in_host_memory(small_data):
    here, there = (
        InMemoryWindows(small_data, "train", WindowSpec(**SHAPE), device=device)
        for device in (None, torch.device("cuda"))
    )
    ids = here.sample_ids(0, 0, 64)
    for (name, a), (other, b) in zip(
        sorted(here.get_batch(ids, ids).items()), sorted(there.get_batch(ids, ids).items())
    ):
        assert name == other and torch.equal(a, b.cpu()), name


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_engines_over_nccl(engine, command, small_data, tmp_path):
    """One process: collectives, checkpoints and precision of each engine, not its speed."""
    arguments = [
        *CASES[WORLD],
        f"data={small_data}",
        "optimizer.name=adamw",
        f"loop.engine={engine}",
        "predictor.dropout=0",
    ]
    complete, broken, plain = tmp_path / "complete", tmp_path / "broken", tmp_path / "plain"
    for run, *extra in ((complete,), (broken, "loop.stop_at_step=5"), (broken,)):
        done = command(WORLD, f"run={run}", *arguments, *extra, processes=1)
        assert done.returncode == 0, done.stderr
    assert "device: cuda" in done.stdout
    assert same(weights(complete, 12), weights(broken, 12))
    done = command(WORLD, f"run={plain}", *arguments, "loop.engine=auto")
    assert done.returncode == 0, done.stderr
    for (step, kind, a), (_, _, b) in zip(losses(plain), losses(complete)):
        assert a == pytest.approx(b, rel=2e-2), (step, kind)


def test_a_loss_that_is_not_finite_changes_nothing(command, small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CJEPA_FAULT", "nan@3")
    run = tmp_path / "run"
    done = command(
        WORLD,
        f"data={small_data}",
        f"run={run}",
        *CASES[WORLD],
        "loop.stop_at_step=5",
        "loop.checkpoint_every=1",
    )
    assert done.returncode == 0, done.stderr
    assert same(weights(run, 3), weights(run, 4)) and not same(weights(run, 4), weights(run, 5))
    assert json.loads((run / "skipped.jsonl").read_text())["step"] == 4
