"""Small released checkpoints, and the command line of the tools without a new process."""

import pytest
import torch

from cjepa_dist import evaluate, evaluate_graph, rollout
from cjepa_dist.config.command_line import launch
from cjepa_dist.config.schema import AloeConfig, PredictorConfig
from data_prep import import_pickle
from tools import export_checkpoint
from tools.import_checkpoint import __main__ as import_checkpoint

SIZES = PredictorConfig(
    slots=4, slot_dim=8, history_frames=3, pred_frames=1, depth=2, heads=2, mlp_dim=16
)
ALOE_SIZES = AloeConfig(
    slots=4, slot_dim=8, frames=5, width=16, depth=2, heads=2, mlp_dim=32, word_dim=4, head_dim=16
)
OPTIONS, ALOE_OPTIONS = ("heads=2", "slots=4"), ("heads=2", "slots=4", "stride=5")
SCHEMAS = {
    import_checkpoint: import_checkpoint.ImportCheckpoint,
    export_checkpoint: export_checkpoint.ExportCheckpoint,
    import_pickle: import_pickle.ImportPickle,
    rollout: rollout.Rollout,
    evaluate: evaluate.Evaluate,
    evaluate_graph: evaluate_graph.EvaluateGraph,
}


def run_command(capsys, module, *arguments):
    """(exit code, stdout, error lines) of `module`'s command line with key=value arguments."""
    with pytest.raises(SystemExit) as end:
        launch(SCHEMAS[module], module.main, [str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return end.value.code, printed.out, [line for line in printed.err.splitlines() if line]


def released(model):
    """The state dict of a model with every parameter random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to_reference()


def same(a, b):
    """Whether two state dicts are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
