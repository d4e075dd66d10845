"""FLOP of a step, peaks of devices, and the MFU made of them."""

import pytest
import torch
from torch import nn

from cjepa_dist.config import command_line, schema
from cjepa_dist.tasks.vqa import VqaTask
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.flops import meta_copy, peak_flops, step_flops
from cjepa_dist.training.throughput import ThroughputMeter


def test_flops_by_hand_and_counting_changes_nothing():
    class Task(nn.Linear):
        def step_context(self, batches, step, weights):
            return weights

        def forward(self, batch, context):
            return type("Outcome", (), {"loss": super().forward(batch["x"]).sum()})

    task, batch = Task(5, 3), {"x": torch.randn(7, 5)}
    before, state = task.weight.clone(), torch.get_rng_state()
    # forward, and the gradient of the weight; the input needs none
    assert step_flops(meta_copy(task), [batch], 0, {}) == 2 * 2 * 7 * 5 * 3
    assert step_flops(meta_copy(task), [batch, batch], 0, {}) == 2 * 2 * 2 * 7 * 5 * 3
    assert (
        torch.equal(task.weight, before)
        and task.weight.grad is None
        and torch.equal(torch.get_rng_state(), state)
    )


def test_peaks():
    known = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L4": 121e12,
    }
    assert {name: peak_flops(name, "bf16") for name in known} == known
    for name in ("NVIDIA L40", "NVIDIA GeForce RTX 4090", "NVIDIA GH200 480GB", "cpu", ""):
        assert peak_flops(name, "bf16") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp32") is None


def world_batch(rows, slots=7, dim=16):
    return {
        "slots": torch.randn(rows, 4, slots, dim),
        "present": torch.ones(rows, 4, slots, dtype=torch.bool),
        "sample": torch.arange(rows),
    }


def test_mfu_counts_the_active_terms(monkeypatch):
    """As on a device with a known peak; FLOP are counted again when causal terms become active."""
    sizes = (
        "predictor.slot_dim=16",
        "predictor.heads=2",
        "predictor.depth=1",
        "predictor.mlp_dim=32",
        "loop.global_batch_size=4",
    )
    terms = ("ctt.invariance.weight=1", "ctt.invariance.start=0.5", "ctt.graph.estimator=attention")
    task = WorldModelTask(
        command_line.parse(schema.TrainWorldModel, ["data=d", "run=r", *sizes, *terms])
    )
    meter = ThroughputMeter(task, task.config.loop, torch.device("cpu"), steps=10)
    assert "mfu" not in meter.read(1, 0.0, [world_batch(4)])
    meter.peak, meter.meta_task = 1e9, meta_copy(task)
    early, late = (meter.model_flops(step, [world_batch(4)]) for step in (1, 9))
    assert early == meter.model_flops(2, [world_batch(4)]) and late > 1.5 * early
    with monkeypatch.context() as several:  # each process counts its own: nothing is sent
        for name, found in (("is_initialized", True), ("get_world_size", 2)):
            several.setattr(torch.distributed, name, lambda found=found: found)
        meter.flops.clear()
        assert meter.model_flops(9, [world_batch(4)]) == late
    early = meter.model_flops(4, [world_batch(4)])
    values = meter.read(5, 0.0, [world_batch(4)])
    seconds = values["step_seconds"] + values["data_seconds"]
    assert values["mfu"] == pytest.approx(early / seconds / 1e9, rel=1e-6)


def test_flops_of_aloe_need_no_values():
    config = command_line.parse(
        schema.TrainAloe, ["data=d", "run=r", "aloe.depth=1", "aloe.shared_vision=true"]
    )
    aloe, rows = config.aloe, 6
    zeros = torch.zeros(rows, dtype=torch.long)
    batch = {
        "slots": torch.randn(2, aloe.frames, aloe.slots, aloe.slot_dim),
        "tokens": torch.zeros(rows, 32, dtype=torch.long),
        "padding": torch.zeros(rows, 32, dtype=torch.bool),
        "is_choice": zeros.bool(),
        "kind": zeros,
        "row_view": zeros,
        "label": zeros,
    }
    assert step_flops(meta_copy(VqaTask(config)), [batch], 0, {}) > 1e8
