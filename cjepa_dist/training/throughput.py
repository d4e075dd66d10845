"""Throughput of training from one line of metrics to the next: time, memory, MFU.

It uses clocks and counters of the host only, and never waits for a device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from cjepa_dist.training.flops import meta_copy, peak_flops, step_flops


class ThroughputMeter:
    """Make it before the task is wrapped: it copies the task's shapes to count FLOP for the MFU."""

    def __init__(self, task: nn.Module, loop: Any, device: torch.device, *, steps: int) -> None:
        self.loop, self.steps, self.device, self.done = loop, steps, device, 0
        self.peak = (
            peak_flops(torch.cuda.get_device_name(device), loop.precision)
            if device.type == "cuda"
            else None
        )
        self.meta_task = None if self.peak is None else meta_copy(task)
        self.flops: dict[Any, int] = {}
        self.began, self.waited = time.perf_counter(), 0.0
        self.stalled = 0.0  # s spent in checkpoints since `began`
        self.unlogged_saving = 0.0  # s spent in checkpoints since the last one was logged

    def restart(self, done: int, waited: float) -> None:
        """Count time from here on: after a validation, and after each line of metrics.

        `waited` are the seconds that the data loader has waited in all.
        """
        self.began, self.waited, self.done, self.stalled = time.perf_counter(), waited, done, 0.0

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around a checkpoint: its time does not count as that of a step."""
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.stalled, self.unlogged_saving = self.stalled + took, self.unlogged_saving + took

    def read(self, done: int, waited: float, batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """Metrics since the last call or `restart`, in which at least one step was done.

        Times are those of this process, means over the steps.

        - samples_per_second: of all processes, with checkpoints
        - data_seconds: waiting for a batch; data_wait_share: the same as a fraction of the time
        - step_seconds: the rest of a step; checkpoint_seconds: of checkpoints, if there were any
        - memory_gb: resident memory on a CPU, the peak of allocated memory on a GPU; 1e9 bytes
        - mfu: model FLOP over the device's peak, if that is known; from the last step's `batches`
        """
        count, spent, waited_here = (
            done - self.done,
            time.perf_counter() - self.began,
            waited - self.waited,
        )
        values = {
            "samples_per_second": count * self.loop.global_batch_size / spent,
            "data_wait_share": waited_here / spent,
            "data_seconds": waited_here / count,
            "step_seconds": (spent - waited_here - self.stalled) / count,
            "memory_gb": 1e-9 * memory_in_use(self.device),
        }
        if self.unlogged_saving:
            values["checkpoint_seconds"], self.unlogged_saving = self.unlogged_saving, 0.0
        if self.meta_task is not None and self.peak is not None:
            values["mfu"] = (
                self.model_flops(done - 1, batches) * count / (spent - self.stalled) / self.peak
            )
        self.restart(done, waited)
        return values

    def model_flops(self, step: int, batches: list[dict[str, Tensor]]) -> int:
        """FLOP of a step on this process; counted again when loss terms or shapes change."""
        assert self.meta_task is not None
        weights = self.meta_task.term_weights(step / self.steps)  # type: ignore[operator]
        key = (*sorted(weights), *(tuple(value.shape) for value in batches[0].values()))
        if key not in self.flops:
            self.flops = {key: step_flops(self.meta_task, batches, step, weights)}
        return self.flops[key]


def memory_in_use(device: torch.device) -> int:
    """Bytes: the peak of allocated memory on a GPU, resident memory on a CPU."""
    return (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else psutil.Process().memory_info().rss
    )
