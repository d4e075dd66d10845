"""The whole path on a small world, as a user runs it; then TensorBoard, run directory, report."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cjepa_dist.checkpoint.run import load_task
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from tests.training.test_resume import TINY_ALOE, TINY_WORLD


@pytest.fixture(scope="module")
def made(command, small_data, tmp_path_factory):
    """Folders of a world model, its own-slot control, the rollout, ALOE and the report."""
    home = tmp_path_factory.mktemp("pipeline")
    names = ("model", "own", "rolled", "aloe", "report")
    model, own, rolled, aloe, report = (home / name for name in names)
    steps = (
        "loop.steps=4",
        "loop.log_every=1",
        "ctt.invariance.start=0",
        "ctt.invariance.ramp=0",
        "ctt.sufficiency.ramp=0",
    )
    for module, *arguments in (
        ("cjepa_dist.train_world_model", f"data={small_data}", f"run={model}", *TINY_WORLD, *steps),
        (
            "cjepa_dist.train_world_model",
            f"data={small_data}",
            f"run={own}",
            *TINY_WORLD,
            *steps,
            "predictor.own_slot_only=true",
        ),
        ("cjepa_dist.evaluate", f"run={model}", "split=val", f"own_slot={own}"),
        (
            "cjepa_dist.evaluate_graph",
            f"run={model}",
            f"data={small_data}",
            "split=val",
            "windows=64",
            "bootstrap_draws=20",
        ),
        ("cjepa_dist.rollout", f"world_model={model}", f"data={small_data}", f"out={rolled}"),
        ("data_prep.verify", f"data={rolled}"),
        (
            "cjepa_dist.train_aloe",
            f"data={rolled}",
            f"run={aloe}",
            *TINY_ALOE,
            "group_by_video=true",
            "aloe.shared_vision=true",
        ),
        ("cjepa_dist.evaluate", f"run={aloe}", "split=val"),
        ("cjepa_dist.report", f"runs={aloe}", f"out={report}", "strict=true"),
    ):
        done = command(module, *arguments)
        assert done.returncode == 0, (module, done.stdout, done.stderr)
    return dict(zip(names, (model, own, rolled, aloe, report)))


def test_rollout_copies_what_was_observed_and_appends_the_prediction(made, small_data):
    task, config, step = load_task(made["model"])
    manifest = Manifest.load(made["rolled"])
    assert (manifest.frames, manifest.source["step"], step) == (160, 4, 4)
    for before, after in zip(
        read_split(small_data, "test"), read_split(made["rolled"], "test"), strict=True
    ):
        assert np.array_equal(before.slots, after.slots[:128])
        assert (before.key, before.questions, before.annotation) == (
            after.key,
            after.questions,
            after.annotation,
        )
        kept = {
            name for name in before.truth if not name.startswith("counterfactual_")
        }  # the simulator's worlds stay with the data
        assert set(after.truth) == kept and all(
            np.array_equal(before.truth[name], after.truth[name]) for name in kept
        )
    with torch.no_grad():
        future = task.predictor.rollout(
            torch.from_numpy(before.slots[None]).float(), 32, config.frameskip
        )[0]
    # Not equal: batches of another size sum in another order, and float16 may round differently.
    np.testing.assert_allclose(
        after.slots[128:].astype(np.float32), future.numpy(), rtol=1e-3, atol=1e-3
    )


def test_tensorboard(made):
    events = EventAccumulator(str(made["model"])).Reload()
    scalars = events.Tags()["scalars"]
    wanted = (
        "loss_future",
        "loss_masked_history",
        "loss_invariance",
        "loss_sufficiency",
        "learning_rate",
        "gradient_norm",
    )
    for name in (*wanted, "samples_per_second", "data_wait_share"):
        assert [event.step for event in events.Scalars(f"train/{name}")] == [1, 2, 3, 4], name
    assert "val/loss_future" in scalars and any(
        tag.startswith("graph/") for tag in events.Tags()["images"]
    )
    plugins = events.summary_metadata
    assert any("hparams" in tag for tag in plugins)
    aloe = EventAccumulator(str(made["aloe"])).Reload().Tags()["scalars"]
    for kind in ("descriptive", "explanatory", "counterfactual"):
        assert f"val/accuracy_{kind}" in aloe


def test_run_folder_says_how_it_was_made(made):
    environment = json.loads((made["model"] / "environment.json").read_text())
    assert (
        environment["versions"]["torch"]
        and environment["processes"] == 1
        and "cjepa_dist.train_world_model" in environment["command"]
    )
    assert (made["model"] / "done.json").exists() and (made["model"] / "config.yaml").exists()


def test_submission_is_what_the_server_takes(made, small_data):
    content = json.loads((made["aloe"] / "eval" / "submission_val.json").read_text())
    questions = {
        sample.questions["scene_index"]: sample.questions["questions"]
        for sample in read_split(small_data, "val")
    }
    assert [video["scene_index"] for video in content] == sorted(questions)
    for video in content:
        asked = questions[video["scene_index"]]
        assert [q["question_id"] for q in video["questions"]] == [q["question_id"] for q in asked]
        for answer, question in zip(video["questions"], asked):
            if question["question_type"] == "descriptive":
                assert answer.keys() == {"question_id", "answer"}
            else:
                assert [c["choice_id"] for c in answer["choices"]] == [
                    c["choice_id"] for c in question["choices"]
                ]
                assert {c["answer"] for c in answer["choices"]} <= {"correct", "wrong"}


def test_report(made):
    text = (made["report"] / "report.md").read_text()
    for part in (
        "same predictor, own slot only",
        "interventional:empty",
        "extrapolated_distance",
        "majority",
        "C-JEPA",
        "counterfactual",
    ):
        assert part in text, part
    assert "Warning" not in text
    page = (made["report"] / "report.html").read_text()
    assert "No scene could be drawn" not in page and 1e5 < len(page) < 5e6
    for plot in ("errors-colliding", "edges-near-miss-0", "accuracy", "learning-aloe-loss"):
        assert f'id="plot-{plot}"' in page, plot
    for picture in ("vqa.png", "world_model.png"):
        assert (made["report"] / picture).read_bytes().startswith(
            b"\x89PNG"
        ) and f"]({picture})" in text


def test_rolling_out_again_changes_nothing(made, command, small_data):
    before = (made["rolled"] / "manifest.json").stat().st_mtime_ns
    done = command(
        "cjepa_dist.rollout",
        f"world_model={made['model']}",
        f"data={small_data}",
        f"out={made['rolled']}",
    )
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert (made["rolled"] / "manifest.json").stat().st_mtime_ns == before
