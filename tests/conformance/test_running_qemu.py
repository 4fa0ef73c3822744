"""Why vhdkit takes no snapshot of a running qemu: qemu cannot go on in a differencing VHD. Each way is tried here."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.conformance.machines_qemu import running_qemu
from tests.conformance.tools import qemu_flat, requires

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    vhdkit.create_image(tmp_path / "a.vhd", size=4 * MIB)
    with vhdkit.open_chain(tmp_path / "a.vhd", writable=True) as chain:
        chain.write(0, b"parent's" * 64)
    return tmp_path / "a.vhd"


def test_qemu_makes_no_differencing_vhd(disk: Path) -> None:
    requires("qemu-img")
    words = ["qemu-img", "create", "-f", "vpc", "-b", str(disk), "-F", "vpc", str(disk.with_suffix(".avhd"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Backing file not supported for file format 'vpc'" in done.stdout + done.stderr


def test_a_running_qemu_goes_on_in_no_vhd_of_its_own_or_of_ours(disk: Path, tmp_path: Path) -> None:
    child = tmp_path / "a_1.avhd"
    vhdkit.create_image(child, parent=disk)
    with running_qemu(str(disk), tmp_path / "monitor") as monitor:
        new = {"node-name": "disk", "snapshot-file": str(tmp_path / "a_2.avhd"), "format": "vpc"}
        answer = monitor.ask("blockdev-snapshot-sync", **new, **{"snapshot-node-name": "overlay"})
        assert "Backing file not supported for file format 'vpc'" in answer["error"]["desc"]
        file = {"driver": "file", "filename": str(child)}
        added = monitor.ask("blockdev-add", **{"driver": "vpc", "node-name": "new", "file": file})
        assert added == {"return": {}}
        answer = monitor.ask("blockdev-snapshot", node="disk", overlay="new")
        assert "does not support backing images" in answer["error"]["desc"]


def test_qemu_reads_zeros_where_a_differencing_vhd_has_its_parents_data(disk: Path, tmp_path: Path) -> None:
    requires("qemu-img")
    child = tmp_path / "a_1.avhd"
    vhdkit.create_image(child, parent=disk)
    with vhdkit.open_chain(child) as chain:
        assert chain.read(0, 8) == b"parent's"
    assert qemu_flat(child, tmp_path / "raw").read_bytes()[:8] == bytes(8)
