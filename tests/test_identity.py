"""No result is taken for another one: of another model, of other data, of other settings."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cjepa_dist import evaluate, evaluate_symbolic, report
from cjepa_dist.checkpoint.run import load_run, newest_fingerprint
from cjepa_dist.config import command_line, merge, schema
from cjepa_dist.data.format.fingerprint import dataset_fingerprint, differences
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.rollout import Rollout
from cjepa_dist.rollout import main as roll
from cjepa_dist.train_aloe import main as train_aloe
from tests.data.test_questions import question
from tests.data_prep.test_identity import tree
from tests.evaluation.world import make_world
from tests.reporting.untrained import ALOE, PREDICTOR, save_run
from tests.training.test_resume import TINY_WORLD

TRAIN = "cjepa_dist.train_world_model"


def save_model(run, data, seed=0):
    """A world model with a checkpoint of step 7, in the place of another of that step."""
    shutil.rmtree(run, ignore_errors=True)
    config = schema.TrainWorldModel(
        data=str(data),
        run=str(run),
        seed=seed,
        predictor=schema.PredictorConfig(**PREDICTOR),
    )
    return save_run(config)


def other_videos(data, splits=("train", "val")):
    """Other videos in the place of a toy data set; `splits` only."""
    kept = [s for s in Manifest.load(data).splits if s not in splits]
    samples = {split: list(read_split(data, split)) for split in Manifest.load(data).splits}
    manifest = Manifest.load(data)
    shutil.rmtree(data)
    with DatasetWriter(
        data,
        encoder=manifest.encoder,
        source=manifest.source,
        dtype=manifest.dtype,
        empty_slot=manifest.empty_slot,
    ) as writer:
        for split, videos in samples.items():
            for sample in videos:
                slots = sample.slots if split in kept else sample.slots[::-1].copy()
                writer.split(split).add(dataclasses.replace(sample, slots=slots, stored={}))


@pytest.fixture
def world(tmp_path):
    data = make_world(tmp_path / "data", train=6, val=6)
    save_model(tmp_path / "model", data)
    return tmp_path


def rollout(world, name="rolled", **changes):
    given = {
        "world_model": str(world / "model"),
        "data": str(world / "data"),
        "out": str(world / name),
        "future_frames": 8,
    }
    return roll(merge.build(Rollout, given | changes))


# --- rollouts


def test_a_model_of_the_same_path_and_step_is_another_model(world, capsys):
    rollout(world)
    before = tree(world / "rolled")
    save_model(world / "model", world / "data", seed=1)
    with pytest.raises(UserError, match=r"differs in world_model\.weights, world_model\.config;"):
        rollout(world)
    assert tree(world / "rolled") == before
    assert rollout(world, redo=True) == 0
    after = tree(world / "rolled")
    assert after.keys() == before.keys() and after != before
    save_model(world / "model", world / "data", seed=1)  # the same training again
    capsys.readouterr()
    rollout(world)
    assert "already holds this rollout" in capsys.readouterr().out


def test_an_experiment_replaces_a_rollout_of_an_earlier_model(world, capsys):
    rollout(world, replace_stale=True)
    before = tree(world / "rolled")
    with pytest.raises(UserError, match="future_frames"):  # that is no matter of the model
        rollout(world, replace_stale=True, future_frames=4)
    save_model(world / "model", world / "data", seed=1)
    with pytest.raises(UserError, match="future_frames"):
        rollout(world, replace_stale=True, future_frames=4)
    shutil.copytree(world / "model", world / "other")
    with pytest.raises(UserError, match=r"world_model\.run"):
        rollout(world, replace_stale=True, world_model=str(world / "other"))
    assert tree(world / "rolled") == before
    rollout(world, replace_stale=True)
    assert "of an earlier model" in capsys.readouterr().out and tree(world / "rolled") != before
    rollout(world, replace_stale=True)
    assert "already holds this rollout" in capsys.readouterr().out


def test_a_rollout_of_other_data_splits_and_settings(world):
    rollout(world, splits=["val"])
    for changes, differs in (
        ({"splits": ["train"]}, "data.shards.val, data.shards.train, splits"),
        ({}, "data.shards.train, splits"),
        ({"splits": ["val"], "videos": 3}, r"videos"),
        ({"splits": ["val"], "future_frames": 4}, r"future_frames \(8, not 4\)"),
        ({"splits": ["val"], "mode": "free"}, r"mode \(future, not free\), all_objects"),
    ):
        with pytest.raises(UserError, match=f"it differs in {differs}"):
            rollout(world, **changes)
    other_videos(world / "data", splits=("train",))
    assert rollout(world, splits=["val"]) == 0  # of the split that changed nothing was read
    other_videos(world / "data", splits=("val",))
    with pytest.raises(UserError, match=r"it differs in data\.shards\.val;"):
        rollout(world, splits=["val"])


def test_a_rollout_of_a_rollout(world):
    rollout(world)
    with pytest.raises(UserError, match=r"rolled is a rollout: .* give data=.*/data, which it was"):
        rollout(world, "twice", data=str(world / "rolled"))
    manifest = Manifest.load(world / "rolled")
    manifest.source = {"made_by": "data_prep.match", "of": manifest.source}
    manifest.save(world / "rolled")
    with pytest.raises(UserError, match="is a rollout"):
        rollout(world, "twice", data=str(world / "rolled"))
    assert not (world / "twice").exists()


def test_redo_never_replaces_the_data(world):
    with pytest.raises(UserError, match="which is read"):
        rollout(world, "data", redo=True)


# --- training


def test_a_run_never_goes_on_with_other_data(small_data, command, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(small_data, data)
    arguments = (*TINY_WORLD, "loop.steps=4", "loop.checkpoint_every=2", f"run={run}")
    done = command(TRAIN, *arguments, f"data={data}", "loop.stop_at_step=2")
    assert done.returncode == 0, done.stderr
    recorded = json.loads((run / "data.json").read_text())
    assert not differences(recorded, dataset_fingerprint(Manifest.load(data), ("train", "val")))
    other_videos(data, splits=("train",))
    before = tree(run)
    done = command(TRAIN, *arguments, f"data={data}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "trained on other data" in done.stderr and "shards.train;" in done.stderr
    assert tree(run) == before
    # The same data elsewhere, here without the split that the run does not read.
    copy = tmp_path / "copy"
    shutil.copytree(small_data, copy)
    manifest = Manifest.load(copy)
    del manifest.splits["test"]
    manifest.save(copy)
    done = command(TRAIN, *arguments, f"data={copy}")
    assert done.returncode == 0 and (run / "done.json").exists(), done.stderr


# --- evaluations and reports


def measure(world, **changes):
    settings = {"bootstrap_draws": 10, "windows": 64, "videos": 4}
    return evaluate.main(evaluate.Evaluate(run=str(world / "model"), **settings, **changes))


def test_an_evaluation_says_of_what_it_is(world):
    measure(world)
    found = json.loads((world / "model" / "eval" / "world_model_val.json").read_text())
    assert found["fingerprint"] == {
        "model": load_run(world / "model").fingerprint,
        "data": dataset_fingerprint(Manifest.load(world / "data"), ["val"]),
    }
    assert found["fingerprint"]["model"] == newest_fingerprint(world / "model")


def test_a_run_is_not_evaluated_on_data_that_took_the_place_of_its_own(world):
    fingerprint = dataset_fingerprint(Manifest.load(world / "data"), ("train", "val"))
    (world / "model" / "data.json").write_text(json.dumps(fingerprint))
    other_videos(world / "data", splits=("val",))
    with pytest.raises(UserError, match=r"other data than .* differ in shards\.val; restore"):
        measure(world)
    assert not (world / "model" / "eval").exists()
    measure(world, data=str(world / "data"))  # they are asked for by name


def report_warnings(world, capsys):
    settings = {"out": str(world / "report"), "bootstrap_draws": 10, "graphs": False, "scenes": 0}
    capsys.readouterr()
    report.main(report.Report(runs=str(world / "model"), **settings))
    return capsys.readouterr().err


def test_a_report_names_stale_results(world, capsys):
    measure(world)
    assert not report_warnings(world, capsys)
    shutil.move(world / "model" / "eval", world / "eval")
    save_model(world / "model", world / "data", seed=1)
    shutil.move(world / "eval", world / "model" / "eval")
    said = report_warnings(world, capsys)
    assert "world_model_val.json is of another model than" in said and "evaluate again" in said
    measure(world)
    assert not report_warnings(world, capsys)
    other_videos(world / "data")
    assert "world_model_val.json is of other data than" in report_warnings(world, capsys)
    with pytest.raises(UserError, match="incomplete"):
        report.main(
            report.Report(runs=str(world / "model"), out=str(world / "r"), scenes=0, strict=True)
        )


def test_answers_from_a_rollout_of_a_model_that_is_gone(world):
    rollout(world)
    save_model(world / "model", world / "data", seed=1)
    config = evaluate_symbolic.EvaluateSymbolic(
        data=str(world / "rolled"), probe_videos=4, out=str(world / "model" / "eval")
    )
    with pytest.raises(UserError, match=r"rolled out by another model than .* redo=true"):
        evaluate_symbolic.main(config)
    assert not (world / "model" / "eval").exists()


# --- answers


def write_questions(folder, answers):
    """A video a shard; answers[v]: whether the questions of video v have answers."""
    with DatasetWriter(folder, encoder="toy", source={}, shard_mb=1) as writer:
        for split, first in (("train", 0), ("val", 100)):
            for v, known in enumerate(answers):
                known = known or split == "val"
                sample = next(read_split(folder.parent / "plain", "train"))
                asked = [question(i, answers=known) for i in range(2)]
                name = f"video_{first + v:05d}"
                content = {"scene_index": first + v, "video_filename": name, "questions": asked}
                slots = np.resize(sample.slots, (128, 64, 32)).astype(np.float16)  # 512 KiB
                writer.split(split).add(
                    dataclasses.replace(
                        sample, key=name, slots=slots, questions=content, truth=None, stored={}
                    )
                )
    return folder


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
@pytest.mark.parametrize("answers", [[False] * 4, [True, True, True, True, False, False]])
def test_a_split_without_answers_trains_no_aloe(tmp_path, kind, answers):
    make_world(tmp_path / "plain", train=1, val=1)
    data = write_questions(tmp_path / "data", answers)
    size = {**ALOE, "slots": 64, "slot_dim": 32}
    arguments = [f"aloe.{name}={value}" for name, value in size.items()]
    config = command_line.parse(
        schema.TrainAloe,
        [f"data={data}", f"run={tmp_path / 'run'}", f"reading.kind={kind}", *arguments],
    )
    with pytest.raises(UserError, match=r"answers|has no answer"):
        train_aloe(config)
    assert not Path(config.run).exists()


def test_a_val_split_without_answers_validates_nothing(tmp_path):
    make_world(tmp_path / "plain", train=1, val=1)
    data = write_questions(tmp_path / "data", [True, True])
    size = {**ALOE, "slots": 64, "slot_dim": 32}
    manifest = Manifest.load(data)
    bare = write_questions(tmp_path / "bare", [False, False])
    shutil.rmtree(data / "val")
    shutil.copytree(bare / "train", data / "val")
    manifest.splits["val"] = Manifest.load(bare).splits["train"]
    manifest.save(data)
    arguments = [f"aloe.{name}={value}" for name, value in size.items()]
    config = command_line.parse(
        schema.TrainAloe, [f"data={data}", f"run={tmp_path / 'run'}", *arguments]
    )
    with pytest.raises(UserError, match=r"split val of .* without answers"):
        train_aloe(config)
