"""Foreign webdataset shards become a data set; what is damaged or runs code is one line."""

import gzip
import http.server
import io
import json
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
import webdataset

from cjepa_dist.data.format.dtypes import to_float32, to_storage_dtype
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from data_prep.import_webdataset import ImportWebdataset, main
from tests.data_prep.pickles import video

SPLITS = {"train": (2, 0, 11), "val": (10000, 10001)}
QUESTIONS = {
    "scene_index": 2,
    "video_filename": "video_00002.mp4",
    "questions": [{"question_id": 0, "question_type": "descriptive", "question": "how many cubes"}],
}


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def pack(path, scenes, key="{}_pixels", member="slots.npy", value=video, **others):
    """A shard as webdataset's TarWriter makes it; `others`: more members of each sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for scene in scenes:
            more = {name: make(scene) for name, make in others.items()}
            tar.write({"__key__": key.format(scene), member: value(scene), **more})
    return path


def run(tmp_path, source="in", **options):
    options.setdefault("out", str(tmp_path / "out"))
    where = source if "://" in source else str(tmp_path / source)
    main(ImportWebdataset(source=where, **{"dtype": "float32", **options}))
    return tmp_path / "out"


def check(out):
    manifest = Manifest.load(out)
    assert verify_dataset(out) == [] and sorted(manifest.splits) == ["train", "val"]
    assert manifest.keys("train") == ["video_00000", "video_00002", "video_00011"]
    assert np.array_equal(load_slots(out, "train"), np.stack([video(0), video(2), video(11)]))
    assert np.array_equal(load_slots(out, "val"), np.stack([video(10000), video(10001)]))


LAYOUTS = {
    "folders": lambda f: [pack(f / s / "000.tar", n) for s, n in SPLITS.items()],
    "gz": lambda f: [pack(f / s / "000.tar.gz", n) for s, n in SPLITS.items()],
    "names": lambda f: [pack(f / f"clevrer-{s}-000003.tar", n) for s, n in SPLITS.items()],
    "several": lambda f: [
        pack(f / s / f"{i:03d}.tar", [n]) for s in SPLITS for i, n in enumerate(SPLITS[s])
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "in")
    check(run(tmp_path))


def test_one_tar_whose_keys_name_the_splits(tmp_path):
    path = pack(tmp_path / "all.tar", SPLITS["train"], "train/{}_pixels")
    with tarfile.open(path, "a") as tar:
        for scene in SPLITS["val"]:
            buffer = io.BytesIO()
            np.save(buffer, video(scene))
            member = tarfile.TarInfo(f"val/video_{scene}.slots.npy")
            member.size = buffer.tell()
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    check(run(tmp_path, "all.tar"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_url_with_braces_is_fetched(tmp_path, suffix):
    for split, scenes in SPLITS.items():
        for number in (0, 1):
            pack(tmp_path / "web" / split / f"00{number}.{suffix}", scenes[number::2])
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "web")
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{{train,val}}/{{000..001}}.{suffix}"
        check(run(tmp_path, url))
        pack(tmp_path / "web" / "val" / f"001.{suffix}", [10007])
        with pytest.raises(UserError, match="differs in fetched"):
            run(tmp_path, url)
        with pytest.raises(UserError, match="cannot be read"):
            run(tmp_path, url.replace("val", "test"))
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("x.npz", lambda n: npz(slots=video(n), mask=np.ones(2))),
        ("x.npz", lambda n: npz(only=video(n))),
        ("deep.npy", lambda n: np.asfortranarray(video(n))),
        ("be.npy", lambda n: video(n).astype(">f4")),
        ("f8.npy", lambda n: video(n).astype(np.float64)),
    ],
)
def test_members_of_other_names_and_types(tmp_path, member, value):
    for split, scenes in SPLITS.items():
        if member.endswith("npz"):
            pack(tmp_path / "in" / split / "0.tar", scenes, member=member, value=value)
        else:  # webdataset's encoder would change the order of the axes in memory
            made = {scene: io.BytesIO() for scene in scenes}
            for scene, buffer in made.items():
                np.save(buffer, value(scene))
            raw = partial(lambda made, n: made[n].getvalue(), made)
            path = tmp_path / "in" / split / "0.tar"
            pack(path, scenes, member="bin", value=raw, **{member: raw})
    check(run(tmp_path, member=member))


def test_bits_of_bfloat16_and_our_own_shards(tmp_path):
    pack(tmp_path / "train.tar", [1], value=lambda n: to_storage_dtype(video(n), "bfloat16"))
    out = run(tmp_path, "train.tar", dtype="bfloat16")
    slots = to_float32(load_slots(out, "train"))[0]
    assert np.array_equal(slots, to_float32(to_storage_dtype(video(1), "bfloat16")))
    main(ImportWebdataset(source=str(out), out=str(tmp_path / "again"), dtype="bfloat16"))
    assert np.array_equal(load_slots(tmp_path / "again", "train"), load_slots(out, "train"))


def test_questions_and_annotations_of_the_samples(tmp_path):
    others = {"json": lambda n: {"scene_index": n, "collision": []} if n == 2 else {"text": "a"}}
    pack(
        tmp_path / "in" / "train" / "0.tar",
        [2],
        **others,
        **{"questions.json": lambda n: QUESTIONS},
    )
    pack(tmp_path / "in" / "train" / "1.tar", [3], **others)
    first, second = read_split(run(tmp_path), "train")
    assert first.questions == QUESTIONS
    assert first.annotation == {"scene_index": 2, "collision": []}
    assert second.annotation == {"scene_index": 3} and second.questions is None


def test_faults_are_told_or_left_out_and_neither_is_taken_for_the_other(tmp_path, capsys):
    train = tmp_path / "in" / "train"
    wrong = {"questions.json": lambda n: {**QUESTIONS, "scene_index": 7}}
    pack(train / "0.tar", [1])
    pack(train / "1.tar", [2], **wrong)
    pack(train / "2.tar", [3], value=lambda n: np.full_like(video(n), np.nan))
    pack(train / "3.tar", [4], member="other.npy")
    with pytest.raises(UserError) as caught:
        run(tmp_path)
    for text in (
        "must be the questions of scene 2",
        "not finite",
        "has no slots.npy; it has other",
    ):
        assert text in str(caught.value)
    out = run(tmp_path, skip_bad=True)
    assert Manifest.load(out).keys("train") == ["video_00001", "video_00002"]
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 3
    with pytest.raises(UserError, match="without what skipped"):
        run(tmp_path)
    run(tmp_path, skip_bad=True)
    assert "already holds this import" in capsys.readouterr().out
    whole = {"source": "in/train/0.tar", "split": "train", "out": str(tmp_path / "whole")}
    run(tmp_path, **whole)
    run(tmp_path, **whole, skip_bad=True)  # nothing was left out: the same
    assert not (tmp_path / "whole" / "skipped.jsonl").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"11_pixels")])


def cut_gzip(path):
    path.write_bytes(gzip.compress(path.read_bytes())[:-20])


@pytest.mark.parametrize(
    ("harm", "options", "message"),
    [
        (cut, {}, "without the tar's end mark"),  # where webdataset ends in silence
        (cut_gzip, {}, "cannot be unpacked"),
        (lambda path: path.write_bytes(b"words"), {}, "is no whole tar"),
        (lambda path: None, {"member": "slots.pyd"}, "import-pickle"),
        (lambda path: None, {"member": "x.npy"}, "has no x.npy; it has slots.npy"),
        (lambda path: path.rename(path.parent.parent / "0.tar"), {}, "which split"),
        (lambda path: path.unlink(), {}, "there is no .tar"),
        (lambda path: pack(path, [1], value=lambda n: np.zeros((7, 128, 128))), {}, "its axes"),
        (lambda path: pack(path, [1], value=lambda n: np.zeros((7, 3, 2), int)), {}, "int64"),
        (lambda path: pack(path, [1], member="slots.npz", value=lambda n: b"PK"), {}, "has no"),
        (lambda path: pack(path, [1], key="no_scene"), {}, "names no scene"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, harm, options, message):
    harm(pack(tmp_path / "in" / "train" / "0.tar", SPLITS["train"]))
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
