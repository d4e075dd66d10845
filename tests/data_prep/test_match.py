"""Slots are matched with annotated objects without labels; wrong annotations match nothing."""

import dataclasses

import numpy as np
import pytest

from cjepa_dist.clevrer.questions import removed_objects, scene_objects
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.ground_truth import load_presence
from cjepa_dist.data.questions import InMemoryQuestions
from cjepa_dist.data.removed_slots import removed_slots
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from data_prep.match import Match, main
from data_prep.simulate.__main__ import main as simulate
from data_prep.simulate.settings import Simulate

NOTHING = {"questions": "none", "influence": "none", "counterfactuals": "none", "workers": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "noisy"
    simulate(Simulate(out=str(out), train=40, val=6, test=0, encoder="noisy", seed=5, **NOTHING))
    return out


def rewritten(world, out, change):
    """The same data set without truth, each sample changed."""
    manifest = Manifest.load(world)
    with DatasetWriter(out, encoder="test", source={}, empty_slot=None) as writer:
        for split in manifest.splits:
            for i, sample in enumerate(read_split(world, split)):
                writer.split(split).add(change(i, dataclasses.replace(sample, truth=None)))
    return out


def run(data, out, **options):
    main(Match(data=str(data), out=str(out), **options))
    assert verify_dataset(out) == []
    return {
        sample.key: sample.match
        for split in Manifest.load(out).splits
        for sample in read_split(out, split)
    }


def test_every_object_is_found_and_ground_truth_is_not_used(world, tmp_path, capsys):
    found = run(world, tmp_path / "with")
    assert "100.00 % of" in capsys.readouterr().out
    blind = run(rewritten(world, tmp_path / "bare", lambda i, sample: sample), tmp_path / "without")
    assert "no ground truth to compare with" in capsys.readouterr().out
    assert len(found) == 46
    for sample in read_split(world, "val"):
        match, truth = found[sample.key], sample.truth
        assert all(np.array_equal(match[name], blind[sample.key][name]) for name in match)
        visible = truth["present"][:128].any(0)
        assert np.array_equal(match["slot_object"][visible], truth["slot_object"][visible])
        assert np.array_equal(match["present"], truth["present"][:128])
        np.testing.assert_allclose(
            match["position"][match["present"]],
            truth["position"][:128][match["present"]],
            atol=1e-3,
        )
        assert match["slot_object"].dtype == np.int8 and match["position"].dtype == np.float32
    main(Match(data=str(world), out=str(tmp_path / "with")))
    assert "already holds these matches" in capsys.readouterr().out


def test_windows_know_presence_from_matches(world, tmp_path):
    bare = rewritten(world, tmp_path / "bare", lambda i, sample: sample)
    run(bare, tmp_path / "out")
    options = {"history_frames": 2, "pred_frames": 1, "frameskip": 5}
    ids = np.arange(0, 4000, 37)
    expected = InMemoryWindows(world, "train", WindowSpec(**options)).get_batch(ids, ids)["present"]
    assert expected.any() and not expected.all()
    assert (
        InMemoryWindows(tmp_path / "out", "train", WindowSpec(**options)).get_batch(ids, ids)[
            "present"
        ]
        == expected
    ).all()


def test_presence_that_ends_before_rolled_out_slots_is_not_used(world, tmp_path):
    matched = tmp_path / "out"
    run(rewritten(world, tmp_path / "bare", lambda i, sample: sample), matched)
    assert load_presence(matched, "train").shape == (40, 128, 7)
    rolled = rewritten(
        matched,
        tmp_path / "rolled",
        lambda i, s: dataclasses.replace(s, slots=np.concatenate([s.slots, s.slots[:32]])),
    )
    assert load_presence(rolled, "train") is None
    assert (
        InMemoryWindows(rolled, "train", WindowSpec(history_frames=2, pred_frames=1, frameskip=5))
        .get_batch(np.array([140]), np.array([0]))["present"]
        .all()
    )


def test_objects_without_a_slot_have_none(world, tmp_path):
    keep = np.array([0, 1, 2, 4, 6])
    some = rewritten(
        world,
        tmp_path / "some",
        lambda i, sample: dataclasses.replace(sample, slots=sample.slots[:, keep]),
    )
    found = run(some, tmp_path / "out")
    wrong = missed = objects = 0
    for sample in read_split(world, "train"):
        match, true = found[sample.key]["slot_object"], sample.truth["slot_object"][keep]
        visible = sample.truth["present"][:128, keep].sum(0) >= 8
        objects += ((true >= 0) & visible).sum()
        missed += ((match != true) & visible & (true >= 0)).sum()
        wrong += ((match >= 0) & (match != true)).sum()
    assert objects > 100 and missed <= 0.02 * objects and wrong <= 0.02 * objects


def test_annotations_of_other_scenes_match_nothing(world, tmp_path):
    annotations = [sample.annotation for sample in read_split(world, "train")]
    moved = rewritten(
        world,
        tmp_path / "moved",
        lambda i, sample: dataclasses.replace(sample, annotation=annotations[(i + 1) % 40]),
    )
    try:
        found = run(moved, tmp_path / "out")
    except UserError as error:
        assert "no slot reads as an object" in str(error)
    else:
        assert np.mean([(match["slot_object"] >= 0).mean() for match in found.values()]) < 0.25


def test_presence_alone_by_norm_and_motion(world, tmp_path, capsys):
    plain = rewritten(
        world, tmp_path / "plain", lambda i, sample: dataclasses.replace(sample, annotation=None)
    )
    found = run(plain, tmp_path / "out")
    assert "no annotations" in capsys.readouterr().out
    assert all(
        (match["slot_object"] == -1).all() and not match["position"].any()
        for match in found.values()
    )
    agree = [
        (found[s.key]["present"] == s.truth["present"][:128]).mean()
        for s in read_split(world, "train")
    ]
    assert np.mean(agree) > 0.995


def test_frames_behind_the_annotation_are_read_from_the_slots(world, tmp_path):
    def longer(i, sample):
        return dataclasses.replace(
            sample, slots=np.concatenate([sample.slots, futures[sample.key]])
        )

    futures = {
        s.key: s.truth["future_slots"]
        for split in ("train", "val")
        for s in read_split(world, split)
    }
    found = run(rewritten(world, tmp_path / "long", longer), tmp_path / "out")
    for sample in read_split(world, "val"):
        match, truth = found[sample.key], sample.truth
        known = match["slot_object"] >= 0
        assert match["present"].shape == (160, 7)
        assert (match["present"][128:, known] == truth["present"][128:160, known]).mean() > 0.99
        both = (
            match["present"]
            & truth["present"][:160]
            & known
            & (np.abs(truth["position"][:160]).max(-1) < 0.8)
        )
        assert np.sqrt(((match["position"] - truth["position"][:160])[both] ** 2).mean()) < 0.1


def test_counterfactual_questions_on_matched_slots(tmp_path):
    """In some videos no slot holds an object: questions that remove it are left out."""
    simulate(
        Simulate(
            out=str(tmp_path / "plain"),
            train=30,
            val=0,
            test=0,
            seed=5,
            influence="none",
            counterfactuals="none",
            workers=1,
        )
    )
    true = list(read_split(tmp_path / "plain", "train"))
    empty, lost = Manifest.load(tmp_path / "plain").empty_slot, {}

    def imported(i, sample):
        seen = true[i].truth["present"][:128].sum(0) > 40
        removed = [slot for slot in removed_slots(true[i], False) if seen[slot]]
        if i % 2 == 0 and removed:
            lost[i] = int(true[i].truth["slot_object"][removed[0]])
            sample.slots[:, removed[0]] = empty
        return sample

    def rolled(i, sample):
        removed = removed_slots(sample, False)
        return dataclasses.replace(
            sample,
            worlds={
                "removed": np.array(removed, np.int8),
                "slots": np.repeat(sample.slots[None], len(removed), 0),
            },
        )

    found = run(rewritten(tmp_path / "plain", tmp_path / "raw", imported), tmp_path / "out")
    rewritten(tmp_path / "out", tmp_path / "rolled", rolled)
    source = InMemoryQuestions(
        tmp_path / "rolled", "train", frames=9, stride=14, eval_start=3, protocol="counterfactual"
    )
    of_lost = []
    for video, sample in enumerate(true):
        asked = [q for q in sample.questions["questions"] if q["question_type"] == "counterfactual"]
        removed = [
            removed_objects({"questions": [q]}, scene_objects(sample.annotation))[0] for q in asked
        ]
        out = source.lacks_world[(source.video == video) & (source.type == "counterfactual")]
        assert out.tolist() == [o not in found[sample.key]["slot_object"] for o in removed]
        of_lost += [left for left, o in zip(out, removed, strict=True) if o == lost.get(video)]
    assert (
        len(of_lost) >= 8
        and np.mean(of_lost) > 0.7
        and len(source.worlds) > source.lacks_world.sum()
    )
