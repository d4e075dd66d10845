"""`python -m data_prep.download` from a server that stalls, breaks off, lies and redirects."""

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import yaml

from cjepa_dist.data.format.storage import RetryPolicy
from cjepa_dist.errors import UserError
from data_prep.download import __main__ as download
from data_prep.download.__main__ import Download, main
from data_prep.download.transfer import Source, Unreachable, transfer
from data_prep.download.unpack import unpack_json
from tests.data_prep.file_server import COMMIT, serve
from tests.fork_server import PROJECT

QUICK = RetryPolicy(timeout=0.3, max_attempts=3, initial_delay=0.01)
BIG = np.random.default_rng(0).bytes(3_000_000)
SLOTS = "slots/clevrer_videosaur_slots.pkl"


def zip_bytes(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path):
    """A server with all public files, small ones."""
    root = tmp_path / "public"
    content = {
        SLOTS: pickle.dumps({"train": {"0_pixels.mp4": np.zeros((2, 7, 8), np.float32)}}),
        "big.bin": BIG,
    }
    for name in ("train", "validation", "test"):
        content[f"questions/{name}.json"] = b'[{"scene_index": 0, "questions": []}]'
    for name in ("train", "validation"):
        member = "annotation_00000-01000/annotation_00000.json"
        archive = zip_bytes({member: json.dumps({"scene_index": 0})})
        content[f"annotations/{name}/annotation_{name}.zip"] = archive
    for path, data in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    with serve(root) as running:
        yield running


def fetch(server, path, **known):
    return transfer(Source(f"{server.url}/big.bin", {}, **known), path, QUICK, lambda new: None)


# --- one file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["breaks off"],
        ["breaks off", "breaks off", "breaks off", "breaks off", "breaks off"],
        ["stalls"],
        ["stalls", "503", "breaks off"],
        ["redirect"],
        ["breaks off", "redirect"],
        ["breaks off", "no ranges"],
        ["503", "429"],
        ["says more"],
    ],
    ids=" + ".join,
)
def test_what_passes_is_overcome(server, tmp_path, faults):
    server.faults["/big.bin"].extend(faults)
    partial = fetch(server, tmp_path / "big.bin")
    assert partial.read_bytes() == BIG
    assert not server.faults["/big.bin"]


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.faults["/big.bin"].append("breaks off")
    fetch(server, tmp_path / "big.bin")
    assert server.ranges("/big.bin") == ["", f"bytes={len(BIG) // 2}-"]


@pytest.mark.parametrize(
    ("faults", "known", "message"),
    [
        (["404"], {}, "404"),
        (["503", "503", "503"], {}, "3 failures in a row"),
        (["stalls", *["503"] * 3], {}, "3 failures in a row"),
        (["no ranges and breaks off"] * 4, {}, "3 failures in a row.*ended 1500000 bytes early"),
        ([], {"bytes": len(BIG) + 1}, "it should have 3000001"),
        ([], {"bytes": len(BIG) - 1}, "it should have 2999999"),
    ],
)
def test_what_does_not_pass_is_named(server, tmp_path, faults, known, message):
    server.faults["/big.bin"].extend(faults)
    with pytest.raises(UserError, match=message):
        fetch(server, tmp_path / "big.bin", **known)
    assert not (tmp_path / "big.bin").exists()


def test_a_file_that_changed_in_between_is_begun_again(server, tmp_path):
    server.faults["/big.bin"].extend(["breaks off", "503", "503", "503"])
    with pytest.raises(Unreachable):
        fetch(server, tmp_path / "big.bin")
    other = BIG[::-1]
    (server.root / "big.bin").write_bytes(other)
    assert fetch(server, tmp_path / "big.bin").read_bytes() == other
    assert server.ranges("/big.bin")[-1] == f"bytes={len(BIG) // 2}-"


