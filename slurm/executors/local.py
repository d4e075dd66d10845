"""Runs the jobs of an experiment as processes of this machine, several at a time.

jobs ──those whose `needs` and `after` have ended──> a process with its share of the cores,
at most `at_once` of them ──> done, failed, or stopped by a signal
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cjepa_dist.errors import EXIT_PREEMPTED
from cjepa_dist.resilience.run_lock import RunLock
from slurm.executors.job_lines import JobLines
from slurm.experiment.job import Job, job_spec
from slurm.experiment.schema import Cluster
from slurm.jobs.gpus import count_gpus
from slurm.jobs.job_log import log_path, read_events
from slurm.jobs.run import SIGNALS, run_job
from slurm.jobs.spec import JobSpec, SlurmContext
from slurm.record import Record

MAX_JOBS_AT_ONCE = 8  # by default, on a machine with many cores: each takes some GB of memory


def run_locally(
    record: Record, cluster: Cluster, jobs: list[Job], at_once: int, *, verbose: bool = False
) -> int:
    """Run the jobs on this machine, `at_once` at a time (0: see `Experiment.at_once`).

    Returns 0 if all succeeded, 1 if one failed, EXIT_PREEMPTED after a signal. Raises UserError
    if another process runs jobs of this experiment.
    """
    with RunLock(record.state_dir):
        gpus = min(cluster.gpus_per_node, count_gpus())
        cluster = dataclasses.replace(cluster, gpus_per_node=gpus, stages={})
        cores = len(os.sched_getaffinity(0))
        at_once = at_once or (1 if gpus else min(cores, MAX_JOBS_AT_ONCE))
        for job in jobs:
            record.jobs[job.name], record.job_ids[job.name] = job, ""
        record.write()
        count = min(at_once, len(jobs))
        print(
            f"{len(jobs)} jobs to run, {count} at a time; their logs: {record.state_dir / 'logs'}",
            flush=True,
        )
        with JobLines(record.state_dir, [job.name for job in jobs], verbose=verbose) as lines:
            code = LocalExecutor(record, cluster, jobs, at_once, lines).run()
        return code


class LocalExecutor:
    """Starts each job when the jobs before it have ended.

    The job with the longest chain of jobs behind it goes first. On CPUs each job gets the same
    number of cores whenever it starts: the number of threads decides the last digits of sums. Jobs
    that make data, where it does not, get all free cores. With a GPU every job gets all cores.
    """

    def __init__(
        self, record: Record, cluster: Cluster, jobs: list[Job], at_once: int, lines: JobLines
    ) -> None:
        self.record, self.cluster, self.lines = record, cluster, lines
        self.at_once = at_once
        self.names = {job.name for job in jobs}
        length = chain_lengths(jobs)
        self.waiting = sorted(jobs, key=lambda job: -length[job.name])
        self.running: dict[BaseProcess, tuple[Job, set[int]]] = {}
        self.all_cores = set(os.sched_getaffinity(0))
        self.free_cores = sorted(self.all_cores)
        self.ended: set[str] = set()
        self.failed: set[str] = set()
        self.signal = 0

    def run(self) -> int:
        handlers = {number: signal.signal(number, self.on_signal) for number in SIGNALS}
        try:
            while self.running or (self.waiting and not self.signal):
                self.start_ready_jobs()
                ready = wait([process.sentinel for process in self.running], timeout=0.5)
                for process in [p for p in self.running if p.sentinel in ready]:
                    self.finish(process)
                self.lines.refresh()
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
        """Start what can start, with its share of the free cores."""
        self.skip_jobs_that_need_a_failed_one()
        waits_for = self.names - self.ended
        ready = [job for job in self.waiting if not {*job.needs, *job.after} & waits_for]
        places = self.at_once - len(self.running)
        for job in ready[: max(0, places)]:
            if self.signal or not self.free_cores:
                return
            self.waiting.remove(job)
            self.start(job, self.take_cores(job))

    def skip_jobs_that_need_a_failed_one(self) -> None:
        for job in self.waiting[:]:
            if missing := self.failed & set(job.needs):
                self.waiting.remove(job)
                self.failed.add(job.name)
                self.ended.add(job.name)
                self.lines.skipped(job.name, f"it needs {', '.join(sorted(missing))}")
                return self.skip_jobs_that_need_a_failed_one()

    def take_cores(self, job: Job) -> set[int]:
        """The cores of a job that starts, which nobody else gets meanwhile; with a GPU all."""
        if self.cluster.gpus_per_node:
            return set(self.all_cores)
        count = max(1, len(self.all_cores) // self.at_once)
        if job.stage == "data":
            count = len(self.free_cores)
        taken, self.free_cores = self.free_cores[:count], self.free_cores[count:]
        return set(taken)

    def start(self, job: Job, cores: set[int]) -> None:
        spec = job_spec(job, self.cluster, self.record.state_dir)
        process = get_context("fork").Process(target=run_job_on_cores, args=(spec, cores))
        self.lines.started(job.name)
        process.start()
        self.running[process] = job, cores
        if self.signal:  # it came while the process started
            process.terminate()

    def finish(self, process: BaseProcess) -> None:
        job, cores = self.running.pop(process)
        process.join()
        if not self.cluster.gpus_per_node:
            self.free_cores = sorted({*self.free_cores, *cores})
        self.ended.add(job.name)
        if process.exitcode == EXIT_PREEMPTED:
            self.lines.ended(job.name, "stopped", "; the same command resumes it")
            self.signal = self.signal or signal.SIGTERM
            self.terminate_all()
            return
        word = "done"
        if process.exitcode or not job.done():
            self.failed.add(job.name)
            word = "failed"
        self.lines.ended(job.name, word)
        if process.exitcode:
            self.explain_failure(job)
        elif path := job.missing_output():
            self.lines.say(f"error: {job.name}: it succeeded, but {path} is missing")

    def explain_failure(self, job: Job) -> None:
        """Print why a job failed, by its last event, and the last lines of its log."""
        state_dir = self.record.state_dir
        events = read_events(state_dir, job.name)[-1:]
        event = events[0] if events and events[0]["event"] == "failed" else {}
        reason = event.get("reason", "its process died")
        self.lines.say(f"error: {job.name}: {reason}; log: {log_path(state_dir, job.name)}")
        for line in event.get("lines", []):
            self.lines.say(f"    {line}")


def chain_lengths(jobs: list[Job]) -> dict[str, int]:
    """Jobs on the longest chain that begins with a job, by its name; `jobs` in a valid order."""
    length = {job.name: 1 for job in jobs}
    for job in reversed(jobs):
        for name in {*job.needs, *job.after} & length.keys():
            length[name] = max(length[name], 1 + length[job.name])
    return length


def run_job_on_cores(spec: JobSpec, cores: set[int]) -> None:
    """In the process of a job, whose own output goes to the job's log too.

    Threads that wait for each other soon sleep. If they spun for long, as they do by default,
    another process on the same cores would slow the job down tenfold; if they slept at once, a
    step on two idle cores would take twice its time.
    """
    os.sched_setaffinity(0, cores)
    path = log_path(Path(spec.state_dir), spec.name)
    sys.stdout = sys.stderr = path.open("a", buffering=1)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cores)))
    run_job(spec, SlurmContext())
