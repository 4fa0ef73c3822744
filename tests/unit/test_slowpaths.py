"""Turning a fast path off does so: here, and in the processes that a test starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vhdkit
from tests.slowpaths import ALL, chosen
from vhdkit.storage.fast_paths import VARIABLE, FastPath, is_used, turn_off, without

PACKAGE = Path(vhdkit.__file__).parent


@pytest.mark.parametrize("path", FastPath)
def test_each_path_is_asked_for_in_one_module(path: FastPath) -> None:
    asking = [module for module in PACKAGE.rglob("*.py") if f"is_used(FastPath.{path.name})" in module.read_text()]
    assert len(asking) == 1


@pytest.mark.parametrize("path", FastPath)
def test_a_path_is_off_in_a_process_that_a_test_starts(path: FastPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, path)
    code = "from vhdkit.storage.fast_paths import FastPath, is_used; print(*(p for p in FastPath if not is_used(p)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == [path.value]


@pytest.mark.fast_path("stacked")
@pytest.mark.fast_path("many")
def test_paths_are_off_for_a_block() -> None:
    with without(FastPath.MANY):
        with without(FastPath.STACKED):
            assert not is_used(FastPath.MANY)
            assert not is_used(FastPath.STACKED)
        assert is_used(FastPath.STACKED)
    assert is_used(FastPath.MANY)


def test_turned_off_they_are_off_for_the_processes_started_from_now_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with without():
        turn_off([FastPath.SHARE, FastPath.DIRECT])
        assert not is_used(FastPath.SHARE)
        assert {"direct", "share"} <= {*os.environ[VARIABLE].split(",")}


def test_what_this_run_is_without_is_off_here(pytestconfig: pytest.Config) -> None:
    off = chosen(pytestconfig.getoption("without"))
    assert [path for path in FastPath if not is_used(path)] == [path for path in FastPath if path in off]


def test_names_are_told_apart() -> None:
    assert chosen(["many", "all", "many"]) == (FastPath.MANY, *(path for path in ALL if path is not FastPath.MANY))
    with pytest.raises(ValueError, match="no fast path is called teleport"):
        chosen(["teleport"])
