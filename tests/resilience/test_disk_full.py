"""A full disk is a UserError, and harms nothing that was written before."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cjepa_dist.checkpoint.run import read_config
from cjepa_dist.config import merge, schema
from cjepa_dist.errors import UserError
from cjepa_dist.training.logger import RunLogger
from cjepa_dist.training.run_dir import check_run_dir, lock_run_dir, open_run_dir
from tests.training.test_resume import losses


@pytest.mark.parametrize("what", ["lines", "events"])
def test_disk_full_for_metrics(tmp_path, what):
    """A record that was cut off harms neither metrics.jsonl nor TensorBoard of the resumed run."""
    config = merge.build(schema.TrainWorldModel, {"data": "D", "run": str(tmp_path)})
    logger = RunLogger(tmp_path, config, start=0, steps=9)
    logger.log(1, {"loss": 0.5})
    owner, name = (logger, "lines") if what == "lines" else (logger.events, "path")
    file = getattr(owner, name)
    setattr(owner, name, Path("/dev/full"))
    logger.add_image(2, "picture", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=rf"no space left in {tmp_path} .*, \d+ are free"):
        logger.log(2, {"loss": 0.25})
    with file.open("ab") as stream:
        stream.write(b'{"step": 2, "ki')

    logger = RunLogger(tmp_path, config, start=1, steps=9)
    logger.log(2, {"loss": 0.125})
    assert losses(tmp_path) == [(1, "train", 0.5), (2, "train", 0.125)]
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.125)]


@pytest.mark.parametrize("moment", ["write_text", "replace"])
def test_disk_full_for_a_run_directory(tmp_path, monkeypatch, moment):
    """Whichever file fills the disk, the user is told, and the same command works afterwards."""
    run, room = tmp_path / "run", 0
    config = merge.build(schema.TrainWorldModel, {"data": "D", "run": str(run)})
    owner = Path if moment == "write_text" else os
    really = getattr(owner, moment)

    def full(*args, **kwargs):
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(*args, **kwargs)

    for files in range(4):  # .lock.json, config.yaml, environment.json, given.yaml
        room = files
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=f"no space left in {run} "),
        ):
            patch.setattr(owner, moment, full)
            with lock_run_dir(run):
                open_run_dir(run, config, {})
        check_run_dir(run, config)
    with lock_run_dir(run):
        open_run_dir(run, config, {})
    assert read_config(run) == config
