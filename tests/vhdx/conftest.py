from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.running import Outcome
from vhdkit.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(code=code, out=out, err=err)

    return call
