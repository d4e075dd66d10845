"""Signals and the checkpoint clock."""

import json
import os
import signal

from cjepa_dist.errors import EXIT_PREEMPTED
from cjepa_dist.resilience.preemption import SIGNALS, Preemption


def test_signals_and_clock_are_noted_and_handlers_restored(tmp_path):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    (tmp_path / "resume.json").write_text("{}")
    with Preemption(tmp_path, minutes=1e-9) as preemption:
        assert not (tmp_path / "resume.json").exists()
        assert preemption.agreed() == 0 and not preemption.checkpoint_due
        assert preemption.agreed() == 0 and preemption.checkpoint_due  # one step later
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        preemption.agreed()
        assert preemption.agreed() == signal.SIGUSR1
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    try:
        with Preemption(tmp_path, minutes=0) as preemption:
            assert preemption.exit_code(signal.SIGUSR1, 7) == EXIT_PREEMPTED == 75
        assert json.loads((tmp_path / "resume.json").read_text())["reason"] == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGUSR1)  # ignored while the process ends
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
