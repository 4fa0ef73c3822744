"""100,000 chains on 200 hosts: nothing is overrun, nothing is done twice, and hardly any time is lost."""

from __future__ import annotations

import random

import pytest

from tests.fleet.simulated_fleet import PER_TARGET, Weather, limits_of, make_fleet, simulate

# What a schedule that knows neither durations nor who will fail may lose against one that cannot exist. First come,
# first served loses 0.05 and 0.10 of the large fleet, and up to 0.20 of the small ones.
MOST_OVER_BOUND, MOST_OVER_LARGE = 1.2, 1.05


@pytest.mark.parametrize(("chains", "hosts", "parallel"), [(100_000, 200, None), (20_000, 40, 60)])
def test_a_hundred_thousand_chains_take_little_more_than_they_must(
    chains: int, hosts: int, parallel: int | None
) -> None:
    dice = random.Random(2026)
    tasks = make_fleet(chains, hosts, dice)
    outcome = simulate(tasks, Weather(), dice, parallel)
    assert len(outcome.ends) == len(tasks)
    assert set(outcome.ends.values()) == {1}
    limits = limits_of(tasks)
    over = {name for name, most in outcome.most_at_once.items() if most > limits.get(name, PER_TARGET)}
    assert over == set()
    assert outcome.deaths > chains / 100
    assert outcome.makespan <= MOST_OVER_LARGE * outcome.bound


@pytest.mark.parametrize("seed", range(5))
def test_in_bad_weather_and_small_fleets_the_bound_is_near_too(seed: int) -> None:
    dice = random.Random(seed)
    tasks = make_fleet(2_000, 20, dice)
    outcome = simulate(tasks, Weather(dies=0.2, straggles=0.1), dice)
    assert set(outcome.ends.values()) == {1}
    assert outcome.makespan <= MOST_OVER_BOUND * outcome.bound
