"""The training loop. It trains any task from any data set on any number of processes.

    position ──> data loader ──> batches ──> train step (forward, backward, update) ──> next step
    every N steps: replicas compared, metrics, residuals measured, validation, checkpoint

How processes share the work (DDP, FSDP2, ZeRO) is up to the engine. The order of samples, the
masks, the dropout seed and the learning rate are functions of the step: a resumed run is the run.
A signal to any rank ends the run after a step, with a checkpoint and exit code 75: the same
command goes on. A step whose loss or gradient is not finite changes nothing.
"""

from __future__ import annotations

from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.dataset import Dataset
from cjepa_dist.tasks.build import Task
from cjepa_dist.training.run import Run, Validation, open_run


def train(task: Task, train_set: Dataset, validation: Validation, config: TrainConfig) -> int:
    """Train to the end of the run, or go on from the newest good checkpoint.

    Returns the exit code: 0, or 75 after a signal. Raises UserError as `open_run` does, when
    replicas differ, and when more steps than loop.max_skipped_steps had no finite loss (with a
    checkpoint of the last good state).
    """
    with open_run(config) as run:
        return train_loop(run) if run.start(task, train_set, validation) else 0


def train_loop(run: Run) -> int:
    """The loop of a run that has started; returns the exit code."""
    due, stop = run.due, 0
    for step, batches in run.data_loader:
        result = run.train_step(batches, step)  # forward, backward, update
        done = step + 1
        run.after_step(done, result)
        stop = run.preemption.agreed()
        if due.compare(done):
            run.compare_replicas(done)
        if due.log(done):
            run.log(done, batches)
        if due.measure(done):
            run.measure_residuals()
        if due.validate(done):
            run.validate(done)
        if stop or due.save(done) or run.must_save:
            run.save(done)
        if stop:
            break
    return run.finish(stop)
