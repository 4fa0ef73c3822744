"""A file is what its name says; `-` is standard output for a raw disk, and refused for everything else."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import BASE, FIXTURES, LEAF, MANIFEST, environment, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

OTHERS = ("vhdx", "avhdx", "qcow2", "vmdk", "vdi")
RAW = ("img", "raw", "iso")
VHD = ("vhd", "avhd", "vud")
FREE = ("new", "new.disk", "new.1", "new.vhd.old", ".vhdx", "new.vhdx.d/new")
WRITERS = {
    "convert": ["convert", LEAF, "{}"],
    "convert-dynamic": ["convert", "-O", "dynamic", LEAF, "{}"],
    "convert-fixed": ["convert", "-O", "fixed", LEAF, "{}"],
    "merge-to": ["merge", LEAF, "--to", "{}"],
    "merge-to-dry": ["merge", LEAF, "--to", "{}", "--dry-run"],
    "merge-to-background": ["merge", LEAF, "--to", "{}", "--background"],
    "merge-undo": ["merge", LEAF, "--undo", "{}"],
    "create": ["create", "{}", "--size", "1M"],
    "create-fixed": ["create", "{}", "--size", "1M", "--type", "fixed"],
    "create-child": ["create", "{}", "--parent", LEAF],
}
TO_RAW = ["convert", "-O", "raw", LEAF, "{}"]


@pytest.mark.parametrize("suffix", [*OTHERS, *RAW, "VHDX", "Img"])
@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_no_vhd_is_written_under_the_name_of_another_format(cli: Cli, vms: Path, words: list[str], suffix: str) -> None:
    before = snapshot(vms)
    message = cli(*(word.format(f"new.{suffix}") for word in words)).refused(64)
    assert f"new.{suffix}" in message
    assert snapshot(vms) == before


@pytest.mark.parametrize("suffix", [*OTHERS, *VHD, "VHD"])
def test_no_raw_disk_is_written_under_the_name_of_another_format(cli: Cli, vms: Path, suffix: str) -> None:
    before = snapshot(vms)
    message = cli(*(word.format(f"new.{suffix}") for word in TO_RAW)).refused(64)
    assert f"new.{suffix}" in message
    assert snapshot(vms) == before


@pytest.mark.parametrize("suffix", VHD)
@pytest.mark.parametrize("words", ["convert", "create", "create-child", "merge-to"])
def test_names_of_vhds_are_free_for_vhds(cli: Cli, vms: Path, words: str, suffix: str) -> None:
    assert cli(*(word.format(f"new.{suffix}") for word in WRITERS[words])).code == 0
    assert (vms / f"new.{suffix}").read_bytes()[-512:-504] == b"conectix"


@pytest.mark.parametrize("name", FREE)
def test_names_that_say_nothing_are_free(cli: Cli, vms: Path, name: str) -> None:
    (vms / "new.vhdx.d").mkdir()
    for words in (WRITERS["convert"], TO_RAW):
        assert cli(*(word.format(name) for word in words)).code == 0
        (vms / name).unlink()


@pytest.mark.parametrize("suffix", RAW)
def test_the_command_in_the_refusal_writes_the_format_that_the_name_says(cli: Cli, vms: Path, suffix: str) -> None:
    for words in ("convert", "merge-to"):
        message = cli(*(word.format(f"new.{suffix}") for word in WRITERS[words])).refused(64)
        command = message.split("`")[1].split()
        assert command[0] == "vhdkit"
        assert cli(*command[1:]).code == 0
        assert snapshot(vms).pop(f"new.{suffix}") == MANIFEST[LEAF]["view_sha256"]
        (vms / f"new.{suffix}").unlink()


def test_python_gets_an_error_of_its_own(vms: Path) -> None:
    with pytest.raises(vhdkit.FileNameError) as caught:
        vhdkit.convert(LEAF, str(vms / "new.qcow2"))
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.suffix, error.written, error.path) == (".qcow2", "VHD", str(vms / "new.qcow2"))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert (again.suffix, again.written, str(again)) == (error.suffix, error.written, str(error))
    for refused in (
        lambda: vhdkit.create_image("a.vhdx", size=1 << 20),
        lambda: vhdkit.plan_merge(LEAF, to="a.img"),
        lambda: vhdkit.plan_merge(LEAF, undo="a.raw"),
        lambda: vhdkit.convert(LEAF, "a.vhd", output_format="raw"),
    ):
        with pytest.raises(vhdkit.FileNameError):
            refused()


DASHES = [
    *([word.replace("{}", "-") for word in words] for words in WRITERS.values()),
    ["merge", LEAF, "--log-file", "-"],
    ["snapshot", "export", "A", "-", "m.vhd"],
]


@pytest.mark.parametrize("words", DASHES, ids=" ".join)
def test_a_dash_is_no_file(cli: Cli, vms: Path, words: list[str]) -> None:
    before = snapshot(vms)
    done = cli(*words)
    assert (done.code, done.out) == (64, "")
    assert "standard output" in done.err
    assert snapshot(vms) == before


def test_a_file_called_dash_can_still_be_written(cli: Cli, vms: Path) -> None:
    assert cli("convert", LEAF, "./-").code == 0
    assert (vms / "-").is_file()


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "vhdkit", *words]


@pytest.mark.parametrize("name", [LEAF, BASE, "fixed.vhd", "dynamic-2m.vhd"])
def test_standard_output_gets_every_byte_of_a_raw_disk_and_nothing_else(vms: Path, name: str) -> None:
    done = subprocess.run(
        program("convert", "-O", "raw", str(FIXTURES / name), "-"),
        cwd=vms,
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert hashlib.sha256(done.stdout).hexdigest() == MANIFEST[name]["view_sha256"]
    assert b"copying: 100 %" in done.stderr
    assert "-" not in os.listdir(vms)


def test_a_reader_that_goes_away_ends_the_stream_without_a_complaint(vms: Path) -> None:
    vhdkit.create_image("big.vhd", size=1 << 40)
    command = program("convert", "-O", "raw", "big.vhd", "-", "--progress", "none")
    with subprocess.Popen(
        command, cwd=vms, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == bytes(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_json_and_the_disk_do_not_share_standard_output(cli: Cli, vms: Path) -> None:
    before = snapshot(vms)
    done = cli("convert", "-O", "raw", LEAF, "-", "--json")
    assert (done.code, done.out) == (64, "")
    assert snapshot(vms) == before


PARTITIONED = bytes(510) + b"\x55\xaa" + bytes(512)
RAW_DISKS = {"r.raw": b"raw " * 1024, "r.img": bytes(4096), "disk": PARTITIONED, "r 1.bin": PARTITIONED}


@pytest.mark.parametrize("name", RAW_DISKS)
@pytest.mark.parametrize("words", [["convert", "{}", "x.vhd"], ["create", "x.vhd", "--parent", "{}"]], ids=" ".join)
def test_a_raw_disk_where_a_vhd_is_needed_is_said_to_be_one(cli: Cli, vms: Path, words: list[str], name: str) -> None:
    (vms / name).write_bytes(RAW_DISKS[name])
    message = cli(*(word.format(name) for word in words)).refused()
    assert "it looks like a raw disk" in message
    assert "`qemu-img convert -f raw -O vpc -o force_size=on " in message


@pytest.mark.parametrize("name", ["r.vhd", "r.txt"])
def test_what_need_not_be_a_raw_disk_is_not_said_to_be_one(cli: Cli, vms: Path, name: str) -> None:
    """A fixed VHD that has lost its footer is no raw disk; and text is no disk at all."""
    (vms / name).write_bytes(PARTITIONED if name == "r.vhd" else b"text" * 1024)
    message = cli("convert", name, "x.vhd").refused()
    assert "not a VHD" in message
    assert "raw disk" not in message
