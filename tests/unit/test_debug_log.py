"""A program that uses logging hears of searches, recoveries and waits; one that doesn't need not load it."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import vhdkit
from vhdkit import testing

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

CONTENTS = [{0: b"base"}, {512: b"child"}]


def test_a_search_for_a_parent_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    child, base = testing.make_chain(tmp_path, CONTENTS)
    renamed = (tmp_path / "disk.vhd").rename(tmp_path / "other.vhd")
    with caplog.at_level(logging.DEBUG, "vhdkit"):
        vhdkit.open_chain(child).close()
    messages = [record.getMessage() for record in caplog.records if record.name == "vhdkit.chain"]
    assert f"{child}: {base} (W2ru) is not its parent: no such file or directory" in messages
    assert messages[-1] == f"{child}: its parent is {renamed}"


def test_reading_a_chain_loads_no_logging(tmp_path: Path) -> None:
    child, _ = testing.make_chain(tmp_path, CONTENTS)
    code = "import sys, vhdkit; vhdkit.open_chain(sys.argv[1]).close(); print('logging' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, child], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
