"""`python -m data_prep.fake_clevrer`: the public files' layout, their oddities, the same bytes."""

import json
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.errors import UserError
from data_prep import import_pickle
from data_prep.fake_clevrer.__main__ import FakeClevrer, main
from data_prep.fake_clevrer.stream_pickle import Stream, dump_stream
from data_prep.simulate.settings import Simulate
from data_prep.simulate.video import make_video

PICKLE = "slots/clevrer_videosaur_slots.pkl"
SIZES = {"train": 5, "val": 3, "test": 2, "workers": 1}


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    out = tmp_path_factory.mktemp("fake") / "clevrer"
    main(FakeClevrer(out=str(out), **SIZES))
    return out


def load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's old name of _reconstruct
        return pickle.loads(path.read_bytes())


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_slots_are_laid_out_as_the_public_ones(fake):
    slots = load(fake / PICKLE)
    assert {split: list(videos) for split, videos in slots.items()} == {
        "train": [f"{n}_pixels.mp4" for n in range(5)],
        "val": [f"{n}_pixels.mp4" for n in range(10000, 10003)],
        "test": ["15000_pixels.mp4", "15001_pixels.mp4"],
    }
    arrays = {key: array for videos in slots.values() for key, array in videos.items()}
    assert {array.dtype.str for array in arrays.values()} == {"<f4"}
    assert arrays.pop("1_pixels.mp4").shape == (104, 7, 128)
    assert {array.shape for array in arrays.values()} == {(128, 7, 128)}


def test_questions_are_as_published(fake):
    found = {
        name: json.loads((fake / f"questions/{name}.json").read_text())
        for name in ("train", "validation", "test")
    }
    assert [entry["scene_index"] for entry in found["validation"]] == [10000, 10001, 10002]
    assert list(found["test"][0]) == ["questions", "scene_index", "video_filename"]
    assert not re.search(r'"(answer|program)"', (fake / "questions/test.json").read_text())
    for entry in [*found["train"], *found["validation"]]:
        for question in entry["questions"]:
            answered = question.get("choices", [question])
            assert all("answer" in part and "program" in part for part in answered)


def test_annotations_are_as_published(fake):
    with zipfile.ZipFile(fake / "annotations/train/annotation_train.zip") as archive:
        names = [f"annotation_00000-01000/annotation_0000{n}.json" for n in (0, 1, 2, 4)]
        assert archive.namelist() == names
        crowded = json.loads(archive.read(names[2]))
    assert len(crowded["object_property"]) == 8 and len(crowded["motion_trajectory"]) == 128
    with zipfile.ZipFile(fake / "annotations/validation/annotation_validation.zip") as archive:
        folder = "annotation_10000-11000"
        names = [f"{folder}/annotation_1000{n}.json" for n in (0, 2)]
        assert archive.namelist() == names


def test_a_video_is_that_of_the_simulator(fake):
    config = Simulate(out="", train=5, val=3, test=2, dtype="float32", influence="none")
    video = make_video(config, "val", 1)
    assert np.array_equal(load(fake / PICKLE)["val"]["10001_pixels.mp4"], video.slots)
    entry = json.loads((fake / "questions/validation.json").read_text())[1]
    assert entry == video.questions


def test_same_settings_give_the_same_bytes_and_others_do_not(fake, tmp_path, capsys):
    again = tmp_path / "again"
    main(FakeClevrer(out=str(again), **{**SIZES, "workers": 2}))
    assert files(again) == files(fake)
    main(FakeClevrer(out=str(again), **SIZES))
    assert "already holds these files" in capsys.readouterr().out
    with pytest.raises(UserError, match="other settings"):
        main(FakeClevrer(out=str(again), **SIZES, seed=1))


def test_without_oddities_everything_is_imported(tmp_path):
    out, fake = tmp_path / "data", tmp_path / "fake"
    main(
        FakeClevrer(
            out=str(fake), **SIZES, oddities=False, keys="video", savi_encoder="noisy", seed=3
        )
    )
    unpacked = tmp_path / "annotations"
    for path in fake.glob("annotations/*/*.zip"):
        zipfile.ZipFile(path).extractall(unpacked)
    import_pickle.main(
        import_pickle.ImportPickle(
            source=str(fake / "slots/clevrer_savi_slots.pkl"),
            out=str(out),
            questions=str(fake / "questions"),
            annotations=str(unpacked),
        )
    )
    assert [Manifest.load(out).count(split) for split in ("train", "val", "test")] == [5, 3, 2]
    assert all(len(s.annotation["object_property"]) <= 6 for s in read_split(out, "train"))
    noisy, clean = (
        load(fake / f"slots/clevrer_{name}_slots.pkl") for name in ("savi", "videosaur")
    )
    assert not np.array_equal(noisy["val"]["video_10000.mp4"], clean["val"]["video_10000.mp4"])


def test_oddities_are_named_by_the_import_and_left_out(fake, tmp_path, capsys):
    options = {"source": str(fake / PICKLE), "out": str(tmp_path / "data")}
    options["questions"] = str(fake / "questions")
    with pytest.raises(UserError, match=r"1_pixels.mp4, video_00001: slots are \(104, 7, 128\)"):
        import_pickle.main(import_pickle.ImportPickle(**options))
    import_pickle.main(import_pickle.ImportPickle(**options, skip_bad=True))
    manifest = Manifest.load(tmp_path / "data")
    assert manifest.keys("train") == [f"video_0000{n}" for n in (0, 2, 3, 4)]
    test = next(read_split(tmp_path / "data", "test"))
    assert all("answer" not in question for question in test.questions["questions"])


@pytest.mark.parametrize("count", [0, 1, 1000, 2001])
def test_a_streamed_pickle_loads_as_a_plain_one(tmp_path, count):
    def items():
        for number in range(count):
            yield f"{number}", np.full((2, 3), number, np.float32)

    path = tmp_path / "stream.pkl"
    with open(path, "wb") as file:
        dump_stream({"train": Stream(items()), "val": Stream(iter(()))}, file)
    found = load(path)
    assert list(found["train"]) == [str(number) for number in range(count)] and found["val"] == {}
    assert all((array == int(key)).all() for key, array in found["train"].items())
    content = path.read_bytes()
    assert b"numpy.core.multiarray" in content or not count
    assert b"numpy._core" not in content
