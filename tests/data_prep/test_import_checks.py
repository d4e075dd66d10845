"""Imports check all of their input: every fault in one line, or left out and listed."""

import collections
import copy
import json

import numpy as np
import pytest

from cjepa_dist.clevrer.checks import annotation_faults, question_faults
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from data_prep import import_arrays
from data_prep.import_pickle import ImportPickle, main
from tests.data_prep.pickles import dump, public, video

DESCRIPTIVE = {
    "question_id": 0,
    "question_type": "descriptive",
    "question": "How many cubes are moving?",
    "answer": "1",
}
COUNTERFACTUAL = {
    "question_id": 1,
    "question_type": "counterfactual",
    "question": "Without the red cube, what will happen?",
    "choices": [
        {"choice_id": 0, "choice": "The blue sphere exits the scene", "answer": "wrong"},
        {"choice_id": 1, "choice": "The gray cube and the sphere collide", "answer": "correct"},
    ],
}
ANNOTATION = {
    "scene_index": 2,
    "object_property": [
        {"object_id": 0, "color": "red", "material": "metal", "shape": "cube"},
        {"object_id": 1, "color": "blue", "material": "rubber", "shape": "sphere"},
    ],
    "motion_trajectory": [
        {
            "frame_id": 0,
            "objects": [
                {"object_id": i, "location": [0.5, i, 0.2], "inside_camera_view": True}
                for i in (0, 1)
            ],
        }
    ],
    "collision": [{"frame_id": 3, "object_ids": [0, 1]}],
}


def content(*questions, scene=2):
    return {"scene_index": scene, "video_filename": "v.mp4", "questions": list(questions)}


def changed(entry, **fields):
    made = {**copy.deepcopy(entry), **fields}
    return {name: value for name, value in made.items() if value != "gone"}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_sound_questions_and_annotations_have_no_faults():
    assert question_faults(content(DESCRIPTIVE, COUNTERFACTUAL), ANNOTATION) == []
    assert annotation_faults(ANNOTATION, 2) == []
    assert annotation_faults({"scene_index": 2, "collision": []}, 2) == []


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (7, "not a mapping"),
        (changed(DESCRIPTIVE, question_id="0"), "question_id is '0'"),
        (changed(DESCRIPTIVE, question_id=True), "question_id is True"),
        (changed(DESCRIPTIVE, question_id=1 << 70), "question_id is a huge number"),
        (changed(DESCRIPTIVE, question_type="causal"), "unknown question type 'causal'"),
        (changed(DESCRIPTIVE, question_type=["descriptive"]), "unknown question type"),
        (changed(DESCRIPTIVE, question="How many zebras are moving?"), "unknown word 'zebras'"),
        (changed(DESCRIPTIVE, question="the " * 21), "at most 20 fit"),
        (changed(DESCRIPTIVE, question=None), "question is None"),
        (changed(DESCRIPTIVE, answer="6"), "unknown answer '6'"),
        (changed(DESCRIPTIVE, answer=1), "unknown answer 1"),
        (changed(DESCRIPTIVE, program="objects"), "program is 'objects'"),
        (changed(DESCRIPTIVE, note=nested(40)), "nested more than 32 deep"),
        (changed(COUNTERFACTUAL, choices=[]), "has no choices"),
        (changed(COUNTERFACTUAL, choices=["a"]), "choice 0: it is 'a'"),
        (changed(COUNTERFACTUAL, choices=[{"choice_id": 0}]), "choice is None"),
        (changed(COUNTERFACTUAL, program=["objects", "unique"]), "has no get_counterfact"),
        (changed(COUNTERFACTUAL, question="what will happen"), "no template"),
        (
            changed(COUNTERFACTUAL, question="Without the green cube, what will happen?"),
            "0 of the 2 objects fit",
        ),
    ],
)
def test_faults_of_questions(question, reason):
    faults = question_faults(content(question, changed(DESCRIPTIVE, question_id=5)), ANNOTATION)
    assert [number for number, _ in faults] == [0] and reason in faults[0][1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a["object_property"][0].update(color="Red"), "'Red', not one of gray, "),
        (lambda a: a["object_property"][0].update(color="pink"), "object_property[0].color"),
        (lambda a: a["object_property"][0].pop("shape"), "object_property[0] lacks 'shape'"),
        (lambda a: a["object_property"][1].update(object_id=0), "object_id 0 occurs twice"),
        (lambda a: a["object_property"].pop(), "object_id 1 is not in object_property"),
        (lambda a: a["object_property"].append(3), "object_property[2] is not as CLEVRER's"),
        (
            lambda a: a["motion_trajectory"][0]["objects"][0].update(location=[np.nan, 0]),
            "motion_trajectory[0]: location of object 0",
        ),
        (
            lambda a: a["motion_trajectory"][0]["objects"][0].pop("inside_camera_view"),
            "lacks 'inside_camera_view'",
        ),
        (lambda a: a["collision"][0].update(object_ids=[0, 0]), "collision[0].object_ids"),
        (lambda a: a.update(scene_index=3), "scene_index is 3, not 2"),
        (lambda a: a.update(collision={"a": 1}), "collision is a mapping of 1, not a list"),
        (lambda a: a.update(note=nested(40)), "nested more than 32 deep"),
    ],
)
def test_faults_of_annotations(change, reason):
    annotation = copy.deepcopy(ANNOTATION)
    change(annotation)
    faults = annotation_faults(annotation, 2)
    assert faults and reason in " ".join(faults)


