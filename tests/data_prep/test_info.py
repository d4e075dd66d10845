"""`cjepa info`: what a folder of shards holds."""

import pytest

from cjepa_dist.errors import UserError
from data_prep.info import Info, describe_dataset, main
from data_prep.simulate.__main__ import main as simulate
from data_prep.simulate.settings import Simulate


def test_what_a_simulated_data_set_holds(tmp_path, capsys):
    simulate(Simulate(out=str(tmp_path / "data"), train=1, val=1, test=0, workers=1))
    capsys.readouterr()
    main(Info(data=str(tmp_path / "data")))
    printed = capsys.readouterr().out
    assert "videos of 128 frames" in printed and "train: 1 videos in 1 shards" in printed
    assert "descriptive" in printed and "annotations, questions, ground truth" in printed
    assert "made by" in printed and "seed=" in printed


def test_no_data_set_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no data set"):
        describe_dataset(str(tmp_path))
