"""Runs the jobs of an experiment as processes of this machine, some of them side by side."""

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

from cjepa_dist.errors import UserError
from cjepa_dist.resilience.run_lock import RunLock
from slurm.job import Job, job_spec
from slurm.jobs.run import SIGNALS, EXIT_PREEMPTED, count_gpus, run_job
from slurm.jobs.spec import JobSpec, SlurmContext
from slurm.record import Record
from slurm.schema import Cluster


def run_locally(record: Record, cluster: Cluster, jobs: list[Job], at_once: int) -> int:
    """Run the jobs on this machine, `at_once` side by side. 0 if all succeeded, 1 if not, 75 after a signal."""
    owner = RunLock(record.state_dir)
    if refusal := owner.take():
        raise UserError(refusal)
    try:
        cluster = dataclasses.replace(
            cluster, gpus_per_node=min(cluster.gpus_per_node, count_gpus())
        )
        for job in jobs:
            record.jobs[job.name], record.job_ids[job.name] = job, ""
            record.write()
        return LocalExecutor(record, cluster, jobs, at_once).run()
    finally:
        owner.release()


class LocalExecutor:
    """Jobs as processes of this machine, each once those it waits for have ended; what others wait for goes first."""

    def __init__(self, record: Record, cluster: Cluster, jobs: list[Job], at_once: int) -> None:
        self.record, self.cluster, self.at_once = record, cluster, at_once
        needed = {name for job in jobs for name in job.needs}
        self.waiting = sorted(jobs, key=lambda job: job.name not in needed)
        self.names = {job.name for job in jobs}
        self.running: dict[BaseProcess, tuple[Job, float, set[int]]] = {}
        cores = sorted(os.sched_getaffinity(0))
        every = (
            1 if cluster.gpus_per_node else at_once
        )  # side by side on CPUs each takes its share, or all would take all
        self.free = [set(cores[index % every :: every]) or set(cores) for index in range(at_once)]
        self.ended: set[str] = set()
        self.failed: set[str] = set()
        self.signal = 0

    def run(self) -> int:
        before = {number: signal.signal(number, self.stop) for number in SIGNALS}
        try:
            while self.running or (self.waiting and not self.signal):
                self.begin()
                ready = wait([process.sentinel for process in self.running], timeout=1)
                for process in [p for p in self.running if p.sentinel in ready]:
                    self.end(process)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signal:
            return EXIT_PREEMPTED
        if self.failed:
            print(
                f"error: {len(self.failed)} of {len(self.names)} jobs failed: {', '.join(sorted(self.failed))}",
                file=sys.stderr,
            )
        return 1 if self.failed else 0

    def stop(self, number: int, frame: Any) -> None:
        self.signal = number
        for process in self.running:
            process.terminate()

    def begin(self) -> None:
        """Start what can start, leave out what has lost what it needs."""
        for job in list(self.waiting):
            if self.signal or not self.free:
                return
            if {*job.needs, *job.after} & (self.names - self.ended):
                continue
            self.waiting.remove(job)
            if lost := self.failed & set(job.needs):
                self.failed.add(job.name)
                self.ended.add(job.name)
                print(f"{job.name}: left out, it needs {', '.join(sorted(lost))}", flush=True)
                return self.begin()
            print(f"{job.name} ...", flush=True)
            cores = self.free.pop()
            process = get_context("fork").Process(
                target=run_job_on_cores, args=(job_spec(job, self.cluster, self.record.state_dir), cores)
            )
            process.start()
            self.running[process] = job, time.monotonic(), cores
            if self.signal:  # it came while the process started
                process.terminate()

    def end(self, process: BaseProcess) -> None:
        job, began, cores = self.running.pop(process)
        process.join()
        self.free.append(cores)
        self.ended.add(job.name)
        if process.exitcode == EXIT_PREEMPTED:
            print(f"{job.name}: stopped; the same command goes on", flush=True)
            self.signal = self.signal or signal.SIGTERM
            for other in self.running:
                other.terminate()
            return
        if process.exitcode:
            self.failed.add(job.name)
        print(
            f"{job.name}: {'failed' if process.exitcode else 'done'} after {time.monotonic() - began:.0f} s",
            flush=True,
        )


def run_job_on_cores(todo: JobSpec, cores: set[int]) -> None:
    """In the process of a job."""
    os.sched_setaffinity(0, cores)
    run_job(todo, SlurmContext("", 0, 0, 1))
