"""Released checkpoints in and out: the same numbers, any wrapping, every command on such a run."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from cjepa_dist import evaluate, evaluate_graph, rollout
from cjepa_dist.checkpoint.loading import load_checkpoint, newest_checkpoint
from cjepa_dist.checkpoint.run import load_task
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config import merge
from cjepa_dist.config.schema import AloeConfig, PredictorConfig, TrainAloe, TrainWorldModel
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.models.aloe import Aloe
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.tasks.build import build_task
from data_prep import import_pickle
from tests.evaluation.world import make_world
from tests.fixtures import parity_tensors
from tests.tools.released import (
    ALOE_OPTIONS,
    ALOE_SIZES,
    OPTIONS,
    released,
    same,
)
from tools import export_checkpoint
from tools.import_checkpoint import __main__ as import_checkpoint

LAYOUTS = ("{}_pixels.mp4", "video_{:05d}.mp4")


# --- the released numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["predictor_small", "predictor_long"])
def test_both_settings_from_a_released_file_to_a_rollout(name, layout, run, imported, tmp_path):
    fixture, state = parity_tensors(name)
    history, future, skip = (
        int(fixture[key]) for key in ("history_frames", "pred_frames", "frameskip")
    )
    folder, _ = imported(
        {"state_dict": {f"model.predictor.{key}": value for key, value in state.items()}},
        "heads=4",
        "slots=5",
    )
    task, trained, step = load_task(folder)
    assert (
        trained.predictor.history_frames,
        trained.predictor.pred_frames,
        trained.frameskip,
        step,
    ) == (history, future, skip, 0)
    x = fixture["x"][:, :history]
    hidden = torch.zeros(len(x), 5, dtype=torch.bool)
    hidden[:, fixture["mask_indices"]] = True
    with torch.no_grad():
        torch.testing.assert_close(
            task.predictor(x, hidden), fixture["forward_out"], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            task.predictor.predict(x), fixture["inference_out"], atol=1e-5, rtol=0
        )

    videos = fixture["rollout_video"].numpy()
    content = {
        "train": {layout.format(3): videos[0]},
        "validation": {layout.format(10007): videos[1]},
    }
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(content))
    data, rolled = tmp_path / "data", tmp_path / "rolled"
    assert (
        run(import_pickle, f"source={tmp_path / 'slots.pkl'}", f"out={data}", "dtype=float32")[0]
        == 0
    )
    code, _, errors = run(rollout, f"world_model={folder}", f"data={data}", f"out={rolled}")
    assert code == 0, errors
    assert Manifest.load(rolled).keys("train") == ["video_00003"] and Manifest.load(rolled).keys(
        "val"
    ) == ["video_10007"]
    for split, video, expected in zip(("train", "val"), videos, fixture["rollout_out"].numpy()):
        slots = load_slots(rolled, split)[0]
        assert np.array_equal(slots[:128], video)
        np.testing.assert_allclose(slots[128:], expected, atol=1e-5, rtol=0)
    code, _, errors = run(
        evaluate, f"run={folder}", f"data={data}", "split=val", "bootstrap_draws=10", "windows=64"
    )
    assert code == 0, errors
    assert json.loads((folder / "eval" / "world_model_val.json").read_text())["step"] == 0


def test_released_aloe(imported):
    fixture, state = parity_tensors("aloe_small")
    folder, _ = imported(
        {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        *ALOE_OPTIONS,
    )
    task, trained, _ = load_task(folder)
    assert (trained.aloe.frames, trained.aloe.slots, trained.stride) == (5, 4, 5)
    with torch.no_grad():
        answers = task.aloe.answer_logits(
            fixture["in/cls_video_emb"], fixture["in/cls_q_tokens"], fixture["in/cls_q_pad_mask"]
        )
        slots = fixture["in/mc_video_emb"][fixture["in/mc_flag"]]
        choices = task.aloe.choice_logits(
            slots, fixture["in/mc_q_tokens"], fixture["in/mc_q_pad_mask"]
        )
    torch.testing.assert_close(answers, fixture["out/cls_answer_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(choices, fixture["out/mc_answer_logits"], atol=1e-5, rtol=0)


def test_published_sizes_need_no_options(imported):
    def settings(model):
        _, config, _ = load_task(imported(model.to_reference(), name=f"run{id(model)}")[0])
        return config

    paper, followup = (
        settings(
            SlotPredictor(PredictorConfig(history_frames=h, pred_frames=p, depth=1, mlp_dim=8))
        )
        for h, p in ((6, 10), (3, 1))
    )
    assert (paper.predictor.history_frames, paper.predictor.pred_frames, paper.frameskip) == (
        6,
        10,
        2,
    )
    assert (
        followup.predictor.history_frames,
        followup.predictor.pred_frames,
        followup.frameskip,
    ) == (3, 1, 5)
    assert all(
        (c.predictor.heads, c.predictor.slots, c.predictor.slot_dim) == (16, 7, 128)
        for c in (paper, followup)
    )
    aloe = settings(Aloe(AloeConfig(depth=1, mlp_dim=8)))
    assert (aloe.aloe.heads, aloe.aloe.frames, aloe.aloe.slots, aloe.stride) == (8, 25, 7, 5)


# --- wrapping, and back ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {
            "state_dict": {f"module.{k}": torch.nn.Parameter(v) for k, v in state.items()},
            "epoch": 30,
            "name": "x",
        },
        lambda state: {
            "model": {f"model.predictor.{k}": v for k, v in state.items()}
            | {"model.encoder.weight": torch.ones(2)}
        },
        lambda state: {
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
            "weights": {"net": state},
        },
    ],
)
def test_wrappings_and_export(wrap, state, run, imported, tmp_path):
    folder, _ = imported(wrap(state), *OPTIONS)
    assert same(load_task(folder)[0].predictor.to_reference(), state)
    code, out, errors = run(export_checkpoint, f"run={folder}", f"out={tmp_path / 'out.ckpt'}")
    assert code == 0 and "history_frames=3" in out and "heads=2" in out, errors
    content = torch.load(tmp_path / "out.ckpt", weights_only=True)
    assert list(content) == ["state_dict"] and same(content["state_dict"], state)
    again, _ = imported(content, *OPTIONS, name="again")
    assert same(
        load_task(again)[0].predictor.state_dict(), load_task(folder)[0].predictor.state_dict()
    )
    assert (
        run(export_checkpoint, f"run={folder}", f"out={tmp_path / 'out.ckpt'}")[0] == 2
    )  # it is there


def test_one_of_several_models(state, run, imported, tmp_path):
    other = {name: value + 1 for name, value in state.items()}
    both = {**state, "ema": other}
    torch.save(both, tmp_path / "both.ckpt")
    code, _, errors = run(
        import_checkpoint, f"source={tmp_path / 'both.ckpt'}", f"out={tmp_path / 'run'}", *OPTIONS
    )
    assert code == 2 and "several models: choose one of prefix=., prefix=ema" in errors[0]
    for prefix, expected in ((".", state), ("ema", other)):
        folder, _ = imported(both, f"prefix={prefix}", *OPTIONS, name=f"run{len(prefix)}")
        assert same(load_task(folder)[0].predictor.to_reference(), expected)


def test_aloe_there_and_back_and_evaluated(run, imported, tmp_path):
    state = released(Aloe(ALOE_SIZES))
    make_world(tmp_path / "data")
    folder, _ = imported(state, *ALOE_OPTIONS, f"data={tmp_path / 'data'}")
    assert run(export_checkpoint, f"run={folder}", f"out={tmp_path / 'out.ckpt'}")[0] == 0
    assert same(torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"], state)
    code, _, errors = run(evaluate, f"run={folder}", "starts=main", "bootstrap_draws=10")
    assert code == 0 and (folder / "eval" / "submission_val.json").exists(), errors


def test_options_that_the_released_layout_lacks(run, tmp_path):
    for number, config in enumerate(
        (
            TrainWorldModel(
                data="d",
                run="r",
                predictor=PredictorConfig(slot_dim=8, width=16, heads=2, depth=1, norm_first=True),
            ),
            TrainAloe(
                data="d", run="r", aloe=AloeConfig(width=16, heads=2, depth=1, shared_vision=True)
            ),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        config_path, task = folder / "config.yaml", build_task(config)
        merge.save_yaml(config, config_path)
        CheckpointWriter(folder / "checkpoints", keep=1).save(
            task, build_optimizers(task, config.optimizer), step=1, meta={}
        )
        code, _, errors = run(export_checkpoint, f"run={folder}", f"out={tmp_path / 'x.ckpt'}")
        expected = ("predictor.width=16, predictor.norm_first=True", "aloe.shared_vision=True")[
            number
        ]
        assert (
            code == 2 and len(errors) == 1 and f"the released layout has no {expected}" in errors[0]
        )
        assert sorted(os.listdir(tmp_path)) == [str(n) for n in range(number + 1)]


# --- the statistics that evaluate_graph needs ---------------------------------------------------


def test_statistics_are_measured_on_data(state, run, imported, tmp_path):
    data = make_world(tmp_path / "data")
    folder, out = imported(state, "heads=2", f"data={data}", "windows=150")
    assert "residuals of 150 windows" in out and "empty slot from the manifest" in out
    task, trained, _ = load_task(folder)
    assert trained.predictor.slots == 4 and trained.data == str(data)
    torch.testing.assert_close(task.empty, torch.tensor(Manifest.load(data).empty_slot))

    slots = torch.from_numpy(load_slots(data, "train"))  # all 12 x 109 windows
    windows = torch.stack([slots[:, s : s + 20 : 5] for s in range(109)], 1).flatten(0, 1)
    present = torch.from_numpy(
        np.stack([s.truth["present"][0] for s in read_split(data, "train")])
    ).repeat_interleave(109, 0)
    with torch.no_grad():
        square = (task.predictor.predict(windows[:, :3])[:, 0] - windows[:, 3]).square()[present]
    torch.testing.assert_close(task.sigma2, square.mean(0), rtol=0.1, atol=0)
    torch.testing.assert_close(
        task.tau, (square / task.sigma2 / 2).sum(-1).median(), rtol=0.1, atol=0
    )
    code, _, errors = run(
        evaluate_graph,
        f"run={folder}",
        f"data={data}",
        "windows=40",
        "bootstrap_draws=3",
        "figure_windows=2",
    )
    assert code == 0, errors
    restored = build_task(trained)  # as a training would continue it
    assert (
        load_checkpoint(
            newest_checkpoint(folder / "checkpoints"),
            restored,
            build_optimizers(restored, trained.optimizer),
        )["step"]
        == 0
    )
    assert same(restored.state_dict(), task.state_dict())


def test_without_data_it_says_so(state, run, imported):
    folder, out = imported(state, *OPTIONS)
    assert "residuals were not measured" in out and "data=DIR measures them" in out
    code, _, errors = run(evaluate, f"run={folder}")
    assert code == 2 and len(errors) == 1 and "imported; give data=DIR" in errors[0]


def test_as_modules(command, state, tmp_path):
    """`python -m`, as a user would."""
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    done = command(
        "tools.import_checkpoint",
        f"source={tmp_path / 'x.ckpt'}",
        f"out={tmp_path / 'run'}",
        *OPTIONS,
    )
    assert done.returncode == 0, done.stderr
    done = command(
        "tools.export_checkpoint", f"run={tmp_path / 'run'}", f"out={tmp_path / 'back.ckpt'}"
    )
    assert done.returncode == 0 and same(
        torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"], state
    ), done.stderr
