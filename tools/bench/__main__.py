"""Speed, measured, as one Markdown table: `python -m tools.bench NAME [CONFIG.yaml] key=value ...`.

    world_model     one training step: the published one, and ours
    aloe            one training step: a plain one, and ours
    training        overhead of the loop, checkpoints, restart; a model of more GPUs
    data            windows/s beside memcpy and a per-window dataset, first batch, memory; imports
    counterfactual  videos/s of rollouts without an object

`python -m tools.bench world_model --help` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cjepa_dist.config.command_line import invocation, launch
from tools.bench import aloe, counterfactual, data, training, world_model

BENCHMARKS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "world_model": (world_model.BenchWorldModel, world_model.main),
    "aloe": (aloe.BenchAloe, aloe.main),
    "training": (training.BenchTraining, training.main),
    "data": (data.BenchData, data.main),
    "counterfactual": (counterfactual.BenchCounterfactual, counterfactual.main),
}


def run(argv: Sequence[str]) -> NoReturn:
    """Dispatch on the first argument; exit code 2 and one line if it names no benchmark."""
    if argv and argv[0] in BENCHMARKS:
        launch(*BENCHMARKS[argv[0]], argv[1:])
    usage = (
        f"{invocation()} NAME [CONFIG.yaml] key=value ...; NAME is one of: {', '.join(BENCHMARKS)}"
    )
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        sys.exit(0)
    print(f"error: {usage}; got {argv[0]!r}" if argv else f"error: {usage}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run(sys.argv[1:])
