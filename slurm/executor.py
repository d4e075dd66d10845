"""Hand a graph of jobs over: to Slurm, to this machine, or to the eye (dry_run). What is finished or in the queue is left alone."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cjepa_dist.config import merge
from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import UserError
from cjepa_dist.resilience.run_lock import RunLock
from slurm import record as records
from slurm.jobs.run import SIGNALS, STOPPED, Place, Spec, gpus_here, run
from slurm.plan import Job, check, chosen, plan, spec
from slurm.record import ACTIVE, Record
from slurm.schema import Cluster, Experiment, read_cluster


def hand_over(experiment: Experiment) -> int:
    """Plan, check, and queue what is not finished. Raises UserError before anything is queued."""
    cluster = read_cluster(experiment.cluster)
    jobs = plan(experiment)
    check(experiment, jobs)
    runs = Path(experiment.runs).resolve()
    record = records.read(runs) or Record(runs, {})
    record.experiment = dataclasses.asdict(experiment)
    busy = {name for name, (state, _, _) in records.states(record).items() if state in ACTIVE}
    wanted = open_jobs(jobs, experiment.stage, record, busy)
    if experiment.executor == "slurm":
        return to_slurm(experiment, cluster, record, wanted, busy)
    if experiment.dry_run:
        print(shown(wanted, {}))
        return 0
    writable(record)
    return here(record, cluster, wanted, experiment.at_once)


def open_jobs(jobs: list[Job], stage: str, record: Record, busy: set[str]) -> list[Job]:
    """The jobs of `stage` that are neither finished nor in the queue, and the report if anything before it changes.

    Raises UserError where something there was made with other settings, or a job needs what neither is there nor will be.
    """
    whole = {job.name: job for job in jobs}
    wanted: list[Job] = []
    names: set[str] = set()
    for job in chosen(jobs, stage):
        if job.stage == "preflight":  # before whatever is submitted, each time
            wanted += [job] if job.name not in busy else []
            continue
        old = record.jobs.get(job.name)
        if (
            old
            and old.key != job.key
            and (job.name in busy or job.done() or (job.trains and job.folder.exists()))
        ):
            where = Path(job.outputs[0]).parent
            raise UserError(
                f"{job.name} was made with other settings than today's: take another runs=, or remove {where}"
            )
        if job.name in busy or (job.done() and not names & {*job.needs, *job.after}):
            continue
        lost = [
            name
            for name in job.needs
            if name not in names | busy and not whole[name].done() and whole[name] not in wanted
        ]
        if lost:
            raise UserError(
                f"{job.name} needs {lost[0]}, which is not there: submit stage={whole[lost[0]].stage} too"
            )
        wanted.append(job)
        names.add(job.name)
    return wanted if names or stage == "preflight" else []


def writable(record: Record) -> None:
    """Makes RUNS/.slurm. Raises UserError where that cannot be written."""
    try:
        (record.home / "logs").mkdir(parents=True, exist_ok=True)
        probe = record.home / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {record.runs}: {error.strerror}; set runs= to a folder that all nodes can write to"
        ) from error


def to_slurm(
    experiment: Experiment, cluster: Cluster, record: Record, jobs: list[Job], busy: set[str]
) -> int:
    try:
        from slurm import sbatch
    except ImportError as error:
        raise UserError(
            f"submitit is not installed ({error}): pip install submitit, use slurm/train.sbatch, or executor=local"
        ) from error
    stamp = datetime.now(timezone.utc).strftime(
        "%Y%m%d_%H%M%S_%f"
    )  # a folder of its own: submitit would take old results for new ones
    folder = record.home / "submitit" / stamp
    ids = {name: record.ids[name] for name in busy}

    def settings(job: Job, numbers: dict[str, str]) -> dict:
        needs, after = (
            [numbers[name] for name in group if name in numbers] for group in (job.needs, job.after)
        )
        return sbatch.options(job, cluster, record.runs, needs, after)

    shared = [
        record.runs,
        *(
            [Path(experiment.data).resolve()]
            if experiment.data and not is_remote(experiment.data)
            else []
        ),
    ]
    if experiment.dry_run:
        names = {job.name: f"<{job.name}>" for job in jobs}
        sheets = {job.name: settings(job, {**ids, **names}) for job in jobs}
        for job in jobs:
            print(
                f"# --- {job.name}\n{sbatch.text(folder, sheets[job.name], 'python -u -m submitit.core._submit ' + str(folder))}"
            )
        try:
            said = sbatch.check(cluster, sheets, folder, shared)
        except UserError as error:
            print(shown(jobs, {}))
            raise UserError(f"{error} (dry_run: nothing was queued)") from error
        print(shown(jobs, said))
        return 0
    if not jobs:
        print(f"nothing to submit: all of stage={experiment.stage} is finished or in the queue")
        return 0
    sbatch.check(cluster, {job.name: settings(job, {}) for job in jobs}, folder, shared)
    writable(record)
    fresh: list[str] = []
    try:
        for _, group in itertools.groupby(jobs, key=lambda job: job.array or job.name):
            tasks = list(group)
            for job, number in zip(
                tasks, sbatch.submit(tasks, cluster, record.home, folder, settings(tasks[0], ids))
            ):
                fresh.append(number)
                ids[job.name] = record.ids[job.name] = number
                record.jobs[job.name] = job
            record.write()
    except BaseException:
        subprocess.run(
            ["scancel", *fresh], check=False
        ) if fresh else None  # half a graph is of no use to anybody
        raise
    print(shown(jobs, {job.name: f"job {ids[job.name]}" for job in jobs}))
    print(f"{len(jobs)} jobs submitted; look at them with: python -m slurm.status {record.runs}")
    return 0


def here(record: Record, cluster: Cluster, jobs: list[Job], at_once: int) -> int:
    """Run the jobs on this machine, `at_once` side by side. 0 if all succeeded, 1 if not, 75 after a signal."""
    owner = RunLock(record.home)
    if refusal := owner.take():
        raise UserError(refusal)
    try:
        cluster = dataclasses.replace(
            cluster, gpus_per_node=min(cluster.gpus_per_node, gpus_here())
        )
        for job in jobs:
            record.jobs[job.name], record.ids[job.name] = job, ""
            record.write()
        return Local(record, cluster, jobs, at_once).run()
    finally:
        owner.release()


class Local:
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
            return STOPPED
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
                target=one, args=(spec(job, self.cluster, self.record.home), cores)
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
        if process.exitcode == STOPPED:
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


def one(todo: Spec, cores: set[int]) -> None:
    """In the process of a job."""
    os.sched_setaffinity(0, cores)
    run(todo, Place("", 0, 0, 1))


def shown(jobs: list[Job], notes: dict[str, str]) -> str:
    """One line a job: what it waits for, and a note."""
    lines = []
    for job in jobs:
        waits = [*job.needs, *(f"({name})" for name in job.after)]
        lines.append(
            "  ".join(
                filter(
                    None,
                    [job.name, f"<- {', '.join(waits)}" if waits else "", notes.get(job.name, "")],
                )
            )
        )
    return "\n".join([*lines, f"{len(jobs)} jobs; in brackets: need only have ended"])


def restore(record: Record) -> Experiment:
    """The experiment that a record was made by, whole."""
    return merge.build(Experiment, {**record.experiment, "stage": "all", "dry_run": False})
