"""The short programs do what they say."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import vhdkit
from vhdkit import testing

HERE = Path(__file__).parent
CONTENTS = [{0: b"base" * 5000}, {4096: b"child" * 900}, {0: b"leaf"}]


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(HERE / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_inventory_lists_chains_and_orphans(tmp_path: Path) -> None:
    leaf, _, base = testing.make_chain(tmp_path, CONTENTS)
    lonely, _ = testing.make_chain(tmp_path, [{}, {}], name="lonely")
    Path(lonely).with_name("lonely.vhd").unlink()
    rows = list(csv.DictReader(run("inventory.py", str(tmp_path)).splitlines()))
    size = str(testing.DISK_SIZE)
    assert rows == [
        {"leaf": leaf, "base": base, "layers": "3", "size": size, "state": "clean"},
        {"leaf": lonely, "base": "", "layers": "", "size": size, "state": "orphan"},
    ]


def test_a_careful_merge_leaves_one_image(tmp_path: Path) -> None:
    leaf, _, base = testing.make_chain(tmp_path, CONTENTS)
    output = run("careful_merge.py", leaf, base, str(tmp_path / "undo.vhd"))
    assert output.splitlines()[-1].startswith("removed ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.vhd"]
    with vhdkit.open_chain(base) as chain:
        assert chain[:] == testing.expected_view(CONTENTS)
