from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.snapshots.machines import Kept

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """A machine of one disk with nothing taken yet, in a folder of its own."""
    folder = tmp_path / "vms"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Kept.made(folder, ["xp.vhd"])
