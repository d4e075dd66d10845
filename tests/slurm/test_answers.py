"""What Slurm answers late, twice or not at all, from stub commands that are first on PATH."""

import fcntl
import json
import os
import subprocess
from dataclasses import replace

import pytest

from cjepa_dist.config import merge
from cjepa_dist.errors import UserError, exit_on_user_error
from slurm import cancel, preflight, report, status
from slurm.executors.execute import execute, restore_experiment, submit_lock, submit_to_slurm
from slurm.experiment.job import Job
from slurm.experiment.schema import Cluster, Experiment
from slurm.job_state import job_states
from slurm.jobs import requeue, slurm_command
from slurm.jobs.job_log import append_event, log_path, read_events
from slurm.jobs.run import run_job
from slurm.jobs.slurm_command import SlurmError, ask_slurm, run_slurm_command
from slurm.jobs.spec import JobSpec, SlurmContext
from slurm.record import FORGOTTEN, Record, active_jobs, read_record, slurm_states
from tests.fork_server import PROJECT

NAME = "world_model/baseline/seed_0"
SILENT = ("", 1)
STUB = """#!/bin/sh
echo "$*" >> {folder}/calls
number=$(wc -l < {folder}/calls)
while [ ! -e {folder}/$number.out ]; do number=$((number - 1)); done
cat {folder}/$number.out
[ $(cat {folder}/$number.code) = 0 ] || echo "Unable to contact slurm controller" >&2
exit $(cat {folder}/$number.code)
"""


class Stubs:
    """Slurm's commands: each gives its answers one after another, the last one for ever."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("squeue", "sacct", "scontrol", "scancel", "sbatch"):
            self.answer(name, "")

    def answer(self, name, *answers):
        """Each answer is the text, or (text, exit code)."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        (folder / "calls").touch()
        for number, given in enumerate(answers, 1):
            text, code = given if isinstance(given, tuple) else (given, 0)
            (folder / f"{number}.out").write_text(text + "\n" if text else "")
            (folder / f"{number}.code").write_text(str(code))
        program = self.folder / "bin" / name
        program.write_text(STUB.format(folder=folder))
        program.chmod(0o755)

    def calls(self, name):
        return (self.folder / name / "calls").read_text().splitlines()


@pytest.fixture
def slurm_stubs(tmp_path, monkeypatch):
    stubs = Stubs(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_command.time, "sleep", lambda seconds: None)
    return stubs


@pytest.fixture
def record(tmp_path):
    """One job, number 77, that is not done."""
    runs = tmp_path / "runs"
    job = Job(NAME, "world_model", [["m"]], [str(runs / NAME / "done.json")], [], [])
    arms = {"baseline": {"config": str(PROJECT / "configs" / "world_model" / "quickstart.yaml")}}
    made = Record(runs, {"runs": str(runs), "arms": arms}, {NAME: job}, {NAME: "77"})
    made.state_dir.mkdir(parents=True)
    made.write()
    return made


def finish(record):
    output = record.jobs[NAME].run_dir / "done.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch()


def say(record, event, job="77", restart=0, **content):
    append_event(
        record.state_dir, NAME, {"event": event, "job": job, "restart": restart, **content}
    )


def test_no_answer_is_not_an_empty_answer(slurm_stubs, capsys):
    slurm_stubs.answer("squeue", SILENT, "", SILENT)
    assert ask_slurm("squeue", attempts=2) == ""
    with pytest.raises(SlurmError, match="squeue: Unable to contact slurm controller; try again"):
        ask_slurm("squeue", attempts=2)
    assert run_slurm_command("squeue") == "" and len(slurm_stubs.calls("squeue")) == 5
    assert capsys.readouterr().err.count("warning: ") == 3
    with pytest.raises(SlurmError, match="no no-such-command on this machine"):
        ask_slurm("no-such-command")


