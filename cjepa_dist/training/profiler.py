"""`loop.profile=true`: a trace of some steps for Perfetto or chrome://tracing.

Of the steps of this start, WARMUP_STEPS are skipped, one warms the profiler up, and the next
PROFILED_STEPS are written to RUN/profile/steps_<first>_<last>.json.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from cjepa_dist.config.schema import LoopConfig
from cjepa_dist.runtime.collectives import is_main

WARMUP_STEPS, PROFILED_STEPS = 10, 5


class Profiler:
    """Call `step(done)` after each step. Only rank zero profiles; a short run skips fewer steps."""

    def __init__(self, run_dir: Path, loop: LoopConfig, *, start: int, stop: int) -> None:
        self.folder, self.done = run_dir / "profile", start
        self.inner: profile | None = None
        if not (loop.profile and is_main()):
            return
        warm = max(0, min(WARMUP_STEPS, stop - start - PROFILED_STEPS - 1))
        self.begin = start + warm + 2  # the first profiled step, counted from 1
        activities = [
            ProfilerActivity.CPU,
            *([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
        ]
        plan = schedule(wait=warm, warmup=1, active=PROFILED_STEPS, repeat=1)
        self.inner = profile(activities=activities, schedule=plan, on_trace_ready=self.write)
        self.inner.start()

    def step(self, done: int) -> None:
        if self.inner is not None:
            self.done = done
            self.inner.step()

    def write(self, found: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"steps_{self.begin:08d}_{self.done:08d}.json"
        found.export_chrome_trace(str(path))
        print(f"profile of {self.done - self.begin + 1} steps: {path}", flush=True)

    def close(self) -> None:
        """Write the trace of a run that ended before all steps were profiled."""
        if self.inner is not None:
            self.inner.stop()
            self.inner = None
