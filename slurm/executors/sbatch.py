"""Jobs as sbatch files: their options, Slurm's own check of them, and submission by submitit."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from cjepa_dist.config.locate import project_root
from cjepa_dist.errors import UserError
from slurm.experiment.job import Job, job_spec
from slurm.experiment.schema import STAGES, Cluster, cluster_of_stage
from slurm.jobs import requeue
from slurm.jobs.job_log import file_name
from slurm.jobs.run import run_job
from slurm.record import STATE_DIR

# Types of file systems that only this machine, or one container on it, can see ...
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs", "overlay")
# ... and of this machine's disks, which it may export to others.
LOCAL_FILE_SYSTEMS = ("ext2", "ext3", "ext4", "ext2/ext3", "xfs", "btrfs", "zfs", "f2fs")

# sbatch's words where a user has as many jobs in the queue as the site lets him have.
SUBMIT_LIMIT = re.compile(r"MaxSubmit|job submit limit|submit.?limit|MaxJobCount", re.IGNORECASE)

# Variables of a job, and of what a launcher starts in it.
OUTER_JOB = re.compile(
    r"(SLURM_|SLURMD_|SUBMITIT_|TORCHELASTIC_|TORCH_ELASTIC_|ACCELERATE_|PMI_|PMIX_|OMPI_"
    r"|(RANK|LOCAL_RANK|GROUP_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$)"
)

MAX_ARRAY_TASKS = 10_000  # more than a site lets run at once

Options = dict[str, Any]  # by submitit's names


class QueueFull(UserError):
    """The site's limit of jobs in the queue is met: this one can be queued later."""


def sbatch_options(
    job: Job, cluster: Cluster, runs: Path, needs: list[str], after: list[str]
) -> Options:
    """Options of a job. `needs` and `after` are Slurm's numbers of the jobs that it waits for."""
    cluster = cluster_of_stage(cluster, job.stage)
    gpus = min(1, cluster.gpus_per_node)
    processes = 1
    if job.stage in ("data", "report"):
        gpus = 0
    elif job.uses_all_nodes:
        gpus, processes = cluster.gpus_per_node, cluster.processes_per_node or 1
    cpus = cluster.cpus_per_gpu * (gpus or processes)
    extra: Options = {
        "signal": f"{cluster.signal}@{cluster.signal_delay}",
        "requeue": True,
        **cluster.options,
    }
    conditions = {"afterok": needs, "afterany": after}
    if depends := [f"{kind}:{':'.join(ids)}" for kind, ids in conditions.items() if ids]:
        # Without the second option a job waits for ever for one that failed.
        extra |= {"dependency": ",".join(depends), "kill-on-invalid-dep": "yes"}
    cpu_partition = cluster.cpu_partition or cluster.partition
    found: Options = {
        "job_name": f"{runs.name}.{file_name(job.array or job.name)}",
        "partition": cluster.partition if gpus else cpu_partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodes": cluster.nodes if job.uses_all_nodes else 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cluster.data_cpus if job.stage == "data" else cpus,
        "gpus_per_node": f"{cluster.gpu_type}:{gpus}" if gpus and cluster.gpu_type else gpus,
        "mem": f"{cluster.memory_gb}G" if cluster.memory_gb else "",
        "time": getattr(cluster.minutes, job.stage),
        "mail_user": cluster.mail_user,
        "mail_type": cluster.mail_type if cluster.mail_user else "",
        "array_parallelism": cluster.max_running or MAX_ARRAY_TASKS,
        "srun_args": cluster.srun,
        "stderr_to_stdout": True,
        "setup": setup_lines(cluster, runs),
        "additional_parameters": extra,
    }
    return {name: value for name, value in found.items() if value}


def python_of(cluster: Cluster) -> str:
    """How Python is started on a node, in words for a shell."""
    return shlex.join(cluster.python or [sys.executable])


def setup_lines(cluster: Cluster, runs: Path) -> list[str]:
    """Shell lines at the start of a job; a module that cannot be loaded ends the job.

    Since Slurm 22.05 srun does not take --cpus-per-task from sbatch: without that line a job step
    gets one CPU. PYTHONPATH lets submitit import the module `slurm` in the job. The trap requeues
    a job that asks for it, where its own Python has no scontrol, as in a container
    (slurm/jobs/requeue.py).
    """
    marks = requeue.marks_dir(runs / STATE_DIR)
    return [
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        *(f"module load {name} || {module_failed(name)}" for name in cluster.modules),
        *cluster.setup,
        f"export PYTHONPATH={shlex.quote(str(project_root()))}${{PYTHONPATH:+:$PYTHONPATH}}",
        *requeue.batch_lines(marks),
    ]


def module_failed(name: str) -> str:
    message = shlex.quote(f"error: module load {name} failed; modules: is in the cluster's config")
    return f"{{ echo {message} >&2; exit 1; }}"


def sbatch_text(
    folder: Path, options: Options, command: str = "", *, python: str = "python"
) -> str:
    """The sbatch file; its command is submitit's, unless another one is given."""
    command = command or f"{python} -u -m submitit.core._submit {folder}"
    return _make_sbatch_string(command=command, folder=folder, **options)


