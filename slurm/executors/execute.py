"""Runs the jobs of an experiment: on this machine, on Slurm, or not at all (dry_run).

Jobs that are finished or in the queue are left alone.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cjepa_dist.checkpoint.integrity import CHECKPOINT_NAME, parse_checksums
from cjepa_dist.config import merge
from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import UserError
from slurm.executors.local import run_locally
from slurm.experiment.check import check_trainings
from slurm.experiment.job import Job
from slurm.experiment.plan import check_commands, jobs_of_stages, plan
from slurm.experiment.schema import Cluster, Experiment, read_cluster
from slurm.record import Record, active_jobs, read_record

WRITE_EVERY_S = 1.0  # the record of what is queued, while jobs are submitted

OTHER_SETTINGS = "with other settings than today's"


def execute(experiment: Experiment) -> int:
    """Plan the jobs, check them, and run those that are not finished; returns an exit code.

    Raises UserError before anything runs or is queued.
    """
    cluster = read_cluster(experiment.cluster)
    jobs = plan(experiment)
    check_commands(experiment, jobs)
    runs = Path(experiment.runs).resolve()
    record = read_record(runs) or Record(runs, {})
    record.experiment = dataclasses.asdict(experiment)
    active = active_jobs(record)
    wanted = unfinished_jobs(jobs, experiment.stage, record, active)
    if experiment.executor == "slurm":
        check_trainings(wanted, cluster)
        return submit_to_slurm(experiment, cluster, record, wanted, active)
    if active:
        raise UserError(
            f"{len(active)} jobs of {runs} are in Slurm's queue, such as {min(active)}:"
            " wait for them, or cancel them with slurm.cancel"
        )
    if experiment.dry_run:
        print(format_jobs(wanted, {}))
        return 0
    if not wanted:
        print(f"nothing to run: all jobs of stage={experiment.stage} are finished")
        return 0
    make_state_dir(record)
    return run_locally(record, cluster, wanted, experiment.at_once, verbose=experiment.verbose)


def unfinished_jobs(jobs: list[Job], stage: str, record: Record, active: set[str]) -> list[Job]:
    """The jobs of `stage` that are neither finished nor in the queue.

    A finished job is run again if a job before it is; so is an import whose files have changed,
    which then compares their bytes, and a rollout of another model than its run holds now. The
    preflight runs before any other job.
    Raises UserError where existing outputs were made with other settings, or where a job needs
    something that is neither there nor will be.
    """
    by_name = {job.name: job for job in jobs}
    wanted: list[Job] = []
    names: set[str] = set()  # of the wanted jobs without the preflight
    for job in jobs_of_stages(jobs, stage):
        if job.stage == "preflight":
            wanted += [job] if job.name not in active else []
            continue
        check_same_settings(job, record, job.name in active)
        again = bool(names & {*job.needs, *job.after})
        again = again or inputs_changed(job, record) or is_stale_rollout(job)
        if job.name in active or (job.done() and not again):
            continue
        missing = [
            name
            for name in job.needs
            if name not in names | active
            and not by_name[name].done()
            and by_name[name] not in wanted
        ]
        if missing:
            raise UserError(
                f"{job.name} needs {missing[0]}, which is not there:"
                f" submit stage={by_name[missing[0]].stage} too"
            )
        wanted.append(job)
        names.add(job.name)
    return wanted if names or stage == "preflight" else []


def check_same_settings(job: Job, record: Record, active: bool) -> None:
    """Raises UserError if the job was started before, with other commands, configs or data."""
    before = record.jobs.get(job.name)
    if before is None:
        return
    other_data = bool(before.data and job.data and before.data != job.data)
    if before.checksum == job.checksum and not other_data:
        return
    if active or job.done() or (job.is_training and job.run_dir.exists()):
        folder = Path(job.outputs[0]).parent
        how = "from other data than there are now" if other_data else OTHER_SETTINGS
        raise UserError(f"{job.name} was made {how}: take another runs=, or remove {folder}")


def inputs_changed(job: Job, record: Record) -> bool:
    """Whether the files that an import reads are others than when it was started."""
    before = record.jobs.get(job.name)
    return bool(before and before.inputs and before.inputs != job.inputs)


def is_stale_rollout(job: Job) -> bool:
    """Whether a finished rollout was made by other weights than its world model's run holds now.

    What cannot be read is no reason: the jobs that read it say so.
    """
    if job.stage != "rollout" or not job.done():
        return False
    for output in job.outputs:
        try:
            model = json.loads(Path(output).read_text())["source"]["fingerprint"]["world_model"]
            folder = Path(model["run"]) / "checkpoints" / checkpoint_name(model["run"])
            sums = parse_checksums((folder / "checksums.json").read_bytes())
            if sums["model.safetensors"] != model["weights"]:
                return True
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return False


def checkpoint_name(run: str) -> str:
    """Name of the newest whole checkpoint of a run. OSError if there is none."""
    found = Path(run).glob("checkpoints/step_*/checksums.json")
    steps = [path.parent.name for path in found if CHECKPOINT_NAME.fullmatch(path.parent.name)]
    if not steps:
        raise FileNotFoundError(run)
    return max(steps, key=lambda name: (len(name), name))


def make_state_dir(record: Record) -> None:
    """Makes RUNS/.slurm. Raises UserError where that cannot be written."""
    try:
        (record.state_dir / "logs").mkdir(parents=True, exist_ok=True)
        probe = record.state_dir / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {record.runs}: {error.strerror};"
            " set runs= to a folder that all nodes can write to"
        ) from error


def submit_to_slurm(
    experiment: Experiment, cluster: Cluster, record: Record, jobs: list[Job], active: set[str]
) -> int:
    """Queue the jobs, each after those it waits for: all, as many as fit, or none after a failure.

    Raises UserError.
    """
    try:
        from slurm.executors import sbatch
    except ImportError as error:
        raise UserError(
            f"submitit is not installed ({error}): pip install submitit, use slurm/train.sbatch,"
            " or executor=local"
        ) from error
    # A new folder each time: submitit would read old results as new ones.
    now = datetime.now(timezone.utc).strftime("%Y%m%d_%H%M%S_%f")
    folder = record.state_dir / "submitit" / now
    job_ids = {name: record.job_ids[name] for name in active}

    def options(job: Job, ids: dict[str, str]) -> dict[str, Any]:
        needs, after = (
            [ids[name] for name in group if name in ids] for group in (job.needs, job.after)
        )
        return sbatch.sbatch_options(job, cluster, record.runs, needs, after)

    shared_folders = [record.runs]
    if experiment.data and not is_remote(experiment.data):
        shared_folders.append(Path(experiment.data).resolve())
    if experiment.dry_run:
        names = {job.name: f"<{job.name}>" for job in jobs}
        planned = {job.name: options(job, {**job_ids, **names}) for job in jobs}
        for name, settings in planned.items():
            print(f"# --- {name}\n{sbatch.sbatch_text(folder, settings)}")
        try:
            answers = sbatch.check_cluster(cluster, planned, folder, shared_folders)
        except UserError as error:
            print(format_jobs(jobs, {}))
            raise UserError(f"{error} (dry_run: nothing was queued)") from error
        print(format_jobs(jobs, answers))
        return 0
    if not jobs:
        print(f"nothing to submit: all of stage={experiment.stage} is finished or in the queue")
        return 0
    planned = {job.name: options(job, {}) for job in jobs}
    sbatch.check_cluster(cluster, planned, folder, shared_folders)
    make_state_dir(record)
    with submit_lock(record):
        queued, full = queue_jobs(experiment, cluster, record, jobs, job_ids, folder, options)
    notes = {job.name: f"job {job_ids[job.name]}" for job in jobs if job.name in job_ids}
    print(format_jobs(jobs, {job.name: "not queued yet" for job in jobs} | notes))
    print(f"{len(queued)} jobs submitted; look at them with: cjepa status {record.runs}")
    if full:
        print(
            f"the queue is full ({full}): {len(jobs) - len(queued)} jobs wait; the same command"
            " queues them once there is room"
        )
    return 0


def queue_jobs(
    experiment: Experiment,
    cluster: Cluster,
    record: Record,
    jobs: list[Job],
    job_ids: dict[str, str],
    folder: Path,
    options: Callable[[Job, dict[str, str]], dict[str, Any]],
) -> tuple[list[str], str]:
    """Queue the jobs in order, as far as there is room: their numbers, and why no more.

    `job_ids` has those in the queue already, and gets the new ones. After any other failure nothing
    stays in the queue, as a part of the graph is of no use.
    """
    from slurm.executors import sbatch

    queued: list[str] = []
    before, written, full = len(job_ids), time.monotonic(), ""
    try:
        for _, group in itertools.groupby(jobs, key=lambda job: job.array or job.name):
            tasks = list(group)
            in_queue = before + len(queued)
            if experiment.max_queued and in_queue + len(tasks) > experiment.max_queued and in_queue:
                full = f"max_queued={experiment.max_queued}"
                break
            settings = options(tasks[0], job_ids)
            try:
                numbers = sbatch.submit(tasks, cluster, record.state_dir, folder, settings)
            except sbatch.QueueFull as error:
                if not in_queue:
                    raise
                full = str(error)
                break
            queued += numbers
            for job, number in zip(tasks, numbers):
                job_ids[job.name] = record.job_ids[job.name] = number
                record.jobs[job.name] = job
            if time.monotonic() - written > WRITE_EVERY_S:  # it grows with the jobs
                record.write()
                written = time.monotonic()
    except BaseException:
        if queued:
            subprocess.run(["scancel", *queued], check=False)
        raise
    finally:
        record.write()
    for job in jobs:
        if job.name not in job_ids:
            record.jobs[job.name], record.job_ids[job.name] = job, ""
    record.write()
    return queued, full


@contextmanager
def submit_lock(record: Record) -> Iterator[None]:
    """Two processes that submit the same experiment do not interleave.

    Raises UserError where another one submits, or has done so since the record was read.
    """
    with open(record.state_dir / "submit.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process submits jobs of {record.runs} right now: wait until it is done"
            ) from None
        now = read_record(record.runs)
        if now is not None and now.job_ids != record.job_ids:
            raise UserError(f"another process has submitted jobs of {record.runs}: try again")
        yield


def format_jobs(jobs: list[Job], notes: dict[str, str]) -> str:
    """A line for each job: what it waits for, and a note."""
    lines = []
    for job in jobs:
        waits = ", ".join([*job.needs, *(f"({name})" for name in job.after)])
        parts = [job.name, f"<- {waits}" if waits else "", notes.get(job.name, "")]
        lines.append("  ".join(filter(None, parts)))
    return "\n".join([*lines, f"{len(jobs)} jobs; those in brackets need only have ended"])


def restore_experiment(record: Record) -> Experiment:
    """The experiment that a record was made by, with all of its stages."""
    return merge.build(Experiment, {**record.experiment, "stage": "all", "dry_run": False})