def test_a_requeued_job_is_in_the_queue_though_sacct_calls_it_failed(slurm_stubs, record):
    for late in ("NODE_FAIL", "PREEMPTED", "FAILED", "CANCELLED by 0"):
        slurm_stubs.answer("sacct", f"77|{late}|node1")
        slurm_stubs.answer("squeue", "77|PENDING||BeginTime")
        state = job_states(record)[NAME]
        assert (state.state, state.reason, state.active) == ("PENDING", "BeginTime", True)
        assert active_jobs(record) == {NAME}


@pytest.mark.parametrize("late", ["RUNNING", "PENDING", "COMPLETING"])
def test_a_job_that_has_ended_is_not_active_though_sacct_says_so(slurm_stubs, record, late):
    slurm_stubs.answer("sacct", f"77|{late}|node1")
    slurm_stubs.answer("squeue", "77|FAILED|node1|NonZeroExitCode")
    say(record, "start", host="node1")
    say(record, "failed", reason="the cause")
    state = job_states(record)[NAME]
    assert (state.state, state.reason, state.active) == ("FAILED", "the cause", False)
    finish(record)
    assert job_states(record)[NAME].state == "DONE"


def test_a_job_that_the_controller_has_forgotten(slurm_stubs, record):
    """slurmdbd may never get the end of a job: it would be active for ever."""
    slurm_stubs.answer("sacct", "77|RUNNING|node1")
    slurm_stubs.answer("squeue", "78|RUNNING|node1|None")
    state = job_states(record)[NAME]
    assert state.state == FORGOTTEN and state.failed and not active_jobs(record)
    assert state.reason.startswith("Slurm has forgotten this job; sacct still says RUNNING")
    finish(record)
    assert job_states(record)[NAME].state == "DONE"


def test_sacct_has_no_row_yet_or_odd_ones(slurm_stubs, record):
    slurm_stubs.answer("squeue", "77|RUNNING|node1|None")
    for text in ("", SILENT, "77||", "sacct: a warning\n77|RUNNING"):
        slurm_stubs.answer("sacct", text)
        assert slurm_states(record)[NAME] == ("RUNNING", "node1", "")


def test_a_silent_squeue_does_not_mean_that_all_have_ended(slurm_stubs, record):
    """Else a job that runs would be submitted a second time, and `cancel` would say there is none.

    sacct still calls the job failed, from before it was requeued.
    """
    slurm_stubs.answer("sacct", "77|NODE_FAIL|node1")
    slurm_stubs.answer("squeue", SILENT)
    runs = [str(record.runs)]
    for command in (status.main, cancel.main, lambda _: execute(restore_experiment(record))):
        with pytest.raises(SlurmError, match="Slurm does not answer: squeue"):
            command(runs)
    assert not slurm_stubs.calls("sbatch") and not slurm_stubs.calls("scancel")
    state = report.states_of(record)[NAME]  # the report is made all the same
    assert state.state == "NODE_FAIL"


def test_who_watches_waits_for_an_answer(slurm_stubs, record, capsys):
    finish(record)
    running, ended = "77|RUNNING|node1|None", "77|COMPLETED|node1|None"
    slurm_stubs.answer("squeue", *[SILENT] * 3, running, *[SILENT] * 3, ended)
    assert status.main([str(record.runs), "watch=true", "seconds=0.1"]) == 0
    said = capsys.readouterr().out
    assert said.count("Slurm does not answer") == 2 and "│ RUNNING" in said and "│ DONE" in said
    slurm_stubs.answer("squeue", *[SILENT] * 4, running)
    assert preflight.wait_for_state(record, NAME).state == "RUNNING"


def test_a_job_that_ends_while_it_is_cancelled(slurm_stubs, record, capsys):
    running = "77|RUNNING|node1|None"
    slurm_stubs.answer("scancel", ("", 1))
    slurm_stubs.answer("squeue", running, "77|COMPLETED|node1|None")
    assert cancel.main([str(record.runs)]) == 0
    slurm_stubs.answer("squeue", running)
    with pytest.raises(Exception, match="scancel: "):
        cancel.main([str(record.runs)])


