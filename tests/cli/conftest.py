from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import CHAIN, FIXTURES, Outcome
from tests.jobs.conftest import state
from vhdkit.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["cli", "lay", "state", "vms"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(code=code, out=out, err=err)

    return call


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put copies of fixtures into a folder of their own and go there."""
    folder = tmp_path / "vms"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def put(*names: str) -> Path:
        for name in names:
            shutil.copy2(FIXTURES / name, folder / name)
        return folder

    return put


@pytest.fixture
def vms(lay: Callable[..., Path]) -> Path:
    """A folder with the chain of three, which is also the current one."""
    return lay(*CHAIN)
