"""Arms x seeds: paired by seed, with the spread between seeds."""

from pathlib import Path

from cjepa_dist.reporting import seeds


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_differences_are_paired_by_seed():
    found = {
        "base": {"seed_0": {"error": 1.0}, "seed_1": {"error": 2.0}, "seed_2": {"error": 3.0}},
        "worse": {"seed_2": {"error": 3.3}, "seed_0": {"error": 1.1}, "seed_1": {"error": 2.2}},
        "other": {"seed_0": {"error": 1.1}, "seed_9": {"error": 5.0}},
        "empty": {"seed_0": {}},
    }
    lines = seeds.seed_table(found, percent=True, draws=200)
    assert len({line.count("|") for line in lines}) == 1
    assert cells(lines[2])[:3] == ["base", "3", "2.0000 ± 1.0000"]
    # the arms' seeds spread by half of their mean, the paired difference does not
    assert cells(lines[3]) == [
        "worse",
        "3",
        "2.2000 ± 1.1000",
        "+10.0 [+10.0, +10.0] (+10.0, +10.0, +10.0)",
    ]
    assert cells(lines[4]) == ["other", "2", "3.0500 ± 2.7577", "+10.0"]
    assert cells(lines[5]) == ["empty", "1", "-", "-"]


def test_noise_is_told_from_a_change():
    noise = (1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.1, -0.1)
    base = {f"seed_{n}": {"error": 10.0 * n} for n in range(len(noise))}

    def against(shift):
        arm = {
            name: {"error": run["error"] + shift + extra}
            for (name, run), extra in zip(base.items(), noise)
        }
        text = cells(seeds.seed_table({"base": base, "arm": arm}, percent=False, draws=500)[3])[3]
        low, high = (
            float(part) for part in text[text.index("[") + 1 : text.index("]")].split(", ")
        )
        assert low < shift < high and high - low < 2
        return "*" in text

    assert not against(0.0) and against(3.0)


def test_few_seeds_of_one_sign_are_no_evidence():
    for count, marked in ((5, False), (6, True)):
        base = {f"seed_{n}": {"error": 10.0} for n in range(count)}
        arm = {f"seed_{n}": {"error": 11.0 + n} for n in range(count)}
        assert (
            "*"
            in cells(seeds.seed_table({"base": base, "arm": arm}, percent=False, draws=200)[3])[3]
        ) == marked


def test_names_of_runs():
    assert seeds.arm_and_seed(Path("/r/ctt/seed_0_aloe_7")) == (Path("/r/ctt"), "seed_0_aloe_7")
    assert seeds.arm_and_seed(Path("/r/ctt/seedling")) is None
