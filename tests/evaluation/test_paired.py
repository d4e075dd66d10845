"""Comparisons of arms over seeds and videos: what is said, and when nothing may be said."""

import json
from pathlib import Path

import numpy as np
import pytest

from cjepa_dist import compare
from cjepa_dist.config.command_line import parse
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.paired import compare_pairs, holm, verdict

SEEDS, VIDEOS = 6, 80


def sums(factor: float = 1.0, noise: float = 0.02, seeds: int = SEEDS, seed: int = 0) -> np.ndarray:
    """Errors around 1 of a few objects a video, times `factor` and the noise of each seed."""
    generator = np.random.default_rng(seed)
    of_video = np.exp(0.5 * np.random.default_rng(99).standard_normal(VIDEOS))
    count = np.random.default_rng(98).integers(0, 6, VIDEOS)
    of_seed = factor * (1 + noise * generator.standard_normal((seeds, 1)))
    return np.stack([of_video * of_seed * count, np.broadcast_to(count, (seeds, VIDEOS))], axis=-1)


def test_difference_and_interval_are_those_of_loops() -> None:
    arm, reference = sums(0.9, seed=1), sums(seed=2)
    found = compare_pairs(arm, reference, percent=True, draws=400, seed=5)
    means = [x[..., 0].sum() / x[..., 1].sum() for x in (arm, reference)]
    assert found.difference == pytest.approx(100 * (means[0] / means[1] - 1))
    generator = np.random.default_rng(5)

    def drawn(count: int, videos: bool) -> list[float]:
        found = []
        for times in generator.multinomial(count, np.full(count, 1 / count), 400):
            rows = np.repeat(np.arange(count), times)
            sides = [x[:, rows] if videos else x[rows] for x in (arm, reference)]
            value, other = (x[..., 0].sum() / x[..., 1].sum() for x in sides)
            found.append(100 * (value / other - 1) - found_whole)
        return found

    found_whole = 100 * (means[0] / means[1] - 1)
    of_videos, of_seeds = np.array(drawn(VIDEOS, True)), np.array(drawn(SEEDS, False))
    # Student's t with 5 degrees of freedom: 2.571, beside 1.960 of the normal distribution.
    both = found_whole + of_videos + 2.5706 / 1.95996 * np.sqrt(6 / 5) * of_seeds
    np.testing.assert_allclose(
        [found.low, found.inner_low, found.inner_high, found.high],
        np.quantile(both, [0.025, 0.05, 0.95, 0.975]),
        rtol=1e-4,
    )
    shares = compare_pairs(arm, reference, percent=False, draws=200)
    assert shares.difference == pytest.approx(100 * (means[0] - means[1]))


@pytest.mark.parametrize(
    ("factor", "noise", "said"),
    [(0.8, 0.02, "better"), (1.2, 0.02, "worse"), (1.0, 0.002, "no difference (within 3)")],
)
def test_what_is_said(factor: float, noise: float, said: str) -> None:
    found = compare_pairs(
        sums(factor, noise, seed=1), sums(1.0, noise, seed=2), percent=True, draws=2000
    )
    assert verdict(found, found.p, margin=3.0, lower_is_better=True) == said
    better = "better" if factor > 1 else "worse"
    if factor != 1:
        assert verdict(found, found.p, margin=3.0, lower_is_better=False) == better


def test_what_is_not_said() -> None:
    noisy = compare_pairs(sums(0.99, 0.2, seed=1), sums(1.0, 0.2, seed=2), percent=True, draws=2000)
    assert verdict(noisy, noisy.p, margin=3.0, lower_is_better=True) == "not known"
    few = compare_pairs(sums(0.5, seeds=5, seed=1), sums(seeds=5, seed=2), percent=True, draws=2000)
    assert few.high < -40
    assert verdict(few, few.p, margin=3.0, lower_is_better=True) == "no claim: 5 of 6 pairs"
    many = compare_pairs(sums(0.8, seed=1), sums(seed=2), percent=True, draws=2000)
    assert verdict(many, 0.2, margin=3.0, lower_is_better=True) == "not known", "Holm took it away"


def test_the_noise_between_seeds_is_in_the_interval() -> None:
    """Two arms that differ by the noise of their seeds alone, on the same videos."""
    claims = 0
    for number in range(40):
        found = compare_pairs(
            sums(seed=2 * number), sums(seed=2 * number + 1), percent=True, draws=300
        )
        claims += not found.low <= 0 <= found.high
    assert claims <= 6, "a bootstrap over videos alone would claim nearly all"


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def write_run(run: Path, values: np.ndarray, data: str = "a", videos: int = VIDEOS) -> None:
    by_video = {
        "videos": list(range(videos)),
        "predictor": {"colliding": {"mean": values.tolist()}},
    }
    result = {"one_step": {"by_video": by_video}, "fingerprint": {"data": {"shards": data}}}
    (run / "eval").mkdir(parents=True)
    (run / "eval" / "world_model_val.json").write_text(json.dumps(result))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arm, factor in (("baseline", 1.0), ("ours", 0.8)):
        for seed, values in enumerate(sums(factor, seed=int(10 * factor))):
            write_run(tmp_path / arm / f"seed_{seed}", values)
    words = [f"reference={tmp_path}/baseline", f"arms=[{tmp_path}/ours]", "bootstrap_draws=500"]

    def run(*more: str) -> None:
        config = parse(compare.Compare, [*words, *more])
        assert config is not None
        compare.main(config)

    run(f"out={tmp_path}/result.json")
    shown = capsys.readouterr().out
    assert "| ours | colliding | -2" in shown and "| better |" in shown
    row = json.loads((tmp_path / "result.json").read_text())["rows"][0]
    assert row["verdict"] == "better" and len(row["by_seed"]) == SEEDS
    with pytest.raises(UserError, match="'colidng' is none of colliding"):
        run("measures=[colidng]")
    with pytest.raises(UserError, match=r"symbolic_paired_val.json is missing"):
        run("measures=[programs_counterfactual]")
    with pytest.raises(UserError, match="no run was evaluated on split test"):
        run("split=test")
    write_run(tmp_path / "other" / "seed_0", sums()[0], data="b")
    words[1] = f"arms=[{tmp_path}/other]"
    with pytest.raises(UserError, match="were evaluated on other data or videos"):
        run()
    write_run(tmp_path / "later" / "seed_9", sums()[0])
    words[1] = f"arms=[{tmp_path}/later]"
    with pytest.raises(UserError, match="no seed in common"):
        run()
