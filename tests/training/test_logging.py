"""What real runs log: TensorBoard events, metrics, images, traces, and how they were made."""

import json
import os
import pty
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cjepa_dist.config import merge
from cjepa_dist.training import provenance
from tests.fork_server import PROJECT
from tests.training.test_resume import TINY_WORLD

WORLD = "cjepa_dist.train_world_model"

OFF = ("ctt.invariance.weight=0", "ctt.sufficiency.weight=0")


@pytest.fixture(scope="module")
def made(command, small_data, tmp_path_factory):
    """A run of 12 steps: (its folder, its arguments, its output)."""
    folder = tmp_path_factory.mktemp("logging")
    (folder / "given.yaml").write_text("# by hand\nloop: {eval_every: 6}\n")
    arguments = (
        str(folder / "given.yaml"),
        f"data={small_data}",
        f"run={folder / 'run'}",
        *TINY_WORLD,
        *OFF,
        "loop.profile=true",
    )
    done = command(WORLD, *arguments)
    assert done.returncode == 0, done.stderr
    return folder / "run", arguments, done.stdout


def test_metrics_and_events_agree(made):
    run, _, output = made
    events = EventAccumulator(str(run)).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in lines] == [
        (3, "train"),
        (6, "train"),
        (6, "val"),
        (9, "train"),
        (12, "train"),
        (12, "val"),
    ]
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "kind"):
                found = {
                    event.step: event.value for event in events.Scalars(f"{line['kind']}/{name}")
                }
                assert found[line["step"]] == pytest.approx(value, rel=1e-5), name
    train, val = lines[0], lines[-1]
    for name in (
        "parameter_norm",
        "gradient_norm",
        "samples_per_second",
        "step_seconds",
        "memory_gb",
    ):
        assert train[name] > 0, name
    assert train["data_seconds"] >= 0 and 0 <= train["data_wait_share"] <= 1
    assert "mfu" not in train  # the peak of a CPU is not known
    assert (
        lines[1].get("checkpoint_seconds", 0) > 0 and "checkpoint_seconds" not in train
    )  # saved after step 4
    assert (
        val["copy_last_frame"] > 0
        and 1 <= val["effective_rank"] <= 128
        and val["predicted_variance"] > 0
    )
    shown = [line for line in output.splitlines() if line.startswith(("train ", "val "))]
    assert len(shown) == len(lines)  # without a terminal, lines instead of a bar


def test_images(made):
    events = EventAccumulator(str(made[0])).Reload()
    for name in ("graph/published_attention_interventional", "rollout/truth_above_prediction"):
        assert [picture.step for picture in events.Images(name)] == [6, 12]
        assert (
            events.Images(name)[0].encoded_image_string.startswith(b"\x89PNG")
            and events.Images(name)[0].width > 300
        )


def test_profile_is_a_trace_of_some_steps(made):
    (path,) = (made[0] / "profile").iterdir()
    assert path.name == "steps_00000008_00000012.json"
    names = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == 5
    assert "aten::linear" in names or "aten::addmm" in names


def test_provenance_is_recorded_and_the_command_runs_again(made, command):
    run, arguments, _ = made
    given = (run / "given.yaml").read_text()
    assert "# by hand\nloop: {eval_every: 6}\n" in given and all(
        f"# {each}\n" in given for each in arguments[1:]
    )
    assert merge.read_yaml(run / "given.yaml") == {"loop": {"eval_every": "6"}}
    comment, line = (run / "command.txt").read_text().splitlines()
    assert comment.startswith("# 20") and " commit " in comment
    diff = subprocess.run(
        ["git", "diff", "HEAD"], cwd=PROJECT, capture_output=True, check=False
    ).stdout
    assert (run / "code.diff").exists() == bool(diff)
    again = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    free = command(WORLD, *arguments[:-1], "loop.profile=false")
    assert free.returncode == 0, free.stderr
    assert [
        text for text in (run / "command.txt").read_text().splitlines() if not text.startswith("#")
    ][:2] == [line, line]
    assert (run / "given.yaml").read_text() == given


def test_code_diffs_are_kept(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path / "code",
            check=True,
        )

    (tmp_path / "code").mkdir()
    (run := tmp_path / "run").mkdir()
    file = tmp_path / "code" / "a.py"
    file.write_text("one\n\n")
    git("init", "-q")
    git("add", "a.py")
    git("commit", "-qm", "a")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.write_code_diff(run) == "" and not list(run.iterdir())
    for text, name in (
        ("two\n\n", "code.diff"),
        ("three\n\n", "code.2.diff"),
        ("two\n\n", "code.diff"),
    ):
        file.write_text(text)
        assert provenance.write_code_diff(run) == name
    git("checkout", "-q", "a.py")
    git("apply", str(run / "code.2.diff"))
    assert file.read_text() == "three\n\n" and len(list(run.iterdir())) == 2


@pytest.mark.parametrize("git", ["missing", "not executable"])
def test_a_machine_without_git_trains(git, command, small_data, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    if git == "not executable":
        (tmp_path / "bin" / "git").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    run = tmp_path / "run"
    done = command(WORLD, f"data={small_data}", f"run={run}", *TINY_WORLD, *OFF, "loop.steps=1")
    assert done.returncode == 0, done.stderr
    assert " commit unknown" in (run / "command.txt").read_text()


def test_a_terminal_gets_a_bar(small_data, tmp_path):
    mine, theirs = pty.openpty()
    arguments = (
        f"data={small_data}",
        f"run={tmp_path / 'run'}",
        *TINY_WORLD,
        *OFF,
        "loop.steps=4",
        "loop.log_every=2",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", WORLD, *arguments],
        cwd=PROJECT,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(theirs)
    text = b""
    try:
        while part := os.read(mine, 65536):
            text += part
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0, process.stderr.read()
    os.close(mine)
    assert (
        b"4/4" in text
        and b"steps/s" in text
        and b"samples_per_second" in text
        and b"val 4/4" in text
    )
    assert b"train 2/4" not in text  # it is in the bar
    assert text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")  # the cursor is back


@pytest.mark.slow
@pytest.mark.parametrize("windows", [7, 1])
def test_validation_is_the_same_for_any_number_of_processes(windows, small_data, tmp_path):
    """7 windows: one process has one more than the other; 1 window: the second has none."""
    found = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        settings = (
            *TINY_WORLD,
            *OFF,
            "predictor.dropout=0",
            "loop.precision=fp32",
            "loop.steps=1",
            f"val_windows={windows}",
        )
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            "-m",
            WORLD,
        ]
        arguments = (f"data={small_data}", f"run={run}", *settings)
        done = subprocess.run(
            [*start, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (line,) = [
            line
            for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if line["kind"] == "val"
        ]
        found.append(line)
        assert "torch.distributed.run" in (run / "command.txt").read_text()
    assert found[0].keys() == found[1].keys() and "effective_rank" in found[0]
    numbers = [{name: value for name, value in line.items() if name != "kind"} for line in found]
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-4)
