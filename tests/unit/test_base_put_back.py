"""A destination put back from a backup after a merge into it was killed: the same command merges all of it again.

Killed once room was made and before the first mark, the merge has moved the footer, and linked no block yet. A copy of
the base from before has neither the room nor a footer where the journal says.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import vhdkit

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
# The first byte that is copied ends the process, so that nothing is cleaned up.
KILLED_WHILE_COPYING = """
import os, signal, sys, vhdkit

def stop(state):
    if state.phase is vhdkit.Phase.COPYING:
        os.kill(os.getpid(), signal.SIGKILL)

leaf, base, undo = sys.argv[1:]
vhdkit.merge(vhdkit.plan_merge(leaf, into=base, undo=undo or None), progress=stop)
"""

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no process can be killed so here")


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """Eight blocks in the base, of which the leaf has two, and eight more that the base lacks."""
    base, leaf = str(tmp_path / "base.vhd"), str(tmp_path / "leaf.avhd")
    vhdkit.create_image(base, size=64 * MIB)
    with vhdkit.open_chain(base, writable=True) as chain:
        chain.write(0, b"base" * (4 * MIB), sync=True)
    vhdkit.create_image(leaf, parent=base)
    with vhdkit.open_chain(leaf, writable=True) as chain:
        chain.write(12 * MIB, b"leaf" * (5 * MIB), sync=True)
    return tmp_path


def view(path: Path) -> bytes:
    with vhdkit.open_chain(str(path)) as chain:
        return chain.read(0, chain.size)


def kill_while_copying(vms: Path, undo: str) -> None:
    words = [sys.executable, "-c", KILLED_WHILE_COPYING, str(vms / "leaf.avhd"), str(vms / "base.vhd"), undo]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    journal = (vms / "base.vhd.vhdkit-journal").read_bytes()
    assert b'"kind":"reserved"' in journal
    assert b'"kind":"mark"' not in journal


@pytest.mark.parametrize("undo", ["", "u.vhd"])
@pytest.mark.parametrize("put_back", [shutil.copyfile, shutil.copy2], ids=["new time", "old times"])
def test_the_same_command_merges_all_of_it_again(vms: Path, put_back: object, undo: str) -> None:
    base, leaf = vms / "base.vhd", vms / "leaf.avhd"
    old, expected, kept = view(base), view(leaf), str(vms / undo) if undo else ""
    shutil.copy2(base, vms / "backup")
    kill_while_copying(vms, kept)
    put_back(vms / "backup", base)  # type: ignore[operator] # a function
    vhdkit.merge(vhdkit.plan_merge(str(leaf), into=str(base), undo=kept or None))
    assert leaf.exists() == bool(undo)
    assert base.read_bytes()[-512:].startswith(b"conectix")
    assert not [each for each in vhdkit.check(str(base), deep=True).findings if each.level is vhdkit.Level.ERROR]
    assert view(base) == expected
    if undo:
        vhdkit.rollback(kept)
        assert view(base) == old
