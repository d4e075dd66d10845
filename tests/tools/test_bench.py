"""tools.bench: the reference is the published step, every variant is in the table; no timing."""

import json

import numpy as np
import pytest
import torch

from cjepa_dist.config.schema import AloeConfig, PredictorConfig
from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.losses import ctt, jepa
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.device import native_precision
from tools.bench import aloe, data_import
from tools.bench.bare_step import BareStep
from tools.bench.data import (
    AS_FLOAT32,
    MEMCPY,
    MEMCPY_FLOAT32,
    PER_WINDOW,
    WINDOW,
    WINDOW_SOURCES,
    PerWindowDataset,
)
from tools.bench.harness import OpCounter
from tools.bench.reference.aloe import ReferenceAloeStep
from tools.bench.reference.world_model import (
    ReferencePredictor,
    causal_loss,
    masked_slots,
    prediction_loss,
)
from tools.bench.scaling import StepCost, all_reduce_seconds, predict_step_seconds

TINY = (
    "batch=4",
    "rounds=1",
    "warmup=0",
    "gemm_size=16",
    "predictor.slot_dim=16",
    "predictor.depth=1",
    "predictor.heads=2",
    "predictor.mlp_dim=32",
)


# Slots of a large scale make attention sharp, so that the graph has edges.
@pytest.mark.parametrize("rescaled", [1.0, 20.0])
def test_reference_is_the_published_step(rescaled):
    torch.manual_seed(0)
    config = PredictorConfig(slots=5, slot_dim=16, depth=2, heads=4, mlp_dim=32, dropout=0.0)
    ours, theirs, x = (
        SlotPredictor(config),
        ReferencePredictor(config),
        rescaled * torch.randn(6, 4, 5, 16),
    )
    theirs.load_state_dict(ours.to_reference())
    masked = masked_slots(5, 2)
    hidden = torch.zeros(6, 5, dtype=torch.bool)
    hidden[:, masked] = True
    z = ours(x[:, :3], hidden)
    torch.testing.assert_close(theirs(x[:, :3], masked)[0], z, atol=1e-5, rtol=1e-5)
    loss = prediction_loss(theirs, x, masked)
    torch.testing.assert_close(
        loss, jepa.future_loss(z, x, 3) + jepa.history_loss(z, x, hidden, 3), rtol=1e-4, atol=0
    )
    i, k = [j for j in range(5) if j not in masked][:2]
    found = ctt.published_terms(
        ours, x, hidden, threshold=0.15, invariance_slot=i, sufficiency_slot=k
    )
    invariance, sufficiency = causal_loss(theirs, x, masked, i, k)
    torch.testing.assert_close(
        found.invariance_sum / found.invariance_count.clamp(min=1), invariance, rtol=1e-4, atol=1e-7
    )
    torch.testing.assert_close(
        found.sufficiency_sum / found.sufficiency_count.clamp(min=1),
        sufficiency,
        rtol=1e-4,
        atol=1e-7,
    )


def test_plain_aloe_is_the_same_model(tmp_path):
    """Logits of all rows, and the loss that both steps descend."""
    config = aloe.BenchAloe(
        videos=3,
        aloe=AloeConfig(frames=4, width=24, depth=2, heads=2, mlp_dim=32, head_dim=16, dropout=0.0),
    )
    source = aloe.simulate_questions(config, tmp_path / "data")
    batch = source.get_batch(np.arange(len(source)), np.arange(len(source)))
    train_config = aloe.train_config(config, shared=False)
    ours = BareStep(train_config, [batch], precision="fp32", progress=0.0)
    plain = ReferenceAloeStep(config.aloe, batch)
    with torch.no_grad():
        ours.task.aloe.position.normal_()
        ours.task.aloe.cls.normal_()
    plain.model.load_state_dict(ours.task.aloe.to_reference())
    answers, choices = ours.task.aloe(
        *(batch[name] for name in ("slots", "tokens", "padding", "is_choice", "row_view"))
    )
    chosen = {name: value for name, value in plain.chosen.items() if name != "label"}
    asked = {name: value for name, value in plain.asked.items() if name != "label"}
    torch.testing.assert_close(
        plain.model.choice_logits(**chosen), choices[batch["is_choice"]], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        plain.model.answer_logits(**asked), answers[~batch["is_choice"]], atol=1e-4, rtol=1e-4
    )
    before, ours_before = plain.loss(), ours.task(batch).loss
    torch.testing.assert_close(before, ours_before, rtol=1e-4, atol=0)
    plain(), ours()
    assert plain.loss() < before and ours.task(batch).loss < ours_before


def test_views_are_not_counted():
    with OpCounter() as counter:
        (torch.ones(4, 6).t().reshape(2, 12)[:1] + 1).view(3, 4)
    assert counter.ops == 3  # ones, the copy that this reshape makes, the sum
    assert counter.bytes == 4 * (24 + 2 * 24 + 2 * 12)


