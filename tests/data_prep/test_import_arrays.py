"""Imports of arrays: every format and layout gives the same data set as a pickle."""

import json
import os
import resource
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from data_prep.import_arrays import ImportArrays, main
from data_prep.merge import Merge
from data_prep.merge import main as merge
from tests.data_prep.pickles import video

SPLITS = {"train": (2, 0, 11), "validation": (10000, 10001)}


def each(folder, write, suffix, layout="{}_pixels"):
    """One file a video."""
    for split, scenes in SPLITS.items():
        (folder / split).mkdir(parents=True)
        for scene in scenes:
            write(folder / split / (layout.format(scene) + suffix), video(scene))


def of_split(folder, write, suffix):
    """One file a split."""
    folder.mkdir()
    for split, scenes in SPLITS.items():
        write(
            folder / f"{split}{suffix}", {f"{scene}_pixels.mp4": video(scene) for scene in scenes}
        )


def rows(folder, write, suffix):
    """One array a split, and a file of keys."""
    folder.mkdir()
    for split, scenes in SPLITS.items():
        write(folder / f"{split}{suffix}", np.stack([video(scene) for scene in scenes]))
        (folder / f"{split}.txt").write_text(
            "".join(f"video_{scene:05d}.mp4\n" for scene in scenes)
        )


def h5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in (arrays if isinstance(arrays, dict) else {"slots": arrays}).items():
            file.create_dataset(name, data=array, compression="gzip")


def tensors(path, arrays):
    arrays = arrays if isinstance(arrays, dict) else {"slots": arrays}
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def grouped(folder):
    folder.mkdir()
    h5(
        folder / "slots.h5",
        {
            f"{split}/video_{scene:05d}.mp4": video(scene)
            for split, scenes in SPLITS.items()
            for scene in scenes
        },
    )


LAYOUTS = {
    "npy each": lambda f: each(f, np.save, ".npy"),
    "npy each, fortran": lambda f: each(
        f, lambda p, a: np.save(p, np.asfortranarray(a)), ".npy", "video_{:05d}"
    ),
    "npz each": lambda f: each(
        f, lambda p, a: np.savez(p, mask=a[..., 0] > 0, slots=a), ".npz", "video_{:05d}.mp4"
    ),
    "safetensors each": lambda f: each(f, tensors, ".safetensors"),
    "h5 each": lambda f: each(f, h5, ".hdf5"),
    "npz": lambda f: of_split(f, lambda p, a: np.savez(p, **a), ".npz"),
    "npz compressed": lambda f: of_split(f, lambda p, a: np.savez_compressed(p, **a), ".npz"),
    "safetensors": lambda f: of_split(f, tensors, ".safetensors"),
    "h5": lambda f: of_split(f, h5, ".h5"),
    "h5 groups": grouped,
    "npy rows": lambda f: rows(f, np.save, ".npy"),
    "npz rows": lambda f: rows(f, lambda p, a: np.savez(p, slots=a), ".npz"),
    "h5 rows": lambda f: rows(f, h5, ".h5"),
}


def run(tmp_path, **options):
    options.setdefault("out", str(tmp_path / "out"))
    main(ImportArrays(source=str(tmp_path / "in"), **options))
    return tmp_path / "out"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "in")
    out = run(tmp_path, dtype="float32")
    manifest = Manifest.load(out)
    assert verify_dataset(out) == [] and sorted(manifest.splits) == ["train", "val"]
    assert manifest.keys("train") == ["video_00000", "video_00002", "video_00011"]
    assert np.array_equal(load_slots(out, "train"), np.stack([video(0), video(2), video(11)]))
    assert np.array_equal(load_slots(out, "val"), np.stack([video(10000), video(10001)]))


def test_bfloat16_and_float16_tensors_come_through_exactly(tmp_path):
    (tmp_path / "in").mkdir()
    made = {f"{scene}_pixels.mp4": torch.from_numpy(video(scene)).bfloat16() for scene in range(3)}
    save_file(made, tmp_path / "in" / "train.safetensors")
    out = run(tmp_path, dtype="bfloat16")
    assert np.array_equal(
        to_float32(load_slots(out, "train")), torch.stack(list(made.values())).float().numpy()
    )


def test_joining_and_parts_are_those_of_pickles(tmp_path, capsys):
    LAYOUTS["npy each"](tmp_path / "in")
    asked = {"question_id": 0, "question_type": "descriptive", "question": "how many cubes"}
    entries = [{"scene_index": scene, "questions": [asked]} for scene in (0, 11, 7)]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    run(tmp_path, questions=str(tmp_path / "train.json"), out=str(tmp_path / "complete"))
    printed = capsys.readouterr().out
    assert (
        "questions: 2 videos have some, 3 have none (2, 10000, 10001);"
        " 1 scenes with some have no video (7)" in printed
    )
    for i in range(2):
        run(
            tmp_path,
            questions=str(tmp_path / "train.json"),
            out=str(tmp_path / "parts" / str(i)),
            part=f"{i}/2",
        )
    merge(Merge(out=str(tmp_path / "out"), parts=str(tmp_path / "parts")))
    merged, complete = (
        [(s.key, s.questions, s.slots.tobytes()) for s in read_split(tmp_path / name, "train")]
        for name in ("out", "complete")
    )
    assert merged == complete and merged[0][1] == entries[0]


def damaged(folder):
    LAYOUTS["npy each"](folder)
    path = folder / "train" / "2_pixels.npy"
    path.write_bytes(path.read_bytes()[:-5])


def objects(folder):
    (folder / "train").mkdir(parents=True)
    np.save(folder / "train" / "0_pixels.npy", np.array([{}], object), allow_pickle=True)


