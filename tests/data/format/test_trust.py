"""What comes from elsewhere is checked before it is used: manifests, archives, tars, URLs."""

import io
import json
import os
import re
import resource
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import xxhash

from cjepa_dist.checkpoint.run import read_config
from cjepa_dist.config import command_line, merge, schema
from cjepa_dist.data.format import archive, storage
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.manifest_checks import MOST_MANIFEST_BYTES
from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.tar import parse_header
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from data_prep.merge import Merge
from data_prep.merge import main as merge_parts


@pytest.fixture
def data(tmp_path):
    truth = {"present": np.ones((4, 2), bool), "radius": np.float32(0.2)}
    with DatasetWriter(tmp_path / "data", encoder="test", source={}) as writer:
        for video in range(3):
            slots = np.full((4, 2, 5), video, np.float32)
            writer.split("train").add(Sample(f"video_{video:05d}", slots, truth=truth))
    return tmp_path / "data"


def change(folder, *path, to):
    """Change one field of a manifest."""
    content = json.loads((folder / "manifest.json").read_text())
    *place, last = path
    inner = content
    for step in place:
        inner = inner[step]
    inner[last] = to
    (folder / "manifest.json").write_text(json.dumps(content))


SHARD = ("splits", "train", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((*SHARD, "name"), "000000.tar; touch x", "names a shard '000000.tar; touch x'"),
        ((*SHARD, "name"), "../000000.tar", "names a shard '../000000.tar'"),
        ((*SHARD, "name"), "$(id).tar", "names a shard"),
        ((*SHARD, "name"), 7, "names a shard 7"),
        ((*SHARD, "bytes"), -1, "bytes is no number from 0"),
        ((*SHARD, "bytes"), 100, "bytes is too few for its keys"),
        ((*SHARD, "bytes"), 10**15, "bytes is no number"),
        ((*SHARD, "samples"), True, "samples is no number"),
        ((*SHARD, "xxh3"), "x" * 16, "xxh3 is not 16 hexadecimal digits"),
        ((*SHARD, "keys"), ["../x"], "has a key '../x'"),
        ((*SHARD, "keys"), ["a\nb"], r"has a key 'a\\nb'"),
        ((*SHARD, "keys"), ["k" * 81], "has a key 'kkk"),
        ((*SHARD, "keys"), "abc", "keys is no list"),
        ((*SHARD, "mean"), [1.0], "mean is no list of 5 finite numbers"),
        ((*SHARD, "mean"), ["1"] * 5, "mean is no list of 5 finite numbers"),
        ((*SHARD, "question_types"), ["d"], "question_types fits no keys"),
        ((*SHARD, "extra"), 1, "unexpected keyword argument 'extra'"),
        (("splits", "train"), {}, "split train is no list of shards"),
        (("splits",), {"../../x": []}, "split name '../../x'"),
        (("splits",), {"a b": []}, "split name 'a b'"),
        (("splits",), [], "splits is no mapping"),
        (("frames",), 10**9, "frames is no number from 1 to 1000000"),
        (("frames",), 10**6, r"bytes is too few|more than 256 MiB"),
        (("slots",), 0, "slots is no number"),
        (("dtype",), "object", "dtype='object'"),
        (("dtype",), ["x"], "dtype is no text"),
        (("encoder",), None, "encoder is no text"),
        (("source",), "x", "source is no mapping"),
        (("empty_slot",), [0.0], "empty_slot is no list of 5"),
    ],
)
def test_a_manifest_holds_only_what_we_write(data, path, value, message):
    change(data, *path, to=value)
    with pytest.raises(UserError, match=rf"manifest\.json is damaged: .*{message}"):
        Manifest.load(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "cannot be read"),
        ('{"version": 1, "frames": NaN}', "it holds NaN"),
        ('{"version": ' + "9" * 5000 + "}", "cannot be read"),
        ("[]", "has version None"),
        ('{"version": 1}', "it lacks 'encoder'"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(data, content, message):
    raw = content if isinstance(content, bytes) else content.encode()
    (data / "manifest.json").write_bytes(raw)
    with pytest.raises(UserError, match=message):
        Manifest.load(data)


def test_a_manifest_is_read_up_to_a_limit(data):
    os.truncate(data / "manifest.json", MOST_MANIFEST_BYTES + 1)  # a hole
    with pytest.raises(UserError, match="more than 256 MiB"):
        Manifest.load(data)
    (data / "manifest.json").unlink()
    os.mkfifo(data / "manifest.json")  # open would wait for ever
    with pytest.raises(UserError, match="no plain file"):
        Manifest.load(data)


def test_no_name_reaches_a_shell(data, tmp_path):
    change(data, *SHARD, "name", to=f"000000.tar; touch {tmp_path}/ran")
    with pytest.raises(UserError, match="names a shard"):
        load_slots(f"pipe:cat {data}", "train")
    for name in ("x; touch y", "$(id)", "../x", "-x", ".x", "", "a\nb", "x" * 81):
        with pytest.raises(UserError, match="names a file"):
            storage.join(f"pipe:cat {data}", "train", name)
    assert not (tmp_path / "ran").exists()


def test_a_command_that_a_file_names_is_not_run(data, tmp_path):
    """A run's config, or a manifest, may come from somebody else."""
    command = f"pipe:touch {tmp_path}/ran; cat {data}"
    run = tmp_path / "run"
    run.mkdir()
    merge.save_yaml(
        merge.build(schema.TrainAloe, {"data": command, "run": "r"}), run / "config.yaml"
    )
    with pytest.raises(UserError, match=r"run/config\.yaml names a shell command"):
        Manifest.load(read_config(run).data)
    change(data, "source", to={"data": command + " "})
    with pytest.raises(UserError, match=r"manifest\.json names a shell command"):
        Manifest.load(Manifest.load(data).source["data"])
    assert not (tmp_path / "ran").exists()
    try:  # who gives it on the command line may run it
        command_line.parse(schema.TrainAloe, ["run=r", f"data={command}"])
        assert Manifest.load(command).count("train") == 3
    finally:
        command_line.given_commands.clear()
        storage.distrusted.clear()


def test_merging_writes_nothing_outside(data, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    data.rename(parts / "0")
    content = json.loads((parts / "0" / "manifest.json").read_text())
    content["splits"] = {"../../x": content["splits"]["train"]}
    content["source"] = {"part": "0/1"}
    (parts / "0" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"split name '../../x'"):
        merge_parts(Merge(out=str(tmp_path / "a" / "b" / "out"), parts=str(parts)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]


# --- reads stop at what was promised


def test_a_read_stops_at_the_promised_size(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="it has more than 100 bytes, the manifest says 100"):
        storage.download_to_memory("pipe:cat /dev/zero", 100, "0" * 16)
    with pytest.raises(UserError, match="has more than 1000 bytes"):
        storage.read_remote("pipe:cat /dev/zero", most=1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def bomb(size=1 << 31, method=zipfile.ZIP_DEFLATED):
    """An npz whose only member unpacks to `size` zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, file.open("slots.npy", "w") as member:
        for _ in range(size >> 24):
            member.write(bytes(1 << 24))
    return buffer.getvalue()


def test_archives_are_unpacked_up_to_a_limit(tmp_path):
    content = bomb(archive.MOST_UNPACKED + (1 << 24))
    assert len(content) < 2 << 20
    with archive.open_zip(io.BytesIO(content)) as file, pytest.raises(ValueError, match="unpacks"):
        archive.read_members(file, ["slots.npy"])


@pytest.mark.parametrize("zip64", [False, True])
def test_the_contents_of_an_archive_have_a_limit(zip64):
    most = archive.MOST_CONTENTS + 1
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 0xFFFFFFFF if zip64 else most, 0, 0)
    if zip64:
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, most, 0)
        end = record + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1) + end
    with pytest.raises(ValueError, match="table of contents has more than 64 MiB"):
        archive.open_zip(io.BytesIO(end))


def rewrite(shard, harm):
    """Change the members of a tar in place, which stay as long as they are; its entry's xxh3."""
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        for member in tar:
            place = slice(member.offset_data, member.offset_data + member.size)
            changed = harm(member.name, bytes(content[place]))
            assert len(changed) == member.size
            content[place] = changed
    shard.write_bytes(content)
    change(shard.parents[1], *SHARD, "xxh3", to=xxhash.xxh3_64(bytes(content)).hexdigest())


def header_of_words(name, content):
    """An array's header that Python's tokenizer cannot read."""
    return content.replace(b"{'descr'", b"{'''scr'") if name.endswith("slots.npy") else content


def encrypted(name, content):
    """The flag that says that a member is encrypted, in both of its headers."""
    if not name.endswith("truth.npz"):
        return content
    changed = bytearray(content)
    for sign, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := changed.find(sign, at + 1)) >= 0:
            changed[at + place] |= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (header_of_words, "slots.npy is damaged"),
        (encrypted, "truth.npz is damaged .*is encrypted"),
        (lambda name, content: b"[" * len(content) if name.endswith(".json") else content, "JSON"),
    ],
)
def test_verify_names_every_damage(data, harm, message):
    rewrite(data / "train" / "000000.tar", harm)
    faults = [fault.text for fault in verify_dataset(data)]
    assert len(faults) == 3
    for number, fault in enumerate(faults):
        assert f"key video_{number:05d}" in fault and re.search(message, fault), fault


def test_numbers_of_a_tar_header_have_no_sign():
    for size in (b"-0000000001\0", b"+0000000001\0", b"0_000000001\0", b"\x80" + bytes(11)):
        header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT))
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        with pytest.raises(ValueError, match="is no number of a header"):
            parse_header(bytes(header))


