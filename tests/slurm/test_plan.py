"""The graph of an experiment, and what is refused before anything is queued. Needs no Slurm."""

import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cjepa_dist.checkpoint.integrity import ALWAYS_THERE
from cjepa_dist.config import command_line
from cjepa_dist.errors import UserError
from slurm import job_state
from slurm.executors.execute import unfinished_jobs
from slurm.experiment import plan
from slurm.experiment.schema import Cluster, Experiment, read_cluster
from slurm.jobs.job_log import events_path, log_tail
from slurm.jobs.run import job_environment
from slurm.jobs.spec import JobSpec, SlurmContext
from slurm.jobs.torchrun import build_argv
from slurm.record import Record
from slurm.status import format_duration
from tests.data_prep.pickles import dump, public
from tests.evaluation.world import make_world
from tests.fork_server import PROJECT
from tests.slurm.conftest import run_command

CLEVRER = str(PROJECT / "configs" / "experiment" / "clevrer.yaml")
EXPERIMENTS = sorted((PROJECT / "configs" / "experiment").glob("*.yaml"))


def jobs_of(tmp_path, *arguments):
    experiment = command_line.parse(Experiment, [CLEVRER, f"runs={tmp_path}", *arguments])
    jobs = plan.plan(experiment)
    plan.check_commands(experiment, jobs)
    return {job.name: job for job in jobs}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_can_be_planned_by_name_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = command_line.parse(Experiment, [path.stem])
    jobs = plan.plan(experiment)
    plan.check_commands(experiment, jobs)
    configs = [part for job in jobs for part in job.commands[0] if part.endswith(".yaml")]
    assert configs and all(Path(config).is_absolute() for config in configs)
    assert isinstance(read_cluster(experiment.cluster), Cluster)
    assert "# Cost: " in path.read_text() and "# Should reach: " in path.read_text()


@pytest.mark.parametrize("module", plan.SCHEMA_OF_COMMAND)
def test_commands_have_their_schemas(module):
    place, name = plan.SCHEMA_OF_COMMAND[module]
    assert isinstance(getattr(importlib.import_module(place), name), type)


def test_graph(tmp_path):
    jobs = jobs_of(tmp_path, "seed=[0,1]")
    assert (
        jobs["world_model/ctt/seed_1"].needs == ["data"]
        and "seed=1" in jobs["world_model/ctt/seed_1"].commands[0]
    )
    assert jobs["evaluate/world_model/ctt/seed_1"].needs == [
        "world_model/ctt/seed_1",
        "world_model/own_slot/seed_1",
    ]
    assert jobs["rollout/ctt/seed_0"].needs == ["world_model/ctt/seed_0"]
    assert jobs["aloe/ctt/seed_0"].needs == ["rollout/ctt/seed_0"] and jobs[
        "aloe/blind/seed_0"
    ].needs == ["rollout/baseline/seed_0"]
    assert "blind=true" in jobs["aloe/blind/seed_1"].commands[0]
    assert not jobs["report"].needs and set(jobs["report"].after) == {
        name for name in jobs if name.startswith("evaluate/")
    }
    order = list(jobs)
    assert all(
        order.index(name) < order.index(job.name)
        for job in jobs.values()
        for name in job.needs + job.after
    )
    assert len(jobs) == 1 + 2 * (3 + 2 + 2 + 3 + 3) + 1


def test_counterfactual_rollouts_stand_beside_those_that_aloe_reads(tmp_path):
    fields = ["aloe_arms=[baseline]", "counterfactual_rollout.splits=[val]"]
    jobs = jobs_of(tmp_path, *fields)
    assert "aloe/baseline/seed_0" in jobs and "aloe/blind/seed_0" in jobs
    assert not [name for name in jobs if name.startswith(("aloe/ctt", "rollout/ctt"))]
    rollout = jobs["rollout/counterfactual/ctt/seed_0"]
    assert rollout.needs == ["world_model/ctt/seed_0"]
    given = [[part for part in command if "=" in part] for command in rollout.commands]
    assert "mode=counterfactual" in given[0] and "mode=factual" in given[1]
    assert all("splits=[val]" in parts for parts in given)
    evaluation = jobs["evaluate/rollout/counterfactual/ctt/seed_0"]
    folder = tmp_path / "world_model/ctt/seed_0/eval"
    names = ("symbolic_paired_val.json", "symbolic_factual_val.json", "counterfactual_val.json")
    assert evaluation.needs == [rollout.name]
    assert sorted(evaluation.outputs) == sorted(str(folder / name) for name in names)
    assert evaluation.name in jobs["report"].after
    with pytest.raises(UserError, match=r"field aloe_arms: no arm other; arms are baseline, ctt"):
        jobs_of(tmp_path, "aloe_arms=[other]")


