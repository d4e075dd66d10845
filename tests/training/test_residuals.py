"""The unit and the threshold that a run stores are those of the weights that are evaluated."""

import numpy as np
import torch

from cjepa_dist.checkpoint.run import load_task
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from tests.training.test_resume import TINY_WORLD, WORLD


def test_a_run_ends_with_the_residuals_of_its_mean_weights(command, small_data, tmp_path):
    """Of held-out windows, nothing hidden, though training has dropout and hides slots."""
    run = tmp_path / "run"
    arguments = (*TINY_WORLD, "loop.steps=3", "optimizer.ema_decay=0.9", "loop.precision=fp32")
    done = command(WORLD, f"data={small_data}", f"run={run}", *arguments)
    assert done.returncode == 0, done.stderr
    task, config, _ = load_task(run)
    size = config.predictor
    spec = WindowSpec(size.history_frames, size.pred_frames, config.frameskip)
    held_out = InMemoryWindows(small_data, "val", spec)
    ids = np.linspace(0, len(held_out) - 1, 64).astype(np.int64)  # val_windows
    batch = held_out.get_batch(ids, ids)
    with torch.no_grad():
        error = task.predictor.predict(batch["slots"][:, : size.history_frames].float())
    error -= batch["slots"][:, size.history_frames :].float()
    seen = batch["present"][:, size.history_frames - 1 :].all(1)
    squares = error.square().transpose(1, 2)[seen]
    assert task.updates == 4  # before the first step, and after 1, 2, 3
    torch.testing.assert_close(task.sigma2, squares.mean((0, 1)), rtol=1e-4, atol=1e-8)
    median = (squares / task.sigma2 / 2).sum(-1).mean(1).median()
    torch.testing.assert_close(task.tau, median, rtol=1e-3, atol=0)
