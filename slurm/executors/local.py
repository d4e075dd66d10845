"""Runs the jobs of an experiment as processes of this machine, several at a time.

jobs ──those whose `needs` and `after` have ended──> a process with its share of the cores,
at most `at_once` of them ──> done, failed, or stopped by a signal
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from cjepa_dist.errors import EXIT_PREEMPTED
from cjepa_dist.resilience.run_lock import RunLock
from slurm.experiment.job import Job, job_spec
from slurm.experiment.schema import Cluster
from slurm.jobs.run import SIGNALS, count_gpus, run_job
from slurm.jobs.spec import JobSpec, SlurmContext
from slurm.record import Record


def run_locally(record: Record, cluster: Cluster, jobs: list[Job], at_once: int) -> int:
    """Run the jobs on this machine, `at_once` at a time.

    Returns 0 if all succeeded, 1 if one failed, EXIT_PREEMPTED after a signal. Raises UserError
    if another process runs jobs of this experiment.
    """
    with RunLock(record.state_dir):
        gpus = min(cluster.gpus_per_node, count_gpus())
        cluster = dataclasses.replace(cluster, gpus_per_node=gpus)
        for job in jobs:
            record.jobs[job.name], record.job_ids[job.name] = job, ""
        record.write()
        print(f"{len(jobs)} jobs to run; their logs: {record.state_dir / 'logs'}", flush=True)
        return LocalExecutor(record, cluster, jobs, at_once).run()


class LocalExecutor:
    """Starts each job when the jobs before it have ended; jobs that others need go first."""

    def __init__(self, record: Record, cluster: Cluster, jobs: list[Job], at_once: int) -> None:
        self.record, self.cluster, self.at_once = record, cluster, at_once
        needed = {name for job in jobs for name in job.needs}
        self.waiting = sorted(jobs, key=lambda job: job.name not in needed)
        self.names = {job.name for job in jobs}
        self.running: dict[BaseProcess, tuple[Job, float, set[int]]] = {}
        cores = sorted(os.sched_getaffinity(0))
        # On CPUs each job gets its own share of the cores. With a GPU all get all cores.
        stride = 1 if cluster.gpus_per_node else at_once
        self.free_cores = [
            set(cores[index % stride :: stride]) or set(cores) for index in range(at_once)
        ]
        self.ended: set[str] = set()
        self.failed: set[str] = set()
        self.signal = 0

    def run(self) -> int:
        handlers = {number: signal.signal(number, self.on_signal) for number in SIGNALS}
        try:
            while self.running or (self.waiting and not self.signal):
                self.start_ready_jobs()
                ready = wait([process.sentinel for process in self.running], timeout=1)
                for process in [p for p in self.running if p.sentinel in ready]:
                    self.finish(process)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.signal:
            return EXIT_PREEMPTED
        if self.failed:
            failed, total = ", ".join(sorted(self.failed)), len(self.names)
            print(f"error: {len(self.failed)} of {total} jobs failed: {failed}", file=sys.stderr)
        return 1 if self.failed else 0

    def on_signal(self, number: int, frame: Any) -> None:
        self.signal = number
        self.terminate_all()

    def terminate_all(self) -> None:
        for process in self.running:
            process.terminate()

    def start_ready_jobs(self) -> None:
        """Start what can start; skip the jobs that need a failed one."""
        for job in list(self.waiting):
            if self.signal or not self.free_cores:
                return
            if {*job.needs, *job.after} & (self.names - self.ended):
                continue
            self.waiting.remove(job)
            if missing := self.failed & set(job.needs):
                self.failed.add(job.name)
                self.ended.add(job.name)
                print(f"{job.name}: skipped, it needs {', '.join(sorted(missing))}", flush=True)
                return self.start_ready_jobs()
            print(f"{job.name} ...", flush=True)
            self.start(job)

    def start(self, job: Job) -> None:
        cores = self.free_cores.pop()
        spec = job_spec(job, self.cluster, self.record.state_dir)
        process = get_context("fork").Process(target=run_job_on_cores, args=(spec, cores))
        process.start()
        self.running[process] = job, time.monotonic(), cores
        if self.signal:  # it came while the process started
            process.terminate()

    def finish(self, process: BaseProcess) -> None:
        job, began, cores = self.running.pop(process)
        process.join()
        self.free_cores.append(cores)
        self.ended.add(job.name)
        if process.exitcode == EXIT_PREEMPTED:
            print(f"{job.name}: stopped; the same command resumes it", flush=True)
            self.signal = self.signal or signal.SIGTERM
            self.terminate_all()
            return
        seconds, word = time.monotonic() - began, "done"
        if process.exitcode or not job.done():
            self.failed.add(job.name)
            word = "failed"
        if not process.exitcode and (path := job.missing_output()):
            print(f"error: {job.name}: it succeeded, but {path} is missing", file=sys.stderr)
        print(f"{job.name}: {word} after {seconds:.0f} s", flush=True)


def run_job_on_cores(spec: JobSpec, cores: set[int]) -> None:
    """In the process of a job."""
    os.sched_setaffinity(0, cores)
    run_job(spec, SlurmContext())