def test_shared_readers_read_the_rollouts_of_all_world_models(tmp_path):
    """They train on the simulator's own worlds. One more ALOE sees only observed slots."""
    fields = [
        "seed=[0,1]",
        "shared_readers=[3,4]",
        "observed_aloe=true",
        "rollout.mode=counterfactual",
        "blind=false",
        "aloe.loop.steps=9",
    ]
    jobs = jobs_of(tmp_path, *fields)
    assert (
        jobs["rollout/ground_truth"].needs == ["data"]
        and "mode=truth" in jobs["rollout/ground_truth"].commands[0]
    )
    reader = jobs["aloe/reader/seed_4"]
    assert reader.needs == ["rollout/ground_truth"] and {
        "protocol=counterfactual",
        "seed=4",
        "loop.steps=9",
    } < set(reader.commands[0])
    read = jobs["evaluate/shared_readers/ctt/seed_1/reader_3"]
    assert read.needs == ["aloe/reader/seed_3", "rollout/ctt/seed_1"]
    assert {f"run={tmp_path}/aloe/reader/seed_3", f"data={tmp_path}/rollout/ctt/seed_1"} < set(
        read.commands[0]
    )
    assert sum(name.startswith("evaluate/shared_readers/") for name in jobs) == 8
    assert (
        jobs["aloe/observed/seed_0"].needs == ["data"]
        and f"data={tmp_path}/data" in jobs["aloe/observed/seed_0"].commands[0]
    )
    assert set(jobs["report"].after) == {name for name in jobs if name.startswith("evaluate/")}
    with pytest.raises(
        UserError, match=r"field shared_readers: .* set aloe_config and rollout.mode=counterfactual"
    ):
        jobs_of(tmp_path, "shared_readers=[0]")


def test_sweeps_are_crossed_and_named_by_what_differs(tmp_path):
    jobs = jobs_of(
        tmp_path,
        "arms.ctt.ctt.invariance.weight=[0,0.01]",
        "arms.ctt.ctt.margin=[0.02,0.05]",
        "seed=[3]",
        "aloe_config=",
    )
    names = [name for name in jobs if name.startswith("world_model/ctt")]
    assert (
        len(names) == 4
        and "world_model/ctt+ctt.invariance.weight_0.01+ctt.margin_0.05/seed_3" in names
    )
    assert "ctt.invariance.weight=0.01" in jobs[names[-1]].commands[0]
    assert not any("," in name or "=" in name for name in names)
    # a field that takes a list is no sweep; a list of lists is
    jobs = jobs_of(tmp_path, "world_model.mask.probs=[0,1]", "seed=[0]", "aloe_config=")
    assert "mask.probs=[0, 1]" in jobs["world_model/baseline/seed_0"].commands[0]
    jobs = jobs_of(
        tmp_path,
        "world_model.mask.probs=[[0,1],[1]]",
        "seed=[0]",
        "aloe_config=",
        "aloe_seed=[5]",
    )
    assert "world_model/baseline+mask.probs_[0-1]/seed_0" in jobs


def test_zipped_sweeps(tmp_path):
    lists = [
        "arms.ctt.ctt.invariance.weight=[0,0.01]",
        "arms.ctt.ctt.margin=[0.02,0.05]",
        "seed=[3]",
        "aloe_config=",
        "sweep=zip",
    ]
    names = [name for name in jobs_of(tmp_path, *lists) if name.startswith("world_model/ctt")]
    assert [name.split("/")[1] for name in names] == [
        f"ctt+ctt.invariance.weight_{w}+ctt.margin_{m}" for w, m in ((0, 0.02), (0.01, 0.05))
    ]
    with pytest.raises(
        UserError, match=r"sweep=zip needs lists of one length: .*weight 2, .*margin 3"
    ):
        jobs_of(tmp_path, *lists, "arms.ctt.ctt.margin=[1,2,3]")


