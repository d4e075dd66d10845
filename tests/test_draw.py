"""`cjepa draw`: every kind of file, and errors in one line."""

import pytest
from PIL import Image

from tests.reporting.test_scene_view import make_run


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("draw") / "model", small_data)


@pytest.mark.parametrize(
    "name,arguments", [("a.gif", ["frames=[120,140]"]), ("a.png", ["frames=[140]"]), ("a.html", [])]
)
def test_files(command, run, tmp_path, name, arguments):
    out = tmp_path / "new" / name
    done = command("cjepa_dist.draw", f"run={run}", "video=3", f"out={out}", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"wrote {out}: video_") and done.stdout.count("\n") == 1
    assert [path.name for path in out.parent.iterdir()] == [name]
    if name == "a.html":
        assert out.read_text().startswith("<!doctype html>")
    else:
        with Image.open(out) as image:
            assert getattr(image, "n_frames", 1) == (11 if name == "a.gif" else 1)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["video=99", "out=a.gif"], "no video 99 in split 'val'"),
        (["video=0", "out=a.mp4"], "must end in .gif, .png, .html"),
        (["video=0", "out=a.gif", "frames=[5]"], "must be the first and the last frame"),
        (["video=0", "out=a.png", "frames=[160]"], "must be one frame, from 0 to 159"),
        (["video=0", "out=a.html", "frames=[3]"], "a page plays all frames"),
        (["video=0", "out=a.png", "removed=pink"], "removed=pink fits 0 objects"),
        (["video=0", "out=a.png", "split=nothing"], "has no split 'nothing'"),
        (["video=0", "out=a.png", "rollout=nothing"], "no data set in"),
    ],
)
def test_errors_are_one_line(command, run, tmp_path, arguments, message):
    arguments = [word.replace("out=", f"out={tmp_path}/") for word in arguments]
    done = command("cjepa_dist.draw", f"run={run}", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
