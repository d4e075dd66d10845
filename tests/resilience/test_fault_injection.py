"""CJEPA_FAULT: what it plans, and a process that holds until a file or a signal comes."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cjepa_dist.errors import UserError
from cjepa_dist.resilience import fault_injection
from cjepa_dist.resilience.fault_injection import Fault, find_fault, parse_faults, with_faults
from tests.fork_server import PROJECT

LIMIT_S = 300

# Says "stopping" or "released" when its hold is over.
HOLDS = """
import signal, sys
from cjepa_dist.resilience.fault_injection import with_faults
seen = []
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
step = with_faults(lambda batches, number: "stopping" if seen else "released", list, lambda: seen)
print(step([], 4), flush=True)
print(step([], 5), flush=True)
"""


def test_plans():
    assert parse_faults("nan@5,kill@7:rank1,hold@3:/a b/c:d,hold@3:/x:rank12") == [
        Fault("nan", 5, "", None),
        Fault("kill", 7, "", 1),
        Fault("hold", 3, "/a b/c:d", None),
        Fault("hold", 3, "/x", 12),
    ]
    for wrong in ("pause@5", "nan", "nan@5:rank", "hold@5", "hold@5:here", "nan@5:/file", "kill@x"):
        with pytest.raises(UserError, match=f"CJEPA_FAULT: {wrong} is no fault"):
            parse_faults(f"nan@1,{wrong}")


def test_who_is_hit(monkeypatch):
    monkeypatch.setenv("CJEPA_FAULT", "nan@5,kill@7:rank1")
    monkeypatch.setenv("RANK", "0")
    assert find_fault("nan", 5) and not find_fault("nan", 4) and not find_fault("kill", 7)
    monkeypatch.setenv("RANK", "1")
    assert find_fault("kill", 7) and find_fault("nan", 5)
    monkeypatch.setenv("CJEPA_FAULT", "typo@5")
    with pytest.raises(UserError, match="typo@5 is no fault"):
        with_faults(None, list, lambda: False)
    monkeypatch.delenv("CJEPA_FAULT")
    assert with_faults(list, list, lambda: False) is list and not find_fault("nan", 5)


@pytest.mark.parametrize("rank", ["", ":rank2"])
@pytest.mark.parametrize("how", ["released", "stopping"])
def test_a_process_holds_until_a_file_or_a_signal_comes(tmp_path, how, rank):
    file = tmp_path / "go"
    environment = {**os.environ, "CJEPA_FAULT": f"hold@5:{file}{rank}", "RANK": "2"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "released\n"  # step 4
        waiting = file.with_name("go.waiting")
        while not (waiting.exists() and waiting.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.02)
        assert waiting.read_text() == f"2 {process.pid}\n"
        if how == "released":
            file.touch()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=LIMIT_S)[0] == f"{how}\n"


def test_another_rank_does_not_hold(monkeypatch, tmp_path):
    monkeypatch.setenv("CJEPA_FAULT", f"hold@5:{tmp_path / 'go'}:rank1")
    monkeypatch.setenv("RANK", "0")
    assert with_faults(lambda batches, number: number, list, lambda: False)([], 5) == 5
    assert not list(tmp_path.iterdir())


def test_a_failed_checkpoint_is_kept_until_the_training_waits_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("CJEPA_FAULT", f"hold-failed-checkpoint@8:{tmp_path / 'go'}")
    writer = threading.Thread(target=fault_injection.inject_after_failed_checkpoint, args=(8,))
    writer.start()
    fault_injection.inject_before_waiting(4)
    assert writer.is_alive() and not (tmp_path / "go").exists()
    fault_injection.inject_before_waiting(8)
    writer.join(LIMIT_S)
    assert not writer.is_alive() and (tmp_path / "go.waiting").exists()