def test_counterfactual_worlds_are_evaluated_by_programs_and_by_aloe(tmp_path):
    experiment = [
        "aloe.protocol=[published,counterfactual]",
        "rollout.mode=counterfactual",
        "seed=[0]",
        "blind=false",
    ]
    jobs = jobs_of(tmp_path, *experiment)
    assert jobs["rollout/ctt/seed_0"].commands[0][-1] == "mode=counterfactual"
    measured = jobs["evaluate/rollout/ctt/seed_0"]
    assert [command[0] for command in measured.commands] == [
        "cjepa_dist.evaluate_symbolic",
        "cjepa_dist.evaluate_counterfactual",
    ]
    assert {Path(path).name for path in measured.outputs} == {
        "symbolic_paired_val.json",
        "counterfactual_val.json",
    }
    assert {"aloe/ctt+protocol_published/seed_0", "aloe/ctt+protocol_counterfactual/seed_0"} <= set(
        jobs
    )
    assert measured.name in jobs["report"].after
    alone = jobs_of(tmp_path, *experiment, "aloe_config=", "graphs=false")
    assert len(alone["evaluate/rollout/ctt/seed_0"].commands) == 1 and not any(
        name.startswith("aloe") for name in alone
    )


def test_seeds_of_aloe(tmp_path):
    jobs = jobs_of(tmp_path, "seed=[0]", "aloe_seed=[7,8]", "blind=false")
    assert {"aloe/ctt/seed_0_aloe_7", "aloe/ctt/seed_0_aloe_8"} <= set(jobs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["arms.ctt.predictor.widht=3"],
            "world_model/ctt/seed_0: unknown config key predictor.widht;"
            " the nearest is predictor.width",
        ),
        (["aloe.loop.step=3"], "unknown config key loop.step"),
        (["arms.new.seed=3"], "arms.new: needs config=FILE"),
        (["data=/nowhere"], "data=/nowhere: no data set is there"),
        (["seed=[]"], "config field seed"),
    ],
)
def test_refused(tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        jobs_of(tmp_path, *arguments)
    assert message in str(error.value)


def test_data_in_parts(tmp_path):
    jobs = jobs_of(tmp_path, "parts=3", "preflight=true", "seed=[0]")
    assert (
        jobs["data"].needs == ["data/part_0", "data/part_1", "data/part_2"]
        and jobs["data"].commands[0][0] == "data_prep.merge"
    )
    assert {job.array for job in jobs.values() if job.name.startswith("data/")} == {"data/part"}
    assert "part=2/3" in jobs["data/part_2"].commands[0] and jobs["data/part_2"].needs == [
        "preflight"
    ]
    assert jobs["world_model/ctt/seed_0"].needs == ["data"] and not jobs["report"].needs


def test_stages(tmp_path):
    jobs = plan.plan(command_line.parse(Experiment, [CLEVRER, f"runs={tmp_path}"]))
    assert {job.stage for job in plan.jobs_of_stages(jobs, "world_model, aloe")} == {
        "world_model",
        "aloe",
    }
    with pytest.raises(UserError, match="'train' is none of all, preflight, data"):
        plan.jobs_of_stages(jobs, "train")


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "configs" / "slurm").glob("*.yaml")), ids=lambda path: path.stem
)
def test_clusters(path):
    assert isinstance(read_cluster(str(path)), Cluster)
    assert path.read_text().startswith("# ")


def test_the_shell_keeps_its_dollars(tmp_path):
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"setup": ["echo ${HOME:-0} $USER"], "environment": {"A": "${B}"}})
    )
    cluster = read_cluster(str(tmp_path / "c.yaml"))
    assert cluster.setup == ["echo ${HOME:-0} $USER"] and cluster.environment == {"A": "${B}"}


def test_staging_needs_scratch(tmp_path):
    (tmp_path / "c.yaml").write_text("stage_data: true")
    with pytest.raises(UserError, match="stage_data needs scratch"):
        read_cluster(str(tmp_path / "c.yaml"))


def test_unknown_cluster_field(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"partitions": "gpu"}))
    with pytest.raises(UserError, match="unknown config key partitions; the nearest is partition"):
        read_cluster(str(tmp_path / "c.yaml"))


