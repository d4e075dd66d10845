"""Every loss has the gradient of the global batch, for any number of processes and passes.

Real gloo processes, float32, dropout 0.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cjepa_dist.config import command_line, schema
from cjepa_dist.runtime.collectives import all_reduce
from cjepa_dist.tasks.world_model import WorldModelTask

B, S, D, HORIZON = 16, 7, 8, 3
TINY = [
    "data=d", "run=r", f"horizon={HORIZON}", f"loop.global_batch_size={B}",
    f"predictor.slot_dim={D}", "predictor.width=32", "predictor.depth=2", "predictor.heads=2",
    "predictor.mlp_dim=32", "predictor.dropout=0",
    "ctt.invariance.ramp=0", "ctt.sufficiency.ramp=0",
    "ctt.consistency.ramp=0", "ctt.consistency.steps=[1,2,3]",
]  # fmt: skip
GRAPH = ["ctt.invariance.weight=0.7", "ctt.sufficiency.weight=1.3"]
LOSSES = {
    "baseline": [],
    "published": [*GRAPH, "ctt.kind=published", "ctt.graph.threshold=0.05", "mask.mode=batch"],
    "published, masks of each sample": [
        *GRAPH,
        "ctt.kind=published",
        "ctt.graph.threshold=0.035",
        "mask.mode=sample",
    ],
    "attention": [*GRAPH, "ctt.graph.estimator=attention"],
    "interventional": [*GRAPH, "ctt.graph.estimator=interventional", "ctt.graph.tau=0.001"],
    "oracle, a half of the batch": [*GRAPH, "ctt.graph.estimator=oracle", "ctt.fraction=0.5"],
    "consistency": ["ctt.consistency.weight=0.9"],
    "all": [
        *GRAPH,
        "ctt.graph.estimator=attention",
        "ctt.consistency.weight=0.9",
        "ctt.fraction=0.5",
    ],
}
STEP, PROGRESS = 5, 0.5


def gradients(
    loss: str, rank: int, world: int, passes: int
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Gradients of a rank after the passes of a training step, and the counts of both terms."""
    torch.manual_seed(0)
    task = WorldModelTask(
        command_line.parse(
            schema.TrainWorldModel, [*TINY, *LOSSES[loss], f"loop.gradient_accumulation={passes}"]
        )
    ).train()
    generator = torch.Generator().manual_seed(1)
    frames, contact = 3 + HORIZON, torch.rand(B, S, S, generator=generator) < 0.3
    batch = {
        "slots": torch.randn(B, frames, S, D, generator=generator),
        "present": (torch.rand(B, 1, S, generator=generator) < 0.8).expand(B, frames, S),
        "sample": STEP * B + torch.arange(B),
        "contact": contact | contact.transpose(1, 2),
    }
    share = B // world
    mine = {name: value[rank * share : (rank + 1) * share] for name, value in batch.items()}
    chunks = {name: value.chunk(passes) for name, value in mine.items()}
    batches = [{name: parts[i] for name, parts in chunks.items()} for i in range(passes)]
    context = task.step_context(batches, STEP, task.term_weights(PROGRESS))
    counts = torch.zeros(2)
    for batch in batches:
        outcome = task(batch, context)
        (outcome.loss / passes).backward()
        counts += torch.stack(
            [
                outcome.metrics.get(f"loss_{name}", (0, torch.zeros(())))[1]
                for name in ("invariance", "sufficiency")
            ]
        )
    grads = {
        name: all_reduce(p.grad) / world
        for name, p in task.named_parameters()
        if p.grad is not None
    }
    return grads, all_reduce(counts).tolist()


@pytest.fixture(scope="module", params=[2, 4])
def parts(request, tmp_path_factory) -> tuple[int, Path]:
    """Gradients of all losses from 2 or 4 real processes."""
    world, out = request.param, tmp_path_factory.mktemp("gradients")
    root = Path(__file__).resolve().parents[1]
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(world),
        "-m",
        "tests.test_parallel",
        str(out),
    ]
    done = subprocess.run(
        start,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return world, out


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_ranks_and_passes_have_the_gradient_of_the_global_batch(loss, passes, parts):
    world, out = parts
    expected, counts = gradients(loss, 0, 1, 1)
    got = torch.load(out / f"{list(LOSSES).index(loss)}_{passes}.pt", weights_only=True)
    assert json.loads(
        (out / f"{list(LOSSES).index(loss)}_{passes}.json").read_text()
    ) == pytest.approx(counts)
    if loss not in ("baseline", "consistency"):
        assert all(count > 0 for count in counts), "both terms must have samples"
    assert got.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name],
            value,
            rtol=1e-4,
            atol=2e-6 * largest,
            msg=lambda m, n=name: f"{loss}, {world} ranks, {n}: {m}",
        )


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for index, loss in enumerate(LOSSES):
        for passes in (1, 2):
            grads, counts = gradients(loss, dist.get_rank(), dist.get_world_size(), passes)
            if dist.get_rank() == 0:
                torch.save(grads, out / f"{index}_{passes}.pt")
                (out / f"{index}_{passes}.json").write_text(json.dumps(counts))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
