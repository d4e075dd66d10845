"""`python -m data_prep.import_pickle`: both public layouts, questions, and one-line errors."""

import json
import os

import numpy as np
import pytest
import torch

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from data_prep.import_pickle import ImportPickle, main
from tests.data_prep.pickles import dump, public, video


def run(tmp_path, content, **options):
    options.setdefault("out", str(tmp_path / "out"))
    main(ImportPickle(source=str(dump(tmp_path / "slots.pkl", content)), **options))
    return tmp_path / "out"


@pytest.mark.parametrize("layout", ["{}_pixels.mp4", "video_{:05d}.mp4"])
def test_both_public_layouts(tmp_path, layout, capsys):
    out = run(tmp_path, public(layout))
    manifest = Manifest.load(out)
    assert manifest.keys("train") == ["video_00000", "video_00002", "video_00011"]
    assert manifest.keys("val") == ["video_10000"] and manifest.keys("test") == ["video_15000"]
    assert np.array_equal(
        load_slots(out, "train"), np.stack([video(0), video(2), video(11)]).astype(np.float16)
    )
    assert next(read_split(out, "val")).annotation == {"scene_index": 10000}
    assert verify_dataset(out) == []
    printed = capsys.readouterr().out
    assert (
        "train 3, val 1, test 1 videos" in printed
        and "conversion to float16: RMS error 1.93e-04" in printed
    )


def test_tensors_and_float32(tmp_path, capsys):
    out = run(
        tmp_path,
        {"train": {"0_pixels.mp4": torch.from_numpy(video(0)).bfloat16()}},
        dtype="float32",
    )
    assert np.array_equal(
        load_slots(out, "train")[0], torch.from_numpy(video(0)).bfloat16().float().numpy()
    )
    assert "RMS error 0.00e+00" in capsys.readouterr().out


def test_questions_and_annotations_are_joined_by_scene(tmp_path, capsys):
    def entry(scene):
        return {
            "scene_index": scene,
            "video_filename": f"video_{scene:05d}.mp4",
            "questions": [
                {"question_id": 0, "question_type": "descriptive", "question": "how many cubes"}
            ],
        }

    questions = tmp_path / "questions"
    questions.mkdir()
    (questions / "train.json").write_text(json.dumps([entry(0), entry(2), entry(7)]))
    (questions / "validation.json").write_text(json.dumps([entry(10000)]))
    annotations = tmp_path / "annotations" / "annotation_00000-01000"
    annotations.mkdir(parents=True)
    (annotations / "annotation_00002.json").write_text(
        json.dumps({"scene_index": 2, "collision": []})
    )
    out = run(
        tmp_path, public(), questions=str(questions), annotations=str(tmp_path / "annotations")
    )
    samples = {s.key: s for split in ("train", "val", "test") for s in read_split(out, split)}
    assert samples["video_00002"].questions == entry(2) and samples["video_00002"].annotation == {
        "scene_index": 2,
        "collision": [],
    }
    assert (
        samples["video_10000"].questions == entry(10000)
        and samples["video_00011"].questions is None
    )
    printed = capsys.readouterr().out
    assert (
        "questions: 3 videos have some, 2 have none (11, 15000);"
        " 1 scenes with some have no video (7)" in printed
    )
    assert "annotations: 1 videos have some, 4 have none" in printed
    single = run(
        tmp_path, public(), questions=str(questions / "train.json"), out=str(tmp_path / "single")
    )
    assert single and next(read_split(tmp_path / "single", "val")).questions is None


def damaged(change):
    content = public()
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["train"]["2_pixels.mp4"].__setitem__((0, 0, 0), np.nan),
            "video_00002: a slot holds a value that is not finite",
        ),
        (lambda c: c["train"].update({"2_pixels.mp4": video(2)[:, :2]}), "video_00002: slots are"),
        (
            lambda c: c["validation"].update({"10000_pixels.mp4": video(0)[:4]}),
            r"10000_pixels.mp4, video_10000: slots are \(4, 3, 8\), those of 4 others",
        ),
        (
            lambda c: c["train"].update({"video_00002.mp4": video(2)}),
            "scene 2 is there twice, as train/2_pixels.mp4 and as train/v",
        ),
        (
            lambda c: c["test"].update({"0_pixels.mp4": video(0)}),
            "scene 0 is there twice, as train/0_pixels.mp4 and as test/0_pixels.mp4",
        ),
        (
            lambda c: c["train"].update({"first.mp4": video(2)}),
            "key 'first.mp4' of split 'train' names no scene",
        ),
        (lambda c: c["train"].update({"2_pixels.mp4": [1, 2]}), "must be a float array"),
        (lambda c: c["train"].update({"2_pixels.mp4": video(2)[0]}), r"it is float32 \(3, 8\)"),
        (lambda c: c.update({"train": [video(0)]}), "must hold"),
        (lambda c: [split.clear() for split in c.values()], "no videos"),
    ],
)
def test_wrong_content_is_named_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, damaged(change))
    assert sorted(os.listdir(tmp_path)) == ["slots.pkl"]


TWICE = json.dumps([{"scene_index": 1, "questions": []}] * 2)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"scene_index": 1}]', TWICE])
def test_bad_questions_are_named(tmp_path, content):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(UserError, match=r"train\.json"):
        run(tmp_path, public(), questions=str(tmp_path / "train.json"))
    assert not (tmp_path / "out").exists()
    for option in ("questions", "annotations"):
        (tmp_path / "nothing").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"{option}="):
            run(tmp_path, public(), **{option: str(tmp_path / "nothing")})


def test_a_file_of_joblib_says_how_to_write_it_again(tmp_path):
    joblib = pytest.importorskip("joblib")  # comes with scikit-learn
    path = tmp_path / "slots.joblib"
    joblib.dump({"train": {"0_pixels.mp4": np.zeros((4, 3, 8), np.float32)}}, path)
    with pytest.raises(UserError, match=r"needs joblib\..*pickle\.dump\(joblib\.load"):
        main(ImportPickle(source=str(path), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
