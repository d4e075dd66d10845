"""An encoder that a user adds in a module outside the package, chosen on the command line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.errors import UserError
from data_prep.simulate import encoders
from tests.docs_examples import python_example

MODULE = python_example("add_an_encoder.md")


def test_an_encoder_of_a_plugin_makes_a_data_set(
    tmp_path: Path,
    command: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In two worker processes, with slots of another width; the ground truth is the usual one."""
    (tmp_path / "position_encoder.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ["train=16", "val=2", "test=0", "counterfactuals=all", "workers=2", "slot_dim=4"]
    mine = ["encoder=position", "plugins=[position_encoder]", "dtype=float32"]
    done = command("data_prep.simulate", f"out={tmp_path / 'mine'}", *options, *mine)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(tmp_path / "mine")
    assert manifest.encoder == "simulated-position-v3" and manifest.empty_slot == [0.0] * 4
    assert manifest.source["plugins"] == ["position_encoder"]
    samples = [*read_split(tmp_path / "mine", "train"), *read_split(tmp_path / "mine", "val")]
    assert len(samples) == 18
    for sample in samples:
        assert sample.slots is not None and sample.truth is not None
        np.testing.assert_array_equal(sample.slots[..., :2], sample.truth["position"][:128])
        np.testing.assert_array_equal(sample.slots[..., 2] == 1, sample.truth["present"][:128])
    worlds = samples[-1].truth
    assert worlds is not None and worlds["counterfactual_slots"].shape[1:] == (160, 7, 4)

    done = command("data_prep.simulate", f"out={tmp_path / 'x'}", *options, "encoder=position")
    assert done.returncode == 2
    assert "encoder='position': must be one of clean, noisy, occluded" in done.stderr
    done = command("data_prep.simulate", f"out={tmp_path / 'x'}", *options, "plugins=[nowhere]")
    assert done.returncode == 2 and "nowhere" in done.stderr


def test_a_name_is_registered_once_and_a_wrong_shape_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoders, "ENCODERS", dict(encoders.ENCODERS))
    with pytest.raises(UserError, match="clean"):
        encoders.register_encoder("clean")(lambda scene, noise: noise)
    encoders.register_encoder("narrow")(lambda scene, noise: noise[..., :2])
    with pytest.raises(UserError, match="narrow"):
        encoders.empty_slot("narrow", 8)