def test_what_an_earlier_start_writes_late_is_not_the_last_starts(slurm_stubs, record):
    slurm_stubs.answer("squeue", "77|RUNNING|node2|None")
    say(record, "start", host="node1")
    say(record, "start", restart=1, host="node2")
    say(record, "failed", reason="lost its peer")
    state = job_states(record)[NAME]
    assert (state.state, state.reason, state.restarts) == ("RUNNING", "", 1)
    slurm_stubs.answer("squeue", "77|FAILED|node2|None")
    assert job_states(record)[NAME].reason == "ended by Slurm: FAILED"
    say(record, "failed", restart=1, reason="the cause")
    assert job_states(record)[NAME].reason == "the cause"


def test_a_node_that_fails_before_the_first_node_has_begun(slurm_stubs, record):
    """In a resubmitted job, whose first start had another reason to fail."""
    slurm_stubs.answer("squeue", "78|FAILED|node[1-2]|None")
    record.job_ids[NAME] = "78"
    say(record, "start", host="node1")
    say(record, "failed", reason="old")
    say(record, "failed", job="78", reason="has 0 GPUs")
    assert job_states(record)[NAME].reason == "has 0 GPUs"
    say(record, "start", job="78", host="node1")
    assert job_states(record)[NAME].reason == "has 0 GPUs"


def test_starts_on_this_machine_are_told_apart_by_their_order(slurm_stubs, record):
    record.job_ids[NAME] = ""
    for reason in ("first", "second"):
        say(record, "start", job="", host="here")
        say(record, "failed", job="", reason=reason)
    assert job_states(record)[NAME].reason == "second"
    say(record, "start", job="", host="here")
    assert job_states(record)[NAME].state == "KILLED"


@pytest.fixture
def attempt(tmp_path, record, monkeypatch):
    """attempt("stops" | "fails", restart) -> (events, stderr's place) of a start of job 77."""
    (tmp_path / "train_stub.py").write_text(
        "import pathlib, sys, uuid\n"
        "if 'how=stops' in sys.argv:\n"
        "    run = next(part[4:] for part in sys.argv if part.startswith('run='))\n"
        "    pathlib.Path(run, 'resume.json').write_text(uuid.uuid4().hex)\n"
        "codes = [int(part[5:]) for part in sys.argv if part.startswith('code=')]\n"
        "sys.exit(codes[0] if codes else 1)\n"
    )
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    (tmp_path / "run").mkdir()
    spec = JobSpec(
        NAME,
        [["train_stub", f"run={tmp_path / 'run'}"]],
        str(record.state_dir),
        environment={"PYTHONPATH": str(tmp_path)},
    )

    def run(how, *extra, restart=0, task="", retries=0):
        commands = [[*spec.commands[0], f"how={how}", *extra]]
        with pytest.raises(SystemExit) as ended:
            run_job(
                replace(spec, commands=commands, retries=retries),
                SlurmContext("77", restart, array_task=task),
            )
        return ended.value.code, [event["event"] for event in read_events(record.state_dir, NAME)]

    return run


def test_a_stopped_job_is_requeued_if_slurm_says_that_it_runs(slurm_stubs, attempt):
    slurm_stubs.answer("squeue", *[SILENT] * 4, "77 RUNNING 0")
    assert attempt("stops") == (75, ["start", "stopped"])
    assert slurm_stubs.calls("scontrol") == ["requeue 77"]


def test_a_controller_that_is_away_for_minutes_is_asked_until_it_takes_the_job(
    slurm_stubs, attempt
):
    slurm_stubs.answer("squeue", *[SILENT] * 12, "77 RUNNING 0")
    slurm_stubs.answer("scontrol", SILENT, SILENT, "")
    assert attempt("stops") == (75, ["start", "stopped"])
    assert slurm_stubs.calls("scontrol") == ["requeue 77"] * 3
    assert sum(requeue.waits()) >= requeue.PATIENCE_S and max(requeue.waits()) <= 30


