"""Lines of JSON files that were cut off, garbled or blank."""

import json

import pytest

from cjepa_dist.data.streaming.missing_shards import MissingShards
from cjepa_dist.runtime.files import drop_lines_after, read_json_lines


@pytest.mark.parametrize(
    "odd",
    [
        b"", b"   ", b"\r", b"garbled", b'{"step": 1', b"null", b"[1]", b"3", b"\xff\xfe\x00",
        b"\x00" * 4096, b"[" * 100_000, b'{"kind": "train"}', b'{"step": "2"}', b'{"step": null}',
    ],
)  # fmt: skip
def test_an_odd_line_does_not_stop_a_resume(odd, tmp_path, capsys):
    """The good lines stay byte for byte; those that are no lines of ours go, and are named."""
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "loss":  NaN}', b'{"step": 2, "name": "\xc3\xa9"}', b'{"step": 3}']
    path.write_bytes(b"\n".join([good[0], odd, good[1], odd, good[2], b'{"step": 2, "cut']))
    drop_lines_after(path, 2)
    assert path.read_bytes() == b"\n".join([*good[:2], b""])
    said = capsys.readouterr().out
    is_mapping = odd.startswith(b"{") and odd.endswith(b"}")
    assert ("lines 2, 4" in said) == (bool(odd.strip()) and not is_mapping)


def test_no_file_has_no_lines(tmp_path):
    drop_lines_after(tmp_path / "none.jsonl", 2)
    assert read_json_lines(tmp_path / "none.jsonl") == [] and not list(tmp_path.iterdir())


def test_missing_shards_are_read_past_an_odd_line(tmp_path):
    line = {"shard": "train/0.tar", "samples": 3, "position": 8, "reason": "lost"}
    (tmp_path / "m.jsonl").write_text(f"\n{json.dumps(line)}\ngarbled\n{json.dumps(line)[:20]}")
    missing = MissingShards(tmp_path / "m.jsonl", 5)
    assert missing.count_samples() == 3 and missing.is_missing("train/0.tar", 9)
