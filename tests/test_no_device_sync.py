"""A training forward pass with all losses compiles as one graph and never waits for the device.

Attention weights are stored only where they are asked for.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cjepa_dist.config import command_line, schema
from cjepa_dist.tasks.world_model import WorldModelTask
from tests.steps import run_step

ARMS = {
    "baseline": [],
    "published": ["ctt.kind=published", "ctt.graph.estimator=published"],
    "attention": ["ctt.graph.estimator=attention", "ctt.fraction=0.5"],
    "interventional": ["ctt.graph.estimator=interventional"],
}


def make(
    arm: str, dropout: float, depth: int = 1
) -> tuple[WorldModelTask, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    weights = (
        [f"ctt.{term}.weight=0.1" for term in ("invariance", "sufficiency")]
        if arm != "baseline"
        else []
    )
    sizes = [
        f"predictor.{name}"
        for name in ("slot_dim=8", "heads=2", "mlp_dim=16", f"depth={depth}", f"dropout={dropout}")
    ]
    options = [
        "data=d",
        "run=r",
        "loop.global_batch_size=4",
        "mask.probs=[0,0,1]",
        *sizes,
        *weights,
        *ARMS[arm],
    ]
    batch = {
        "slots": torch.randn(4, 4, 7, 8),
        "present": torch.ones(4, 4, 7, dtype=torch.bool),
        "sample": torch.arange(4),
    }
    return WorldModelTask(command_line.parse(schema.TrainWorldModel, options)), batch


@pytest.mark.parametrize(
    ("arm", "dropout"),
    [("baseline", 0.1), ("published", 0.1), ("attention", 0.1), ("interventional", 0.0)],
)
def test_forward_with_all_losses_compiles_as_one_graph(arm, dropout):
    torch._dynamo.reset()
    task, batch = make(arm, dropout)
    context = task.step_context([batch], 3, task.term_weights(0.9))
    outcome = torch.compile(task, backend="eager", fullgraph=True)(batch, context)
    outcome.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
    assert ("loss_sufficiency" in outcome.metrics) == (arm != "baseline")
    if not dropout:
        torch.testing.assert_close(outcome.loss, run_step(task, batch, 3, 0.9).loss)


@pytest.mark.parametrize("arm", ARMS)
def test_reads_no_value_from_the_device(arm):
    task, batch = make(arm, dropout=0.1)
    task.to("meta")  # a meta tensor has no values: reading one is an error
    batch = {name: value.to("meta") for name, value in batch.items()}
    outcome = run_step(task, batch, 3, 0.9)
    outcome.loss.backward()
    assert outcome.loss.is_meta and all(p.grad is not None for p in task.parameters())


class Softmaxes(TorchDispatchMode):
    """Counts stored attention weights: fused attention calls no softmax."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket is torch.ops.aten._softmax
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("need", "stored"), [(False, 0), ("last", 1), (True, 3)])
def test_attention_weights_are_stored_only_on_request(monkeypatch, need, stored):
    """The path that CUDA takes, run on the CPU."""
    task, batch = make("baseline", dropout=0.0, depth=3)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    with Softmaxes() as softmaxes:
        task.predictor(
            batch["slots"][:, :3], torch.zeros(4, 7, dtype=torch.bool), need_attention=need
        )
    assert softmaxes.count == stored
