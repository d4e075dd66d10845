"""Shards of other tar writers are read where the manifest vouches for them; damage is named."""

import io
import os
import random
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset

from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.tar_members import MOST_EXTENSION, TarError, tar_members
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from tests.data.format.test_shards import refresh, shard_of, write


def contents(path):
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def by_webdataset(path, files):
    """As webdataset writes by default: the time is a float, and so stands in a pax header."""
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for name, content in files:
            key, _, member = name.partition(".")
            tar.write({"__key__": key, member: content})


def by_tarfile(layout, **headers):
    def pack(path, files):
        with tarfile.open(path, "w", format=layout, pax_headers=headers or None) as tar:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), 1234567890.25
                tar.addfile(member, io.BytesIO(content))

    return pack


def by_records(path, files):
    """Name and size stand in pax headers alone."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo("x")
            member.pax_headers = {"path": f"./{name}", "size": str(len(content))}
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def by_gnu_tar(*options):
    """The files of a folder, in any order, with the folder itself."""

    def pack(path, files):
        folder = path.parent / "unpacked"
        folder.mkdir()
        for name, content in files:
            (folder / name).write_bytes(content)
        subprocess.run(["tar", *options, "-C", folder, "-cf", path, "."], check=True)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    return pack


def with_others(path, files):
    """Members in another order, files of no sample, one with a name that needs a header."""
    files = [*files, ("README.md", b"words"), ("a" * 200 + ".txt", b""), ("__info__", b"x")]
    random.Random(0).shuffle(files)
    by_tarfile(tarfile.GNU_FORMAT)(path, files)


WRITERS = {
    "webdataset": by_webdataset,
    "ustar": by_tarfile(tarfile.USTAR_FORMAT),
    "pax": by_tarfile(tarfile.PAX_FORMAT),
    "pax, global": by_tarfile(tarfile.PAX_FORMAT, comment="words", SCHILY="x"),
    "pax, records": by_records,
    "gnu": by_tarfile(tarfile.GNU_FORMAT),
    "tar --format=gnu": by_gnu_tar("--format=gnu"),
    "tar --format=pax": by_gnu_tar("--format=pax"),
    "tar --format=v7": by_gnu_tar("--format=v7"),
    "others": with_others,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_shards_of_other_writers_are_read(tmp_path, writer):
    data = write(tmp_path / "data", dtype="float32")
    before, path = list(read_split(data, "train")), shard_of(data)
    files = contents(path)
    path.unlink()
    WRITERS[writer](path, files)
    refresh(data)
    assert verify_dataset(data) == []
    for sample, expected in zip(read_split(data, "train"), before, strict=True):
        assert sample.key == expected.key and np.array_equal(sample.slots, expected.slots)
        assert sample.annotation == expected.annotation and sample.questions == expected.questions
    assert np.array_equal(load_slots(data, "train"), np.stack([s.slots for s in before]))


def test_a_sample_that_the_manifest_does_not_know_is_refused(tmp_path):
    data = write(tmp_path / "data")
    path = shard_of(data)
    files = contents(path)
    slots = dict(files)["video_00000.slots.npy"]
    by_webdataset(path, [*files, ("video_00009.slots.npy", slots)])
    refresh(data)
    with pytest.raises(UserError, match="holds key video_00009, unknown to the manifest"):
        load_slots(data, "train")


def packed(*members):
    """A tar of (TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def entry(name="a.npy", kind=tarfile.REGTYPE):
    made = tarfile.TarInfo(name)
    made.type = kind
    return made


PLAIN = packed((entry(), b"12345"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "without the tar's end mark"),
        (PLAIN[:600], "without the tar's end mark"),
        (PLAIN[:515], "ends within a.npy"),
        (PLAIN[:1024] + b"x" + PLAIN[1025:], "is no number of a header"),
        (b"b" + PLAIN[1:], "checksum is wrong"),
        (packed((entry(kind=tarfile.SYMTYPE), b"")), "only plain files"),
        (packed((entry(kind=tarfile.GNUTYPE_SPARSE), b"")), "only plain files"),
        (packed((entry(kind=b"x"), bytes(MOST_EXTENSION + 1))), "a header of 1048577 bytes"),
        (packed((entry(kind=b"x"), b"12 path=a.b")), "pax header is damaged"),
        (packed((entry(kind=b"x"), b"9999999999 path=a.b\n")), "pax header is damaged"),
        (packed((entry(kind=b"x"), b"0 path=a\n"), (entry(), b"")), "pax header is damaged"),
        (packed((entry(kind=b"x"), b"11 size=-1\n"), (entry(), b"")), "size '-1'"),
        (packed((entry(kind=b"x"), b"22 GNU.sparse.major=1\n"), (entry(), b"")), "sparse"),
        (packed((entry(kind=b"x"), b"20 size=99999999999\n"), (entry(), b"")), "ends within"),
        (packed((entry(kind=b"L"), b"\xff\xfe\0"), (entry(), b"")), "utf-8"),
        (packed((entry(kind=b"x"), b"8 path=a\n")), "pax header is damaged"),
        (packed((entry(kind=b"x"), b"9 path=a\n")), "a header of no member"),
    ],
)
def test_what_is_no_whole_tar_is_refused(tmp_path, content, message):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(TarError, match=message):
            list(tar_members(descriptor, len(content)))
    finally:
        os.close(descriptor)
