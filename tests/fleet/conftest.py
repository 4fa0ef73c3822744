from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of jobs for each test alone."""
    monkeypatch.setenv("VHDKIT_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """A folder of machines' folders."""
    (tmp_path / "vms").mkdir()
    return tmp_path / "vms"