def test_a_command_that_hangs_has_not_answered(slurm_stubs, monkeypatch):
    """Also where a site's wrapper script is what was called."""
    monkeypatch.setattr(slurm_command, "TIMEOUT_S", 0.2)
    (slurm_stubs.folder / "bin" / "squeue").write_text("#!/bin/sh\nsleep 3600\n")
    with pytest.raises(SlurmError, match=r"squeue: nothing in 0.2 s; try again later"):
        ask_slurm("squeue")


def test_without_the_commands_nothing_is_known(slurm_stubs, record, monkeypatch, capfd):
    """Not that no job is there: nothing is queued a second time. The exit code is 3."""
    monkeypatch.setenv("PATH", str(slurm_stubs.folder / "runs"))
    for main in (status.main, cancel.main, lambda _: execute(restore_experiment(record))):
        with pytest.raises(SystemExit) as ended, exit_on_user_error():
            main([str(record.runs)])
        assert ended.value.code == 3
    assert capfd.readouterr().err.count("error: no squeue on this machine") == 3
    assert report.states_of(record)[NAME].state == FORGOTTEN
    finish(record)
    assert report.states_of(record)[NAME].state == "DONE"


@pytest.mark.parametrize(
    ("last", "state", "why"),
    [
        ("", FORGOTTEN, "Slurm has forgotten this job; no accounts tell how it ended"),
        ("start", FORGOTTEN, "Slurm has forgotten this job; no accounts tell how it ended"),
        ("stopped", "INTERRUPTED", "stopped by the cause, and not in the queue any more"),
        ("failed", "FAILED", "the cause"),
    ],
)
def test_a_cluster_without_accounts(slurm_stubs, record, capsys, last, state, why):
    slurm_stubs.answer("sacct", ("Slurm accounting storage is disabled", 1))
    slurm_stubs.answer("squeue", "77|RUNNING|node1|None", "")
    assert job_states(record)[NAME].state == "RUNNING"
    if last:
        say(record, "start", host="node1")
    if last not in ("", "start"):
        say(record, last, reason="the cause")
    found = job_states(record)[NAME]
    assert (found.state, found.failed) == (state, True) and found.reason.startswith(why)
    finish(record)
    assert job_states(record)[NAME].state == "DONE"


def test_in_a_container_the_batch_script_requeues(slurm_stubs, record, attempt, monkeypatch):
    """The job's own Python has no scontrol there; the script on the host has."""
    with monkeypatch.context() as inside:
        inside.setenv("PATH", str(slurm_stubs.folder / "runs"))
        assert attempt("stops") == (75, ["start", "stopped"])
    lines = requeue.batch_lines(requeue.marks_dir(record.state_dir))

    def end(**job):
        environment = {**os.environ, **{f"SLURM_{name}": value for name, value in job.items()}}
        script = "\n".join([*lines, "exit 75"])
        return subprocess.run(["bash", "-c", script], env=environment, check=False).returncode

    assert end(JOB_ID="77", RESTART_COUNT="1") == end(JOB_ID="78") == 75
    assert not slurm_stubs.calls("scontrol")
    assert end(JOB_ID="77") == 75
    assert end(JOB_ID="77", ARRAY_JOB_ID="77", ARRAY_TASK_ID="3") == 75
    assert slurm_stubs.calls("scontrol") == ["requeue 77", "requeue 77_3"]


@pytest.mark.parametrize("answer", ["77 COMPLETING 0", "77 CANCELLED 0", "77 PENDING 0", ""])
def test_a_job_that_is_cancelled_or_requeued_already_is_not_requeued(slurm_stubs, attempt, answer):
    slurm_stubs.answer("squeue", answer)
    assert attempt("stops") == (75, ["start", "stopped"])
    assert not slurm_stubs.calls("scontrol")


