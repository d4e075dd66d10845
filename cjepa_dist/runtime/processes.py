"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Get a SIGTERM when the process that started this one ends, however it ends (Linux).

    To be called by the child. The parent's thread that started it counts: it must live on.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def start_pool_worker() -> None:
    """What a worker process of a pool does first: it ends with its parent, whatever ends that.

    A pool's workers would wait for their next job for ever. Ctrl-C reaches them too, and is left
    to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(0)  # it ended before it could be asked for a signal
