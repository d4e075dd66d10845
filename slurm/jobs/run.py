"""What runs inside a job, on each of its nodes: our entry points, one after another, and what to do when one stops.

    Spec ──> python -m MODULE, or torchrun over the nodes and processes of the job ──> RUNS/.slurm/logs/<name>.log
    a signal to the job ──> SIGTERM to the entry point ──> checkpoint, RUN/resume.json ──> scontrol requeue ──> the same job goes on

Needs neither submitit nor torch in this process. `python -m slurm.jobs.run MODULE key=value ...` does the same for an sbatch file of your own.
Requeueing is asked for here and not left to submitit: one path for time limits, preemption and a plain sbatch, whatever the signal.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import UserError
from slurm.jobs.job_log import events_path, file_name, log_tail, utc_now
from slurm.jobs.slurm_command import run_slurm_command
from slurm.jobs.spec import JobSpec, SlurmContext
from slurm.jobs.stage_data import stage_dataset
from slurm.jobs.torchrun import build_argv, run_dir_of

EXIT_PREEMPTED = os.EX_TEMPFAIL  # 75, as of the training loop: the same command goes on

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

MAX_FRESH_RESTARTS = (
    3  # of what begins anew each time: one that never fits its time limit must end some day
)


def run_job(spec: JobSpec, place: SlurmContext | None = None) -> None:
    """Run the commands. Returns when all are done; else leaves with SystemExit: 75 stopped by a signal, 1 failed."""
    place = place or SlurmContext.from_environment()
    runner = JobRunner(spec, place)
    before = {number: signal.signal(number, runner.on_signal) for number in SIGNALS}
    runner.write_event("start", host=socket.gethostname())
    try:
        try:
            runner.prepare()
        except UserError as error:
            raise SystemExit(runner.report_failure(str(error))) from error
        for command in spec.commands:
            began, run_folder = time.time(), run_dir_of(command)
            mark = read_text(run_folder / "resume.json") if run_folder else None
            code = runner.run_command(command)
            stopped = run_folder is not None and read_text(run_folder / "resume.json") not in (
                None,
                mark,
            )
            if code and (stopped or runner.received):
                raise SystemExit(runner.requeue(resumable=run_folder is not None))
            if code:
                raise SystemExit(
                    runner.report_failure(
                        f"{command[0]} ended with exit code {code} after {time.time() - began:.0f} s"
                    )
                )
        runner.write_event("done")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class JobRunner:
    """Runs one command after another and passes signals on to it."""

    def __init__(self, spec: JobSpec, place: SlurmContext) -> None:
        self.spec, self.context, self.received = spec, place, 0
        self.child: subprocess.Popen[bytes] | None = None
        self.environment = dict(os.environ)
        self.log: Path | None = None
        if spec.state_dir:
            name = file_name(spec.name) + (f".node{place.node}" if place.node else "")
            self.log = Path(spec.state_dir) / "logs" / f"{name}.log"
            self.log.parent.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """What must be so on this node before anything trains. Raises UserError."""
        here = count_gpus() if self.spec.gpus else 0
        if here < self.spec.gpus:
            raise UserError(
                f"{socket.gethostname()} has {here} GPUs, gpus_per_node says {self.spec.gpus}: see nvidia-smi -L there"
            )
        self.environment = {**os.environ, **self.spec.environment}
        if not self.spec.scratch:
            return
        scratch = Path(os.path.expandvars(self.spec.scratch))
        try:
            scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"scratch={scratch} cannot be made on {socket.gethostname()}: {error.strerror}"
            ) from error
        self.environment["TMPDIR"] = str(scratch)
        if self.spec.stage_data:
            data = {
                part.removeprefix("data=")
                for line in self.spec.commands
                for part in line
                if part.startswith("data=")
            }
            copies = {
                str(Path(folder).resolve()): str(stage_dataset(Path(folder), scratch))
                for folder in data
                if not is_remote(folder)
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
        argv = build_argv(
            command,
            processes=self.spec.processes,
            grace=self.spec.grace,
            **dataclasses.asdict(self.context),
        )
        stream: IO[bytes] | None = self.log.open("ab") if self.log else None
        try:
            if stream:
                stream.write(f"== {utc_now()} {self.describe()}: {' '.join(argv[1:])}\n".encode())
                stream.flush()
            # A session of its own: Slurm's signal goes to the whole process group, and twice is not what a launcher expects.
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
        """After a stop by a signal: put the job back into the queue, unless somebody cancelled it or Slurm has done so. Returns 75 or 1."""
        limit = self.spec.max_restarts if resumable else MAX_FRESH_RESTARTS
        reason = (
            signal.Signals(self.received).name
            if self.received
            else "a signal to the training process"
        )
        if self.context.restart >= limit:
            return self.report_failure(
                f"stopped by {reason} for the {self.context.restart + 1}th time: more time a job is needed, or max_restarts"
            )
        if self.is_superseded():
            return EXIT_PREEMPTED
        self.write_event("stopped", reason=reason)
        if self.context.node == 0 and self.slurm_state()[:1] == ["RUNNING"]:
            # COMPLETING means a scancel (requeueing would bring it back) or a requeue under way: only a running job is ours to requeue.
            run_slurm_command("scontrol", "requeue", self.context.job)
        return EXIT_PREEMPTED

    def report_failure(self, message: str) -> int:
        lines = log_tail(self.log) if self.log else []
        if not self.is_superseded():
            self.write_event("failed", always=True, reason=message, lines=lines)
        print(
            "\n".join([f"error: {self.spec.name}: {message}", *lines]), file=sys.stderr, flush=True
        )
        if self.context.nodes > 1 and (step := os.environ.get("SLURM_STEP_ID")):
            # The other nodes may wait for this one for long: in a rendezvous, or in a collective of GPUs.
            run_slurm_command("scancel", "--signal=KILL", f"{self.context.job}.{step}")
        return 1

    def slurm_state(self) -> list[str]:
        """What Slurm says of this job: [state, restarts]; [] outside of Slurm."""
        return (
            run_slurm_command(
                "squeue", "-h", "-j", self.context.job, "-O", "State:20,RestartCnt:10"
            ).split()
            if self.context.job
            else []
        )

    def is_superseded(self) -> bool:
        """Whether the job has started again elsewhere: Slurm lost this node, which worked on. Then nothing here speaks for the job."""
        return self.slurm_state()[1:] not in ([], [str(self.context.restart)])

    def describe(self) -> str:
        return f"job {self.context.job or 'local'}, start {self.context.restart + 1}, {socket.gethostname()}"

    def write_event(self, kind: str, *, always: bool = False, **content: Any) -> None:
        """One line in RUNS/.slurm/events/<name>.jsonl, from the first node; a failure from any."""
        if not self.spec.state_dir or (self.context.node and not always):
            return
        path = events_path(Path(self.spec.state_dir), self.spec.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {
            "event": kind,
            "time": utc_now(),
            "job": self.context.job,
            "restart": self.context.restart,
            **content,
        }
        with path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def count_gpus() -> int:
    """GPUs of this machine, by its driver: importing torch to count them takes seconds."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return devices
    return done.stdout.count("GPU ") if done.returncode == 0 else devices


def die_with_parent() -> None:
    """In the child: killed with -9, this process would leave it training on its own."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(
            "usage: python -m slurm.jobs.run MODULE [CONFIG.yaml] key=value ...   (PROCESSES_PER_NODE, default 1)"
        )
    run_job(
        JobSpec(
            sys.argv[1], [sys.argv[1:]], processes=int(os.environ.get("PROCESSES_PER_NODE", "1"))
        )
    )
