"""The command `cjepa`: every entry point of the project by one name, from any folder.

    cjepa NAME ARGUMENTS  ──COMMANDS──>  python -m MODULE ARGUMENTS, in this process

`cjepa --help` and completion import neither torch nor a command.
"""

from __future__ import annotations

import difflib
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

import cjepa_dist
from cjepa_dist.config import completion, locate
from cjepa_dist.errors import UserError, exit_on_user_error

# Processes that are busy already. OpenMP's threads spin while they wait for each other: beside one
# that keeps a core busy, a step takes 30 times as long ("Threads that wait", docs/benchmarks.md).
BUSY_LOAD = 1.0


class Command(NamedTuple):
    """The module that a command runs, one line about it, and the words that may come first."""

    module: str
    summary: str
    words: tuple[str, ...] = ()


# In the order in which data flows through them.
COMMANDS = {
    "simulate": Command("data_prep.simulate", "simulate CLEVRER-style videos into slot shards"),
    "fake-clevrer": Command(
        "data_prep.fake_clevrer", "write simulated videos in the files of real CLEVRER"
    ),
    "download": Command("data_prep.download", "download public slots, questions, annotations"),
    "import-pickle": Command("data_prep.import_pickle", "make slot shards from pickled slots"),
    "import-arrays": Command("data_prep.import_arrays", "make slot shards from .npy, .npz or .h5"),
    "import-webdataset": Command(
        "data_prep.import_webdataset", "make slot shards from foreign webdataset tars"
    ),
    "match": Command("data_prep.match", "match slots with annotated objects"),
    "merge": Command("data_prep.merge", "merge parts of a data set into one"),
    "info": Command("data_prep.info", "say what a data set holds"),
    "verify": Command("data_prep.verify", "check every sample of a data set"),
    "train-world-model": Command("cjepa_dist.train_world_model", "train C-JEPA on slots"),
    "rollout": Command("cjepa_dist.rollout", "predict the future of every video, as slot shards"),
    "train-aloe": Command("cjepa_dist.train_aloe", "train ALOE to answer questions"),
    "evaluate": Command("cjepa_dist.evaluate", "measure a trained world model or ALOE"),
    "evaluate-graph": Command("cjepa_dist.evaluate_graph", "measure a world model's graphs"),
    "evaluate-removal": Command(
        "cjepa_dist.evaluate_removal", "measure what removing an object changes for others"
    ),
    "evaluate-counterfactual": Command(
        "cjepa_dist.evaluate_counterfactual", "measure worlds without an object"
    ),
    "evaluate-symbolic": Command(
        "cjepa_dist.evaluate_symbolic", "answer questions with programs, without ALOE"
    ),
    "compare": Command("cjepa_dist.compare", "compare arms, paired over seeds and videos"),
    "draw": Command("cjepa_dist.draw", "draw a video from above, with what a run predicts"),
    "report": Command("cjepa_dist.report", "compare runs in one table, with figures"),
    "run": Command("slurm.run", "run an experiment, all of the above, on this machine"),
    "submit": Command("slurm.submit", "submit an experiment to Slurm"),
    "status": Command("slurm.status", "show the jobs of an experiment"),
    "resume": Command("slurm.resume", "submit unfinished jobs again"),
    "cancel": Command("slurm.cancel", "cancel the jobs of an experiment"),
    "preflight": Command("slurm.preflight", "test a Slurm cluster before training there"),
    "runs": Command("tools.runs", "list, show or compare runs", ("ls", "show", "compare")),
    "memory": Command("tools.memory", "estimate the memory of a training step"),
    "bench": Command(
        "tools.bench",
        "measure speed",
        ("world_model", "aloe", "training", "data", "counterfactual"),
    ),
    "import-checkpoint": Command("tools.import_checkpoint", "make a run from released weights"),
    "export-checkpoint": Command("tools.export_checkpoint", "write a run's weights as released"),
    "fault-drill": Command("tools.fault_drill", "break short runs, resume them and compare"),
    "question-statistics": Command(
        "tools.question_statistics", "compare a data set's questions with CLEVRER's"
    ),
    "completion": Command(
        "", "print a completion script; put it in your shell's start-up file", completion.SHELLS
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit code is the command's, or 2 and one line for an unknown command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if {"-h", "--help"} & {name, *arguments}:  # `cjepa NAME --help | head` ends without a traceback
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    with exit_on_user_error():
        if name in ("-h", "--help"):
            print(usage())
        elif name == "--version":
            print(cjepa_dist.__version__)
        elif name == "completion":
            print(completion.script(arguments[1:]))
        elif name == "__complete":  # called by the script of `cjepa completion`
            print(*complete(int(arguments[1]), arguments[2:]), sep="\n")
        elif name in COMMANDS:
            run_command(name, arguments[1:])
        else:
            near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
            raise UserError(f"unknown command {name}; the nearest is {near[0]}; see cjepa --help")
    return 0


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: cjepa COMMAND [CONFIG] key=value ...",
            "",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "`cjepa COMMAND --help` lists the options of a command. CONFIG is a file, or a name in",
            f"{locate.project_root() / 'configs'}.",
        ]
    )


def run_command(name: str, arguments: list[str]) -> None:
    """`python -m MODULE ARGUMENTS` in this process; what it starts finds the same modules."""
    root = str(locate.project_root())
    sys.path.insert(0, root)
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else root

    from cjepa_dist.config import command_line

    command_line.program = f"cjepa {name}"
    sys.argv = [sys.argv[0], *arguments]
    if os.getloadavg()[0] >= BUSY_LOAD:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)


def complete(index: int, words: list[str]) -> list[str]:
    """What may stand at `words[index - 1]`, after `cjepa`."""
    word = words[index - 1] if index <= len(words) else ""
    if index == 1:
        known = list(COMMANDS)
    elif words[0] in COMMANDS:
        command = COMMANDS[words[0]]
        first = list(command.words) if index == 2 else []
        known = [*first, *completion.arguments(command.module)]
    else:
        known = []
    return [name for name in known if name.startswith(word)]


if __name__ == "__main__":
    sys.exit(main())
