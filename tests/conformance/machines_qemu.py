"""A virtual machine of real qemu: a few MiB of memory and no guest, which holds its disk as any machine does."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tests.conformance.tools import requires
from tests.jobs.making import HANGS_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedRWPair
    from pathlib import Path

PROGRAM = "qemu-system-x86_64"


def start_qemu(disk: str, monitor: Path) -> subprocess.Popen[bytes]:
    """Start a machine with a disk; its monitor listens at a socket when it has the disk."""
    requires(PROGRAM)
    monitor.unlink(missing_ok=True)
    words = [PROGRAM, "-M", "pc", "-m", "8", "-accel", "tcg", "-display", "none", "-nodefaults", "-S"]
    words += ["-drive", f"file={disk.replace(',', ',,')},format=vpc,if=none,id=drive,node-name=disk"]
    words += ["-device", "virtio-blk-pci,drive=drive", "-qmp", f"unix:{monitor},server=on,wait=off"]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Monitor:
    """A machine's monitor (QMP)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(HANGS_SECONDS)
        self._lines: BufferedRWPair | None = None
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rwb")
            self._read()
            self.ask("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a command, which may be an error."""
        assert self._lines is not None
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._lines.flush()
        while True:
            answer = self._read()
            if "event" not in answer:
                return answer

    def _read(self) -> dict[str, Any]:
        assert self._lines is not None
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the machine has ended")
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        if self._lines is not None:
            with suppress(OSError):
                self._lines.close()
        self._socket.close()


def is_up(machine: subprocess.Popen[bytes], monitor: Path) -> bool:
    """Whether a machine has its disk; one that was refused it has ended."""
    while machine.poll() is None:
        try:
            Monitor(monitor).close()
        except OSError:
            with suppress(subprocess.TimeoutExpired):
                machine.wait(0.05)
        else:
            return True
    return False


@contextmanager
def running_qemu(disk: str, monitor: Path) -> Iterator[Monitor]:
    """Let a machine run with a disk for as long as the block takes, started again as long as the disk is in use."""
    machine = start_qemu(disk, monitor)
    try:
        until = time.monotonic() + HANGS_SECONDS
        while not is_up(machine, monitor):
            assert machine.stderr is not None
            said = machine.stderr.read()
            assert b"lock" in said, said
            assert time.monotonic() < until
            stop_qemu(machine)
            machine = start_qemu(disk, monitor)
        asked = Monitor(monitor)
        try:
            yield asked
        finally:
            asked.close()
    finally:
        stop_qemu(machine)


def stop_qemu(machine: subprocess.Popen[bytes]) -> None:
    machine.kill()
    machine.wait()
    if machine.stderr is not None:
        machine.stderr.close()
