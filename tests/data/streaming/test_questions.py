"""Streaming questions equal those in memory, in the order of the sampler.

A missing shard is an error that names it, or its samples are replaced.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.frame_sampling import FrameSampling
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions
from cjepa_dist.data.streaming.missing_shards import MissingShards
from cjepa_dist.data.streaming.questions import StreamingQuestions
from cjepa_dist.errors import UserError
from tests.data.streaming.test_windows import batches, damage
from tests.data.test_questions import question

VIDEOS, FRAMES, SLOTS, WIDTH = 17, 132, 3, 4
SHOWN = {"frames": 3, "stride": 40, "shuffle": True, "seed": 3}
COLORS = ("red", "blue", "green")


def asked(video, random):
    """One to five questions; the videos of shard 2 have none.

    Counterfactual ones remove the red or the green object.
    """
    if 6 <= video < 9:
        return None
    questions = []
    for number in range(1 + video % 5):
        kind = (
            ("counterfactual", "descriptive", "predictive", "explanatory")[random.integers(4)]
            if number
            else "descriptive"
        )
        questions.append(question(number, kind, 1 + int(random.integers(3))))
        if kind == "counterfactual":
            color = ("red", "green")[random.integers(2)]
            questions[-1]["program"] = [
                "objects",
                color,
                "filter_color",
                "unique",
                "get_counterfact",
                "belong_to",
            ]
    return {"scene_index": video, "questions": questions}


def write(folder):
    """Shards of 3 videos, the last of 2. In two thirds of them a slot holds the green object."""
    random = np.random.default_rng(0)
    with DatasetWriter(folder, encoder="test", source={}) as writer:
        split = writer.split("train")
        for video in range(VIDEOS):
            listed = [
                {"object_id": i, "color": color, "material": "metal", "shape": "cube"}
                for i, color in enumerate(COLORS)
            ]
            slots = random.standard_normal((FRAMES, SLOTS, WIDTH))
            held = np.array([1, 0, 2 if video % 3 else -1], np.int8)
            removed = np.flatnonzero(held != 1).astype(np.int8)
            worlds = {
                "removed": removed,
                "slots": random.standard_normal((len(removed), FRAMES, SLOTS, WIDTH)),
            }
            sample = Sample(
                f"video_{video:05d}",
                slots,
                {"scene_index": video, "object_property": listed},
                asked(video, random),
            )
            sample.match, sample.worlds = {"slot_object": held}, worlds
            split.add(sample)
            if video % 3 == 2:
                split.submit(split.finish_shard)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("questions") / "data")


WAYS = {
    "question": {},
    "video": {"group_by_video": True},
    "some types": {"group_by_video": True, "question_types": ["predictive", "counterfactual"]},
    "worlds": {"protocol": "counterfactual"},
    "worlds by video": {"protocol": "counterfactual", "group_by_video": True},
}


def stream(folder, way="worlds", **reading):
    return StreamingQuestions(
        folder, "train", FrameSampling(**SHOWN, unnegated_until=40), **WAYS[way], **reading
    )


@pytest.fixture(scope="module")
def in_memory(data):
    def make(way):
        more = dict(WAYS[way])
        by_video = more.pop("group_by_video", False)
        types = more.pop("question_types", None)
        source = InMemoryQuestions(data, "train", **SHOWN, unnegated_until=40, **more)
        return (
            VideoQuestions(source, **({"question_types": types} if types else {}))
            if by_video
            else source
        )

    return {way: make(way) for way in WAYS}


def same(found, expected):
    """All of a batch is the same, apart from the order of the views in `slots`."""
    assert found.keys() == expected.keys()
    for name in found.keys() - {"slots", "row_view"}:
        assert torch.equal(found[name], expected[name]), name
    assert torch.equal(found["slots"][found["row_view"]], expected["slots"][expected["row_view"]])


@settings(deadline=None, max_examples=40)
@given(
    way=st.sampled_from(list(WAYS)),
    seed=st.integers(0, 2**63),
    shuffle_shards=st.integers(1, 4),
    shard_groups=st.integers(1, 4),
    workers=st.integers(1, 3),
    world=st.integers(1, 3),
    share=st.integers(1, 6),
    stop=st.integers(0, 10),
)
def test_any_processes_workers_and_stops_read_the_same(
    data, in_memory, way, seed, shuffle_shards, shard_groups, workers, world, share, stop
):
    batch = world * share
    reading = {"shuffle_shards": shuffle_shards, "shard_groups": shard_groups}
    expected_order = stream(data, way, **reading)
    steps = 2 + len(expected_order) // batch
    stop = min(stop, steps)
    expected = [expected_order.sample_ids(seed, step * batch, batch) for step in range(steps)]
    for rank in range(world):
        part = slice(rank * share, (rank + 1) * share)
        found = []
        for begin, end in ((0, stop), (stop, steps)):  # stopped and resumed
            source = stream(data, way, **reading, workers=workers)
            found += batches(
                source, start=begin, stop=end, batch=batch, rank=rank, world=world, seed=seed
            )
        for step, (content,) in enumerate(found):
            same(
                content,
                in_memory[way].get_batch(
                    expected[step][part], step * batch + np.arange(batch)[part]
                ),
            )
    seen = np.concatenate(expected)
    positions = np.concatenate(
        [expected_order.sampler.locate(seed, step * batch, batch)[0] for step in range(steps)]
    )
    assert sorted(seen[positions < len(expected_order)]) == list(
        range(len(in_memory[way]))
    ) and len(expected_order) == len(in_memory[way])


def test_questions_without_a_world_are_counted_and_weigh_nothing(data, in_memory):
    source = stream(data)
    batches(source, start=0, stop=len(source), batch=1)
    questions = in_memory["worlds"]
    assert 0 < questions.lacks_world.sum() < (questions.type == "counterfactual").sum()
    assert (
        source.read_statistics()["questions_without_world"] == questions.lacks_world.sum()
        and "questions_without_world" not in stream(data).read_statistics()
    )
    rows = questions.lacks_world[questions.row_question]
    assert (questions.label[rows] == -1).all() and (questions.label[~rows] >= 0).all()
    published = in_memory["question"]
    ids = np.flatnonzero(questions.lacks_world)
    here, there = (source.get_batch(ids, ids) for source in (questions, published))
    # They see the observed video.
    assert torch.equal(here["slots"][here["row_view"]], there["slots"][there["row_view"]])


def test_to_know_the_samples_the_manifest_is_enough(data, tmp_path, capsys):
    shutil.copy(data / "manifest.json", tmp_path)
    assert stream(tmp_path, "video").names == stream(data, "video").names
    assert not capsys.readouterr().out


def test_names_are_what_a_user_can_look_up(data, in_memory):
    source, questions = stream(data), in_memory["worlds"]
    last = len(source) - 1
    expected = f"video_{questions.scene[last]:05d} question {questions.question_id[last]}"
    assert source.sample_names(np.array([0, last])) == ["video_00000 question 0", expected]
    assert stream(data, "video").sample_names(np.array([13])) == ["video_00016"]


def test_a_manifest_that_counts_wrong_is_found(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["train"][1]["question_types"][0] += "d"
    path.write_text(json.dumps(content))
    (fault,) = verify_dataset(tmp_path / "data")
    assert "000001.tar, key video_00003: has questions of the types" in fault.text
    with pytest.raises(UserError, match=r"train/000001.tar holds \d+ samples, \d+ by its manifest"):
        batches(stream(tmp_path / "data"), start=0, stop=len(stream(data)), batch=1)


def test_a_missing_shard_is_named_or_replaced_the_same_after_a_resume(data, tmp_path, in_memory):
    shutil.copytree(data, tmp_path / "data")
    damage(tmp_path / "data", "flipped", 4)
    steps, batch = len(stream(data)) // 4 + 2, 4
    with pytest.raises(
        UserError,
        match=r"train/000004.tar .*its xxh3.* its 3 samples: "
        r"reading.max_missing_samples=3 \(it is 0\)",
    ):
        batches(stream(tmp_path / "data", shuffle_shards=3), start=0, stop=steps, batch=batch)

    def run(record, start, stop):
        return [
            part
            for (part,) in batches(
                stream(tmp_path / "data", shuffle_shards=3, missing=MissingShards(record, 3)),
                start=start,
                stop=stop,
                batch=batch,
            )
        ]

    uninterrupted = run(tmp_path / "uninterrupted", 0, steps)
    for one, other in zip(
        uninterrupted,
        run(tmp_path / "stopped", 0, 3) + run(tmp_path / "stopped", 3, steps),
        strict=True,
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    order, replaced = stream(data, shuffle_shards=3), 0
    for step, content in enumerate(uninterrupted):
        ids, sample = order.sample_ids(0, step * batch, batch), step * batch + np.arange(batch)
        missing = order.sample_names(content["question"].numpy()) != order.sample_names(ids)
        replaced += missing
        same(
            content, in_memory["worlds"].get_batch(content["question"].numpy(), sample)
        )  # whichever it is, it is complete
        assert not any(
            f"video_000{video}" in name
            for video in (12, 13, 14)
            for name in order.sample_names(content["question"].numpy())
        )
    assert replaced > 0


def test_refusals(data, tmp_path):
    with pytest.raises(UserError, match=r"frames 0\.\.127"):
        StreamingQuestions(data, "train", FrameSampling(frames=25, stride=6))
    with pytest.raises(UserError, match="no questions of the types rhetorical"):
        StreamingQuestions(
            data,
            "train",
            FrameSampling(**SHOWN),
            group_by_video=True,
            question_types=["rhetorical"],
        )
    assert Manifest.load(data).shards("train")[2].question_types == []