def test_a_restart_has_its_own_rendezvous(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setattr(
        "slurm.jobs.torchrun.run_slurm_command", lambda *command, attempts: "n1\nn2"
    )
    command = ["cjepa_dist.train_aloe", "c.yaml", "run=r"]
    contexts = (SlurmContext("77", restart, node_rank=1, num_nodes=2) for restart in (0, 1))
    first, second = (build_argv(command, processes=8, context=context) for context in contexts)
    assert "--rdzv-id=77.0" in first and "--rdzv-id=77.1" in second
    assert {
        "--nnodes=2",
        "--nproc-per-node=8",
        "--rdzv-endpoint=n1:20077",
        "--rdzv-conf=is_host=0",
        "loop.num_processes=16",
    } <= set(first)
    alone = build_argv(command, processes=1, context=SlurmContext("77"))
    assert alone[1:] == ["-u", "-m", *command, "loop.num_processes=1"]


def test_environment_of_a_job(monkeypatch):
    """Its commands find the project's modules, and torchrun waits for a checkpoint."""
    monkeypatch.setenv("PYTHONPATH", "/mine")
    environment = job_environment(JobSpec("a", [], grace=25, environment={"A": "B"}))
    assert environment["PYTHONPATH"] == f"{PROJECT}{os.pathsep}/mine" and environment["A"] == "B"
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "25"


def test_no_slurm_is_one_line(tmp_path, monkeypatch, experiment):
    path = experiment()
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run_command("submit", path)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: no sbatch on this machine")
        and done.stderr.count("\n") == 1
    )
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    done = run_command("submit", path, f"runs={tmp_path / 'file'}", "executor=local")
    assert done.returncode == 2 and "cannot write to" in done.stderr
    for name in ("status", "cancel", "resume"):
        done = run_command(name, tmp_path)
        assert done.returncode == 2 and "holds no experiment" in done.stderr


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 100", "apt-get update fails (no network?)"),
        ('[ "$*" = "${*%update}" ] && exit 100; true', "apt-get could not install Slurm"),
    ],
)
def test_installing_slurm_fails_in_one_line(tmp_path, script, message):
    """tools/test.sh then prints the line and leaves out what needs Slurm."""
    (tmp_path / "bin").mkdir()
    for name in ("bash", "hostname", "realpath", "timeout", "rm", "chmod", "dirname", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    (tmp_path / "bin" / "apt-get").write_text(f"#!{shutil.which('sh')}\n{script}\n")
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    done = subprocess.run(
        ["bash", str(PROJECT / "tools" / "slurm_cluster.sh"), "install"],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and (message if os.geteuid() == 0 else "only root") in done.stderr.splitlines()[-1]
    )


def test_duration():
    assert [format_duration(seconds) for seconds in (None, 30, 600, 7200)] == [
        "",
        "30 s",
        "10 min",
        "2.0 h",
    ]


def test_tail(tmp_path):
    """A launcher's messages do not hide our error; those of an earlier start are left out."""
    log = tmp_path / "log"
    log.write_text(
        "== start 1\nerror: old\n== start 2\nerror: the cause\n" + "traceback\n\n" * 20 + "end\n"
    )
    assert log_tail(log, 3) == ["error: the cause", "traceback", "traceback", "end"]
    assert log_tail(tmp_path / "none") == []


def test_a_job_whose_processes_have_ended_while_slurm_has_it_run(tmp_path, monkeypatch):
    """After the loss of a node, until Slurm notices it."""
    name = "world_model/baseline/seed_0"
    record = Record(tmp_path, {}, {name: jobs_of(tmp_path)[name]}, {name: "7"})
    said = events_path(record.state_dir, name)
    said.parent.mkdir(parents=True)
    ended = "its processes have ended, and Slurm has not ended the job: did it lose a node?"
    for found, last, reason in (
        (("RUNNING", "node1", ""), "start", ""),
        (("RUNNING", "node1", ""), "failed", ended),
        (("PENDING", "", "BeginTime"), "failed", "BeginTime"),
    ):
        said.write_text(f'{{"event": "start"}}\n{{"event": "{last}"}}\n')
        answer = {name: found}
        monkeypatch.setattr(job_state, "slurm_states", lambda _, answer=answer, **__: answer)
        assert job_state.job_states(record)[name].reason == reason


def test_preflight_comes_before_whatever_is_submitted(tmp_path):
    jobs = list(
        jobs_of(tmp_path, "seed=[0]", "preflight=true", "aloe_config=", "graphs=false").values()
    )
    record = Record(tmp_path, {})

    def wanted(stage, busy=()):
        return [job.name for job in unfinished_jobs(jobs, stage, record, set(busy))]

    def finish(name):
        for output in next(job for job in jobs if job.name == name).outputs:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).touch()

    assert wanted("all") == [job.name for job in jobs] and wanted("data") == ["preflight", "data"]
    finish("preflight"), finish("data")
    assert wanted("data") == [] and wanted("all")[:2] == [
        "preflight",
        "world_model/own_slot/seed_0",
    ]
    assert "preflight" not in wanted("world_model", busy=["preflight"])
    for job in jobs:
        finish(job.name)
    assert wanted("all") == [] and wanted("preflight") == ["preflight"]