def submit(
    jobs: list[Job], cluster: Cluster, state_dir: Path, folder: Path, options: Options
) -> list[str]:
    """Queue a job, or several as the tasks of one array, and return their numbers.

    Raises UserError with sbatch's message.
    """
    executor = SlurmExecutor(folder, python=python_of(cluster_of_stage(cluster, jobs[0].stage)))
    executor.update_parameters(**options)
    specs = [job_spec(job, cluster, state_dir) for job in jobs]
    try:
        with without_outer_job():
            return [task.job_id for task in executor.map_array(run_job, specs)]
    except Exception as error:  # submitit's FailedJobError, or the shell's
        message = " ".join(str(error).split())
        if SUBMIT_LIMIT.search(message):
            raise QueueFull(f"{jobs[0].name}: {message}") from error
        raise UserError(f"{jobs[0].name}: sbatch refused it: {message}") from error


@contextmanager
def without_outer_job() -> Iterator[None]:
    """The environment without that of a job or a launcher which this process may run in.

    sbatch would hand it on: a rank, a port or a CPU binding of another job. Slurm's own settings,
    such as SLURM_CONF, stay.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    taken = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if OUTER_JOB.match(name) and name not in kept
    }
    try:
        yield
    finally:
        os.environ.update(taken)


def check_cluster(
    cluster: Cluster, jobs: dict[str, Options], folder: Path, shared_folders: list[Path]
) -> dict[str, str]:
    """{job: answer of `sbatch --test-only`}, asked once for each kind of job.

    `shared_folders` must be visible to all nodes. Raises UserError for what cannot work.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "no sbatch on this machine: go to a login node of the cluster, or run everything on"
            " this machine with executor=local"
        )
    known = partitions()
    for name in sorted(partitions_of(cluster)):
        if name not in known:
            raise UserError(
                f"unknown partition {name}: this cluster has {', '.join(known)};"
                " edit the YAML that cluster= names"
            )
    for path in shared_folders:
        check_shared(path, cluster)
    answers: dict[str, str] = {}
    answer_of_kind: dict[str, str] = {}
    names = r"--(job-name|dependency|output|kill-on-invalid-dep)=\S+"
    for name, options in jobs.items():
        kind = re.sub(names, "", sbatch_text(folder, options, "true"))
        if kind not in answer_of_kind:
            # The jobs that it depends on are not in the queue yet.
            left_out = ("dependency", "kill-on-invalid-dep")
            extra = options["additional_parameters"]
            extra = {key: value for key, value in extra.items() if key not in left_out}
            text = sbatch_text(folder, {**options, "additional_parameters": extra}, "true")
            answer_of_kind[kind] = test_only(name, text)
        answers[name] = answer_of_kind[kind]
    return answers


def test_only(name: str, text: str) -> str:
    """Slurm's answer to `sbatch --test-only`. Raises UserError if it refuses the job."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as stream:
        stream.write(text)
        stream.flush()
        command = ["sbatch", "--test-only", stream.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = " ".join((done.stderr or done.stdout).split())
    if done.returncode:
        raise UserError(
            f"{name}: Slurm would not take this job ({answer}): edit the YAML that cluster= names"
        )
    return answer.removeprefix("sbatch: ")


def check_shared(folder: Path, cluster: Cluster) -> None:
    """Whether the nodes can see a folder, as far as this machine can tell.

    Prints a warning where they may not. Raises UserError where they surely cannot.
    """
    wanted = ",".join(sorted(partitions_of(cluster)))
    command = ["sinfo", "-h", "-N", "-o", "%n", *(["-p", wanted] if wanted else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    here = socket.gethostname().partition(".")[0]
    others = sorted({name for name in done.stdout.split() if name.partition(".")[0] != here})
    if not others:
        return
    kind, source = file_system(folder)
    if kind in MEMORY_FILE_SYSTEMS:
        raise UserError(
            f"{folder} is not shared: it lies on {kind} of {here}, which {others[0]} cannot see;"
            " take a folder of the cluster's file system"
        )
    if kind in LOCAL_FILE_SYSTEMS:
        print(
            f"warning: {folder} lies on {source} ({kind}), a disk of {here}: unless {others[0]}"
            " mounts it at the same place, jobs will not see it; slurm.preflight, or"
            " preflight=true, checks that"
        )


def file_system(folder: Path) -> tuple[str, str]:
    """(type, source) of the file system of a folder, also one that is still to be made.

    ("", "") if df does not tell.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    command = ["df", "--output=fstype,source", str(there)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return "", ""
    kind, _, source = done.stdout.splitlines()[-1].partition(" ")
    return kind, source.strip()


def partitions_of(cluster: Cluster) -> set[str]:
    """All partitions that a cluster's config names, for any stage."""
    stages = (cluster_of_stage(cluster, stage) for stage in STAGES)
    lists = (text for stage in stages for text in (stage.partition, stage.cpu_partition))
    return {name for text in lists for name in text.split(",") if name}


def partitions() -> list[str]:
    """Names of the cluster's partitions. Raises UserError if Slurm does not answer."""
    done = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"Slurm does not answer: {' '.join(done.stderr.split())}")
    return sorted(set(done.stdout.split()))
