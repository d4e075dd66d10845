"""What loop.precision=auto becomes, and that a run keeps it; memory that stays with the process."""

import platform
import subprocess
import sys

import pytest

from cjepa_dist.config import command_line, merge, schema
from cjepa_dist.engines.build import resolve_precision
from cjepa_dist.runtime import device


@pytest.mark.parametrize(("given", "launched", "device", "found"), [
    ("auto", "no", "bf16", "bf16"), ("auto", "no", "fp32", "fp32"), ("auto", "bf16", "fp32", "bf16"), ("fp32", "no", "bf16", "fp32"),
])  # fmt: skip
def test_precision(given, launched, device, found, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr(device, "native_precision", lambda: device)
    config = command_line.parse(
        schema.TrainWorldModel, ["data=d", f"run={tmp_path}", f"loop.precision={given}"]
    )
    resolve_precision(tmp_path, config)
    assert config.loop.precision == found


def test_a_run_goes_on_as_it_began(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "native_precision", lambda: "fp32")
    config = command_line.parse(
        schema.TrainWorldModel, ["data=d", f"run={tmp_path}", "loop.precision=bf16"]
    )
    merge.save_yaml(config, tmp_path / "config.yaml")
    config.loop.precision = "auto"
    resolve_precision(tmp_path, config)
    assert config.loop.precision == "bf16"


FAULTS = """
import resource, torch
from cjepa_dist import runtime
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
runtime.keep_freed_memory()
for _ in range(20):  # aligned blocks leave remainders, of which glibc's cache takes seven before they merge
    faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept(monkeypatch):
    """A block of 64 MB that was freed is not asked of the kernel again, page by page."""
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 10 and kept < given_back / 10
