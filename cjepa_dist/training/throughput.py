"""What training takes of the machine, from one line of metrics to the next: time, memory, the share of the device's peak.

Clocks and counters of the host alone: nothing here waits for a device.
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
    """Made before the task is wrapped or sharded, since it keeps a copy of its shapes where the device's peak is known."""

    def __init__(self, task: nn.Module, loop: Any, device: torch.device, *, steps: int) -> None:
        self.loop, self.steps, self.device, self.done = loop, steps, device, 0
        self.peak = (
            peak_flops(torch.cuda.get_device_name(device), loop.precision)
            if device.type == "cuda"
            else None
        )
        self.shadow = None if self.peak is None else meta_copy(task)
        self.flops: dict[Any, int] = {}
        self.began, self.waited = time.perf_counter(), 0.0
        self.stalled = 0.0  # by checkpoints, since `began`
        self.saving_took = 0.0  # not said in any line yet

    def restart(self, done: int, waited: float) -> None:
        """Time counts from here: after a validation, and after each line. `waited` is the feed's."""
        self.began, self.waited, self.done, self.stalled = time.perf_counter(), waited, done, 0.0

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around a checkpoint: its time is no step's."""
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.stalled, self.saving_took = self.stalled + took, self.saving_took + took

    def read(self, done: int, waited: float, batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """Since the last call or `restart`; at least one step has been done. Times are those of this process, means over the steps.

        - samples_per_second, of all processes, checkpoints included; data_wait_share of that time
        - data_seconds waited for a batch, step_seconds of all the rest but checkpoints, checkpoint_seconds if there was one
        - memory_gb: resident on a CPU, on a GPU the most that tensors held so far; 1e9 bytes
        - mfu, where the device's peak is known: model FLOP over what the device could have done; `batches` are the last step's
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
        if self.saving_took:
            values["checkpoint_seconds"], self.saving_took = self.saving_took, 0.0
        if self.shadow is not None and self.peak is not None:
            values["mfu"] = (
                self.model_flops(done - 1, batches) * count / (spent - self.stalled) / self.peak
            )
        self.restart(done, waited)
        return values

    def model_flops(self, step: int, batches: list[dict[str, Tensor]]) -> int:
        """FLOP of a step on this process, counted anew when a term of the loss joins or shapes change."""
        assert self.shadow is not None
        progress = step / self.steps
        terms = [
            getattr(self.shadow, name)(progress)
            for name in ("weights", "consistency_weights")
            if hasattr(self.shadow, name)
        ]
        key = (
            *(name for term in terms for name, weight in term.items() if weight),
            *(tuple(value.shape) for value in batches[0].values()),
        )
        if key not in self.flops:
            self.flops = {key: step_flops(self.shadow, batches, step, progress)}
        return self.flops[key]


def memory_in_use(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, what is resident on a CPU."""
    return (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else psutil.Process().memory_info().rss
    )
