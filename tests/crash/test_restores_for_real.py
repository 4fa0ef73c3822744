"""Files put back between real kills, on a real file system with its own numbers and times.

The long one: pytest -m slow -s tests/crash/test_restores_for_real.py
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.crash.real_restores import BY_NAME, Round, Tally
from tests.crash.test_restores import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.thorough


def soaked(names: Iterable[str], seed: str, place: Path) -> Tally:
    tally, dice = Tally(), random.Random(seed)
    for number, name in enumerate(names):
        directory = place / str(number)
        directory.mkdir()
        Round(BY_NAME[name], directory, dice, tally).run()
    return tally


def test_whatever_is_put_back_between_kills_every_verb_refuses_or_is_right(tmp_path: Path) -> None:
    tally = soaked(NAMES[:5], "a few", tmp_path)
    assert tally.findings == []
    assert tally.kills


@pytest.mark.slow
def test_a_hundred_rounds_of_kills_and_of_files_put_back(tmp_path: Path) -> None:
    begun = time.monotonic()
    tally = soaked(NAMES * 15, "many", tmp_path)
    print(f"\n{tally} ({time.monotonic() - begun:.0f} s)", *tally.findings, sep="\n")  # noqa: T201 - its figures
    assert tally.findings == []