def test_world_model_prints_every_variant(command, tmp_path):
    done = command("tools.bench", "world_model", *TINY, f"out={tmp_path / 'bench.json'}")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "bench.json").read_text())
    assert len(content["rows"]) == 7 + (native_precision() != "fp32")
    assert all(row["ops"] > 0 and row["gflop"] > 0 for row in content["rows"])
    for row in content["rows"]:
        assert f"| {row['name']} |" in done.stdout
    assert done.stdout.count("target: at") == 4
    ours = {row["name"]: row for row in content["rows"]}
    assert ours["ours + CTT `attention` on 1/4"]["gflop"] < ours["ours + CTT `attention`"]["gflop"]


def test_aloe_prints_every_variant(command, tmp_path):
    tiny = [
        "aloe.frames=4",
        "aloe.width=16",
        "aloe.depth=1",
        "aloe.heads=2",
        "aloe.mlp_dim=16",
        "aloe.head_dim=8",
    ]
    done = command(
        "tools.bench",
        "aloe",
        "batch=24",
        "videos=4",
        "rounds=1",
        "warmup=0",
        "gemm_size=16",
        *tiny,
        f"out={tmp_path / 'bench.json'}",
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert len(rows) == 6 + (native_precision() != "fp32") and all(
        f"| {name} |" in done.stdout for name in rows
    )
    assert done.stdout.count("target: at least 3") == 3
    assert rows["ours, shared vision"]["gflop"] < rows["plain, published layout, fp32"]["gflop"]


def test_unknown_targets_are_one_line(command):
    done = command("tools.bench", "wrold_model")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "one of: world_model, aloe, training, data, counterfactual; got 'wrold_model'"
        in done.stderr
    )


@pytest.mark.serial  # it counts all bytes on the loopback device
def test_training_says_what_the_loop_costs(command, tmp_path):
    tiny = "predictor.width=16,predictor.depth=1,predictor.mlp_dim=16,loop.global_batch_size=4"
    done = command(
        "tools.bench",
        "training",
        "block=2",
        "rounds=2",
        "videos=2",
        f"overrides=[{tiny}]",
        "engines=[ddp]",
        f"out={tmp_path / 'bench.json'}",
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "bench.json").read_text())
    assert len(content["overheads"][0]) == len(content["overheads"][1]) == 2
    assert (
        content["checkpoint_seconds"] > 0 and content["restart_seconds"] > 0 and content["flop"] > 0
    )
    assert content["all_reduced_bytes"] == 4 * content["parameters"]
    assert (
        content["comm_bytes"]["ddp"] > 0.9 * content["all_reduced_bytes"]
    )  # of two processes each sends what it has, once
    for part in (
        "| bare step |",
        "overhead of the loop: target below 3%",
        "Model, not measured",
        "Assumed: 40% of 989 TFLOP/s",
        "| 64 |",
    ):
        assert part in done.stdout, part


def test_scaling_by_hand():
    step = StepCost(flop=round(0.4 * 989e12), bytes=8 * 360_000_000)  # a second on one GPU
    assert predict_step_seconds(step, 1, strong=True) == pytest.approx((1.0, 0.0, 1.0))
    inside = 2 * 7 * (1e-3 + 3e-6)
    assert all_reduce_seconds(step.bytes, 8) == pytest.approx(inside)
    assert all_reduce_seconds(step.bytes, 16) == pytest.approx(
        inside + 2 * (360e6 / 2 / 40e9 + 10e-6)
    )
    assert predict_step_seconds(step, 8, strong=True)[0] == pytest.approx(
        1 / 8
    ) and predict_step_seconds(step, 8, strong=False)[0] == pytest.approx(1.0)
    assert predict_step_seconds(StepCost(1, 4), 8, strong=True)[0] == 0.01  # launches


def test_import_rate_measures_and_cleans_up(tmp_path):
    rows = data_import.markdown_rows(tmp_path, videos=3)
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "to float16",
        "to bfloat16",
        "to float32",
    ]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row.split("|")[2:4]) and not list(
        tmp_path.iterdir()
    )


def test_data_prints_every_way(command, tmp_path):
    settings = (
        "megabytes=16",
        "shard_mb=4",
        "batch=8",
        "batches=2",
        "rounds=1",
        "steps=0",
        "imports=0",
    )
    done = command("tools.bench", "data", *settings, f"out={tmp_path / 'bench.json'}")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "bench.json").read_text())
    ways = {
        MEMCPY,
        MEMCPY_FLOAT32,
        PER_WINDOW,
        *WINDOW_SOURCES,
        *(kind + AS_FLOAT32 for kind in WINDOW_SOURCES),
    }
    assert set(content["rates"]) == ways and content["opened"].keys() == WINDOW_SOURCES.keys()
    for name, values in content["rates"].items():
        assert len(values) == 1 and values[0] > 0 and f"| {name} |" in done.stdout
    assert done.stdout.count("NOT met") + done.stdout.count(": met") == 3


def test_the_per_window_dataset_reads_the_same_windows(small_data):
    source = InMemoryWindows(small_data, "val", WINDOW)
    slow, ids = PerWindowDataset(load_slots(small_data, "val")), [0, 108, 109, 500]
    assert len(slow) == len(source)
    for row, expected in zip(ids, source.get_batch(np.array(ids), np.array(ids))["slots"]):
        assert np.array_equal(slow[row]["slots"], expected.numpy())
