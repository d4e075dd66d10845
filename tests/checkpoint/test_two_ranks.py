"""All ranks go on from the checkpoint that rank zero chooses, or none does.

Run as a module by the test, with two processes; FOLDER/0 and FOLDER/1 are what each rank sees of
one run directory.
"""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cjepa_dist.checkpoint.loading import load_checkpoint
from cjepa_dist.checkpoint.resume import LAST_CHECKPOINT, choose_resume_point, resume
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.errors import UserError


def training():
    model = nn.Linear(3, 3)
    return model, [torch.optim.AdamW(model.parameters())]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A folder for each case: what two ranks see of a run with checkpoints of 350 and 700."""
    folder, (model, optimizers) = tmp_path_factory.mktemp("ranks"), training()
    run = folder / "run"
    writer = CheckpointWriter(run / "checkpoints", keep=2, record=run / LAST_CHECKPOINT)
    for step in (350, 700):
        model(torch.ones(3)).sum().backward()
        optimizers[0].step()
        writer.save(model, optimizers, step=step, meta={})
    for case in CASES:
        for rank in range(2):
            shutil.copytree(run, folder / case / str(rank))
        CASES[case](folder / case)
    return folder


def newest(folder, rank):
    return folder / str(rank) / "checkpoints" / "step_00000700"


def damage(path):
    (path / "model.safetensors").write_text("damaged")


def refuse(path):
    """A file that opens, and whose first byte is an I/O error."""
    (path / "__0_0.distcp").unlink()
    (path / "__0_0.distcp").symlink_to("/proc/self/mem")


def other(path):
    """As an old copy would be: whole, and of another moment."""
    (path / "checksums.json").write_text((path / "checksums.json").read_text() + " ")


CASES = {
    "the other would take an older one": lambda folder: damage(newest(folder, 1)),
    "rank 0 takes an older one": lambda folder: damage(newest(folder, 0)),
    "the other cannot read it": lambda folder: refuse(newest(folder, 1)),
    "the other sees another one": lambda folder: other(newest(folder, 1)),
    "the other does not see it": lambda folder: shutil.rmtree(newest(folder, 1)),
    "rank 0 cannot read it": lambda folder: refuse(newest(folder, 0)),
    "rank 0 sees none": lambda folder: shutil.rmtree(folder / "0" / "checkpoints"),
}


@pytest.fixture(scope="module")
def answers(seen, command):
    """{case: what each rank says: the step and a weight, or an error}."""
    done = command("tests.checkpoint.test_two_ranks", str(seen), processes=2)
    assert done.returncode == 0, done.stderr
    each = [json.loads((seen / f"answers{rank}.json").read_text()) for rank in range(2)]
    return {case: [answer[case] for answer in each] for case in CASES}


@pytest.mark.parametrize(
    ("case", "step"),
    [("the other would take an older one", 700), ("rank 0 takes an older one", 350)],
)
def test_both_go_on_from_the_choice_of_rank_zero(answers, case, step):
    assert [found[0] for found in answers[case]] == [step, step]
    assert answers[case][0] == answers[case][1]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("the other cannot read it", "cannot be read: Input/output error; the checkpoint may be"),
        ("the other sees another one", "is not the checkpoint that rank 0 sees: all nodes must"),
        ("the other does not see it", "cannot be read: No such file or directory; the checkpoint"),
        ("rank 0 cannot read it", "__0_0.distcp cannot be read: Input/output error"),
        ("rank 0 sees none", "has no checkpoint, but this run wrote one of step 700"),
    ],
)
def test_both_stop_with_the_same_line(answers, case, words):
    assert answers[case][0] == answers[case][1] and words in answers[case][0]


def look(run_dir: Path):
    """What this rank resumes from: (step, weights), or the message of the UserError."""
    model, optimizers = training()
    load = partial(load_checkpoint, task=model, optimizers=optimizers)
    try:
        meta = resume(run_dir, load, choose_resume_point(run_dir))
    except UserError as error:
        return str(error)
    return meta["step"], model.weight.tolist()


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    answers = {case: look(folder / case / str(rank)) for case in CASES}
    (folder / f"answers{rank}.json").write_text(json.dumps(answers))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