def test_a_killed_download_goes_on_where_it_stopped(server, tmp_path):
    server.faults[f"/{SLOTS}"].append("stalls")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_prep.download", f"out={out}", "what=[videosaur]"]
    process = subprocess.Popen([*command, f"mirror={server.url}"], cwd=PROJECT)
    partial, size = out / f"{SLOTS}.partial", (server.root / SLOTS).stat().st_size
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_size == size // 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    main(Download(out=str(out), what=["videosaur"], mirror=server.url))
    assert (out / SLOTS).read_bytes() == (server.root / SLOTS).read_bytes()
    assert server.ranges(f"/{SLOTS}") == ["", f"bytes={size // 2}-"]
    assert sorted(os.listdir(out / "slots")) == [(out / SLOTS).name]


# --- all files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["server", "folder"])
def test_everything_from_a_mirror(server, tmp_path, place, capsys):
    mirror = server.url if place == "server" else str(server.root)
    config = Download(out=str(tmp_path / "out"), mirror=mirror)
    main(config)
    out = tmp_path / "out"
    for path in (SLOTS, "questions/test.json", "annotations/train/annotation_train.zip"):
        assert (out / path).read_bytes() == (server.root / path).read_bytes()
    member = "annotations/{}/files/annotation_00000-01000/annotation_00000.json"
    assert all((out / member.format(name)).is_file() for name in ("train", "validation"))
    record = json.loads((out / "downloads.json").read_text())
    digest = hashlib.sha256((server.root / SLOTS).read_bytes()).hexdigest()
    assert record[SLOTS]["sha256"] == digest and record[SLOTS]["known_from"] == "nobody"
    assert f"recorded: {digest}" in capsys.readouterr().out
    seen = len(server.requests)
    main(config)
    assert len(server.requests) == seen  # nothing is asked for again


def test_the_hub_says_length_and_checksum(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.faults[f"/{SLOTS}"].append("breaks off")
    out = tmp_path / "out"
    main(Download(out=str(out), what=["videosaur"]))
    record = json.loads((out / "downloads.json").read_text())[SLOTS]
    name = SLOTS.removeprefix("slots/")
    assert record["url"] == f"{server.url}/HazelNam/CJEPA/resolve/{COMMIT}/{name}"
    assert record["known_from"] == "the hub" and record["hub_sha256"] == record["sha256"]
    tokens = {
        (path.startswith("/slots"), token)
        for (_, path, _), token in zip(server.requests, server.tokens, strict=True)
        if not path.startswith("/api/")  # what huggingface_hub asks when it is imported
    }
    assert tokens == {(False, "Bearer hf_secret"), (True, None)}  # the redirect gets none


@pytest.mark.parametrize("endpoint", ["nothing there", "no such file"])
def test_offline_it_says_what_to_put_where(server, tmp_path, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9" if "there" in endpoint else server.url)
    (server.root / SLOTS).unlink()
    out = tmp_path / "out"
    with pytest.raises(UserError) as error:
        main(Download(out=str(out), what=["videosaur"], attempts=1, timeout=2))
    public = "https://huggingface.co/HazelNam/CJEPA/resolve/main/clevrer_videosaur_slots.pkl"
    assert "put these files there and run this again" in str(error.value)
    assert f"{public} -> {out / SLOTS}" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_put_there_by_hand_are_taken(server, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "questions").mkdir(parents=True)
    for name in ("train", "validation", "test"):
        (out / f"questions/{name}.json").write_text('[{"scene_index": 1, "questions": []}]')
    main(Download(out=str(out), what=["questions"], mirror="http://127.0.0.1:9"))
    assert "is there already" in capsys.readouterr().out
    (out / "questions/test.json").write_text('[{"scene_index": 1, "questions": []')
    with pytest.raises(UserError, match=r"test.json has \d+ bytes; it should have \d+; remove"):
        main(Download(out=str(out), what=["questions"], mirror="http://127.0.0.1:9"))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("fault", ["login page", "says less"])
def test_content_that_is_wrong_is_refused(server, tmp_path, fault, head):
    server.answers_head = head
    server.faults["/questions/train.json"].extend([fault] if head else [fault] * 2)
    config = Download(out=str(tmp_path / "out"), what=["questions"], mirror=server.url)
    message = "should have 37" if head else "train.json.* is not what it should be: .* is not JSON"
    with pytest.raises(UserError, match=message):
        main(config)
    assert not (tmp_path / "out/questions/train.json").exists()
    main(config)  # once the server is well


def test_what_has_changed_since_the_first_download_is_refused(server, tmp_path):
    out = tmp_path / "out"
    config = Download(out=str(out), what=["questions"], mirror=server.url)
    main(config)
    (out / "questions/test.json").unlink()
    (server.root / "questions/test.json").write_bytes(b'[{"scene_index": 7, "questions": []}]')
    with pytest.raises(UserError, match=r"as first downloaded.*if you want the new one, remove"):
        main(config)


def test_a_flipped_byte_is_found_by_check(server, tmp_path):
    out = tmp_path / "out"
    config = Download(out=str(out), what=["questions"], mirror=server.url)
    main(config)
    path = out / "questions/test.json"
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    main(config)
    config.check = True
    with pytest.raises(UserError, match="its sha256 is"):
        main(config)


def test_a_table_of_ones_own(server, tmp_path):
    digest = hashlib.sha256(BIG).hexdigest()
    entry = {"url": f"{server.url}/big.bin", "bytes": len(BIG), "sha256": digest}
    table = tmp_path / "table.yaml"
    table.write_text(yaml.safe_dump({"mine": {"my/big.bin": entry}}))
    config = Download(out=str(tmp_path / "out"), what=["mine"], table=str(table))
    main(config)
    record = json.loads((tmp_path / "out/downloads.json").read_text())
    assert record["my/big.bin"]["known_from"] == "the table"
    table.write_text(yaml.safe_dump({"mine": {"my/big.bin": {**entry, "sha256": "0" * 64}}}))
    with pytest.raises(UserError, match=r"its sha256 is .* \(the table\)"):
        main(Download(out=str(tmp_path / "other"), what=["mine"], table=str(table)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"mine": {"../x": {"url": "http://h/x"}}}, "no path inside"),
        ({"mine": {"x": {"adress": "http://h/x"}}}, "must have some of the fields"),
        ({"mine": {"x": {"sha256": "abc"}}}, "64 digits"),
        ({"mine": {"x": {"bytes": 3}}}, "needs url or hub"),
        ({"mine": {"x": {"hub": {"repo": "a/b"}}}}, "hub needs repo and file"),
        ({"yours": {}}, "'mine' is none of"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, table, message):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table))
    with pytest.raises(UserError, match=message):
        main(Download(out=str(tmp_path / "out"), what=["mine"], table=str(path)))