def no_split(folder):
    folder.mkdir()
    np.save(folder / "0_pixels.npy", video(0))


def utf16_keys(folder):
    no_keys(folder)
    (folder / "train.txt").write_text("0_pixels\n1_pixels\n2_pixels\n", encoding="utf-16")


def no_keys(folder):
    LAYOUTS["npy rows"](folder)
    (folder / "train.txt").write_text("0_pixels.mp4\n")


def integers(folder):
    each(folder, lambda p, a: np.save(p, a.astype(int)), ".npy")


def lying(folder):
    folder.mkdir()
    tensors(folder / "train.safetensors", {"0_pixels.mp4": video(0)})
    content = (folder / "train.safetensors").read_bytes()
    (folder / "train.safetensors").write_bytes(
        content.replace(b'"shape":[6,3,8]', b'"shape":[9,3,8]')
    )


def bomb(folder):
    """0.3 MB that unpack to 342 MiB."""
    (folder / "train").mkdir(parents=True)
    path = folder / "train" / "0_pixels.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("x.npy", "w") as x,
    ):
        shape = (128, 7, 100_000)
        layout = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(x, layout)
        for _ in range(shape[0]):
            x.write(bytes(4 * 7 * 100_000))


def encrypted(folder):
    LAYOUTS["npz each"](folder)
    path = folder / "train" / "video_00002.mp4.npz"
    content = bytearray(path.read_bytes())
    for sign, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := content.find(sign, at + 1)) >= 0:
            content[at + place] |= 1
    path.write_bytes(content)


def long_header(folder):
    (folder / "train").mkdir(parents=True)
    content = b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little")
    (folder / "train" / "0_pixels.npy").write_bytes(content)


def untokenizable(folder):
    LAYOUTS["npy each"](folder)
    path = folder / "train" / "2_pixels.npy"
    path.write_bytes(path.read_bytes().replace(b"{'descr'", b"{'''scr'"))


def structured(folder):
    each(folder, lambda p, a: np.save(p, np.zeros(a.shape, [("float", "f4")])), ".npy")


def negative(folder):
    each(folder, np.save, ".npy")
    path = folder / "train" / "2_pixels.npy"
    path.write_bytes(path.read_bytes().replace(b"(6, 3, 8)", b"(6,-3,-8)"))


def elsewhere(folder):
    """HDF5 can say that an array is in another file, of any kind."""
    folder.mkdir()
    (folder / "secret").write_bytes(bytes(4 * 6 * 3 * 8))
    with h5py.File(folder / "train.h5", "w") as file:
        outside = [(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("0_pixels", (6, 3, 8), "f4", external=outside)


def unallocated(folder):
    """An array of 100 GB that nobody has written takes no room in HDF5."""
    folder.mkdir()
    with h5py.File(folder / "train.h5", "w") as file:
        file.create_dataset("0_pixels", (10**4, 10**4, 250), "f4", chunks=(1, 1, 250))


def test_bytes_in_another_order_and_long_doubles_are_read(tmp_path):
    (tmp_path / "in" / "train").mkdir(parents=True)
    for scene, dtype in enumerate((">f4", ">f8", ">f2", np.longdouble)):
        np.save(tmp_path / "in" / "train" / f"{scene}_pixels.npy", video(scene).astype(dtype))
    with h5py.File(tmp_path / "in" / "val.h5", "w") as file:
        file.create_dataset("4_pixels", data=video(4), dtype=">f4")
    out = run(tmp_path, dtype="float32")
    expected = np.stack([video(0), video(1), video(2).astype(np.float16), video(3)])
    assert np.array_equal(load_slots(out, "train"), expected)
    assert np.array_equal(load_slots(out, "val"), video(4)[None])


def test_more_files_than_may_be_open(tmp_path):
    """Archives and HDF5 files are closed again."""
    for suffix, write in ((".npz", lambda p, a: np.savez_compressed(p, a)), (".h5", h5)):
        for scene in range(60):
            path = tmp_path / "in" / "train" / f"{scene + 100 * (suffix == '.h5')}_pixels{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, video(scene))
    used = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
    try:
        out = run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert Manifest.load(out).count("train") == 120


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            bomb,
            r"0_pixels\.npz cannot be read: .*342 MiB where a video must be, of at most 256 MiB",
        ),
        (encrypted, r"video_00002\.mp4\.npz cannot be read: .*is encrypted"),
        (long_header, r"0_pixels\.npy cannot be read: .*a header of 2147483648 bytes"),
        (untokenizable, r"2_pixels\.npy cannot be read"),
        (structured, "must be a float array"),
        (negative, r"2_pixels\.npy cannot be read: .*shape"),
        (elsewhere, r"train\.h5 cannot be read: .*is in other files"),
        (unallocated, r"train/0_pixels: an array .* is no video; at most 256 MiB"),
        (damaged, r"train/2_pixels\.npy cannot be read: .* ends early"),
        (objects, r"0_pixels\.npy cannot be read: .*objects"),
        (no_split, r"0_pixels\.npy is of no split"),
        (no_keys, r"train\.txt names 1 videos, the array beside it holds 3"),
        (utf16_keys, r"train\.txt is no UTF-8 text .*: save it as UTF-8"),
        (integers, r"must be a float array .* it is int64"),
        (
            lambda folder: rows(folder, lambda p, a: np.savez_compressed(p, slots=a), ".npz"),
            "holds all videos, compressed",
        ),
        (lying, "does not fit its shape"),
        (lambda folder: folder.mkdir(), "there is no .npy"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, make, message):
    make(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    grouped(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="needs h5py"):
        run(tmp_path)
