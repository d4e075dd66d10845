"""What loop.precision=auto becomes, and that a run keeps it; freed memory stays in the process."""

import platform
import subprocess
import sys

import pytest

from cjepa_dist.config import command_line, merge, schema
from cjepa_dist.engines import build
from cjepa_dist.engines.build import resolve_precision


@pytest.mark.parametrize(
    ("given", "launched", "native", "expected"),
    [
        ("auto", "no", "bf16", "bf16"),
        ("auto", "no", "fp32", "fp32"),
        ("auto", "bf16", "fp32", "bf16"),
        ("fp32", "no", "bf16", "fp32"),
    ],
)
def test_precision(given, launched, native, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr(build, "native_precision", lambda: native)
    config = command_line.parse(
        schema.TrainWorldModel, ["data=d", f"run={tmp_path}", f"loop.precision={given}"]
    )
    resolve_precision(tmp_path, config)
    assert config.loop.precision == expected


def test_a_resumed_run_keeps_its_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "native_precision", lambda: "fp32")
    config = command_line.parse(
        schema.TrainWorldModel, ["data=d", f"run={tmp_path}", "loop.precision=bf16"]
    )
    merge.save_yaml(config, tmp_path / "config.yaml")
    config.loop.precision = "auto"
    resolve_precision(tmp_path, config)
    assert config.loop.precision == "bf16"


FAULTS = """
import resource, torch
from cjepa_dist.runtime.device import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
keep_freed_memory()
# Aligned blocks leave remainders, of which glibc's cache takes seven before they merge.
for _ in range(20):
    faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept(monkeypatch):
    """A freed block of 64 MB is used again without new page faults."""
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 10 and kept < given_back / 10
