"""A merge finds out once what it will do, and holds the files against that before it changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.jobs.making import make_chain, view
from vhdkit.cli.main import run
from vhdkit.merging.plan import in_place, planner
from vhdkit.merging.run import locked_files

if TYPE_CHECKING:
    from pathlib import Path


def counting(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[str]:
    calls: list[str] = []
    function = getattr(module, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, counted)
    return calls


@pytest.mark.parametrize("is_of_a_machine", [False, True])
def test_a_merge_opens_its_chain_once_plans_once_and_looks_for_siblings_once_to_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_of_a_machine: bool
) -> None:
    leaf = make_chain(tmp_path, "a", 2)
    if is_of_a_machine:
        other = make_chain(tmp_path, "b", 1)
        assert run(["snapshot", "init", other]) == 0
    before = view(leaf)
    opened = counting(monkeypatch, planner, "open_chain_with")
    planned = counting(monkeypatch, planner, "plan_in_place")
    looked = counting(monkeypatch, in_place, "find_relatives")
    held = counting(monkeypatch, locked_files, "find_relatives")
    assert run(["merge", leaf, "--progress", "none"]) == 0
    assert (len(opened), len(planned), len(looked)) == (1, 1, 1)
    # Under the locks, and once more before names are changed: neither is a plan.
    assert len(held) == 2
    assert view(str(tmp_path / "a.vhd")) == before
