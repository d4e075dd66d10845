"""The commands of docs/tutorial.md run as they are printed, in their order, on less data."""

import re
import shlex
from pathlib import Path

import pytest

from cjepa_dist.cli import COMMANDS
from tests.fork_server import PROJECT

# What is added to a command, so that all of them take a minute of one processor.
SMALLER = {
    "simulate": ("train=16", "val=6", "test=2", "workers=1"),
    "train-world-model": ("loop.steps=6", "loop.global_batch_size=8", "val_windows=32"),
    "evaluate": ("bootstrap_draws=20",),
    "evaluate-graph": ("windows=32", "bootstrap_draws=20"),
    "evaluate-symbolic": ("bootstrap_draws=20",),
    "draw": ("video=1", "frames=[140,150]"),
    "verify": (),
    "rollout": (),
    "report": ("bootstrap_draws=20",),
}
PATHS = {"data", "out", "run", "runs", "own_slot", "world_model"}


def commands() -> list[list[str]]:
    """The words of each command in the blocks to copy."""
    text = (PROJECT / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in "".join(blocks).splitlines()]


def in_folder(folder: Path, argument: str) -> str:
    """An argument whose paths are in `folder`, where a reader would be."""
    key, equals, value = argument.partition("=")
    if not equals or key not in PATHS:
        return argument
    return f"{key}={','.join(str(folder / path) for path in value.split(','))}"


@pytest.fixture(scope="module")
def printed(command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command printed; the folder in which they ran is under the key "folder"."""
    folder = tmp_path_factory.mktemp("tutorial")
    found = {"folder": str(folder)}
    assert commands()[0] == ["mkdir", "tutorial", "&&", "cd", "tutorial"]
    for program, name, *arguments in commands()[1:]:
        assert program == "cjepa"
        words = [in_folder(folder, argument) for argument in arguments]
        done = command(COMMANDS[name].module, *words, *SMALLER[name])
        assert done.returncode == 0, f"cjepa {name} {' '.join(words)}\n{done.stderr}"
        found[" ".join([name, *arguments])] = done.stdout
    return found


def test_every_command_of_the_tutorial_does_its_work(printed: dict[str, str]) -> None:
    folder = Path(printed["folder"])
    assert (folder / "data" / "manifest.json").is_file()
    for run in ("model", "own_slot"):
        assert (folder / "runs" / run / "done.json").is_file()
    results = {path.stem for path in (folder / "runs" / "model" / "eval").glob("*.json")}
    assert {"world_model_val", "graphs_val"} <= results
    assert len([name for name in results if name.startswith("symbolic_")]) == 2
    assert (folder / "report" / "report.html").is_file()


def test_what_the_tutorial_points_at_is_printed(printed: dict[str, str]) -> None:
    training = next(text for name, text in printed.items() if "run=runs/model" in name)
    assert "loss_future" in training and "copy_last_frame" in training
    errors = next(text for name, text in printed.items() if name.startswith("evaluate run="))
    assert "colliding" in errors and "own" in errors
    graphs = next(text for name, text in printed.items() if name.startswith("evaluate-graph"))
    assert "AUROC" in graphs and "distance" in graphs
    answers = next(text for name, text in printed.items() if name.startswith("evaluate-symbolic"))
    assert "counterfactual" in answers
