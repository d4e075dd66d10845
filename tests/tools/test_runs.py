"""tools.runs on real run directories: complete, stopped by a signal, killed, and training."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.fork_server import PROJECT
from tests.training.test_resume import TINY_WORLD

WORLD = "cjepa_dist.train_world_model"
OFF = (
    "ctt.invariance.weight=0",
    "ctt.sufficiency.weight=0",
    "loop.log_every=1",
    "loop.checkpoint_every=1",
    "loop.keep_checkpoints=2",
)


def begin(small_data, run, *more):
    arguments = (f"data={small_data}", f"run={run}", *TINY_WORLD, *OFF, *more)
    process = subprocess.Popen(
        [sys.executable, "-m", WORLD, *arguments],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list((run / "checkpoints").glob("step_????????")) and process.poll() is None:
        time.sleep(0.02)
    return process


@pytest.fixture(scope="module")
def folder(command, small_data, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    done = command(
        WORLD,
        f"data={small_data}",
        f"run={place / 'a' / 'complete'}",
        *TINY_WORLD,
        *OFF,
        "loop.steps=3",
    )
    assert done.returncode == 0, done.stderr
    stopped = begin(small_data, place / "stopped", "loop.steps=5000", "seed=1")
    stopped.send_signal(signal.SIGUSR1)
    assert stopped.wait() == 75
    killed = begin(small_data, place / "killed", "loop.epochs=3", "loop.steps=0")
    killed.kill()
    killed.wait()
    return place


def table(text):
    """{run: its cells}; no cell but the kind has a space in it, or two."""
    return {
        line.split("  ")[0]: [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in text.splitlines()[1:]
    }


def test_ls(folder, command, small_data):
    (folder / "no run").mkdir(exist_ok=True)
    running = begin(small_data, folder / "running", "loop.steps=5000")
    before = {path: path.stat().st_mtime_ns for path in (folder / "stopped").rglob("*")}
    try:
        done = command("tools.runs", "ls", str(folder))
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 75
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert {name: row[3] for name, row in rows.items()} == {
        os.path.join("a", "complete"): "complete",
        "killed": "interrupted",
        "running": "running",
        "stopped": "stopped",
    }
    complete = rows[os.path.join("a", "complete")]
    assert (
        complete[1:3] == ["world model", "3/3"]
        and float(complete[4]) > 0
        and float(complete[5]) > 0
        and complete[6].startswith("20")
    )
    assert (
        int(rows["killed"][2].split("/")[1]) > 3
    )  # 3 epochs: the first checkpoint knows how many steps that is
    assert rows["stopped"][2].endswith("/5000")
    assert {path: path.stat().st_mtime_ns for path in (folder / "stopped").rglob("*")} == before


def test_show(folder, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "stopped", run)
    good, bad = sorted((run / "checkpoints").glob("step_????????"))
    (bad / "meta.json").write_text((bad / "meta.json").read_text() + " ")
    (run / "skipped.jsonl").write_text('{"step": 2, "loss": "nan", "samples": [1, 2]}\n')
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "ki')  # killed while it wrote
    done = command("tools.runs", "show", str(run))
    assert done.returncode == 0, done.stderr
    for part in (
        "world model, step ",
        "stopped",
        "reason SIGUSR1",
        f"-m {WORLD} ",
        "optimizer:",
        "name: muon",
        "skipped steps: 1",
        "loss nan",
    ):
        assert part in done.stdout, part
    assert (
        f"step {int(good.name[5:])}: good" in done.stdout
        and f"step {int(bad.name[5:])}: DAMAGED (meta.json changed)" in done.stdout
    )
    assert "parameter_norm" in done.stdout


def test_compare(folder, command):
    runs = [str(folder / name) for name in ("a/complete", "stopped", "killed")]
    done = command("tools.runs", "compare", *runs)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("\n\n")
    rows = {line.split()[0]: line.split()[1:] for line in first.splitlines()[1:]}
    epochs = [float(value) for value in rows.pop("loop.epochs")]
    assert epochs == [30, 30, 3]
    assert rows == {"loop.steps": ["3", "5000", "0"], "seed": ["0", "1", "0"]}
    last = {" ".join(line.split()[:2]): line.split()[2:] for line in second.splitlines()}
    assert last["val loss"][1:] == ["-", "-"] and float(last["val loss"][0]) > 0
    assert all(float(value) > 0 for value in last["train loss"])
    same = command("tools.runs", "compare", runs[0], runs[0])
    assert "no field differs" in same.stdout


def test_mistakes_are_one_line(folder, command, tmp_path):
    (broken := tmp_path / "broken").mkdir()
    (broken / "config.yaml").write_text("a: [")
    (broken / "environment.json").write_text("{}")
    for arguments, words in (
        (("show", str(folder)), "is not a run directory"),
        (("ls", str(folder / "nowhere")), "is not a folder"),
        (("compare", "one"), "usage:"),
        ((), "usage:"),
        (("show", str(broken)), "cannot be read"),
    ):
        done = command("tools.runs", *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, (
            done.stderr
        )
    done = command("tools.runs", "ls", str(tmp_path))
    assert done.returncode == 0 and "error: " in done.stdout and "cannot be read" in done.stdout


def test_starts_without_torch():
    code = "import sys, tools.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