def test_no_answer_to_a_stopped_job_is_said(slurm_stubs, attempt, capfd):
    slurm_stubs.answer("squeue", SILENT)
    assert attempt("stops") == (75, ["start", "stopped"])
    assert not slurm_stubs.calls("scontrol")
    assert len(slurm_stubs.calls("squeue")) > 20  # for minutes, less and less often
    assert "error: the job is not requeued: Slurm does not answer" in capfd.readouterr().err


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING"])
@pytest.mark.parametrize("how", ["stops", "fails"])
def test_a_superseded_start_leaves_the_job_alone(slurm_stubs, attempt, how, state):
    """Slurm has lost this start's node, and started the job again: the job is not ours any more."""
    slurm_stubs.answer("squeue", f"77 {state} 1")
    assert attempt(how) == (75 if how == "stops" else 1, ["start"])
    assert not slurm_stubs.calls("scontrol") and not slurm_stubs.calls("scancel")


def test_a_task_of_an_array_is_not_taken_for_the_array(slurm_stubs, attempt):
    """Slurm gives one task the number of the array, and lists all tasks for it."""
    others = ["78 RUNNING 3", "79 COMPLETING 0", "not a line"]
    slurm_stubs.answer("squeue", "\n".join([*others, "77 RUNNING 0"]))
    assert attempt("stops", task="77_4")[1] == ["start", "stopped"]
    assert slurm_stubs.calls("scontrol") == ["requeue 77_4"]
    assert attempt("fails")[1][-1] == "failed"
    slurm_stubs.answer("squeue", "\n".join(others))
    assert attempt("stops")[1][-1] == "stopped"
    assert len(slurm_stubs.calls("scontrol")) == 1


@pytest.mark.parametrize("code", ["code=1", "code=70", "code=2"])
def test_a_crash_and_a_hang_are_tried_again_but_not_without_end(slurm_stubs, record, attempt, code):
    """From the last checkpoint, twice; more often only where there is a newer checkpoint."""
    checkpoints = record.state_dir.parents[1] / "run" / "checkpoints"

    def start(restart):
        slurm_stubs.answer("squeue", f"77 RUNNING {restart}")
        return attempt("fails", code, restart=restart, retries=2)[1][-1]

    if code == "code=2":  # bad input: it would end in the same way
        assert start(0) == "failed" and not slurm_stubs.calls("scontrol")
        return
    assert [start(restart) for restart in range(3)] == ["retry", "retry", "failed"]
    (checkpoints / "step_00000100").mkdir(parents=True)
    (checkpoints / "step_00000100" / "checksums.json").touch()
    assert start(3) == "retry" and slurm_stubs.calls("scontrol") == ["requeue 77"] * 3
    slurm_stubs.answer("squeue", "77|PENDING||BeginTime")
    state = job_states(record)[NAME]
    assert state.state == "PENDING" and len(state.retried) == 3
    assert ("no step ended for too long" in state.retried[0]) == (code == "code=70")
    slurm_stubs.answer("squeue", "77 COMPLETING 4")  # somebody has cancelled it
    assert attempt("fails", code, restart=4, retries=2)[1][-1] == "failed"
    assert len(slurm_stubs.calls("scontrol")) == 3


@pytest.mark.parametrize(
    ("during", "requeues", "afterwards", "state"),
    [
        ("77 RUNNING 0", True, "77|PENDING||BeginTime", "PENDING"),  # CANCEL with a grace time
        ("77 COMPLETING 0", False, "77|PENDING||BeginTime", "PENDING"),  # REQUEUE with one
        (None, False, "77|PENDING||BeginTime", "PENDING"),  # REQUEUE without: killed at once
        (None, False, "77|PREEMPTED|node1|None", "PREEMPTED"),  # CANCEL without
    ],
)
def test_preemption(slurm_stubs, record, attempt, during, requeues, afterwards, state):
    if during:
        slurm_stubs.answer("squeue", during)
        assert attempt("stops") == (75, ["start", "stopped"])
    else:
        say(record, "start", host="node1")
    assert slurm_stubs.calls("scontrol") == (["requeue 77"] if requeues else [])
    slurm_stubs.answer("squeue", afterwards)
    slurm_stubs.answer("sacct", "77|PREEMPTED|node1")
    found = job_states(record)[NAME]
    assert (found.state, found.failed) == (state, state == "PREEMPTED")