def test_remote_data_are_taken_as_they_are(tmp_path):
    job = jobs_of(tmp_path, "data=https://host/world", "seed=[0]", "aloe_config=")[
        "world_model/ctt/seed_0"
    ]
    assert "data=https://host/world" in job.commands[0] and not job.needs


def test_a_password_gets_into_no_job(tmp_path):
    with pytest.raises(UserError, match=r"https://\*\*\*@host/world would show .*netrc") as caught:
        jobs_of(tmp_path, "data=https://me:secret@host/world")
    assert "secret" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_rollout_of_a_model_that_was_trained_anew_is_made_anew(tmp_path):
    jobs = jobs_of(tmp_path, "data=https://host/world", "seed=[0]", "aloe_arms=[ctt]")
    name = "rollout/ctt/seed_0"
    assert "replace_stale=true" in jobs[name].commands[0]
    model = tmp_path / "world_model/ctt/seed_0"

    def wanted():
        return name in [
            job.name
            for job in unfinished_jobs(list(jobs.values()), "rollout", Record(tmp_path, {}), set())
        ]

    def train(weights):
        sums = model / "checkpoints" / "step_00000006" / "checksums.json"
        sums.parent.mkdir(parents=True, exist_ok=True)
        sums.write_text(
            json.dumps(dict.fromkeys(ALWAYS_THERE, "0" * 16) | {"model.safetensors": weights})
        )

    for job in jobs.values():
        for output in map(Path, job.outputs):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("{}")
    assert not wanted()
    train("0" * 16)
    made_by = {"run": str(model), "step": 6, "weights": "0" * 16}
    manifest = tmp_path / name / "manifest.json"
    manifest.write_text(json.dumps({"source": {"fingerprint": {"world_model": made_by}}}))
    assert not wanted()
    train("1" * 16)
    assert wanted()


def test_a_job_from_other_data_of_the_same_path_is_refused(tmp_path):
    data = make_world(tmp_path / "data", train=2, val=2)
    arguments = (f"data={data}", "seed=[0]", "aloe_config=")

    def wanted(jobs, record):
        return [job.name for job in unfinished_jobs(list(jobs.values()), "all", record, set())]

    jobs = jobs_of(tmp_path, *arguments)
    record = Record(tmp_path, {}, jobs)
    name = "world_model/ctt/seed_0"
    Path(jobs[name].outputs[0]).parent.mkdir(parents=True)
    Path(jobs[name].outputs[0]).write_text("{}")
    assert name not in wanted(jobs_of(tmp_path, *arguments), record)
    shutil.rmtree(data)
    make_world(data, train=2, val=1)
    with pytest.raises(UserError, match=f"{name} was made from other data than there are now"):
        wanted(jobs_of(tmp_path, *arguments), record)


def test_an_import_whose_files_have_changed_runs_again(tmp_path):
    source = dump(tmp_path / "slots.pkl", public())
    arguments = ("prepare=import_pickle", f"prepare_fields.source={source}", "seed=[0]")
    arguments += ("prepare_config=", "aloe_config=")

    def wanted(record):
        jobs = list(jobs_of(tmp_path, *arguments).values())
        return [job.name for job in unfinished_jobs(jobs, "data", record, set())]

    jobs = jobs_of(tmp_path, *arguments)
    record = Record(tmp_path, {}, jobs)
    assert wanted(record) == ["data"]
    output = Path(jobs["data"].outputs[0])
    output.parent.mkdir()
    output.write_text("{}")
    assert wanted(record) == []
    dump(source, {"train": public()["train"]})
    assert wanted(record) == ["data"]


def test_public_files_are_downloaded_before_they_are_imported(tmp_path):
    arguments = ("prepare=import_pickle", "prepare_config=", "download.mirror=http://host/public")
    arguments += ("prepare_fields.source=slots/a.pkl", "prepare_fields.questions=questions")
    jobs = jobs_of(tmp_path, *arguments)
    public = tmp_path / "public"
    first, second = jobs["data"].commands
    assert first == ["data_prep.download", "mirror=http://host/public", f"out={public}"]
    assert second[0] == "data_prep.import_pickle" and second[-1] == f"out={tmp_path / 'data'}"
    assert f"source={public / 'slots/a.pkl'}" in second
    assert f"questions={public / 'questions'}" in second
    with pytest.raises(UserError, match="needs parts=1"):
        jobs_of(tmp_path, *arguments, "parts=2")
