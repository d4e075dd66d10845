import json

import numpy as np
import pytest
import torch

from cjepa_dist.config.schema import PredictorConfig, TrainWorldModel
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.position_probe import fit_position_probe
from cjepa_dist.evaluation.world_model import (
    ErrorTable,
    copy_last_frame,
    evaluate_world_model,
    extrapolate_linearly,
    in_view,
)
from cjepa_dist.models.predictor import SlotPredictor
from tests.evaluation.world import DIM, SLOTS, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("toy") / "data")


def config(**predictor):
    small = {
        "slots": SLOTS,
        "slot_dim": DIM,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "mlp_dim": 16,
        "predict_change": True,
    }
    return TrainWorldModel(data="", run="", predictor=PredictorConfig(**(small | predictor)))


def test_linear_extrapolation_follows_a_straight_line():
    line = torch.arange(3.0)[None, :, None, None] * torch.tensor([1.0, -2.0])
    assert torch.equal(
        extrapolate_linearly(line, 2)[0, :, 0], torch.tensor([[3.0, -6.0], [4.0, -8.0]])
    )
    assert torch.equal(
        extrapolate_linearly(line, 2, spacing=2)[0, :, 0], torch.tensor([[2.5, -5.0], [3.0, -6.0]])
    )
    assert torch.equal(extrapolate_linearly(line[:, :1], 2), copy_last_frame(line[:, :1], 2))


def test_an_object_that_has_just_entered_does_not_count():
    present = torch.tensor([[[True, False, True], [True, True, True], [True, True, False]]])
    assert in_view(present, 1, 1).tolist() == [[[True, False, True]]]
    assert in_view(present, 2, 1).tolist() == [[[True, True, False]]]
    assert in_view(present, 0, 5).tolist() == [[[True, False, True]]]


def test_probe_reads_positions_off_a_linear_embedding(world):
    probe = fit_position_probe(world, "train")
    assert probe is not None and probe.rmse < 0.02


def test_errors_by_class(world):
    settings = config()
    torch.manual_seed(0)
    predictor, control = SlotPredictor(settings.predictor), SlotPredictor(settings.predictor)
    result = evaluate_world_model(
        predictor, settings, world, "val", windows=500, videos=0, own_slot=control, draws=20
    )
    one = result["one_step"]["methods"]
    assert set(one) == {"copy", "linear", "predictor", "own_slot"}
    # The head of predict_change starts at zero: untrained, it is a copy of the last frame.
    assert one["predictor"]["all"]["mean"]["slot_mse"] == pytest.approx(
        one["copy"]["all"]["mean"]["slot_mse"], rel=1e-5
    )
    # Straight lines are extrapolated exactly, except for a contact between the last two frames.
    assert (
        one["linear"]["free"]["mean"]["slot_mse"]
        < one["linear"]["colliding"]["mean"]["slot_mse"] / 5
    )
    counts = {
        name: one["copy"][name]["mean"]["count"]
        for name in ("all", "colliding", "near_miss", "free")
    }
    assert (
        counts["colliding"] > 0
        and counts["all"] == counts["colliding"] + counts["near_miss"] + counts["free"]
    )
    assert (
        counts["all"] == 3 * result["one_step"]["windows"]
    )  # the fourth slot never holds an object
    low, high = one["copy"]["colliding"]["mean"]["slot_mse_ci"]
    assert low <= one["copy"]["colliding"]["mean"]["slot_mse"] <= high
    rolled = result["rollout"]["methods"]
    assert (
        rolled["linear"]["free"]["32"]["position_rmse"] < 0.05
        and rolled["linear"]["colliding"]["32"]["slot_mse"] > 1e-4
    )
    assert (
        rolled["linear"]["colliding"]["32"]["count"] == 2 * 6
        and rolled["linear"]["free"]["mean"]["count"] == 6 * 32
    )
    json.dumps(result, allow_nan=False)


def test_without_truth_only_slot_errors_over_all(world, tmp_path):
    with DatasetWriter(tmp_path / "bare", encoder="toy", source={}, dtype="float32") as writer:
        for split in ("train", "val"):
            for sample in read_split(world, split, ("slots.npy", "json")):
                writer.split(split).add(Sample(sample.key, sample.slots, sample.annotation))
    settings = config()
    result = evaluate_world_model(
        SlotPredictor(settings.predictor), settings, tmp_path / "bare", "val", windows=50, draws=5
    )
    cell = result["one_step"]["methods"]["copy"]["all"]["mean"]
    assert result["rollout"] is None and cell["position_rmse"] is None and cell["slot_mse"] > 0


def test_control_of_another_shape_is_refused(world):
    with pytest.raises(UserError, match="own_slot"):
        evaluate_world_model(
            SlotPredictor(config().predictor),
            config(),
            world,
            "val",
            own_slot=SlotPredictor(config(history_frames=2).predictor),
        )


def test_table_leaves_what_was_not_counted_empty():
    table = ErrorTable(["m"], ("all", "colliding"), ("mean",))
    seen = {
        "all": torch.ones(1, 1, 2, dtype=torch.bool),
        "colliding": torch.zeros(1, 1, 2, dtype=torch.bool),
    }
    table.add(np.array([3]), "m", "mean", torch.tensor([[[[1.0, 4.0], [3.0, 4.0]]]]), seen)
    cells = table.summary(position=True, draws=3, seed=0)["m"]
    assert (cells["all"]["mean"]["slot_mse"], cells["all"]["mean"]["position_rmse"]) == (2.0, 2.0)
    names = ("slot_mse", "slot_mse_ci", "position_rmse", "position_rmse_ci")
    assert cells["colliding"]["mean"] == {"count": 0, **dict.fromkeys(names)}