def test_a_disk_without_room_is_named_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SPARE_BYTES", 1 << 60)
    with pytest.raises(UserError, match=r"has room for 0.0 GB"):
        main(Download(out=str(tmp_path / "out"), mirror=server.url))
    assert not server.ranges(f"/{SLOTS}")


# --- zips ---------------------------------------------------------------------------------------


def link_member():
    member = zipfile.ZipInfo("link.json")
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    "members",
    [
        {"../out.json": b"{}"},
        {"/etc/out.json": b"{}"},
        {"a\\b.json": b"{}"},
        {link_member(): b"/etc/passwd"},
        {"A.json": b"{}", "a.json": b"{}"},
        {"read.me": b"no annotations"},
        {"bomb.json": b"0" * ((64 << 20) + 1)},
    ],
    ids=["up", "absolute", "backslash", "link", "twice", "nothing", "bomb"],
)
def test_harmful_zips_are_refused(tmp_path, members):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(members))
    with pytest.raises(UserError, match="is damaged, or no zip of annotations"):
        unpack_json(path, tmp_path / "inner" / "files")
    assert [*tmp_path.rglob("*")] == [path] or not (tmp_path / "inner" / "files").exists()


def test_a_damaged_zip_leaves_no_folder(tmp_path):
    good = zip_bytes({"one.json": b"{}", "two.json": BIG})
    path, folder = tmp_path / "a.zip", tmp_path / "files"
    path.write_bytes(good[:200] + bytes([good[200] ^ 255]) + good[201:])
    with pytest.raises(UserError, match="is damaged"):
        unpack_json(path, folder)
    assert not folder.exists()
    path.write_bytes(good)
    assert unpack_json(path, folder) == 2
    assert (folder / "two.json").read_bytes() == BIG and len([*folder.rglob("*")]) == 2
