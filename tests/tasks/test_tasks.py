"""Losses and running statistics do not depend on how a batch is split over processes."""

import pytest
import torch

from cjepa_dist.config import command_line, schema
from cjepa_dist.config.schema import TermConfig
from cjepa_dist.tasks.residuals import BINS, LOG_RANGE, histogram_median
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


def test_statistics_of_parts_sum_to_those_of_the_whole():
    task, whole = WorldModelTask(command_line.parse(schema.TrainWorldModel, SMALL)), batch(12)
    parts = [{name: value[i : i + 4] for name, value in whole.items()} for i in (0, 4, 8)]
    torch.testing.assert_close(
        sum(run_step(task, part, 3).statistics for part in parts),
        run_step(task, whole, 3).statistics,
    )


def test_tau_is_the_median_residual_of_visible_slots():
    task, data = WorldModelTask(command_line.parse(schema.TrainWorldModel, SMALL)), batch(64)
    outcome = run_step(task, data, 0)
    task.update_statistics(outcome.statistics)
    assert torch.equal(task.updates, torch.ones(()))
    error = outcome.statistics[:8] / outcome.statistics[8]
    torch.testing.assert_close(task.sigma2, error)
    task.sigma2.fill_(1.0)  # the residuals above were in this unit
    z = task.predictor(
        data["slots"][:, :3], torch.zeros(64, 7, dtype=torch.bool)
    )  # counts hide nothing in most samples
    nats = (z[:, 3] - data["slots"][:, 3]).square().sum(-1) / 2
    assert task.tau.item() == pytest.approx(nats[data["present"][:, 0]].median().item(), rel=0.1)


def test_median_of_a_histogram():
    values = torch.distributions.LogNormal(1.0, 2.0).sample((100_001,))
    width = (LOG_RANGE[1] - LOG_RANGE[0]) / BINS
    place = ((values.log() - LOG_RANGE[0]) / width).long().clamp(0, BINS - 1)
    assert histogram_median(torch.bincount(place, minlength=BINS).float()).item() == pytest.approx(
        values.median().item(), rel=0.01
    )


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
