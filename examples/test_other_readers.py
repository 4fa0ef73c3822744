"""The script of the README says of the fixtures what the README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAF = ROOT / "fixtures" / "web01_3A7F2C10-5D0E-4B7B-9C55-0D1E6A3B9F42.avhd"


def test_other_readers_show_the_parents_data_as_zeros() -> None:
    script = Path(__file__).with_name("other_readers.py")
    done = subprocess.run([sys.executable, script, LEAF], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["qemu-img", "dissect.hypervisor"]
    assert all(": 83 of 105 sectors with data are read as zeros, without an error" in line for line in lines)
