"""The configs of a cluster (configs/slurm) and of an experiment (configs/experiment)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cjepa_dist.config import merge
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.locate import find_config
from cjepa_dist.config.schema import MISSING
from cjepa_dist.errors import UserError

STAGES = ("preflight", "data", "world_model", "rollout", "aloe", "evaluate", "report")


@dataclass
class TimeLimits:
    """Time limits. A training may get less time than it takes: it is requeued and resumes."""

    preflight: int = option(10, "checking the nodes from inside", unit="minutes", least=1)
    data: int = option(240, "making the data set", unit="minutes", least=1)
    world_model: int = option(720, "training a world model", unit="minutes", least=1)
    rollout: int = option(120, "rolling out the data set", unit="minutes", least=1)
    aloe: int = option(1440, "training an ALOE", unit="minutes", least=1)
    evaluate: int = option(120, "evaluating a run", unit="minutes", least=1)
    report: int = option(30, "writing the report", unit="minutes", least=1)


@dataclass
class Cluster:
    """One Slurm cluster, or this machine: the one file that a user edits."""

    partition: str = option("", "partition; empty = the cluster's default")
    cpu_partition: str = option(
        "", "partition of jobs without GPUs (data, report); empty = the same"
    )
    account: str = option("", "account to charge; empty = the user's default")
    qos: str = option("", "quality of service; empty = the default")
    constraint: str = option("", "features that nodes must have, as sbatch's --constraint")
    nodes: int = option(1, "nodes of a training", unit="nodes", least=1)
    gpus_per_node: int = option(
        0, "GPUs of a training on each node; 0 = CPUs only", unit="GPUs", least=0
    )
    processes_per_node: int = option(
        0, "training processes on each node; 0 = one for each GPU, or 1", least=0
    )
    gpu_type: str = option(
        "", "type of the GPUs as Slurm names it, such as h100 or the MIG slice 1g.10gb; empty = any"
    )
    gpu_memory_gb: int = option(
        0,
        "memory of a GPU: a training that needs more is refused before it is queued; 0 = not"
        " checked",
        unit="GB",
        least=0,
    )
    cpus_per_gpu: int = option(
        8, "CPUs for each GPU (without GPUs: for each process)", unit="CPUs", least=1
    )
    data_cpus: int = option(16, "CPUs of the job that makes data", unit="CPUs", least=1)
    memory_gb: int = option(
        0, "memory of a job on each node; 0 = the partition's default", unit="GB", least=0
    )
    minutes: TimeLimits = option(TimeLimits, "time limits")
    signal: str = option("USR2", "signal before the time limit", choices=("USR1", "USR2", "TERM"))
    signal_delay: int = option(
        180,
        "time from that signal to the limit; Slurm may send it up to 60 s earlier",
        unit="seconds",
        least=10,
    )
    max_restarts: int = option(
        100, "times that a training is requeued before it counts as failed", least=0
    )
    retries: int = option(
        2,
        "times that a training which crashed or hung starts again from the same checkpoint; a"
        " mistake in its config is not tried again",
        least=0,
    )
    max_running: int = option(
        0, "tasks of a job array that run at the same time; 0 = all of them", least=0
    )
    modules: list[str] = option([], "environment modules to load")
    setup: list[str] = option([], "further shell lines at the start of a job")
    python: list[str] = option(
        [],
        "how Python is started on a node, such as [apptainer, exec, --nv, IMAGE, python]; empty ="
        " the Python that submits",
    )
    srun: list[str] = option(
        [], "further arguments of srun, such as [--mpi=none] or [--container-image=IMAGE]"
    )
    mail_user: str = option("", "address of Slurm's e-mails; empty = none")
    mail_type: str = option("END,FAIL", "the events that it is told, as sbatch's --mail-type")
    environment: dict[str, str] = option(
        {}, "environment variables of a job, such as NCCL_SOCKET_IFNAME"
    )
    scratch: str = option(
        "",
        "folder on each node's own disk, for temporary files (TMPDIR); may hold $VARIABLES;"
        " empty = the node's default",
        path=True,
    )
    stage_data: bool = option(
        False, "trainings read their data from a copy in scratch, made once for each node"
    )
    options: dict[str, str] = option({}, "further options of sbatch, name: value")
    stages: dict[str, Any] = option(
        {},
        "what is other for the jobs of a stage: stage -> {field of this file: value}, such as"
        " {aloe: {partition: long, nodes: 1}}",
    )


@dataclass
class Experiment:
    """A whole experiment: data, world models, rollouts, ALOE, evaluations and one report.

    A field of an arm may be a list: `arms.ctt.ctt.invariance.weight=[0,0.01]` makes an arm for
    each value; see `sweep`.
    """

    runs: str = option(
        MISSING,
        "folder for everything that the experiment makes; all nodes must see it",
        path=True,
    )
    cluster: str = option(
        "h100_1node", "config of the cluster: a file, or a name in configs/slurm", path=True
    )
    executor: str = option(
        "slurm", "where jobs run; local = on this machine", choices=("slurm", "local")
    )
    at_once: int = option(
        0,
        "executor=local: jobs that run at the same time; they share the cores and the GPUs;"
        " 0 = one for each core (at most 8), one in all where there is a GPU",
        least=0,
    )
    verbose: bool = option(False, "executor=local: also print what the jobs print")
    stage: str = option("all", "all, or some of " + ", ".join(STAGES) + ", with commas between")
    dry_run: bool = option(
        False, "show the jobs, their sbatch files and Slurm's check of them; queue nothing"
    )
    max_queued: int = option(
        0,
        "jobs of the experiment in Slurm's queue at the same time; the same command queues more"
        " once there is room; 0 = any number",
        least=0,
    )
    preflight: bool = option(
        False,
        "first run a job that checks GPUs, shared folder and all-reduce; all others wait for it",
    )
    data: str = option(
        "", "folder or URL of existing slot shards; empty = make them in RUNS/data", path=True
    )
    parts: int = option(1, "tasks of a job array that makes the data, a part in each", least=1)
    prepare: str = option("simulate", "what makes the data", choices=("simulate", "import_pickle"))
    prepare_config: str = option("", "its config", path=True)
    prepare_fields: dict[str, Any] = option({}, "its fields")
    download: dict[str, Any] = option(
        {},
        "fields of data_prep.download, such as what=[videosaur, questions]: first download to"
        " RUNS/public (or its out); source, questions and annotations of prepare_fields are then"
        " paths in that folder",
    )
    arms: dict[str, Any] = option(
        {},
        "world models to compare, the first is the reference:"
        " name -> {config: FILE, field: value or list}",
    )
    sweep: str = option(
        "cross",
        "several lists: every combination, or the first of each, the second of each ...",
        choices=("cross", "zip"),
    )
    control: str = option(
        "",
        "config of the world model that sees only the object's own slot; empty = none",
        path=True,
    )
    world_model: dict[str, Any] = option({}, "fields of every world model, values or lists")
    rollout: dict[str, Any] = option(
        {},
        "fields of cjepa_dist.rollout; mode=counterfactual also evaluates counterfactual worlds",
    )
    counterfactual_rollout: dict[str, Any] = option(
        {},
        "fields of a second rollout of each world model, of the worlds without an object, such as"
        " splits=[val]; question programs answer from it, and from one where nothing changes",
    )
    counterfactual_arms: list[str] = option([], "arms with this second rollout; empty = all")
    aloe_config: str = option("", "config of ALOE; empty = no ALOE", path=True)
    aloe_arms: list[str] = option([], "arms whose rollouts an ALOE reads; empty = all")
    aloe: dict[str, Any] = option({}, "fields of every ALOE, values or lists")
    blind: bool = option(True, "also an ALOE that sees the slots of other videos, on the first arm")
    observed_aloe: bool = option(
        False, "also an ALOE that sees only observed slots, for predictive questions too"
    )
    shared_readers: list[int] = option(
        [],
        "seeds of ALOEs trained on the simulator's own worlds; each of these readers then"
        " answers from the rollout of every world model",
        least=0,
        most=MAX_SEED,
    )
    seed: list[int] = option([0], "seeds of the world models", least=0, most=MAX_SEED)
    aloe_seed: list[int] = option(
        [],
        "seeds of the ALOEs on each rollout; empty = the seed of its world model",
        least=0,
        most=MAX_SEED,
    )
    split: str = option("val", "split to evaluate on")
    graphs: bool = option(True, "evaluate graphs too (needs the simulator's ground truth)")
    removal: bool = option(
        False, "evaluate what removing an object changes too (needs the ground truth)"
    )
    evaluate: dict[str, Any] = option({}, "fields of cjepa_dist.evaluate")
    evaluate_graph: dict[str, Any] = option({}, "fields of cjepa_dist.evaluate_graph")
    evaluate_removal: dict[str, Any] = option({}, "fields of cjepa_dist.evaluate_removal")
    evaluate_symbolic: dict[str, Any] = option({}, "fields of cjepa_dist.evaluate_symbolic")
    evaluate_counterfactual: dict[str, Any] = option(
        {}, "fields of cjepa_dist.evaluate_counterfactual"
    )


def read_cluster(name: str) -> Cluster:
    """A cluster's config by file or name. Raises UserError, naming the file and the field."""
    path = find_config("slurm", name)
    cluster = merge.build(Cluster, merge.read_yaml(path))
    if unknown := [stage for stage in cluster.stages if stage not in STAGES]:
        raise UserError(
            f"{path}: config field stages: {unknown[0]!r} is none of {', '.join(STAGES)}"
        )
    for stage in STAGES:
        try:
            of_stage = cluster_of_stage(cluster, stage)
        except UserError as error:
            raise UserError(f"{path}: stages.{stage}: {error}") from error
        if of_stage.stage_data and not of_stage.scratch:
            raise UserError(f"{path}: stage_data needs scratch, a folder on the node's own disk")
    return cluster


def cluster_of_stage(cluster: Cluster, stage: str) -> Cluster:
    """The cluster as the jobs of a stage see it: with the fields of `stages.STAGE` over it.

    A mapping, such as `environment`, is merged; all else is replaced. Raises UserError for a field
    that does not exist or is not of one stage.
    """
    given = cluster.stages.get(stage) or {}
    if not isinstance(given, dict):
        raise UserError(f"{given!r} are no fields: give field: value pairs")
    if not given:
        return cluster
    if "stages" in given or "minutes" in given:
        raise UserError(f"a stage has no stages and no minutes: set minutes.{stage} of the cluster")
    base = {**dataclasses.asdict(cluster), "stages": {}}
    # A partition for this stage is meant for it, with or without GPUs.
    base |= {"cpu_partition": ""} if "partition" in given else {}
    return merge.build(Cluster, base, given)