@pytest.fixture
def spoiled(tmp_path):
    """A source with one fault of each kind: arrays, keys, questions, annotations."""
    made = public()
    made["train"]["0_pixels.mp4"][0, 0, 0] = np.nan
    made["train"]["3_pixels.mp4"] = video(3)[:4]  # real CLEVRER has videos of 104 frames
    made["train"]["4_pixels.mp4"] = np.zeros((6, 4, 8), np.float32)  # and some with 8 objects
    made["train"]["first.mp4"] = video(5)
    questions = [
        content(DESCRIPTIVE, changed(DESCRIPTIVE, question_id=1, question="a zebra"), scene=2),
        content(DESCRIPTIVE, changed(DESCRIPTIVE, question_id=1, answer=None), scene=11),
    ]
    (tmp_path / "train.json").write_text("\ufeff" + json.dumps(questions))  # with a mark of order
    (tmp_path / "annotations").mkdir()
    annotation = copy.deepcopy(ANNOTATION)
    annotation["object_property"][0]["color"] = "Red"
    (tmp_path / "annotations" / "annotation_00002.json").write_text(json.dumps(annotation))
    (tmp_path / "annotations" / "annotation_00011.json").write_text("[" * 100_000)
    return ImportPickle(
        source=str(dump(tmp_path / "slots.pkl", made)),
        out=str(tmp_path / "out"),
        questions=str(tmp_path / "train.json"),
        annotations=str(tmp_path / "annotations"),
    )


def test_all_faults_are_told_in_one_line(spoiled, tmp_path):
    with pytest.raises(UserError) as caught:
        main(spoiled)
    text = str(caught.value)
    for part in (
        "8 faults",
        "key 'first.mp4'",
        "video_00003: slots are (4, 3, 8)",
        "video_00004: slots are (6, 4, 8)",
        "video_00000: a slot holds a value that is not finite",
        "train.json, scene 2: question 1: unknown word",
        "scene 11: question number 1: has no answer",
        "annotation_00002.json: object_property[0].color is 'Red'",
        "annotation_00011.json is not JSON",
        "skip_bad=true",
    ):
        assert part in text, part
    assert "\n" not in text and not (tmp_path / "out").exists()


