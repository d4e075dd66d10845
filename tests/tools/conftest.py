"""Fixtures for released checkpoints."""

from functools import partial

import pytest
import torch

from cjepa_dist.models.predictor import SlotPredictor
from tests.tools.released import SIZES, released, run_command
from tools.import_checkpoint import __main__ as import_checkpoint


@pytest.fixture
def run(capsys):
    """run(module, "key=value", ...) -> (exit code, stdout, error lines)."""
    return partial(run_command, capsys)


@pytest.fixture
def imported(run, tmp_path):
    """imported(content, "key=value", ...) -> (run directory, stdout) of an import."""

    def call(content, *arguments, name="run"):
        torch.save(content, tmp_path / f"{name}.ckpt")
        code, out, errors = run(
            import_checkpoint,
            f"source={tmp_path / name}.ckpt",
            f"out={tmp_path / name}",
            *arguments,
        )
        assert code == 0, errors
        assert not list(tmp_path.glob("*.partial"))
        return tmp_path / name, out

    return call


@pytest.fixture(scope="module")
def state():
    return released(SlotPredictor(SIZES))