# --- secrets


def test_passwords_authenticate_and_are_not_shown():
    request = storage.http_request("https://me:p%40ss%20w@host:8443/data/x y")
    assert request.full_url == "https://host:8443/data/x%20y"
    header = request.unredirected_hdrs["Authorization"]  # not sent to where a redirect points
    assert header == "Basic bWU6cEBzcyB3"
    assert not storage.http_request("https://host/me@x").unredirected_hdrs
    for url in ("http://me:secret@", "http://me:secret@h:x/", "http://[me:secret@/x"):
        with pytest.raises(UserError, match="is no URL") as caught:
            storage.http_request(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"http://\*\*\*@127.0.0.1:9/data/manifest.json") as caught:
        quick = storage.RetryPolicy(0.2, 1, 0.01)
        storage.read_remote("http://me:secret@127.0.0.1:9/data/manifest.json", quick)
    assert "secret" not in str(caught.value)


def test_passwords_are_taken_from_netrc(tmp_path, monkeypatch):
    path = tmp_path / "netrc"
    path.write_text("machine host login me password p@ss\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    request = storage.http_request("https://host:8443/data/x")
    assert request.unredirected_hdrs["Authorization"] == "Basic bWU6cEBzcw=="
    assert not storage.http_request("https://elsewhere/data/x").unredirected_hdrs
    given = storage.http_request("https://you:other@host/data/x").unredirected_hdrs
    assert given["Authorization"] == "Basic eW91Om90aGVy"
    path.write_text("machine host secret me\n")
    with pytest.raises(UserError, match="netrc cannot be read") as caught:
        storage.http_request("https://host/data/x")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert not storage.http_request("https://host/data/x").unredirected_hdrs