def test_what_is_bad_is_left_out_and_listed(spoiled, tmp_path, capsys):
    spoiled.skip_bad = True
    main(spoiled)
    assert "left out: 8, listed in" in capsys.readouterr().out
    out = tmp_path / "out"
    manifest = Manifest.load(out)
    assert manifest.keys("train") == ["video_00002", "video_00011"] and manifest.count("val") == 1
    samples = {sample.key: sample for sample in read_split(out, "train")}
    for key, scene in (("video_00002", 2), ("video_00011", 11)):
        assert samples[key].questions["questions"] == [DESCRIPTIVE]
        assert samples[key].annotation == {"scene_index": scene}
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert len(listed) == 8 and {entry.get("scene") for entry in listed} == {0, 2, 3, 4, 11, None}
    assert verify_dataset(out) == []


def test_whole_shards_before_a_bad_video_are_taken_up(tmp_path, capsys):
    rows = {f"{i}_pixels.mp4": np.full((128, 16, 256), i, np.float16) for i in range(5)}
    rows["4_pixels.mp4"][0, 0, 0] = np.inf
    options = {"out": str(tmp_path / "out"), "shard_mb": 1}
    config = ImportPickle(source=str(dump(tmp_path / "slots.pkl", {"train": rows})), **options)
    with pytest.raises(UserError, match="video_00004: a slot holds a value that is not finite"):
        main(config)
    config.skip_bad = True
    main(config)
    assert "resumes after" in capsys.readouterr().out
    assert Manifest.load(tmp_path / "out").count("train") == 4


@pytest.mark.parametrize("shape", [(7, 128, 128), (128, 128, 7), (6, 0, 8)])
def test_axes_that_cannot_be_meant(tmp_path, shape):
    made = {"train": {"0_pixels.mp4": np.zeros(shape, np.float32)}}
    with pytest.raises(UserError, match=rf"an array \({shape[0]}, {shape[1]}, {shape[2]}\)"):
        main(ImportPickle(source=str(dump(tmp_path / "s.pkl", made)), out=str(tmp_path / "out")))


def test_keys_that_name_their_split_and_what_is_beside_the_splits(tmp_path, capsys):
    made = {
        "train": {"video_train_00000.mp4": video(0)},
        "val": {"video_val_00000.mp4": video(1)},
        "meta": {"fps": 25, "note": "by hand"},
        "encoder": "savi",
    }
    main(ImportPickle(source=str(dump(tmp_path / "s.pkl", made)), out=str(tmp_path / "out")))
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.keys("train") == ["video_00000"] and manifest.keys("val") == ["video_10000"]
    printed = capsys.readouterr().out
    assert "left aside: meta, encoder" in printed and "6 frames, 3 slots, 8 numbers" in printed
    assert "keys of val count from 0: their scenes are 10000 + number" in printed


@pytest.mark.parametrize("dtype", [">f4", ">f2", ">f8", np.longdouble])
def test_other_floats_are_converted(tmp_path, dtype):
    (tmp_path / "in" / "train").mkdir(parents=True)
    np.save(tmp_path / "in" / "train" / "0_pixels.npy", video(0).astype(dtype))
    (tmp_path / "in" / "train" / "._0_pixels.npy").write_bytes(b"macOS")
    import_arrays.main(
        import_arrays.ImportArrays(
            source=str(tmp_path / "in"), out=str(tmp_path / "out"), dtype="float16"
        )
    )
    expected = video(0).astype(dtype).astype(np.float16)
    assert np.array_equal(load_slots(tmp_path / "out", "train")[0], expected)


def test_pickles_of_other_kinds_of_arrays_and_mappings(tmp_path):
    mapped = np.memmap(tmp_path / "array", np.float32, "w+", shape=video(0).shape)
    mapped[:] = video(0)
    made = collections.defaultdict(dict)
    made["train"]["0_pixels.mp4"] = mapped
    main(ImportPickle(source=str(dump(tmp_path / "s.pkl", made)), out=str(tmp_path / "out")))
    assert np.array_equal(load_slots(tmp_path / "out", "train")[0], video(0).astype(np.float16))
