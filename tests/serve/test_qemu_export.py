"""convert -O qcow2, vmdk and vdi: what qemu-img writes is what the model shows, and nothing is left of what fails."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cli.running import environment, program, spawn
from tests.conformance.tools import requires, run
from tests.serve.disks import SIZE
from vhdkit.errors import Cancelled, ServeError
from vhdkit.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model import ModelChain

FORMATS = ("qcow2", "vmdk", "vdi")


@pytest.fixture(autouse=True)
def _programs() -> None:
    requires("nbdkit")
    requires("qemu-img")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def acting_as_qemu_img(folder: Path, script: str) -> str:
    """Return a PATH on which a script comes before qemu-img."""
    folder.mkdir()
    (folder / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "qemu-img").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_new_file_shows_what_the_model_does(model: ModelChain, leaf: Path, out: Path, output_format: Any) -> None:
    raw, new, reported = out / "model.raw", out / f"new.{output_format}", list[Progress]()
    raw.write_bytes(model.read(0, SIZE))
    size = vhdkit.export_disk(leaf, new, output_format=output_format, progress=reported.append)
    assert size == new.stat().st_size
    run("qemu-img", "compare", "-f", "raw", "-F", output_format, raw, new)
    run("qemu-img", "check", "-f", output_format, new) if output_format != "vmdk" else None
    done = [each.bytes_done for each in reported]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, SIZE)
    assert {path.name for path in out.iterdir()} == {"model.raw", new.name}


def test_the_command_line_converts(model: ModelChain, leaf: Path, out: Path) -> None:
    (out / "model.raw").write_bytes(model.read(0, SIZE))
    done = spawn("convert", "-O", "qcow2", str(leaf), "new.qcow2", "--json", "--progress", "none", cwd=out)
    assert (done.code, done.err) == (0, "")
    assert done.json["format"] == "qcow2"
    assert done.json["file-size"] == (out / "new.qcow2").stat().st_size
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", out / "model.raw", out / "new.qcow2")


@pytest.mark.parametrize("suffix", ["vhd", "raw", "vmdk"])
def test_a_name_that_says_another_format_is_refused_with_the_command_that_writes_that(
    leaf: Path, out: Path, suffix: str
) -> None:
    message = spawn("convert", "-O", "qcow2", str(leaf), f"new.{suffix}", cwd=out).refused(64)
    words = message.split("`")[1].split()
    assert list(out.iterdir()) == []
    assert spawn(*words[1:], cwd=out).code == 0
    assert [path.name for path in out.iterdir()] == [f"new.{suffix}"]


def test_a_file_that_is_there_is_never_replaced(leaf: Path, out: Path) -> None:
    (out / "new.qcow2").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        vhdkit.export_disk(leaf, out / "new.qcow2")
    assert (out / "new.qcow2").read_bytes() == b"mine"


def test_another_format_is_refused_by_name(leaf: Path, out: Path) -> None:
    with pytest.raises(ValueError, match="qcow2, vmdk or vdi"):
        vhdkit.export_disk(leaf, out / "new", output_format="raw")  # type: ignore[arg-type]


# Nothing is left of what does not end well


def test_what_is_cancelled_is_gone(leaf: Path, out: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        vhdkit.export_disk(leaf, out / "new.qcow2", cancel=cancel)
    assert list(out.iterdir()) == []


def test_what_qemu_img_says_when_it_fails_is_told(
    leaf: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "printf '    (50.00/100%%)\\r'; echo 'qemu-img: error while writing: No space left on device' >&2; exit 1"
    monkeypatch.setenv("PATH", acting_as_qemu_img(tmp_path / "bin", script))
    with pytest.raises(ServeError, match=r"^qemu-img has ended with status 1: error while writing: No space left"):
        vhdkit.export_disk(leaf, out / "new.qcow2")
    assert list(out.iterdir()) == []


def test_a_killed_qemu_img_is_a_failure(leaf: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", acting_as_qemu_img(tmp_path / "bin", "kill -9 $$"))
    with pytest.raises(ServeError, match="status -9"):
        vhdkit.export_disk(leaf, out / "new.qcow2")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_qemu_img_with_it(leaf: Path, out: Path, tmp_path: Path, number: signal.Signals) -> None:
    path = acting_as_qemu_img(tmp_path / "bin", f"echo $$ > {tmp_path}/pid; printf '  (50.00/100%%)\\r'; exec sleep 60")
    words = program("convert", "-O", "qcow2", "--progress", "plain", str(leaf), "new.qcow2")
    with subprocess.Popen(words, env=environment(PATH=path), stderr=subprocess.PIPE, text=True, cwd=out) as process:
        assert process.stderr is not None
        while "50 %" not in process.stderr.readline():
            pass
        process.send_signal(number)
        assert process.wait(30) == 130
    assert list(out.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_without_qemu_img_its_package_is_named(
    leaf: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServeError, match="qemu-utils"):
        vhdkit.export_disk(leaf, out / "new.qcow2")
