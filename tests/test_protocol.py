"""protocol=counterfactual: counterfactual questions see the true world without the object."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from cjepa_dist import evaluate
from cjepa_dist.clevrer.parser import matching_objects, parse
from cjepa_dist.clevrer.questions import scene_objects
from cjepa_dist.config import command_line, schema
from cjepa_dist.config.schema import AloeConfig
from cjepa_dist.data.format import reader
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.vqa import metrics, submission
from cjepa_dist.evaluation.vqa.inference import predict_answers
from cjepa_dist.models.aloe import Aloe
from cjepa_dist.tasks.vqa import VqaTask
from data_prep.simulate.__main__ import main as simulate
from data_prep.simulate.settings import Simulate
from tests.steps import run_step

SHOWN, VIDEOS = {"frames": 9, "stride": 14}, 14


def rolled(folder, out, change=lambda sample: sample, videos=0):
    """A rollout that is the truth, future and worlds; `videos` > 0: so many per shard."""
    with DatasetWriter(
        out, encoder="test", source={"kind": "rollout"}, empty_slot=Manifest.load(folder).empty_slot
    ) as writer:
        for split in ("train", "val"):
            for index, sample in enumerate(read_split(folder, split), 1):
                truth = sample.truth
                worlds = {
                    "removed": truth["counterfactual_removed"],
                    "slots": truth["counterfactual_slots"],
                }
                worlds["diverged"] = np.zeros(
                    (len(worlds["removed"]), sample.slots.shape[1]), np.int16
                )
                slots = np.concatenate([sample.slots, truth["future_slots"]])
                writer.split(split).add(change(replace(sample, slots=slots, worlds=worlds)))
                if videos and index % videos == 0:
                    writer.split(split).submit(writer.split(split).finish_shard)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("protocol")
    simulate(
        Simulate(
            out=str(root / "plain"),
            train=4,
            val=VIDEOS,
            test=0,
            counterfactual_splits="train,val",
            influence="none",
            workers=1,
        )
    )
    return rolled(root / "plain", root / "rolled")


def source(data, **more):
    return InMemoryQuestions(
        data, "val", **{**SHOWN, "eval_start": 3, "protocol": "counterfactual", **more}
    )


def per_question(questions, ids, sample):
    batch = questions.get_batch(ids, sample)
    first = np.cumsum([0, *(len(questions.rows(i)) for i in ids[:-1])])
    return batch["slots"][batch["row_view"][first]].numpy()


def test_each_question_sees_its_own_world(data):
    """By hand: sentence -> object -> its slot -> the true world without it, the same frames."""
    questions, published = source(data), source(data, protocol="published")
    ids = np.arange(len(questions))
    seen, before = per_question(questions, ids, ids), per_question(published, ids, ids)
    frames = 3 + 14 * np.arange(9)
    i, differ = 0, 0
    for sample in read_split(data, "val"):
        for q in sample.questions["questions"]:
            if q["question_type"] == "counterfactual":
                tokens = parse(q["question"])[1]
                (removed,) = matching_objects(
                    tokens[: tokens.index("get_counterfact")], scene_objects(sample.annotation)
                )
                slot = sample.truth["slot_object"].tolist().index(removed)
                world = sample.truth["counterfactual_removed"].tolist().index(slot)
                assert (seen[i] == sample.truth["counterfactual_slots"][world, frames]).all()
                differ += bool((seen[i, :, slot] != before[i, :, slot]).any())
            else:
                shift = 32 if q["question_type"] == "predictive" else 0
                assert (seen[i] == sample.slots[frames + shift]).all() and (
                    seen[i] == before[i]
                ).all()
            i += 1
    asked = (questions.type == "counterfactual").sum()
    assert (
        i == len(questions) and asked > VIDEOS and differ > 0.8 * asked
    )  # some objects are in view at none of the frames


def test_only_worlds_that_are_asked_about_are_kept_and_each_once(data):
    questions = source(data)
    asked = {
        (v, s)
        for v, s, kind in zip(questions.video, questions.visible, questions.type)
        if kind == "counterfactual"
    }
    assert (
        questions.worlds.shape == (len(asked), 128, 7, 128) and questions.worlds.dtype == np.float16
    )
    batch = questions.get_batch(np.arange(len(questions)), np.zeros(len(questions), np.int64))
    predicted = len(set(questions.video[questions.type == "predictive"]))
    assert len(batch["slots"]) == VIDEOS + predicted + len(asked)
    assert not len(source(data, protocol="published").worlds)


def test_by_video_and_shuffled(data):
    """The same views by video; one order of the slots for a video and its worlds."""
    questions, shuffled = source(data, eval_start=None), source(data, eval_start=None, shuffle=True)
    by_video = VideoQuestions(questions)
    one, each = by_video.get_batch([3, 0], [7, 8]), by_video.questions([3, 0])
    plain = questions.get_batch(each[0], np.array([7, 8])[each[1]])
    assert all(torch.equal(one[name], plain[name]) for name in one)
    here, there = (VideoQuestions(s).get_batch([0], [5]) for s in (questions, shuffled))
    a, b = (batch["slots"][batch["row_view"]] for batch in (here, there))
    order = [int((a[0] == b[0][:, s : s + 1]).all(dim=(0, 2)).nonzero()[0]) for s in range(7)]
    assert order != list(range(7)) and torch.equal(a[:, :, order], b)


def test_blind_shows_worlds_of_other_videos(data):
    sighted, blind = source(data), source(data, blind=True)
    counterfactual = np.flatnonzero(sighted.type == "counterfactual")
    a, b = (per_question(s, counterfactual, counterfactual) for s in (sighted, blind))
    of = {}
    for i, video in enumerate(sighted.video[counterfactual]):
        of.setdefault(video, []).append(a[i])
    for shown, video in zip(b, sighted.video[counterfactual]):
        (other,) = [
            v for v, worlds in of.items() if any((shown == world).all() for world in worlds)
        ]
        assert other != video


def test_shards_that_know_objects_by_matching_alone(data, tmp_path):
    def match(sample):
        return replace(sample, truth=None, match={"slot_object": sample.truth["slot_object"]})

    matched = rolled(data.parent / "plain", tmp_path / "matched", match)
    ids = np.arange(len(source(data)))
    assert (per_question(source(matched), ids, ids) == per_question(source(data), ids, ids)).all()


def lose(sample):
    """No slot of every other video holds what its first counterfactual question removes."""
    truth = dict(sample.truth)
    if int(sample.key[-1]) % 2 and len(truth["counterfactual_removed"]):
        truth["slot_object"] = truth["slot_object"].copy()
        truth["slot_object"][truth["counterfactual_removed"][0]] = -1
        sample.worlds = {name: array[1:] for name, array in sample.worlds.items()}
    return replace(sample, truth=None, match={"slot_object": truth["slot_object"]})


def test_questions_whose_object_no_slot_holds_lack_a_world(data, tmp_path):
    known, whole, published = (
        source(rolled(data.parent / "plain", tmp_path / "lost", lose)),
        source(data),
        source(data, protocol="published"),
    )
    ids = np.arange(len(whole))
    out = known.lacks_world
    assert (
        0 < out.sum() < (known.type == "counterfactual").sum()
        and (known.type[out] == "counterfactual").all()
    )
    seen = per_question(known, ids, ids)
    assert (seen[~out] == per_question(whole, ids, ids)[~out]).all() and (
        seen[out] == per_question(published, ids, ids)[out]
    ).all()
    rows = out[known.row_question]
    assert (known.label[rows] == -1).all() and (known.label[~rows] == whole.label[~rows]).all()
    torch.manual_seed(0)
    aloe = Aloe(AloeConfig(frames=9, width=16, depth=1, heads=2, mlp_dim=16, head_dim=8))
    verdicts = predict_answers(aloe, known)
    result = metrics.compute_accuracy({3: verdicts}, 3, draws=2)
    assert (
        result["excluded_questions"] == out.sum()
        and result["accuracy"]["overall.question"]["count"] == (~out).sum()
    )
    sent = submission.build_submission(verdicts)
    assert sum(len(scene["questions"]) for scene in sent) == len(whole)
    assert [
        len(q["choices"]) for scene in sent for q in scene["questions"] if "choices" in q
    ] == np.diff(known.first_row)[known.is_choice].tolist()


def test_all_questions_of_videos_without_an_annotation_lack_a_world(data, tmp_path):
    """As real test videos: their slots are matched with nothing."""

    def bare(sample):
        nothing = {"slot_object": np.full(7, -1, np.int8)}
        return replace(
            sample,
            annotation={"scene_index": sample.annotation["scene_index"]},
            truth=None,
            match=nothing,
            worlds=None,
        )

    questions = source(rolled(data.parent / "plain", tmp_path / "bare", bare))
    assert (questions.lacks_world == (questions.type == "counterfactual")).all() and not len(
        questions.worlds
    )


def test_questions_without_a_world_change_no_gradient():
    """The loss of a batch is that of its other questions."""
    task = VqaTask(
        command_line.parse(
            schema.TrainAloe, ["data=d", "run=r", "aloe.frames=2", "aloe.depth=1", "aloe.dropout=0"]
        )
    )
    generator = torch.Generator().manual_seed(0)
    is_choice = torch.tensor([False, True, True, True])
    batch = {
        "slots": torch.randn(1, 2, 7, 128, generator=generator),
        "tokens": torch.randint(1, 80, (4, 32), generator=generator),
        "padding": torch.zeros(4, 32, dtype=torch.bool),
        "is_choice": is_choice,
        "kind": 3 * is_choice.long(),
        "row_view": torch.zeros(4, dtype=torch.long),
        "label": torch.tensor([5, 1, -1, -1]),
    }
    fewer = {name: value if name == "slots" else value[:2] for name, value in batch.items()}
    losses = [run_step(task, part).loss for part in (batch, fewer)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, task.aloe.parameters(), allow_unused=True) for loss in losses)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: replace(s, worlds=None),
            r"no worlds.npz.*cjepa_dist.rollout mode=counterfactual",
        ),
        (
            lambda s: replace(s, worlds={k: v[:0] for k, v in s.worlds.items()}),
            r"question \d+ of scene 10\d+ removes slot \d.*without \[\]",
        ),
        (
            lambda s: replace(s, worlds=s.worlds | {"slots": s.worlds["slots"][:, :100]}),
            r"slots \(100, 7, 128\) float16, \(160, 7, 128\) float16 expected",
        ),
        (lambda s: replace(s, truth=None), r"neither truth.npz nor match.npz"),
    ],
)
def test_what_is_missing_is_said_in_a_line(data, tmp_path, change, message):
    broken = rolled(data.parent / "plain", tmp_path / "broken", change)
    with pytest.raises(UserError, match=message):
        source(broken)
    source(broken, protocol="published")


@pytest.fixture
def opened(monkeypatch):
    """How often each shard has been opened, by "split/name"."""
    counts: Counter[str] = Counter()

    class CountingReader(reader.ShardReader):
        def __init__(self, folder, split, entry, **more):
            counts[f"{split}/{entry.name}"] += 1
            super().__init__(folder, split, entry, **more)

    monkeypatch.setattr(reader, "ShardReader", CountingReader)
    return counts


def test_trained_and_evaluated(data, tmp_path, capsys, opened):
    """Evaluation opens every shard of the scored split once, for slots, questions and worlds."""
    run = tmp_path / "run"
    size = [
        "aloe.frames=9",
        "stride=14",
        "aloe.width=16",
        "aloe.depth=1",
        "aloe.heads=2",
        "aloe.mlp_dim=16",
        "aloe.head_dim=8",
    ]
    loop = [
        "loop.steps=2",
        "loop.global_batch_size=2",
        "group_by_video=true",
        "aloe.shared_vision=true",
        "protocol=counterfactual",
    ]
    command = [
        sys.executable,
        "-m",
        "cjepa_dist.train_aloe",
        f"data={data}",
        f"run={run}",
        *size,
        *loop,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert evaluate.main(evaluate.Evaluate(run=str(run), bootstrap_draws=2)) == 0
    assert set(opened) >= {"val/000000.tar"} and set(opened.values()) == {1}
    assert "counterfactual protocol" in capsys.readouterr().out
    other = rolled(
        data.parent / "plain",
        tmp_path / "other",
        lambda s: replace(s, slots=0 * s.slots) if s.key != "video_00000" else s,
    )
    assert (
        evaluate.main(
            evaluate.Evaluate(
                run=str(run),
                data=str(other),
                out=str(tmp_path / "eval"),
                bootstrap_draws=2,
                starts="main",
            )
        )
        == 0
    )
    measured = json.loads((tmp_path / "eval" / "vqa_val.json").read_text())
    assert (
        measured["data"] == str(other) and measured["accuracy"]["descriptive.question"]["count"] > 0
    )
    result = json.loads((run / "eval" / "vqa_val.json").read_text())
    assert result["data"] == str(data) and result["baselines"] == measured["baselines"]
    assert (
        result["protocol"] == "counterfactual"
        and result["accuracy"]["counterfactual.option"]["count"] > VIDEOS
    )
