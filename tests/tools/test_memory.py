"""tools.memory against what a step really takes."""

import subprocess
import sys

import pytest

from cjepa_dist.config import command_line, schema
from cjepa_dist.runtime.device import native_precision
from tests.fork_server import PROJECT
from tools import memory

WIDE = (
    "configs/world_model/quickstart.yaml",
    "data=d",
    "run=r",
    "predictor.width=512",
    "predictor.mlp_dim=2048",
    "predictor.depth=7",
    "predictor.heads=8",
    "loop.global_batch_size=64",
    "optimizer.name=adamw",
)
STEP = """
import resource, sys, torch
from cjepa_dist.config import command_line, schema
from tools.bench.bare_step import BareStep

config = command_line.parse(schema.TrainWorldModel, sys.argv[1:])
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
p, size = config.predictor, config.loop.global_batch_size
batch = {
    "slots": torch.randn(size, p.history_frames + p.pred_frames, p.slots, p.slot_dim),
    "present": torch.ones(size, p.history_frames + p.pred_frames, p.slots, dtype=torch.bool),
    "sample": torch.arange(size),
}
step = BareStep(config, [batch], precision=config.loop.precision, progress=0.99)
for _ in range(2):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_estimate_is_what_a_step_takes(precision):
    if precision == "bf16" and native_precision() == "fp32":
        pytest.skip("this CPU has no bfloat16: it works on float32 copies, which are not counted")
    arguments = [*WIDE, f"loop.precision={precision}"]
    done = subprocess.run(
        [sys.executable, "-c", STEP, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimated = sum(
        memory.estimate_memory(command_line.parse(schema.TrainWorldModel, arguments)).values()
    )
    assert 0.7 < estimated / int(done.stdout) < 1.3


def test_engines_share_what_they_say():
    config = command_line.parse(schema.TrainWorldModel, WIDE)
    found = {
        engine: memory.estimate_memory(config, engine=engine, processes=4)
        for engine in memory.ENGINES
    }
    weights, optimizer = found["ddp"]["weights"], found["ddp"]["optimizer"]
    assert optimizer == 2 * weights
    assert all(
        found[name]["optimizer"] == optimizer // 4 for name in ("zero1", "zero2", "zero3", "fsdp2")
    )
    assert (
        found["zero2"]["weights"] == weights
        and found["zero3"]["weights"] == found["fsdp2"]["weights"] == weights // 4
    )
    totals = [sum(found[name].values()) for name in ("zero3", "zero2", "zero1", "ddp")]
    assert totals == sorted(totals)


def test_vqa_and_data_and_a_batch_that_does_not_divide(command, small_data):
    arguments = (
        "config=configs/aloe/quickstart.yaml",
        "overrides=[loop.global_batch_size=8]",
        f"data={small_data}",
    )
    done = command("tools.memory", *arguments, "processes=2", "engine=zero2")
    assert done.returncode == 0, done.stderr
    assert "slots of the train split" in done.stdout and "4 samples a pass" in done.stdout
    wrong = command("tools.memory", *arguments, "processes=3")
    assert (
        wrong.returncode == 2 and "loop.global_batch_size=8 is not divisible by 3" in wrong.stderr
    )
