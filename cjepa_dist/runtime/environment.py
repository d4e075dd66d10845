"""Environment variables of launchers: numbers that are checked, and a launch that is whole.

torchrun, accelerate launch and Slurm say by them which process this is. A variable that is left
from another program, or is empty, must not end in a traceback, nor in a process that waits for
others which nobody has started.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator

from cjepa_dist.errors import UserError

# What torch needs to know to find the other processes, and what else counts them.
MEETING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANGES = {  # the numbers that a variable may have
    "WORLD_SIZE": (1, 10**6),
    "LOCAL_WORLD_SIZE": (1, 10**6),
    "RANK": (0, 10**6 - 1),
    "LOCAL_RANK": (0, 10**6 - 1),
    "MASTER_PORT": (1, 65535),
    **dict.fromkeys(MPI_SIZES, (1, 10**6)),
}
WAITING = 10.0  # s, after which it is said what is waited for


def read_int(name: str, default: int, least: int = 0, most: int = 2**63 - 1) -> int:
    """The number in a variable; `default` where it is not set, or empty.

    Raises UserError, naming the variable, for anything else.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or not least <= int(text) <= most:
        raise UserError(
            f"environment variable {name}={text:.40}: must be a number from {least} to {most};"
            " unset it, or start with torchrun or accelerate launch"
        )
    return int(text)


def check_launch() -> None:
    """Check what a launcher has said. Raises UserError naming a variable that is wrong or missing.

    Empty variables are removed: Accelerate would take them for numbers.
    """
    for name, (least, most) in RANGES.items():
        if name in os.environ and not os.environ[name].strip():
            del os.environ[name]
        read_int(name, least, least, most)
    size, local_size = read_int("WORLD_SIZE", 1), read_int("LOCAL_WORLD_SIZE", 1)
    if size > 1 or "LOCAL_RANK" in os.environ:
        cause = f"WORLD_SIZE={size}" if size > 1 else f"LOCAL_RANK={os.environ['LOCAL_RANK']}"
        missing = [name for name in MEETING if not os.environ.get(name)]
    else:
        started = [name for name in MPI_SIZES if read_int(name, 1) > 1]
        cause = "".join(f"{name}={os.environ[name]}" for name in started[:1])
        missing = ["MASTER_ADDR"] if started and not os.environ.get("MASTER_ADDR") else []
    if missing:
        raise UserError(
            f"{cause} is in the environment, but {', '.join(missing)} is not: start with torchrun"
            f" or accelerate launch, or, for one process, unset {cause.partition('=')[0]}"
        )
    for name, number in (
        ("RANK", read_int("RANK", 0) + 1),
        ("LOCAL_RANK", read_int("LOCAL_RANK", 0) + 1),
        ("LOCAL_WORLD_SIZE", local_size),
    ):
        if size > 1 and number > size:
            raise UserError(
                f"environment variable {name}={os.environ[name]} does not fit WORLD_SIZE={size}:"
                " start with torchrun or accelerate launch"
            )


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Around what waits for the other processes: says so when it takes long.

    Raises UserError where they do not come.
    """
    import torch.distributed as dist

    size = read_int("WORLD_SIZE", 1)
    place = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    here = f"RANK={os.environ.get('RANK', '0')} and WORLD_SIZE={size} in the environment"
    text = (
        f"waits for {size} processes at {place} ({here}); if this is one process on its own, end it"
        f" and unset {' '.join(MEETING)}"
    )
    timer = threading.Timer(WAITING, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if size > 1:
        timer.start()
    try:
        yield
    except dist.DistError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{size} processes did not meet at {place} ({here}): {reason}") from error
    finally:
        timer.cancel()
