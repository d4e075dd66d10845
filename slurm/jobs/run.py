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
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import UserError
from slurm.jobs.stage_data import stage
from slurm.jobs.torchrun import argv_of, ask, folder_of

STOPPED = os.EX_TEMPFAIL  # 75, as of the training loop: the same command goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
FRESH_RESTARTS = (
    3  # of what begins anew each time: one that never fits its time limit must end some day
)
TAIL = 12  # lines of a log in an error


@dataclass(frozen=True)
class Spec:
    """A job: commands in order, each [module, argument, ...]; `processes` a node and `grace` (s) for a training's checkpoint."""

    name: str
    commands: list[list[str]]
    home: str = ""  # RUNS/.slurm; empty = log to stdout, no events
    processes: int = 1
    grace: int = 60
    max_restarts: int = 100
    environment: dict[str, str] = field(default_factory=dict)
    scratch: str = ""  # of the node's own, with $VARIABLES
    stage_data: bool = False
    gpus: int = 0  # that this node must have


@dataclass(frozen=True)
class Place:
    """Where in a Slurm job this process is; job "" outside of Slurm."""

    job: str
    restart: int
    node: int
    nodes: int

    @staticmethod
    def here() -> Place:
        env = os.environ
        number = {
            key: int(env.get(f"SLURM_{key}", 0)) for key in ("RESTART_COUNT", "NODEID", "NNODES")
        }
        return Place(
            env.get("SLURM_JOB_ID", ""),
            number["RESTART_COUNT"],
            number["NODEID"],
            max(1, number["NNODES"]),
        )


def run(spec: Spec, place: Place | None = None) -> None:
    """Run the commands. Returns when all are done; else leaves with SystemExit: 75 stopped by a signal, 1 failed."""
    place = place or Place.here()
    runner = Runner(spec, place)
    before = {number: signal.signal(number, runner.note) for number in SIGNALS}
    runner.event("start", host=socket.gethostname())
    try:
        try:
            runner.prepare()
        except UserError as error:
            raise SystemExit(runner.fail(str(error))) from error
        for command in spec.commands:
            began, run_folder = time.time(), folder_of(command)
            mark = read(run_folder / "resume.json") if run_folder else None
            code = runner.call(command)
            stopped = run_folder is not None and read(run_folder / "resume.json") not in (
                None,
                mark,
            )
            if code and (stopped or runner.received):
                raise SystemExit(runner.again(resumable=run_folder is not None))
            if code:
                raise SystemExit(
                    runner.fail(
                        f"{command[0]} ended with exit code {code} after {time.time() - began:.0f} s"
                    )
                )
        runner.event("done")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Runner:
    """Runs one command after another and passes signals on to it."""

    def __init__(self, spec: Spec, place: Place) -> None:
        self.spec, self.place, self.received = spec, place, 0
        self.child: subprocess.Popen[bytes] | None = None
        self.environment = dict(os.environ)
        self.log: Path | None = None
        if spec.home:
            name = file_name(spec.name) + (f".node{place.node}" if place.node else "")
            self.log = Path(spec.home) / "logs" / f"{name}.log"
            self.log.parent.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """What must be so on this node before anything trains. Raises UserError."""
        here = gpus_here() if self.spec.gpus else 0
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
                str(Path(folder).resolve()): str(stage(Path(folder), scratch))
                for folder in data
                if not is_remote(folder)
            }
            self.environment["CJEPA_STAGED"] = json.dumps(copies)

    def note(self, number: int, frame: Any) -> None:
        self.received = number
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    def call(self, command: list[str]) -> int:
        """Exit code of one command; its output goes to the log."""
        if self.received:  # between two commands
            return STOPPED
        argv = argv_of(
            command,
            processes=self.spec.processes,
            grace=self.spec.grace,
            **dataclasses.asdict(self.place),
        )
        stream: IO[bytes] | None = self.log.open("ab") if self.log else None
        try:
            if stream:
                stream.write(f"== {stamp()} {self.where()}: {' '.join(argv[1:])}\n".encode())
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

    def again(self, *, resumable: bool) -> int:
        """After a stop by a signal: put the job back into the queue, unless somebody cancelled it or Slurm has done so. Returns 75 or 1."""
        limit = self.spec.max_restarts if resumable else FRESH_RESTARTS
        reason = (
            signal.Signals(self.received).name
            if self.received
            else "a signal to the training process"
        )
        if self.place.restart >= limit:
            return self.fail(
                f"stopped by {reason} for the {self.place.restart + 1}th time: more time a job is needed, or max_restarts"
            )
        if self.superseded():
            return STOPPED
        self.event("stopped", reason=reason)
        if self.place.node == 0 and self.standing()[:1] == ["RUNNING"]:
            # COMPLETING means a scancel (requeueing would bring it back) or a requeue under way: only a running job is ours to requeue.
            ask("scontrol", "requeue", self.place.job)
        return STOPPED

    def fail(self, message: str) -> int:
        lines = tail(self.log) if self.log else []
        if not self.superseded():
            self.event("failed", always=True, reason=message, lines=lines)
        print(
            "\n".join([f"error: {self.spec.name}: {message}", *lines]), file=sys.stderr, flush=True
        )
        if self.place.nodes > 1 and (step := os.environ.get("SLURM_STEP_ID")):
            # The other nodes may wait for this one for long: in a rendezvous, or in a collective of GPUs.
            ask("scancel", "--signal=KILL", f"{self.place.job}.{step}")
        return 1

    def standing(self) -> list[str]:
        """What Slurm says of this job: [state, restarts]; [] outside of Slurm."""
        return (
            ask("squeue", "-h", "-j", self.place.job, "-O", "State:20,RestartCnt:10").split()
            if self.place.job
            else []
        )

    def superseded(self) -> bool:
        """Whether the job has started again elsewhere: Slurm lost this node, which worked on. Then nothing here speaks for the job."""
        return self.standing()[1:] not in ([], [str(self.place.restart)])

    def where(self) -> str:
        return f"job {self.place.job or 'local'}, start {self.place.restart + 1}, {socket.gethostname()}"

    def event(self, kind: str, *, always: bool = False, **content: Any) -> None:
        """One line in RUNS/.slurm/events/<name>.jsonl, from the first node; a failure from any."""
        if not self.spec.home or (self.place.node and not always):
            return
        path = events_path(Path(self.spec.home), self.spec.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {
            "event": kind,
            "time": stamp(),
            "job": self.place.job,
            "restart": self.place.restart,
            **content,
        }
        with path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def gpus_here() -> int:
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


def read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def tail(path: Path, lines: int = TAIL) -> list[str]:
    """The last lines of a log that say something, of the last start; our own "error: ..." first if a launcher's words pushed it out."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 65536))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    found = [line.rstrip() for line in text.splitlines() if line.strip()]
    begin = max(
        (index + 1 for index, line in enumerate(found) if line.startswith("== ")), default=0
    )
    errors = [line for line in found[begin:-lines] if line.startswith("error: ")]
    return errors[-1:] + found[begin:][-lines:]


def file_name(name: str) -> str:
    return name.replace("/", ".")


def events_path(home: Path, name: str) -> Path:
    return home / "events" / f"{file_name(name)}.jsonl"


def stamp() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(
            "usage: python -m slurm.jobs.run MODULE [CONFIG.yaml] key=value ...   (PROCESSES_PER_NODE, default 1)"
        )
    run(Spec(sys.argv[1], [sys.argv[1:]], processes=int(os.environ.get("PROCESSES_PER_NODE", "1"))))
