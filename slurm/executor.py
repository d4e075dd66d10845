"""Hand a graph of jobs over: to Slurm, to this machine, or to the eye (dry_run). What is finished or in the queue is left alone."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from cjepa_dist.config import merge
from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import UserError
from slurm import record as records
from slurm.job import Job
from slurm.local_executor import run_locally
from slurm.plan import check_commands, jobs_of_stages, plan
from slurm.record import ACTIVE_STATES, Record
from slurm.schema import Cluster, Experiment, read_cluster


def execute(experiment: Experiment) -> int:
    """Plan, check, and queue what is not finished. Raises UserError before anything is queued."""
    cluster = read_cluster(experiment.cluster)
    jobs = plan(experiment)
    check_commands(experiment, jobs)
    runs = Path(experiment.runs).resolve()
    record = records.read_record(runs) or Record(runs, {})
    record.experiment = dataclasses.asdict(experiment)
    busy = {
        name
        for name, (state, _, _) in records.slurm_states(record).items()
        if state in ACTIVE_STATES
    }
    wanted = unfinished_jobs(jobs, experiment.stage, record, busy)
    if experiment.executor == "slurm":
        return submit_to_slurm(experiment, cluster, record, wanted, busy)
    if experiment.dry_run:
        print(format_jobs(wanted, {}))
        return 0
    make_state_dir(record)
    return run_locally(record, cluster, wanted, experiment.at_once)


def unfinished_jobs(jobs: list[Job], stage: str, record: Record, busy: set[str]) -> list[Job]:
    """The jobs of `stage` that are neither finished nor in the queue, and the report if anything before it changes.

    Raises UserError where something there was made with other settings, or a job needs what neither is there nor will be.
    """
    whole = {job.name: job for job in jobs}
    wanted: list[Job] = []
    names: set[str] = set()
    for job in jobs_of_stages(jobs, stage):
        if job.stage == "preflight":  # before whatever is submitted, each time
            wanted += [job] if job.name not in busy else []
            continue
        old = record.jobs.get(job.name)
        if (
            old
            and old.checksum != job.checksum
            and (job.name in busy or job.done() or (job.is_training and job.run_dir.exists()))
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


def make_state_dir(record: Record) -> None:
    """Makes RUNS/.slurm. Raises UserError where that cannot be written."""
    try:
        (record.state_dir / "logs").mkdir(parents=True, exist_ok=True)
        probe = record.state_dir / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {record.runs}: {error.strerror}; set runs= to a folder that all nodes can write to"
        ) from error


def submit_to_slurm(
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
    folder = record.state_dir / "submitit" / stamp
    ids = {name: record.job_ids[name] for name in busy}

    def settings(job: Job, numbers: dict[str, str]) -> dict:
        needs, after = (
            [numbers[name] for name in group if name in numbers] for group in (job.needs, job.after)
        )
        return sbatch.sbatch_options(job, cluster, record.runs, needs, after)

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
                f"# --- {job.name}\n{sbatch.sbatch_text(folder, sheets[job.name], 'python -u -m submitit.core._submit ' + str(folder))}"
            )
        try:
            said = sbatch.check_cluster(cluster, sheets, folder, shared)
        except UserError as error:
            print(format_jobs(jobs, {}))
            raise UserError(f"{error} (dry_run: nothing was queued)") from error
        print(format_jobs(jobs, said))
        return 0
    if not jobs:
        print(f"nothing to submit: all of stage={experiment.stage} is finished or in the queue")
        return 0
    sbatch.check_cluster(cluster, {job.name: settings(job, {}) for job in jobs}, folder, shared)
    make_state_dir(record)
    fresh: list[str] = []
    try:
        for _, group in itertools.groupby(jobs, key=lambda job: job.array or job.name):
            tasks = list(group)
            for job, number in zip(
                tasks, sbatch.submit(tasks, cluster, record.state_dir, folder, settings(tasks[0], ids))
            ):
                fresh.append(number)
                ids[job.name] = record.job_ids[job.name] = number
                record.jobs[job.name] = job
            record.write()
    except BaseException:
        subprocess.run(
            ["scancel", *fresh], check=False
        ) if fresh else None  # half a graph is of no use to anybody
        raise
    print(format_jobs(jobs, {job.name: f"job {ids[job.name]}" for job in jobs}))
    print(f"{len(jobs)} jobs submitted; look at them with: python -m slurm.status {record.runs}")
    return 0


def format_jobs(jobs: list[Job], notes: dict[str, str]) -> str:
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


def restore_experiment(record: Record) -> Experiment:
    """The experiment that a record was made by, whole."""
    return merge.build(Experiment, {**record.experiment, "stage": "all", "dry_run": False})
