"""The import of pickles: arrays of every make come through exactly, code never runs, and what does not fit is named."""

import io
import json
import os
import pickle
import struct
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from data_prep.import_pickle import ImportPickle, main
from data_prep.pickle import reader

SHAPE = (6, 3, 8)


def video(scene, dtype=np.float32):
    return np.random.default_rng(scene).standard_normal(SHAPE).astype(dtype)


def public(layout="{}_pixels.mp4"):
    return {
        "train": {layout.format(scene): video(scene) for scene in (2, 0, 11)},
        "validation": {layout.format(scene): video(scene) for scene in (10000,)},
        "test": {layout.format(scene): video(scene) for scene in (15000,)},
    }


def dump(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# --- reading


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_come_through(tmp_path, protocol):
    content = {
        "half": video(0, np.float16),
        "big_endian": video(0, ">f4"),
        "fortran": np.asfortranarray(video(0)),
        "slice": video(0)[::2, 1:],
        "empty": np.zeros((0, 3), np.float32),
        "text": np.array(["a", "bcd"]),
        "flags": np.array([True, False]),
        "scalar": np.float32(1.5),
        "rest": [
            None,
            True,
            3,
            2.5,
            "text",
            b"bytes",
            (1, (2,)),
            {1, 2},
            frozenset((3,)),
            bytearray(b"x"),
            OrderedDict(a=1),
        ],
    }
    loaded = reader.load(dump(tmp_path / "x.pkl", content, protocol))
    assert loaded["rest"] == content["rest"] and loaded["scalar"] == np.float32(1.5)
    for name in ("half", "big_endian", "fortran", "slice", "empty", "text", "flags"):
        assert (
            np.array_equal(loaded[name], content[name])
            and loaded[name].dtype == content[name].dtype
        )


@pytest.mark.parametrize("how", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors_come_through(tmp_path, how, dtype):
    base = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    content = {"whole": base, "view": base[1:, ::2].T, "empty": base[:0]}
    if dtype.is_floating_point:
        content["parameter"] = torch.nn.Parameter(base)
    path = tmp_path / "x.pkl"
    if how == "pickle":
        dump(path, content)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    loaded = reader.load(path)
    for name, tensor in content.items():
        expected = tensor.detach().float() if dtype == torch.bfloat16 else tensor.detach()
        assert np.array_equal(loaded[name], expected.numpy()), name


def test_shared_arrays_and_tuples(tmp_path):
    array = video(0)
    loaded = reader.load(dump(tmp_path / "x.pkl", [array, {"again": array}, (array,)]))
    assert loaded[0] is loaded[1]["again"] is loaded[2][0]


# --- code


class Call:
    """Pickles as a call of any function on any arguments."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def by_name(module, name, argument=b"\x8c\x01x"):
    """A protocol 4 program that calls module.name("x"), for names that pickle would not write."""

    def text(value):
        return b"\x8c" + struct.pack("<B", len(value)) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + argument + b"\x85R."


def flag(tmp_path):
    return tmp_path / "the_code_ran"


@pytest.mark.parametrize("where", ["top", "nested", "tensor_hooks"])
def test_code_is_refused_by_name_and_does_not_run(tmp_path, where):
    attack = Call(os.system, f"touch {flag(tmp_path)}")
    if where == "nested":
        attack = {"train": {"0_pixels.mp4": video(0), "1_pixels.mp4": attack}}
    if where == "tensor_hooks":
        attack = Call(torch._utils._rebuild_tensor_v2, attack, 0, (1,), (1,), False, OrderedDict())
    with pytest.raises(UserError, match=r"x\.pkl needs (posix|os)\.system"):
        reader.load(dump(tmp_path / "x.pkl", attack))
    assert not flag(tmp_path).exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_torch_file_is_refused(tmp_path, zipped):
    torch.save(
        {"a": Call(os.system, f"touch {flag(tmp_path)}")},
        tmp_path / "x.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"needs (posix|os)\.system"):
        reader.load(tmp_path / "x.pt")
    assert not flag(tmp_path).exists()


def test_code_within_a_storage_is_refused(tmp_path):
    """torch.storage._load_from_bytes is torch.load without a guard: a pickle within the pickle."""
    inner = io.BytesIO()
    torch.save(
        Call(os.system, f"touch {flag(tmp_path)}"), inner, _use_new_zipfile_serialization=False
    )
    with pytest.raises(UserError, match=r"needs (posix|os)\.system"):
        reader.load(
            dump(tmp_path / "x.pkl", Call(torch.storage._load_from_bytes, inner.getvalue()))
        )
    assert not flag(tmp_path).exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("builtins", "bytes.fromhex"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__class__"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.f2py", "compile"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("copyreg", "_reconstructor"),
        ("_codecs", "lookup"),
        ("collections", "namedtuple"),
        ("subprocess", "Popen"),
        ("data_prep.pickle.reader", "load"),
    ],
)
def test_other_names_are_refused(tmp_path, module, name):
    (tmp_path / "x.pkl").write_bytes(by_name(module, name))
    with pytest.raises(UserError, match=f"needs {module}.{name}: only arrays"):
        reader.load(tmp_path / "x.pkl")


def test_misuse_of_allowed_names_is_refused(tmp_path):
    """The names that arrays need, on arguments that arrays never have."""
    reconstruct = np.zeros(1).__reduce__()[0]
    rebuild, (storage, *_) = torch.zeros(2).__reduce_ex__(2)
    object_array = np.empty(2, object)
    structured = np.zeros(2, [("a", "f4")])
    attempts = [
        Call(reconstruct, np.dtype, (0,), b"b"),
        Call(reconstruct, np.ndarray, (0,), b"b"),  # never filled
        Call(np.ndarray, (10**12,)),
        Call(
            reconstruct, np.ndarray, (0,), b"b", state=(1, (10**6,), np.dtype("f4"), False, b"1234")
        ),
        Call(reconstruct, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("f4"), False, b"1234")),
        Call(np.dtype, "O"),
        Call(bytearray, 10**12),
        Call(rebuild, storage, 0, (100,), (1,), False, OrderedDict()),
        Call(rebuild, storage, -1, (1,), (1,), False, OrderedDict()),
        object_array,
        structured,
        np.array([np.datetime64("2020-01-01")]),
        np.zeros(2).view(np.recarray),
        defaultdict(list),
        print,
        np.ndarray,
        torch.float32,
        Path("x"),
    ]
    for attempt in attempts:
        with pytest.raises(UserError):
            reader.load(dump(tmp_path / "x.pkl", attempt))


def test_state_cannot_be_forced_on_what_is_allowed(tmp_path):
    """BUILD sets attributes of whatever is on the stack: here of numpy.ndarray's stand-in and of a dtype's."""
    names = [b"cnumpy\nndarray\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"]
    for target in (*names, b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR"):
        program = target + b"}X\x04\x00\x00\x00makeX\x01\x00\x00\x00xsb."
        (tmp_path / "x.pkl").write_bytes(program)
        with pytest.raises(UserError):
            reader.load(tmp_path / "x.pkl")
    assert reader.load(dump(tmp_path / "y.pkl", OrderedDict(a=1))) == {"a": 1}


def test_persistent_ids_are_refused(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"Psomething\n.")
    with pytest.raises(UserError, match="outside of it"):
        reader.load(tmp_path / "x.pkl")


def test_damaged_files_are_errors_of_the_user(tmp_path):
    content = pickle.dumps(public(), protocol=4)
    for size in (0, 1, 10, 200, len(content) // 2, len(content) - 1):
        (tmp_path / "x.pkl").write_bytes(content[:size])
        with pytest.raises(UserError, match=r"x\.pkl is not a readable pickle"):
            reader.load(tmp_path / "x.pkl")
    with pytest.raises(UserError, match="cannot be read"):
        reader.load(tmp_path / "none.pkl")


def every_program():
    """Small files of every layout that is read."""
    content = {
        "train": {
            "0_pixels.mp4": video(0),
            "1_pixels.mp4": torch.from_numpy(video(1)),
            "x": [None, {1}, 2.5, "text", (b"b", True)],
        }
    }
    made = [pickle.dumps(content, protocol=protocol) for protocol in range(6)]
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        made.append(buffer.getvalue())
    return made


PROGRAMS = every_program()


@given(
    st.sampled_from(PROGRAMS),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 3),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_changed_bytes_are_read_or_refused(tmp_path, program, changes, start):
    """Whatever a file says: arrays and containers, or an error of the user; no other exception, and nothing is run."""
    spoiled = bytearray(program)
    for place, byte in changes:
        spoiled[place % min(len(spoiled), 1 << (6 + 3 * start))] = (
            byte  # most of the program stands at the start
        )
    (tmp_path / "x.pkl").write_bytes(spoiled)
    try:
        reader.load(tmp_path / "x.pkl")
    except UserError as error:
        assert "x.pkl" in str(error) or "the pickle" in str(error)


# --- the command


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
            "questions": [{"question_id": 0, "question": "?"}],
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
        "questions: 3 videos have some, 2 have none (11, 15000); 1 scenes with some have no video (7)"
        in printed
    )
    assert "annotations: 1 videos have some, 4 have none" in printed
    single = run(
        tmp_path, public(), questions=str(questions / "train.json"), out=str(tmp_path / "single")
    )
    assert single and next(read_split(tmp_path / "single", "val")).questions is None


def spoiled(change):
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
            "splits differ in the shape",
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
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, spoiled(change))
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
