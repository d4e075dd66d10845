"""Runs the commands of a job on one of its nodes, and handles signals, failures and requeueing.

    JobSpec ──> python -m MODULE, or torchrun for several processes ──> RUNS/.slurm/logs/<job>.log
    a signal to the job ──> SIGTERM to the command ──> checkpoint, RUN/resume.json ──> requeue

`python -m slurm.jobs.run MODULE [CONFIG.yaml] key=value ...` does the same for an sbatch file of
your own, such as slurm/train.sbatch. This process imports neither submitit nor torch.
The job requeues itself, so that time limits, preemption and a plain sbatch take the same path;
submitit's own requeueing is not used.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from cjepa_dist.config.locate import project_root
from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import EXIT_HUNG, EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from cjepa_dist.runtime.clock import timestamp
from cjepa_dist.runtime.environment import read_int
from cjepa_dist.runtime.progress import FILE_VARIABLE
from slurm.jobs.gpus import count_gpus
from slurm.jobs.job_log import (
    START_MARK,
    append_event,
    file_name,
    log_tail,
    progress_path,
    read_events,
)
from slurm.jobs.requeue import SlurmAnswer, ask_job, is_superseded, requeue_job
from slurm.jobs.slurm_command import SlurmError, run_slurm_command
from slurm.jobs.spec import JobSpec, SlurmContext
from slurm.jobs.stage_data import stage_dataset
from slurm.jobs.torchrun import build_argv, run_dir_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

# Restarts of a job that has no checkpoint to resume from. The limit ends one that never fits
# into its time limit.
MAX_FRESH_RESTARTS = 3

REQUEUE_RESULTS = ("requeued", "marked", "left")  # any other is an error


def run_job(spec: JobSpec, context: SlurmContext | None = None) -> None:
    """Run the commands in order.

    Returns when all are done. Else raises SystemExit: EXIT_PREEMPTED after a signal, 1 for a
    failure.
    """
    runner = JobRunner(spec, context or SlurmContext.from_environment())
    handlers = {number: signal.signal(number, runner.on_signal) for number in SIGNALS}
    try:
        if code := runner.run():
            raise SystemExit(code)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def job_environment(spec: JobSpec) -> dict[str, str]:
    """The environment of a job's commands.

    PYTHONPATH starts with the project's root: `slurm`, `data_prep` and `tools` can be imported
    also where the project is installed as a package, and from any folder.
    torchrun kills its processes `grace` seconds after SIGTERM. An environment variable says so,
    because torch before 2.12 ends with an error for the option --shutdown-timeout.
    """
    environment = {**os.environ, **spec.environment}
    paths = [str(project_root()), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(spec.grace)
    return environment


class JobRunner:
    """Runs one command after another and passes signals on to it."""

    def __init__(self, spec: JobSpec, context: SlurmContext) -> None:
        self.spec, self.context = spec, context
        self.received = 0  # the last signal
        self.child: subprocess.Popen[bytes] | None = None
        self.environment = job_environment(spec)
        self.state_dir = Path(spec.state_dir) if spec.state_dir else None
        self.log: Path | None = None
        if self.state_dir:
            suffix = f".node{context.node_rank}" if context.node_rank else ""
            self.log = self.state_dir / "logs" / f"{file_name(spec.name)}{suffix}.log"
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if not context.node_rank:
                path = progress_path(self.state_dir, spec.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                self.environment[FILE_VARIABLE] = str(path)

    def run(self) -> int:
        """0 when all commands are done, EXIT_PREEMPTED after a signal, 1 for a failure."""
        self.write_event("start", host=socket.gethostname())
        try:
            self.prepare_node()
        except UserError as error:
            return self.report_failure(str(error))
        for command in self.spec.commands:
            began, run_dir = time.time(), run_dir_of(command)
            mark = read_text(run_dir / "resume.json") if run_dir else None
            code = self.run_command(command)
            if not code:
                continue
            # The training may also have been stopped by a signal that this process did not get.
            stopped = run_dir and read_text(run_dir / "resume.json") not in (None, mark)
            if stopped or self.received:
                return self.requeue(resumable=run_dir is not None)
            seconds = time.time() - began
            return self.report_failure(
                f"{command[0]} ended with exit code {code}{meaning(code)} after {seconds:.0f} s",
                retry_from=None if self.is_user_error(code) else run_dir,
            )
        self.write_event("done")
        return 0

    def prepare_node(self) -> None:
        """Check the node's GPUs, make its scratch folder, stage the data. Raises UserError."""
        host = socket.gethostname()
        found = count_gpus() if self.spec.gpus else 0
        if found < self.spec.gpus:
            raise UserError(
                f"{host} has {found} GPUs, gpus_per_node says {self.spec.gpus}:"
                " see nvidia-smi -L there"
            )
        if not self.spec.scratch:
            return
        scratch = Path(os.path.expandvars(self.spec.scratch))
        try:
            scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"scratch={scratch} cannot be made on {host}: {error.strerror}"
            ) from error
        self.environment["TMPDIR"] = str(scratch)
        if self.spec.stage_data:
            copies = {
                str(Path(folder).resolve()): str(stage_dataset(Path(folder), scratch))
                for folder in data_folders(self.spec.commands)
            }
            self.environment["CJEPA_STAGED"] = json.dumps(copies)

    def on_signal(self, number: int, frame: Any) -> None:
        self.received = number
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    def run_command(self, command: list[str]) -> int:
        """Exit code of one command; its output goes to the log."""
        if self.received:  # between two commands
            return EXIT_PREEMPTED
        argv = build_argv(command, processes=self.spec.processes, context=self.context)
        stream: IO[bytes] | None = self.log.open("ab") if self.log else None
        if path := self.environment.get(FILE_VARIABLE):
            Path(path).unlink(missing_ok=True)  # of the command before
        try:
            if stream:
                line = f"{START_MARK}{timestamp()} {self.describe()}: {' '.join(argv[1:])}\n"
                stream.write(line.encode())
                stream.flush()
            # A session of its own: Slurm sends its signal to the whole process group, and a
            # launcher that gets it twice ends its processes at once.
            self.child = subprocess.Popen(
                argv,
                stdout=stream,
                stderr=subprocess.STDOUT if stream else None,
                start_new_session=True,
                env=self.environment,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
            if self.received:
                self.child.terminate()
            return self.child.wait()
        finally:
            self.child = None
            if stream:
                stream.close()

    def requeue(self, *, resumable: bool) -> int:
        """Put the job back into the queue after a signal. Returns EXIT_PREEMPTED or 1.

        It is left alone where somebody cancelled it, or where Slurm has requeued it already.
        """
        limit = self.spec.max_restarts if resumable else MAX_FRESH_RESTARTS
        reason = "a signal to the training process"
        if self.received:
            reason = signal.Signals(self.received).name
        if self.context.restart_count >= limit:
            return self.report_failure(
                f"stopped by {reason} after {limit} restarts:"
                " give the job a longer time limit, or a larger max_restarts"
            )
        if is_superseded(self.ask_state(), self.context):
            return EXIT_PREEMPTED
        self.write_event("stopped", reason=reason)
        if self.context.node_rank or not self.context.job_id:
            return EXIT_PREEMPTED
        found = requeue_job(self.context, self.state_dir)
        if found not in REQUEUE_RESULTS:
            print(f"error: the job is not requeued: {found}", file=sys.stderr, flush=True)
        return EXIT_PREEMPTED

    def report_failure(self, message: str, *, retry_from: Path | None = None) -> int:
        """Write the failure to the events and to stderr, and end the other nodes. Returns 1.

        With `retry_from`, a run directory, the job starts again where that may help.
        """
        lines = log_tail(self.log) if self.log else []
        text = "\n".join([f"error: {self.spec.name}: {message}", *lines])
        print(text, file=sys.stderr, flush=True)
        answer = self.ask_state()
        if is_superseded(answer, self.context):
            return 1
        if retry_from and self.may_retry(retry_from):
            checkpoint = newest_checkpoint(retry_from)
            self.write_event(
                "retry", any_node=True, reason=message, lines=lines, checkpoint=checkpoint
            )
            if requeue_job(self.context, self.state_dir) in ("requeued", "marked"):
                return 1
        self.write_event("failed", any_node=True, reason=message, lines=lines)
        if answer and self.context.num_nodes > 1 and (step := os.environ.get("SLURM_STEP_ID")):
            # The other nodes may wait for this one: in a rendezvous, or in a collective. A later
            # start of the job has a step of the same number, so this start must be the last one.
            step_id = f"{self.context.job_id}.{step}"
            run_slurm_command("scancel", "--signal=KILL", step_id, attempts=3)
        return 1

    def may_retry(self, run_dir: Path) -> bool:
        """Whether a start from the newest checkpoint was not tried too often already."""
        context = self.context
        if (
            not context.job_id
            or not self.state_dir
            or context.restart_count >= self.spec.max_restarts
        ):
            return False
        checkpoint = newest_checkpoint(run_dir)
        starts = {  # more than one node may have written of the same start
            event.get("restart")
            for event in read_events(self.state_dir, self.spec.name)
            if event["event"] == "retry"
            and event.get("job") == context.job_id
            and event.get("checkpoint") == checkpoint
        }
        return len(starts) < self.spec.retries

    def is_user_error(self, code: int) -> bool:
        """Whether a process ended by bad input, by its exit code or in torchrun's message."""
        text = "\n".join(log_tail(self.log, 200)) if self.log else ""
        codes = {code, *(int(number) for number in re.findall(r"exitcode\s*:\s*(-?\d+)", text))}
        return EXIT_USER_ERROR in codes

    def ask_state(self) -> SlurmAnswer | None:
        """What Slurm says of this job; None without Slurm, or where it does not answer."""
        if not self.context.job_id:
            return None
        try:
            return ask_job(self.context.job_id)
        except SlurmError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
            return None

    def describe(self) -> str:
        job, start = self.context.job_id or "local", self.context.restart_count + 1
        return f"job {job}, start {start}, {socket.gethostname()}"

    def write_event(self, event: str, *, any_node: bool = False, **content: Any) -> None:
        """A line in RUNS/.slurm/events/<job>.jsonl; of the first node only, unless `any_node`."""
        if not self.state_dir or (self.context.node_rank and not any_node):
            return
        line = {
            "event": event,
            "time": timestamp(),
            "job": self.context.job_id,
            "restart": self.context.restart_count,
            **content,
        }
        append_event(self.state_dir, self.spec.name, line)


def data_folders(commands: list[list[str]]) -> set[str]:
    """The data sets in the commands that are folders and not URLs."""
    arguments = [argument for command in commands for argument in command]
    given = {part.removeprefix("data=") for part in arguments if part.startswith("data=")}
    return {folder for folder in given if not is_remote(folder)}


def newest_checkpoint(run_dir: Path) -> str:
    """Name of the newest whole checkpoint; "" if there is none."""
    found = (run_dir / "checkpoints").glob("step_????????/checksums.json")
    return max((path.parent.name for path in found), default="")


def meaning(code: int) -> str:
    """What an exit code of a command says, in brackets; "" for one that says nothing more."""
    known = {
        EXIT_HUNG: "no step ended for too long",
        -signal.SIGKILL: "killed: out of memory, or by somebody",
        EXIT_USER_ERROR: "its message is in the log",
    }
    return f" ({known[code]})" if code in known else ""


def die_with_parent() -> None:
    """In the child: a command must not go on training when this process is killed with -9."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(
            "usage: python -m slurm.jobs.run MODULE [CONFIG.yaml] key=value ..."
            "   (PROCESSES_PER_NODE, default 1)"
        )
    number = read_int("PROCESSES_PER_NODE", 1, least=1)
    run_job(JobSpec(sys.argv[1], [sys.argv[1:]], processes=number))
