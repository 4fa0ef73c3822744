"""A forged journal or step file gains nothing: see `forged` for what is tried, and what must not be.

In full, by hand: `pytest -m slow tests/corrupt/test_forged_journals.py -s`.
"""

from __future__ import annotations

import pytest

from tests.corrupt.forged import State, Tally, forge, journal_states, step_states
from tests.cutting import small_checkpoints


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_checkpoints(monkeypatch)


def states() -> list[State]:
    return [*journal_states(), *step_states()]


def test_the_states_are_all_there() -> None:
    found = {state.name: [record.get("kind", "step") for record in state.records()] for state in states()}
    assert found["begin"] == ["begin"]
    assert found["mark"][:3] == ["begin", "reserved", "saved"]
    assert "merged" in found["merged"]
    assert "dropping" in found["dropping"]
    assert "restored" in found["rollback"]
    assert found["longer table"] == found["relink"] == ["step"]


def test_some_forgeries_of_each_record_gain_nothing() -> None:
    tally = Tally()
    for state in states():
        forge(state, tally, seed=17, count=1)
    assert tally.faults == []
    assert tally.calls > 100


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_every_forgery_gains_nothing(number: int) -> None:
    tally = Tally()
    state = states()[number]
    forge(state, tally)
    print(f"{state.name}: {tally}")  # noqa: T201 - the figures
    assert tally.faults == []
