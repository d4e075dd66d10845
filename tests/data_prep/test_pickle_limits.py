"""Hostile pickles end at once, in one line: what would take for ever, or all memory, is refused."""

import bz2
import gzip
import io
import lzma
import pickle
import time

import numpy as np
import pytest
import torch

from cjepa_dist.errors import UserError
from data_prep.pickle import limits, reader
from tests.data_prep.pickles import dump

NESTED = b"(t" + b"2\x86" * 60  # a tuple of the same two tuples, 60 deep: 2^60 leaves


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module, name):
    return text(module) + text(name) + b"\x93"


REFUSED = {
    "a nested tuple as a key": (b"\x80\x04}" + NESTED + b"Ns.", "a key of type tuple"),
    "a nested tuple as a persistent id": (b"\x80\x04" + NESTED + b"Q.", "outside of it"),
    "a nested tuple in a set": (b"\x80\x04\x8f(" + NESTED + b"\x90.", "a key of type tuple"),
    "a nested tuple in a frozenset": (b"\x80\x04(" + NESTED + b"\x91.", "a key of type tuple"),
    "a nested tuple in a set that is called": (
        b"\x80\x04" + named("builtins", "set") + b"](" + NESTED + b"e\x85R.",
        "a key of type tuple",
    ),
    "a nested tuple in an OrderedDict": (
        b"\x80\x04" + named("collections", "OrderedDict") + b"](" + NESTED + b"N\x86e\x85R.",
        "a key of type tuple",
    ),
    "a nested tuple as a dtype": (
        b"\x80\x04" + named("numpy", "dtype") + NESTED + b"\x85R.",
        "array of dtype",
    ),
    "a nested tuple as a class of arrays": (
        b"\x80\x04" + named("numpy.core.multiarray", "_reconstruct") + NESTED + b"\x85R.",
        "makes an array of class",
    ),
    "a nested tuple as an encoding": (
        b"\x80\x04" + named("_codecs", "encode") + text("x") + NESTED + b"\x86R.",
        "with encoding",
    ),
    "a nested tuple as an argument": (
        b"\x80\x04" + named("builtins", "bytes") + b"K\x01" + NESTED + b"\x86R.",
        "bytes of",
    ),
    "a nested tuple as content": (b"\x80\x04" + NESTED + b".", "containers more than 50 deep"),
    "lists that share": (b"\x80\x04]q\x00" + b"(h\x00h\x00lq\x00" * 40 + b".", "more than 5000000"),
    "a list that holds itself": (b"\x80\x04]q\x00h\x00a.", "holds itself"),
    "deep lists": (b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", "more than 50 deep"),
    "ints of one hash": (
        b"\x80\x04}\x8a\x09" + (2**61 * 3 - 3).to_bytes(9, "little") + b"Ns.",
        "a key of type int",
    ),
    "an int of gigabytes": (b"\x80\x04\x8b\xff\xff\xff\x7f", "opcode .* is not supported"),
    "a line without end": (b"I" + b"1" * (limits.MOST_LINE + 2), "a line of more than"),
    "a text without end": (b"V" + b"1" * (limits.MOST_LINE + 2), "a line of more than"),
    "too many steps": (b"\x80\x04" + b"}" * (limits.MOST_STEPS + 1), "takes more than 5000000"),
    "an array of many dimensions": (
        b"\x80\x04"
        + named("numpy.core.numeric", "_frombuffer")
        + b"("
        + text("x")
        + named("numpy", "dtype")
        + text("u1")
        + b"\x85R"
        + b"("
        + b"K\x01" * 100
        + b"t"
        + text("C")
        + b"tR.",
        "an array of shape",
    ),
    "items of gigabytes": (
        b"\x80\x04" + named("numpy", "dtype") + text("S1000000000") + b"\x85R.",
        "array of dtype 'S1000000000'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_pickles_end_at_once(tmp_path, name):
    program, message = REFUSED[name]
    (tmp_path / "x.pkl").write_bytes(program)
    began = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        reader.load(tmp_path / "x.pkl")
    assert len(str(caught.value)) < 500
    assert time.process_time() - began < 20


def test_copies_of_what_is_there_are_counted(tmp_path):
    """bytes(list) again and again: three opcodes a copy."""
    length, copies = 100_000, 2_000
    program = (
        b"\x80\x04"
        + named("builtins", "bytes")
        + b"q\x00]("
        + b"K\x01" * length
        + b"eq\x01("
        + b"h\x00h\x01\x85R" * copies
        + b"t."
    )
    (tmp_path / "x.pkl").write_bytes(program)
    with pytest.raises(UserError, match="more than 5000000 steps"):
        reader.load(tmp_path / "x.pkl")


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_pickles_within_pickles_share_one_budget(tmp_path):
    buffer = io.BytesIO()
    torch.save(torch.zeros(2).storage(), buffer, _use_new_zipfile_serialization=False)
    inner = b"\x80\x02" + b"}0" * 50_000 + buffer.getvalue()[2:]  # and 100,000 steps more
    again = b"0h\x00h\x01\x85R"
    program = (
        b"\x80\x04"
        + named("torch.storage", "_load_from_bytes")
        + b"q\x00"
        + b"B"
        + len(inner).to_bytes(4, "little")
        + inner
        + b"q\x01"
    )
    (tmp_path / "x.pkl").write_bytes(program + again + b".")
    assert np.array_equal(reader.load(tmp_path / "x.pkl"), [0, 0])
    (tmp_path / "x.pkl").write_bytes(program + again * 60 + b".")
    with pytest.raises(UserError, match="more than 5000000 steps"):
        reader.load(tmp_path / "x.pkl")


def test_text_and_small_arrays_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MOST_BYTES", 10_000)
    path = dump(tmp_path / "x.pkl", ["x" * 3000 + str(number) for number in range(4)])
    with pytest.raises(UserError, match="of text and small arrays"):
        reader.load(path)


def test_expanded_tensors_and_large_arrays_are_refused(tmp_path):
    """A view that repeats one number takes no room in the file, and all memory when it is read."""
    torch.save({"x": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "x.pt")
    with reader.open_pickle(tmp_path / "x.pt") as content:
        with pytest.raises(UserError, match=r"takes .* MiB; one video has at most 256 MiB"):
            reader.read_array(tmp_path / "x.pt", content["x"])
    torch.save({"x": torch.zeros(1).expand(5, 3)}, tmp_path / "x.pt")
    assert np.array_equal(reader.load(tmp_path / "x.pt")["x"], np.zeros((5, 3), np.float32))


@pytest.mark.parametrize(
    ("compress", "kind"),
    [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")],
)
def test_compressed_pickles_are_named(tmp_path, compress, kind):
    (tmp_path / "x.pkl").write_bytes(compress(pickle.dumps({"train": {}})))
    with pytest.raises(UserError, match=f"is compressed by {kind}; unpack it first"):
        reader.load(tmp_path / "x.pkl")


def test_an_encrypted_torch_file_is_named(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    content = bytearray(buffer.getvalue())
    for sign, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := content.find(sign, at + 1)) >= 0:
            content[at + place] |= 1
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt is not a readable pickle.*is encrypted"):
        reader.load(tmp_path / "x.pt")


def test_a_large_pickle_of_videos_is_within_the_limits(tmp_path):
    """CLEVRER's 20,000 videos: their steps, not their arrays."""
    small = np.zeros((1, 1, 1), np.float16)
    content = {"train": {f"{number}_pixels.mp4": small.copy() for number in range(20_000)}}
    with reader.open_pickle(dump(tmp_path / "x.pkl", content)) as loaded:
        assert len(loaded["train"]) == 20_000
