"""A job as options of sbatch, by the facts of the cluster; what Slurm thinks of them; handing them over by submitit."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from cjepa_dist.errors import UserError
from slurm.job import Job, job_spec
from slurm.jobs import job_log
from slurm.jobs import run as inside
from slurm.schema import Cluster

MEMORY_FILE_SYSTEMS = (
    "tmpfs",
    "ramfs",
    "devtmpfs",
    "overlay",
)  # of this machine, or of one container on it
LOCAL_FILE_SYSTEMS = (
    "ext2",
    "ext3",
    "ext4",
    "ext2/ext3",
    "xfs",
    "btrfs",
    "zfs",
    "f2fs",
)  # of this machine, which may export it


def sbatch_options(
    job: Job, cluster: Cluster, runs: Path, needs: list[str], after: list[str]
) -> dict[str, Any]:
    """Options by submitit's names. `needs` and `after` are numbers of jobs: success of the former, the end of the latter."""
    gpus = (
        0
        if job.stage in ("data", "report")
        else cluster.gpus_per_node
        if job.uses_all_nodes
        else min(1, cluster.gpus_per_node)
    )
    units = gpus or (cluster.processes_per_node or 1 if job.uses_all_nodes else 1)
    extra: dict[str, Any] = {
        "signal": f"{cluster.signal}@{cluster.signal_delay}",
        "requeue": True,
        **cluster.options,
    }
    depends = ([f"afterok:{':'.join(needs)}"] if needs else []) + (
        [f"afterany:{':'.join(after)}"] if after else []
    )
    if depends:
        extra |= {
            "dependency": ",".join(depends),
            "kill-on-invalid-dep": "yes",
        }  # else it waits for ever for one that failed
    found: dict[str, Any] = {
        "job_name": f"{runs.name}.{job_log.file_name(job.array or job.name)}",
        "partition": cluster.partition
        if gpus or not cluster.cpu_partition
        else cluster.cpu_partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodes": cluster.nodes if job.uses_all_nodes else 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cluster.data_cpus if job.stage == "data" else cluster.cpus_per_gpu * units,
        "gpus_per_node": gpus,
        "mem": f"{cluster.memory_gb}G" if cluster.memory_gb else "",
        "time": getattr(cluster.minutes, job.stage),
        "stderr_to_stdout": True,
        # Since Slurm 22.05 srun does not take --cpus-per-task from sbatch: the step would get one CPU.
        "setup": [
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
            *(f"module load {name}" for name in cluster.modules),
            *cluster.setup,
        ],
        "additional_parameters": extra,
    }
    return {name: value for name, value in found.items() if value}


def sbatch_text(folder: Path, settings: dict[str, Any], command: str) -> str:
    """The sbatch file."""
    return _make_sbatch_string(command=command, folder=folder, **settings)


def submit(
    jobs: list[Job], cluster: Cluster, home: Path, folder: Path, settings: dict[str, Any]
) -> list[str]:
    """Queue a job, or several as the tasks of one array; their numbers. Raises UserError with what sbatch said."""
    executor = SlurmExecutor(folder)
    executor.update_parameters(**settings)
    try:
        return [
            task.job_id
            for task in executor.map_array(
                inside.run_job, [job_spec(job, cluster, home) for job in jobs]
            )
        ]
    except Exception as error:  # submitit's FailedJobError, or the shell's
        raise UserError(
            f"{jobs[0].name}: sbatch refused it: {' '.join(str(error).split())}"
        ) from error


def check_cluster(
    cluster: Cluster, jobs: dict[str, dict[str, Any]], folder: Path, shared: list[Path]
) -> dict[str, str]:
    """{job: what `sbatch --test-only` says} of each kind of job, before any is queued. Raises UserError for what cannot work.

    `shared`: folders that all nodes must see.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "no sbatch on this machine: go to a login node of the cluster, or take executor=local to run everything here"
        )
    known = partitions()
    for name in filter(None, (cluster.partition, cluster.cpu_partition)):
        if name not in known:
            raise UserError(
                f"unknown partition {name}: this cluster has {', '.join(known)}; edit the YAML that cluster= names"
            )
    for path in shared:
        check_shared(path, cluster)
    said: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name, settings in jobs.items():
        kind = re.sub(
            r"--(job-name|dependency|output|kill-on-invalid-dep)=\S+",
            "",
            sbatch_text(folder, settings, "true"),
        )
        if kind not in seen:
            extra = settings["additional_parameters"]
            alone = {
                key: value
                for key, value in extra.items()
                if key not in ("dependency", "kill-on-invalid-dep")
            }
            seen[kind] = test_only(
                name, sbatch_text(folder, {**settings, "additional_parameters": alone}, "true")
            )
        said[name] = seen[kind]
    return said


def test_only(name: str, content: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as stream:
        stream.write(content)
        stream.flush()
        done = subprocess.run(
            ["sbatch", "--test-only", stream.name], capture_output=True, text=True, check=False
        )
    answer = " ".join((done.stderr or done.stdout).split())
    if done.returncode:
        raise UserError(
            f"{name}: Slurm would not take this job ({answer}): edit the YAML that cluster= names"
        )
    return answer.removeprefix("sbatch: ")


def check_shared(folder: Path, cluster: Cluster) -> None:
    """Whether the nodes can see a folder, as far as this machine can tell: a warning, or UserError where they surely cannot."""
    wanted = ",".join(filter(None, {cluster.partition, cluster.cpu_partition}))
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%n", *(["-p", wanted] if wanted else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    here = socket.gethostname().partition(".")[0]
    others = sorted({name for name in done.stdout.split() if name.partition(".")[0] != here})
    if not others:
        return
    kind, source = file_system(folder)
    if kind in MEMORY_FILE_SYSTEMS:
        raise UserError(
            f"{folder} is not shared: it lies on {kind} of {here}, which {others[0]} cannot see; take a folder of the cluster's file system"
        )
    if kind in LOCAL_FILE_SYSTEMS:
        print(
            f"warning: {folder} lies on {source} ({kind}), a disk of {here}: unless {others[0]} mounts it at the same place, "
            "jobs will not see it; slurm.preflight, or preflight=true, finds out"
        )


def file_system(folder: Path) -> tuple[str, str]:
    """(type, source) of the file system that a folder lies on, or will; ("", "") if df does not say."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    done = subprocess.run(
        ["df", "--output=fstype,source", str(there)], capture_output=True, text=True, check=False
    )
    kind, _, source = (
        done.stdout.splitlines()[-1].partition(" ") if done.returncode == 0 else ("", "", "")
    )
    return kind, source.strip()


def partitions() -> list[str]:
    done = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"Slurm does not answer: {' '.join(done.stderr.split())}")
    return sorted(set(done.stdout.split()))
