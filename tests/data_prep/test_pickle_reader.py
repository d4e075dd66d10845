"""The pickle reader: arrays of all kinds are exact, code never runs, damage is a UserError."""

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cjepa_dist.errors import UserError
from data_prep.pickle import reader
from tests.data_prep.pickles import dump, public, video


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
        print,
        np.ndarray,
        torch.float32,
        Path("x"),
    ]
    for attempt in attempts:
        with pytest.raises(UserError):
            reader.load(dump(tmp_path / "x.pkl", attempt))


def test_state_cannot_be_set_on_stubs(tmp_path):
    """BUILD sets attributes of what is on the stack: here of the stubs of ndarray and dtype."""
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


def test_damaged_files_are_user_errors(tmp_path):
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
    """Any file gives arrays and containers, or a UserError; no other exception, no code runs."""
    damaged = bytearray(program)
    for place, byte in changes:
        # Most of the program is at the start.
        damaged[place % min(len(damaged), 1 << (6 + 3 * start))] = byte
    (tmp_path / "x.pkl").write_bytes(damaged)
    try:
        reader.load(tmp_path / "x.pkl")
    except UserError as error:
        assert "x.pkl" in str(error) or "the pickle" in str(error)
