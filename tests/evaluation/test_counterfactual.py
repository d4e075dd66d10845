"""Metrics of counterfactual rollouts: the truth against itself, known contacts, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cjepa_dist.causal.counterfactual_rollout import deinterleave
from cjepa_dist.causal.divergence import RolloutBlock
from cjepa_dist.clevrer.questions import scene_objects
from cjepa_dist.config import schema
from cjepa_dist.config.merge import build
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from cjepa_dist.evaluate_counterfactual import EvaluateCounterfactual, main
from cjepa_dist.evaluation.counterfactual import CounterfactualEvaluator, evaluate_counterfactual
from cjepa_dist.evaluation.counterfactual_metrics import (
    collision_episodes,
    gap_closed,
    precision_recall_f1,
)
from cjepa_dist.evaluation.counterfactual_scenes import cumulative_contacts
from cjepa_dist.evaluation.event_decoder import fit_event_decoder
from cjepa_dist.reporting import tables
from cjepa_dist.tasks.build import build_task
from tests.reporting.test_report import save_run

PREDICTOR = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 16,
    "norm_first": True,
    "predict_change": True,
}


def config(data, run=""):
    return schema.TrainWorldModel(
        data=str(data), run=str(run), frameskip=5, predictor=schema.PredictorConfig(**PREDICTOR)
    )


@pytest.fixture(scope="module")
def decoder(small_data):
    return fit_event_decoder(small_data, "train", videos=16)


@pytest.fixture(scope="module")
def evaluator(small_data, decoder):
    torch.manual_seed(0)
    task = build_task(config(small_data))
    torch.nn.init.normal_(task.predictor.head.weight, std=0.1)
    task.empty.copy_(decoder.empty)
    return CounterfactualEvaluator(task, decoder, GraphConfig(), 0)


@pytest.fixture(scope="module")
def result(evaluator, small_data):
    rules = ["truth", "free", "paired:1e9", "contacts", "distance"]
    return evaluate_counterfactual(
        evaluator, small_data, "val", rules, videos=4, batch_size=3, draws=20, seed=0
    )


def test_the_truth_has_only_the_probes_error(result, evaluator):
    truth = result["rules"]["truth"]
    for name in ("affected", "unaffected"):
        assert truth[name]["mean"]["slot_mse"] == 0 and truth[name]["mean"]["position_rmse"] < 0.1
    assert truth["divergence"]["precision"]["value"] == truth["divergence"]["recall"]["value"] == 1
    assert (
        truth["collisions"]["f1"]["value"] > 0.4 and truth["changed_collisions"]["value"] > 0.4
    )  # the decoder knows 16 videos
    json.dumps(result, allow_nan=False)


def test_what_changes_nothing_finds_nothing(result):
    factual, cautious = result["rules"]["factual"], result["rules"]["paired:1e9"]
    assert (
        factual["divergence"]["recall"]["value"] == 0
        and factual["divergence"]["precision"]["value"] is None
    )
    assert (
        factual["unaffected"]["mean"]["slot_mse"] == 0
    )  # to the bit, so what is not touched has no error
    assert (
        factual["gap_closed"]["value"] == 0
        and result["rules"]["oracle"]["gap_closed"]["value"] == 1
    )
    assert {k: v for k, v in cautious.items() if k != "gap_closed"} == {
        k: v for k, v in factual.items() if k != "gap_closed"
    }


def test_the_oracle_diverges_where_the_truth_does(result):
    found = result["rules"]["oracle"]
    assert (
        found["divergence"]["recall"]["value"] > 0.9
        and found["divergence"]["precision"]["value"] == 1
    )
    assert found["unaffected"]["mean"]["slot_mse"] == 0
    assert result["rules"]["free"]["unaffected"]["mean"]["slot_mse"] > 0


def test_errors_are_counted_by_frames_since_divergence(result):
    cells = result["rules"]["oracle"]["affected"]
    assert (
        sum(cell["count"] for name, cell in cells.items() if name != "mean")
        == cells["mean"]["count"]
        > 0
    )
    assert "| rule |" in "\n".join(tables.counterfactual_tables({"m": result}))


def test_episodes_by_hand():
    rows = np.array([(3, 0, 1), (5, 0, 1), (20, 0, 1), (9, 1, 2), (130, 0, 2)])
    contacts, present = cumulative_contacts(rows, (160, 3)), np.ones((160, 3), bool)
    assert collision_episodes(contacts, present) == {(0, 1, 3), (0, 1, 20), (1, 2, 9)}
    present[9, 2] = False
    assert collision_episodes(contacts, present) == {(0, 1, 3), (0, 1, 20)}


def test_labels_of_windows_are_those_of_training(evaluator, small_data):
    """In the factual world `labels` and ResidentWindows must say the same of the same window."""
    scenes = next(evaluator.batches(small_data, "val", 2, 4))
    source = InMemoryWindows(
        str(small_data), "val", WindowSpec(history_frames=3, pred_frames=1, frameskip=5), truth=True
    )
    for start in (15, 40, 105):
        rows = torch.arange(len(scenes.video))
        past = deinterleave(scenes.slots[scenes.video, start - 15 : start], 5)
        nothing = torch.zeros(0)
        block = RolloutBlock(start, rows, past, past, nothing, nothing, nothing, nothing)
        found = evaluator.window_labels(scenes, block, True)
        keys = [key for key in source.keys if any(key == s.key for s in scenes.samples)]
        ids = np.array(
            [
                source.keys.index(keys[v]) * source.windows_per_video + start - 15 + k
                for v in scenes.video.tolist()
                for k in range(5)
            ]
        )
        expected = source.get_batch(ids, ids)
        assert torch.equal(found["contact"], expected["contact"])
        assert torch.equal(found["position"], expected["position"])


def test_rates_and_gaps_by_hand():
    table = precision_recall_f1(np.array([[[1, 2, 4]], [[2, 2, 4]]]))
    assert table.tolist() == [[0.75, 0.375, 0.5]]
    sums = np.zeros((1, 3, 2, 1, 3))
    sums[0, :, 0, 0] = [(0, 16, 1), (0, 4, 1), (0, 1, 1)]  # position errors 4, 2, 1
    assert gap_closed(sums, ["factual", "mine", "oracle"]).tolist() == [0, 2 / 3, 1]


def test_the_command(small_data, tmp_path):
    run = save_run(config(small_data, tmp_path / "run"))
    settings = {
        "run": str(run),
        "data": str(small_data),
        "videos": 3,
        "rules": ["paired", "shuffled"],
        "bootstrap_draws": 10,
        "probe_videos": 16,
    }
    assert main(build(EvaluateCounterfactual, settings)) == 0
    found = json.loads((run / "eval" / "counterfactual_val.json").read_text())
    assert (
        list(found["rules"]) == ["factual", "oracle", "paired", "shuffled"] and found["step"] == 7
    )
    assert (run / "eval" / "counterfactual_val.png").read_bytes().startswith(b"\x89PNG")
    assert EventAccumulator(str(run)).Reload().Tags()["images"] == ["counterfactual/val"]
    for wrong in ("sideways", "paired:", "paired:0"):
        with pytest.raises(UserError, match="rules"):
            main(build(EvaluateCounterfactual, settings | {"rules": [wrong]}))
    with pytest.raises(UserError, match="counterfactual_splits"):
        main(build(EvaluateCounterfactual, settings | {"split": "train"}))


def test_worlds_that_nobody_asked_for_are_no_videos(evaluator, small_data, decoder):
    known = list(read_split(small_data, "val", videos=3))
    assert sum(len(s.samples) for s in evaluator.batches(small_data, "val", 3, 2)) == sum(
        len(sample.truth["counterfactual_removed"]) > 0 for sample in known
    )
    assert (
        replace(decoder, contact_distance=0.0)
        .history(
            known[0].slots,
            known[0].truth["slot_object"].astype(int),
            scene_objects(known[0].annotation),
        )
        .collisions
        == []
    )
