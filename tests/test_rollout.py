"""`cjepa_dist.rollout` with worlds: what it writes, with processes, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest

from cjepa_dist.config.merge import build
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import open_videos, read_split
from cjepa_dist.data.format.sample import ANNOTATION, QUESTIONS, Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.rollout import Rollout, main
from tests.training.test_resume import TINY_WORLD

WORLDS = ("counterfactual", "free", "factual", "truth")


@pytest.fixture(scope="module")
def run(command, small_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollout") / "model"
    done = command(
        "cjepa_dist.train_world_model",
        f"data={small_data}",
        f"run={folder}",
        *TINY_WORLD,
        "loop.steps=4",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def roll(run, small_data, tmp_path_factory):
    home = tmp_path_factory.mktemp("rolled")

    def made(name, **changes):
        settings = {
            "world_model": str(run),
            "data": str(small_data),
            "out": str(home / name),
            "splits": ["val"],
            "videos": 4,
        }
        assert main(build(Rollout, settings | changes)) == 0
        return home / name

    return made


@pytest.fixture(scope="module")
def rolled(roll):
    return {mode: list(read_split(roll(mode, mode=mode), "val")) for mode in WORLDS}


def test_worlds_are_those_that_questions_remove(rolled, small_data):
    count = 0
    for before, *after in zip(
        read_split(small_data, "val", videos=4), *rolled.values(), strict=True
    ):
        asked = before.truth["counterfactual_removed"]
        count += len(asked)
        for mode, sample in zip(rolled, after):
            worlds = sample.worlds
            assert np.array_equal(worlds["removed"], asked) and worlds["removed"].dtype == np.int8
            assert (
                worlds["slots"].shape == (len(asked), 160, 7, 128)
                and worlds["slots"].dtype == sample.slots.dtype
            )
            assert (
                worlds["diverged"].shape == (len(asked), 7) and worlds["diverged"].dtype == np.int16
            )
            assert (
                np.array_equal(sample.slots[:128], before.slots)
                and sample.questions == before.questions
            )
            for r, slots, diverged in zip(asked, worlds["slots"], worlds["diverged"]):
                assert diverged[r] == 0
                if mode != "truth":
                    assert (slots[:, r] == np.array(before.truth["empty_slot"], slots.dtype)).all()
                for s in set(range(7)) - {
                    r
                }:  # the factual world to the bit, as long as it has not diverged
                    assert np.array_equal(
                        slots[: diverged[s], s], sample.slots[: diverged[s], s]
                    ), (mode, s)
                assert (mode == "truth" or mode != "factual") or (
                    np.delete(diverged, r) == 160
                ).all()
                assert mode != "free" or (np.delete(diverged, r) == 15).all()
    assert count > 2


def test_futures_agree(rolled, roll, small_data):
    folder = roll("future")
    for one, other in zip(read_split(folder, "val"), rolled["counterfactual"], strict=True):
        assert np.array_equal(one.slots, other.slots) and one.worlds is None
    for (old, key), (new, same_key) in zip(
        open_videos(small_data, "val", 4), open_videos(folder, "val"), strict=True
    ):
        assert key == same_key
        for member in (ANNOTATION, QUESTIONS):
            assert new.read_bytes(key, member) == old.read_bytes(key, member)


def test_processes_and_groups_change_nothing(rolled, roll):
    folder = roll("workers", mode="counterfactual", workers=2, batch_size=3, precision="float32")
    alone = roll("alone", mode="counterfactual", batch_size=8, precision="float32")
    for one, other in zip(read_split(folder, "val"), read_split(alone, "val"), strict=True):
        assert np.array_equal(one.worlds["diverged"], other.worlds["diverged"])
        np.testing.assert_allclose(
            *(s.worlds["slots"].astype(np.float32) for s in (one, other)), rtol=1e-3, atol=2e-3
        )


def test_bench_takes_the_start_out(run, small_data, command, tmp_path):
    arguments = (
        f"world_model={run}",
        f"data={small_data}",
        "few=1",
        "many=8",
        "rounds=1",
        "variants=[free]",
        f"out={tmp_path / 'bench.json'}",
    )
    done = command("tools.bench", "counterfactual", *arguments)
    assert done.returncode == 0 and "| free | " in done.stdout, done.stderr
    assert len(json.loads((tmp_path / "bench.json").read_text())["seconds"]["free"]) == 1
    done = command("tools.bench", "counterfactual", *arguments, "many=9")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "<= 8" in done.stderr


def test_every_object(roll):
    for sample in read_split(
        roll(
            "all", mode="counterfactual", all_objects=True, videos=1, divergence="attention_rollout"
        ),
        "val",
    ):
        held = sample.truth["slot_object"] >= 0
        assert sorted(sample.worlds["removed"]) == np.flatnonzero(held).tolist()


def test_truth_is_what_was_simulated(rolled, small_data):
    simulated = {sample.key: sample.truth for sample in read_split(small_data, "val")}
    for sample in rolled["truth"]:
        assert np.array_equal(sample.worlds["slots"], simulated[sample.key]["counterfactual_slots"])
        assert np.array_equal(sample.slots[128:], sample.truth["future_slots"])


def test_the_true_divergence_is_taken_as_it_is(roll, rolled):
    for sample, truth in zip(
        read_split(roll("oracle", mode="counterfactual", divergence="oracle"), "val"),
        rolled["truth"],
        strict=True,
    ):
        found, true, r = (
            sample.worlds["diverged"],
            truth.worlds["diverged"],
            np.arange(len(truth.worlds["removed"])),
        )
        assert (found >= true).all()
        seen = truth.truth["present"][
            np.clip(true - 5, 0, 159), np.arange(7)
        ]  # at the last history frame; who is not cannot be predicted
        seen &= (true >= 15) | (np.arange(7) == truth.worlds["removed"][r, None])
        assert np.array_equal(found[seen | (true == 160)], true[seen | (true == 160)]) and (
            seen & (true < 160)
        ).sum() > len(r)


def test_match_takes_the_place_of_truth(roll, small_data, tmp_path, rolled, capsys):
    """Real data: no truth, no programs. An object that no slot holds has no world."""
    manifest = Manifest.load(small_data)
    with DatasetWriter(
        tmp_path / "real", encoder="x", source={}, empty_slot=manifest.empty_slot
    ) as writer:
        for sample in read_split(small_data, "val"):
            spoken = json.loads(json.dumps(sample.questions))
            for question in spoken["questions"]:
                question.pop("program", None)
            match = {"slot_object": sample.truth["slot_object"].copy()}
            if sample.key.endswith("0"):
                match["slot_object"][:] = -1
                asked = sum(
                    question["question_type"] == "counterfactual"
                    for question in spoken["questions"]
                )
            writer.split("val").add(
                dataclasses.replace(sample, questions=spoken, truth=None, match=match)
            )
    for one, other in zip(
        read_split(roll("matched", data=str(tmp_path / "real"), mode="counterfactual"), "val"),
        rolled["counterfactual"],
        strict=True,
    ):
        if one.key.endswith("0"):
            assert one.worlds["slots"].shape == (0, 160, 7, 128)
        else:
            assert np.array_equal(one.worlds["removed"], other.worlds["removed"])
    assert (
        asked
        and f"{asked} of " in (said := capsys.readouterr().out)
        and "counterfactual questions excluded: no slot holds" in said
    )


def test_again_is_nothing_to_do_and_other_settings_are_refused(roll, capsys):
    roll("again", mode="factual")
    roll("again", mode="factual", batch_size=5, workers=2)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"another data set: it differs in mode \(factual, not free"
    ):
        roll("again", mode="free")


def test_refusals_are_one_line(roll, small_data, tmp_path):
    with pytest.raises(UserError, match="world_model"):
        roll("x", world_model="", mode="counterfactual")
    with pytest.raises(UserError, match="counterfactual_splits"):
        roll("x", splits=["train"], mode="truth")
    with pytest.raises(UserError, match="counterfactuals=all"):
        roll("x", mode="truth", all_objects=True)
    with pytest.raises(UserError, match="33"):
        roll("x", mode="truth", future_frames=33)
    with DatasetWriter(tmp_path / "bare", encoder="x", source={}, empty_slot=None) as writer:
        for sample in read_split(small_data, "val"):
            writer.split("val").add(Sample(sample.key, sample.slots, sample.annotation))
    with pytest.raises(UserError, match="empty slot"):
        roll("x", data=str(tmp_path / "bare"), mode="counterfactual")
    with pytest.raises(UserError, match="no questions that could remove an object"):
        roll("x", data=str(tmp_path / "bare"), mode="truth")
    with pytest.raises(UserError, match=r"match\.npz"):
        roll("x", data=str(tmp_path / "bare"), mode="truth", all_objects=True)
