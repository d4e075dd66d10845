"""Losses, their weights and units: functions of the step and of the samples."""

import numpy as np
import pytest
import torch

from cjepa_dist.config import command_line, schema
from cjepa_dist.config.schema import TermConfig
from cjepa_dist.tasks.residuals import is_due, measure_residuals
from cjepa_dist.tasks.schedule import ramp
from cjepa_dist.tasks.world_model import WorldModelTask, consistency_weights
from tests.steps import run_step

SMALL = [
    "data=d",
    "run=r",
    "predictor.width=32",
    "predictor.depth=1",
    "predictor.heads=2",
    "predictor.mlp_dim=32",
    "predictor.slot_dim=8",
    "predictor.dropout=0",
]


def batch(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(size, 1, 7, generator=generator).expand(size, 4, 7) > 0.3
    return {
        "slots": torch.randn(size, 4, 7, 8, generator=generator),
        "present": present,
        "sample": torch.arange(size),
    }


class Windows:
    """The part of a dataset that a measurement reads."""

    def __init__(self, data):
        self.data = data

    def get_batch(self, ids, sample):
        return {name: value[torch.from_numpy(ids)] for name, value in self.data.items()}


def test_residuals_are_those_of_evaluation():
    """Nothing hidden, no dropout, slots in view alone; the same for every mask and step."""
    options = [*SMALL, "predictor.dropout=0.5", "mask.probs=[0,0,1]"]
    task, data = WorldModelTask(command_line.parse(schema.TrainWorldModel, options)), batch(70)
    measured = measure_residuals(task.predictor, Windows(data), np.arange(70))
    assert task.predictor.training
    task.eval()
    with torch.no_grad():
        error = task.predictor.predict(data["slots"][:, :3])[:, 0] - data["slots"][:, 3]
    error = error[data["present"][:, 0]]
    torch.testing.assert_close(measured.sigma2, error.square().mean(0))
    torch.testing.assert_close(
        measured.tau, (error.square() / measured.sigma2 / 2).sum(-1).median()
    )
    task.set_residuals(measured)
    assert torch.equal(task.sigma2, measured.sigma2) and task.updates == 1


def test_a_training_step_leaves_the_unit_alone():
    task = WorldModelTask(command_line.parse(schema.TrainWorldModel, SMALL))
    before = {name: value.clone() for name, value in task.named_buffers()}
    run_step(task, batch(12), 3).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in task.named_buffers())


@pytest.mark.parametrize("broken", ["absent", "nan"])
def test_residuals_that_cannot_be_measured_change_nothing(broken):
    task, data = WorldModelTask(command_line.parse(schema.TrainWorldModel, SMALL)), batch(4)
    if broken == "absent":
        data["present"] = torch.zeros_like(data["present"])
    else:
        torch.nn.init.constant_(task.predictor.head.bias, float("nan"))
    assert measure_residuals(task.predictor, Windows(data), np.arange(4)) is None


def test_residuals_are_measured_at_fixed_points_of_a_run():
    assert [done for done in range(101) if is_due(done, 100)] == sorted(
        {0, 1, 2, 4, 8, 16, 32, 64} | set(range(0, 101, 5))
    )
    assert is_due(7, 7) and all(is_due(done, 3) for done in range(4))


def test_terms_begin_and_grow():
    term = TermConfig(weight=2.0, start=0.3, ramp=0.1)
    assert [ramp(term, p) for p in (0.0, 0.29, 0.35, 0.4, 0.9)] == pytest.approx(
        [0.0, 0.0, 1.0, 2.0, 2.0]
    )
    assert ramp(TermConfig(weight=2.0, start=0.5, ramp=0.0), 0.5) == 2.0
    assert ramp(TermConfig(weight=0.0), 0.5) == 0.0


def test_mask_and_loss_are_functions_of_step_and_sample():
    task, data = WorldModelTask(command_line.parse(schema.TrainWorldModel, SMALL)), batch(8)
    assert (
        run_step(task, data, 5).loss.item()
        == run_step(task, data, 5).loss.item()
        != run_step(task, data, 6).loss.item()
    )


def test_consistency_takes_longer_rollouts_one_after_another():
    task = WorldModelTask(
        command_line.parse(
            schema.TrainWorldModel,
            [*SMALL, "ctt.consistency.weight=2", "ctt.consistency.start=0.2"],
        )
    )

    def weights(progress: float) -> dict[int, float]:
        return consistency_weights(task.term_weights(progress))

    assert weights(0.1) == {}
    assert weights(0.225) == pytest.approx({1: 0.5})
    assert weights(0.275) == pytest.approx({1: 1.0, 2: 0.5})
    assert weights(0.9) == {1: 1.0, 2: 1.0, 4: 1.0, 6: 1.0}


@pytest.mark.parametrize(
    ("fraction", "size", "rows"),
    [(0.25, 8, [3, 7]), (0.5, 4, [1, 3]), (0.75, 4, [1, 2, 3]), (1.0, 3, [0, 1, 2])],
)
def test_a_fraction_of_the_batch_is_spread_over_it(fraction, size, rows):
    task = WorldModelTask(
        command_line.parse(schema.TrainWorldModel, [*SMALL, f"ctt.fraction={fraction}"])
    )
    assert task.causal_rows(torch.arange(size)).tolist() == rows