def test_what_ends_a_job_before_our_code_begins_is_shown(slurm_stubs, record):
    folder = record.state_dir / "submitit" / "time"
    folder.mkdir(parents=True)
    (folder / "77_0_log.out").write_text("error: module load cuda/99 failed\n")
    slurm_stubs.answer("squeue", "77|FAILED|node1|None")
    state = job_states(record)[NAME]
    assert state.log_lines == ["error: module load cuda/99 failed"]
    assert "can its nodes see" not in state.reason


@pytest.mark.parametrize(
    ("answer", "killed"),
    [("77 RUNNING 0", ["--signal=KILL 77.0"]), ("77 RUNNING 1", []), (SILENT, [])],
)
def test_a_node_that_fails_ends_the_others_only_of_its_own_start(
    slurm_stubs, record, monkeypatch, answer, killed
):
    """A later start has a step of the same number: it must not be killed."""
    slurm_stubs.answer("squeue", answer)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    spec = JobSpec(NAME, [["slurm.no_such_module"]], str(record.state_dir))
    with pytest.raises(SystemExit):
        run_job(spec, SlurmContext("77", 0, node_rank=1, num_nodes=2))
    assert slurm_stubs.calls("scancel") == killed
    assert [json.dumps(event["event"]) for event in read_events(record.state_dir, NAME)] == (
        [] if answer == "77 RUNNING 1" else ['"failed"']
    )
    assert log_path(record.state_dir, NAME).with_suffix(".node1.log").is_file()


@pytest.fixture
def submission(slurm_stubs, record):
    """submission(jobs, limit=N, field=value, ...): submit so many; a site takes `limit` of them."""
    slurm_stubs.answer("sinfo", "")

    def run(count, *, limit=9999, **fields):
        (slurm_stubs.folder / "bin" / "sbatch").write_text(
            f"#!/bin/sh\n[ $1 = --test-only ] && exit 0\ncd {slurm_stubs.folder}/sbatch\n"
            "echo $RANK$SLURM_NTASKS. >> calls; n=$(wc -l < calls)\n"
            f"[ $n -le {limit} ] || {{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2;"
            " exit 1; }\necho Submitted batch job $n\n"
        )
        runs = record.runs
        jobs = [
            Job(f"evaluate/{index}", "evaluate", [["m"]], [str(runs / str(index))], [], [])
            for index in range(count)
        ]
        experiment = merge.build(Experiment, {**record.experiment, **fields})
        mine = replace(record, jobs={}, job_ids={})
        mine.write()
        assert submit_to_slurm(experiment, Cluster(), mine, jobs, set()) == 0
        return read_record(runs).job_ids

    return run


@pytest.mark.parametrize("full", [{"limit": 3}, {"max_queued": 3}])
def test_a_full_queue_keeps_what_is_queued(slurm_stubs, submission, record, capsys, full):
    ids = submission(5, **full)
    assert list(ids.values()) == ["1", "2", "3", "", ""] and not slurm_stubs.calls("scancel")
    said = capsys.readouterr().out
    assert "3 jobs submitted" in said and "2 jobs wait; the same command queues them" in said
    states = job_states(read_record(record.runs))
    assert [states[f"evaluate/{index}"].state for index in (3, 4)] == ["NOT SUBMITTED"] * 2


def test_a_limit_that_takes_no_job_at_all_is_an_error(slurm_stubs, submission):
    with pytest.raises(UserError, match="QOSMaxSubmitJobPerUserLimit"):
        submission(2, limit=0)


def test_a_submission_from_inside_another_job(slurm_stubs, submission, monkeypatch):
    """Its rank and its CPUs are nobody else's."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    submission(1)
    assert slurm_stubs.calls("sbatch") == ["."] and os.environ["RANK"] == "3"


def test_two_submissions_do_not_interleave(submission, record):
    lock = record.state_dir / "submit.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another process submits jobs of .* right now"):
            submission(1)
    with pytest.raises(UserError, match=r"has submitted jobs of .*: try again"):
        with submit_lock(replace(record, job_ids={NAME: "76"})):
            pass
