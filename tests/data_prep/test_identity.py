"""An import, a merge or a match is taken for the one asked for only if it is that one."""

import dataclasses
import json
import os
import shutil

import h5py
import numpy as np
import pytest

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.errors import UserError
from data_prep import import_arrays, import_pickle, match, merge, verify
from data_prep.import_arrays import ImportArrays
from data_prep.import_pickle import ImportPickle
from tests.data_prep.pickles import dump, public, video


def tree(folder):
    """Bytes and times of all files below a folder."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def imported(tmp_path):
    """An import of slots.pkl, and a function that runs it again with other options."""
    path = dump(tmp_path / "slots.pkl", public())

    def run(**options):
        given = {"source": str(path), "out": str(tmp_path / "out")} | options
        import_pickle.main(ImportPickle(**given))
        return tmp_path / "out"

    run()
    return run


def other_values():
    """Slots of the same shapes with other numbers: a pickle of the same size."""
    return {split: {key: -slots for key, slots in v.items()} for split, v in public().items()}


def refused(imported, tmp_path, differs, **options):
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match=f"holds another data set: it differs in {differs}"):
        imported(**options)
    assert tree(tmp_path / "out") == before and not (tmp_path / "out.partial").exists()


def test_another_pickle_of_the_same_size(imported, tmp_path):
    size, name = (tmp_path / "slots.pkl").stat().st_size, tmp_path / "slots.pkl"
    times = (name.stat().st_atime_ns, name.stat().st_mtime_ns)
    dump(name, other_values())
    os.utime(name, ns=times)
    assert name.stat().st_size == size
    refused(imported, tmp_path, "source;")


def test_other_settings(imported, tmp_path):
    refused(
        imported,
        tmp_path,
        r"encoder \(imported, not savi\), dtype \(float16, not float32\)",
        dtype="float32",
        encoder="savi",
    )


def test_changed_questions_and_annotations(imported, tmp_path):
    questions, annotations = tmp_path / "q.json", tmp_path / "a"
    annotations.mkdir()
    (annotations / "annotation_00002.json").write_text('{"scene_index": 2}')
    questions.write_text("[]")
    refused(imported, tmp_path, "questions;", questions=str(questions))
    options = {"questions": str(questions), "annotations": str(annotations)}
    imported(redo=True, **options)
    questions.write_text("[ ]")
    refused(imported, tmp_path, "questions;", **options)
    questions.write_text("[]")
    (annotations / "annotation_00002.json").write_text('{"scene_index": 2 }')
    refused(imported, tmp_path, "annotations;", **options)


def test_a_copy_of_the_source_is_the_same_import(imported, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(tmp_path / "slots.pkl", tmp_path / "elsewhere" / "other_name.pkl")
    imported(source=str(copy))
    assert "already holds this import" in capsys.readouterr().out


def test_redo_replaces_it_when_it_is_whole(imported, tmp_path):
    dump(tmp_path / "slots.pkl", other_values())
    content = other_values()
    content["train"]["2_pixels.mp4"][0, 0, 0] = np.nan
    bad = dump(tmp_path / "bad.pkl", content)
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match="not finite"):
        imported(source=str(bad), redo=True)
    assert tree(tmp_path / "out") == before
    out = imported(redo=True)
    assert np.array_equal(load_slots(out, "train")[1], -video(2).astype(np.float16))
    assert not [path for path in tmp_path.iterdir() if "replaced" in path.name]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt beside the data set"):
        imported(redo=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_an_import_that_left_something_out(tmp_path, capsys):
    content = public()
    content["train"]["2_pixels.mp4"][0, 0, 0] = np.nan
    path = dump(tmp_path / "slots.pkl", content)
    options = ImportPickle(source=str(path), out=str(tmp_path / "out"), skip_bad=True)
    import_pickle.main(options)
    import_pickle.main(options)
    assert "already holds this import" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"without what skipped\.jsonl in it lists"):
        import_pickle.main(dataclasses.replace(options, skip_bad=False))


def test_redo_never_replaces_what_it_reads(tmp_path):
    (tmp_path / "out" / "train").mkdir(parents=True)
    np.save(tmp_path / "out" / "train" / "0.npy", video(0))
    for out in (tmp_path / "out", tmp_path):
        with pytest.raises(UserError, match="which is read"):
            import_arrays.main(ImportArrays(source=str(tmp_path / "out"), out=str(out), redo=True))
    assert (tmp_path / "out" / "train" / "0.npy").exists()


def test_arrays_know_the_names_of_rows(tmp_path):
    """The keys of an array of all videos are in a file beside it."""
    source = tmp_path / "slots"
    source.mkdir()
    np.save(source / "train.npy", np.stack([video(0), video(1)]))
    (source / "train.txt").write_text("0_pixels 1_pixels")
    options = ImportArrays(source=str(source), out=str(tmp_path / "out"))
    import_arrays.main(options)
    (source / "train.txt").write_text("1_pixels 0_pixels")
    with pytest.raises(UserError, match="differs in source;"):
        import_arrays.main(options)


# --- which split an array belongs to


def test_folders_between_split_and_array(tmp_path):
    for split, scene in (("train", 0), ("val", 10000)):
        (tmp_path / "in" / split / "slots").mkdir(parents=True)
        np.save(tmp_path / "in" / split / "slots" / f"{scene}.npy", video(scene))
    import_arrays.main(ImportArrays(source=str(tmp_path / "in"), out=str(tmp_path / "out")))
    assert Manifest.load(tmp_path / "out").keys("train") == ["video_00000"]
    assert Manifest.load(tmp_path / "out").keys("val") == ["video_10000"]


@pytest.mark.parametrize("names", ["{}/slots/{}", "slots/{}/{}", "a/{}/b/{}", "{}/{}"])
def test_groups_between_split_and_array(tmp_path, names):
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "all.h5", "w") as file:
        file[names.format("train", "0")] = video(0)
        file[names.format("validation", "10000")] = video(1)
    import_arrays.main(ImportArrays(source=str(tmp_path / "in"), out=str(tmp_path / "out")))
    manifest = Manifest.load(tmp_path / "out")
    assert {split: manifest.keys(split) for split in manifest.splits} == {
        "train": ["video_00000"],
        "val": ["video_10000"],
    }


@pytest.mark.parametrize("place", ["a/b/0.npy", "train/val/0.npy", "a/slots.npz"])
def test_a_split_that_cannot_be_told(tmp_path, place):
    path = tmp_path / "in" / place
    path.parent.mkdir(parents=True)
    if place.endswith("npz"):
        np.savez(path, **{"0": video(0)})
    else:
        np.save(path, video(0))
    with pytest.raises(UserError, match="which split are the videos of"):
        import_arrays.main(ImportArrays(source=str(tmp_path / "in"), out=str(tmp_path / "out")))


# --- parts


def make_parts(tmp_path, contents):
    """Part i of len(contents) of each pickle, in tmp_path/parts."""
    for i, content in enumerate(contents):
        path = dump(tmp_path / f"copy_{i}" / "slots.pkl", content)
        import_pickle.main(
            ImportPickle(
                source=str(path),
                out=str(tmp_path / "parts" / str(i)),
                part=f"{i}/{len(contents)}",
            )
        )
    return merge.Merge(out=str(tmp_path / "out"), parts=str(tmp_path / "parts"))


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for i in range(3):
        (tmp_path / f"copy_{i}").mkdir()


def test_parts_of_two_pickles_of_one_name_and_size(tmp_path):
    config = make_parts(tmp_path, [public(), other_values()])
    with pytest.raises(UserError, match=r"they differ in settings\.fingerprint\.source"):
        merge.main(config)
    assert not (tmp_path / "out").exists()


def test_a_repaired_part_can_be_merged(tmp_path, capsys):
    content = public()
    content["train"] |= {f"{i}_pixels.mp4": video(i) for i in range(20, 24)}
    config = make_parts(tmp_path, [content, content])
    shard = tmp_path / "parts" / "1" / "val" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1000] + bytes(1000) + b"x")
    verify.main(verify.Verify(data=str(tmp_path / "parts" / "1"), processes=1, repair=True))
    assert (tmp_path / "parts" / "1.bad").is_dir()
    assert merge.main(config) == 0
    assert Manifest.load(tmp_path / "out").source["lost"] == {"val": 1}
    assert "1 videos were lost in repairs" in capsys.readouterr().out
    assert merge.main(config) == 0  # it is there
    with pytest.raises(UserError, match="has lost 1 videos in a repair"):
        make_parts(tmp_path, [content, content])


def test_merge_says_what_differs_and_redoes(tmp_path):
    config = make_parts(tmp_path, [public(), public()])
    merge.main(config)
    shutil.rmtree(tmp_path / "parts")
    make_parts(tmp_path, [other_values(), other_values()])
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match=r"it differs in settings\.fingerprint\.source, shards"):
        merge.main(config)
    assert tree(tmp_path / "out") == before
    merge.main(dataclasses.replace(config, redo=True))
    assert np.array_equal(load_slots(tmp_path / "out", "val")[0], -video(10000).astype(np.float16))


# --- matches


def test_a_match_knows_its_data(small_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    options = match.Match(
        data=str(data), out=str(tmp_path / "out"), fit_videos=8, splits=["val"], videos=2
    )
    match.main(options)
    manifest = Manifest.load(data)
    entry = manifest.splits["val"][0]
    manifest.splits["val"][0] = dataclasses.replace(entry, xxh3="0" * 16)
    manifest.save(data)
    with pytest.raises(UserError, match=r"it differs in data\.shards\.val;"):
        match.main(options)
    with pytest.raises(UserError, match="which is read"):
        match.main(dataclasses.replace(options, out=str(data), redo=True))
    assert json.loads((data / "manifest.json").read_text())
    assert next(read_split(tmp_path / "out", "val")).match is not None
