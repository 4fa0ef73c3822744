"""Locks on open files: who may hold a file beside whom, in one process and between several."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.keeping import keep
from tests.unit.test_storage import KINDS, Place, make_place
from vhdkit.errors import ImageInUseError
from vhdkit.storage import lock_holders
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.locks import WindowsLock
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vhdkit.storage.protocols import Storage

ROUNDS = 200
EXCLUSIVE_OR_NOT = [(False, False), (False, True), (True, False), (True, True)]
linux = pytest.mark.skipif(sys.platform != "linux", reason="locks of open file descriptions")

# A process that takes a lock, says whether it has it, and keeps it until its input ends.
HOLDER = """
import sys
from vhdkit.storage.local_folder import LocalFolder
storage = LocalFolder(portable=sys.argv[2] == "portable").open(sys.argv[1])
storage.lock(exclusive=sys.argv[3] == "exclusive")
print("held", flush=True)
sys.stdin.read()
"""
# One that tries at the times that it is told, which are the same for all.
RACER = """
import sys, time
from vhdkit.errors import ImageInUseError
from vhdkit.storage.local_folder import LocalFolder
folder = LocalFolder(portable=sys.argv[2] == "portable")
for line in sys.stdin:
    storage = folder.open(sys.argv[1])
    while time.monotonic() < float(line):
        pass
    try:
        storage.lock(exclusive=True)
        print("1", flush=True)
    except ImageInUseError:
        print("0", flush=True)
    sys.stdin.readline()
    storage.close()
    print("closed", flush=True)
"""


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request.param, str(tmp_path))


@pytest.fixture(params=["local", "portable"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(place: Place) -> Iterator[tuple[Storage, Storage]]:
    """One file, opened twice for reading."""
    path = place.put("file", b"abc")
    both = place.folder.open(path), place.folder.open(path)
    yield both
    for storage in both:
        storage.close()


def may_hold(storage: Storage, *, exclusive: bool) -> bool:
    refusal = None
    try:
        storage.lock(exclusive=exclusive)
    except ImageInUseError as error:
        refusal = error
    if refusal is not None:
        assert refusal.path == storage.path
        assert "in use" in str(refusal)
        assert "try again" in str(refusal)
    return refusal is None


@pytest.mark.parametrize(("first", "second"), EXCLUSIVE_OR_NOT)
def test_only_readers_hold_a_file_together(pair: tuple[Storage, Storage], first: bool, second: bool) -> None:
    assert may_hold(pair[0], exclusive=first)
    assert may_hold(pair[1], exclusive=second) == (not first and not second)


@pytest.mark.parametrize(("writable", "exclusive"), EXCLUSIVE_OR_NOT)
def test_a_lock_asks_not_how_the_file_was_opened(place: Place, writable: bool, exclusive: bool) -> None:
    path = place.put("file")
    one, other = place.folder.open(path, writable=writable), place.folder.open(path, writable=not writable)
    assert may_hold(one, exclusive=exclusive)
    assert not may_hold(other, exclusive=True)
    one.close()
    other.close()


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_lock_goes_with_its_file(pair: tuple[Storage, Storage], exclusive: bool) -> None:
    assert may_hold(pair[0], exclusive=exclusive)
    pair[0].close()
    assert may_hold(pair[1], exclusive=True)


def test_a_lock_of_one_file_is_none_of_another(place: Place) -> None:
    one, other = (place.folder.open(place.put(name)) for name in "ab")
    assert may_hold(one, exclusive=True)
    assert may_hold(other, exclusive=True)
    one.close()
    other.close()


def test_asking_again_replaces_the_lock(pair: tuple[Storage, Storage], place: Place) -> None:
    for exclusive in (False, False, True, True, False, True):
        assert may_hold(pair[0], exclusive=exclusive)
        other = place.folder.open(pair[0].path)
        assert may_hold(other, exclusive=False) == (not exclusive)
        other.close()


def test_who_is_refused_leaves_nothing_behind(pair: tuple[Storage, Storage], place: Place) -> None:
    third = place.folder.open(pair[0].path)
    assert may_hold(pair[0], exclusive=False)
    assert not may_hold(pair[1], exclusive=True)
    assert may_hold(third, exclusive=False)
    third.close()
    assert may_hold(pair[0], exclusive=True)


def test_who_is_refused_more_keeps_what_it_had(pair: tuple[Storage, Storage], place: Place) -> None:
    third = place.folder.open(pair[0].path)
    assert may_hold(pair[0], exclusive=False)
    assert may_hold(pair[1], exclusive=False)
    assert not may_hold(pair[1], exclusive=True)
    pair[0].close()
    assert not may_hold(third, exclusive=True)
    third.close()


def test_a_closed_file_cannot_be_locked(pair: tuple[Storage, Storage]) -> None:
    pair[0].close()
    with pytest.raises((OSError, ValueError)):
        pair[0].lock(exclusive=False)


# Between processes


@contextmanager
def another_process(path: str, kind: str, how: str) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a file."""
    command = [sys.executable, "-c", HOLDER, path, kind, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_killed_process_leaves_no_lock(tmp_path: Path, kind: str, exclusive: bool) -> None:
    place = make_place(kind, str(tmp_path))
    storage = place.folder.open(place.put("file"))
    with another_process(storage.path, kind, "exclusive" if exclusive else "shared") as process:
        assert may_hold(storage, exclusive=False) == (not exclusive)
        assert not may_hold(storage, exclusive=True)
        process.kill()
        process.wait()
        assert may_hold(storage, exclusive=True)
    storage.close()


@linux
@pytest.mark.parametrize("how", ["shared", "exclusive"])
def test_the_process_that_holds_a_file_is_named(tmp_path: Path, kind: str, how: str) -> None:
    place = make_place(kind, str(tmp_path))
    storage = place.folder.open(place.put("file"))
    with another_process(storage.path, kind, how) as process:
        with pytest.raises(ImageInUseError) as caught:
            storage.lock(exclusive=True)
        (holder,) = caught.value.holders
        assert holder.startswith("python")
        assert holder.endswith(f"(process {process.pid})")
        assert holder in str(caught.value)
    storage.close()


@linux
def test_only_those_in_the_way_are_named(tmp_path: Path) -> None:
    path = make_place("local", str(tmp_path)).put("file")
    storage = make_place("local", str(tmp_path)).folder.open(path)
    with another_process(path, "portable", "exclusive"), another_process(path, "local", "shared") as reader:
        with pytest.raises(ImageInUseError) as caught:
            storage.lock(exclusive=True)
        assert [holder.rpartition(" ")[2] for holder in caught.value.holders] == [f"{reader.pid})"]
    storage.close()


def test_two_who_race_never_both_succeed(tmp_path: Path, kind: str) -> None:
    place = make_place(kind, str(tmp_path))
    command = [sys.executable, "-c", RACER, place.put("file"), kind]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(2)
    ]

    def tell(text: str) -> list[str]:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(text + "\n")
        return [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]

    outcomes = []
    for _ in range(ROUNDS):
        outcomes.append(tell(str(time.monotonic() + 0.002)))
        assert tell("close") == ["closed", "closed"]
    for racer in racers:
        racer.communicate()
    assert ["1", "1"] not in outcomes
    assert {"1"} <= {word for outcome in outcomes for word in outcome}
    assert {racer.returncode for racer in racers} == {0}


# The bytes


def own_locks(path: str) -> list[lock_holders.LockLine]:
    """Return the locks of this process on a file, as the kernel shows them."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == path:
                found += lock_holders._lock_lines(f"/proc/self/fdinfo/{name}")  # noqa: SLF001
        except FileNotFoundError:  # the listing's own
            continue
    return found


@linux
@pytest.mark.parametrize(
    ("exclusive", "expected"), [(False, {100, 201, 203}), (True, {100, 101, 103, 200, 201, 202, 203})]
)
def test_on_linux_qemus_bytes_are_held_by_read_locks_of_the_open_file(
    tmp_path: Path, exclusive: bool, expected: set[int]
) -> None:
    place = make_place("local", str(tmp_path))
    storage = place.folder.open(place.put("file"))
    storage.lock(exclusive=not exclusive)
    storage.lock(exclusive=exclusive)
    lines = own_locks(storage.path)
    assert {(line.kind, line.access) for line in lines} == {("OFDLCK", "READ")}
    assert {byte for line in lines for byte in range(line.first, (line.last or 0) + 1)} == expected
    storage.close()


@linux
def test_the_portable_way_locks_the_whole_file(tmp_path: Path) -> None:
    place = make_place("portable", str(tmp_path))
    storage = place.folder.open(place.put("file"))
    storage.lock(exclusive=True)
    assert [(line.kind, line.access, line.first, line.last) for line in own_locks(storage.path)] == [
        ("FLOCK", "WRITE", 0, None)
    ]
    storage.close()


def lock_byte(descriptor: int, byte: int, kind: int = fcntl.F_RDLCK) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, 1, 0))


@linux
@pytest.mark.parametrize(
    ("byte", "shared", "exclusive"),
    [
        (100, True, False),  # reads
        (101, False, False),  # writes
        (102, True, False),  # writes what is there already
        (103, False, False),  # resizes
        (200, False, False),  # lets nobody read
        (201, True, False),  # lets nobody write
        (202, True, True),  # lets nobody write what is there already
        (203, True, False),  # lets nobody resize
        (0, True, True),
        (104, True, True),
        (204, True, True),
    ],
)
def test_each_of_qemus_bytes_forbids_what_it_stands_for(
    tmp_path: Path, byte: int, shared: bool, exclusive: bool
) -> None:
    place = make_place("local", str(tmp_path))
    path = place.put("file")
    descriptor = os.open(path, os.O_RDONLY)
    lock_byte(descriptor, byte)
    for wanted, expected in ((False, shared), (True, exclusive)):
        storage = place.folder.open(path)
        assert may_hold(storage, exclusive=wanted) == expected
        storage.close()
    os.close(descriptor)


@linux
@pytest.mark.parametrize("byte", [100, 203])
def test_a_write_lock_on_a_byte_that_is_needed_is_in_the_way(tmp_path: Path, byte: int) -> None:
    place = make_place("local", str(tmp_path))
    path = place.put("file")
    descriptor = os.open(path, os.O_RDWR)
    lock_byte(descriptor, byte, fcntl.F_WRLCK)
    storage = place.folder.open(path)
    assert not may_hold(storage, exclusive=False)
    assert own_locks(path) == [*lock_holders._lock_lines(f"/proc/self/fdinfo/{descriptor}")]  # noqa: SLF001
    os.close(descriptor)
    assert may_hold(storage, exclusive=True)
    storage.close()


# Where there are no locks, and where the system tells nothing


@linux
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("after", [0, 2, 9])
def test_a_file_system_without_locks_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int, after: int
) -> None:
    place = make_place(kind, str(tmp_path))
    path = place.put("file")
    storage, real, calls = place.folder.open(path), fcntl.fcntl, []

    def fail(descriptor: int, command: int, argument: bytes) -> int | bytes:
        if struct.unpack_from("h", argument)[0] != fcntl.F_UNLCK:
            calls.append(command)
            if len(calls) > after:
                raise OSError(code, os.strerror(code))
        return real(descriptor, command, argument)

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "fcntl", fail)
        patched.setattr(fcntl, "flock", refuse)
        storage.lock(exclusive=True)
    assert own_locks(path) == []
    storage.close()


@pytest.mark.parametrize("operation", ["fcntl", "flock"])
def test_any_other_failure_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    place = make_place("local" if operation == "fcntl" else "portable", str(tmp_path))
    storage = place.folder.open(place.put("file"))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, operation, fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        storage.lock(exclusive=False)
    assert caught.value.filename == storage.path
    storage.close()


def test_a_system_that_tells_nothing_still_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    place = make_place(kind, str(tmp_path))
    path = place.put("file")
    one, other = place.folder.open(path), place.folder.open(path)
    one.lock(exclusive=True)
    monkeypatch.setattr(lock_holders, "_names", lambda _directory: [])
    monkeypatch.setattr(lock_holders, "_content", lambda _path: "")
    with pytest.raises(ImageInUseError) as caught:
        other.lock(exclusive=False)
    assert caught.value.holders == ()
    one.close()
    other.close()


@linux
def test_the_search_for_holders_ends_in_time(tmp_path: Path) -> None:
    place = make_place("local", str(tmp_path))
    storage = place.folder.open(place.put("file"))
    storage.lock(exclusive=True)
    descriptor = int(next(n for n in os.listdir("/proc/self/fd") if lock_holders._lock_lines(f"/proc/self/fdinfo/{n}")))  # noqa: SLF001
    tag = lock_holders.file_tag(descriptor)
    assert len(lock_holders.find_holders(tag, lambda _: True, but=-1)) == 1
    assert lock_holders.find_holders(tag, lambda _: True, but=descriptor) == ()
    assert lock_holders.find_holders(tag, lambda _: True, but=-1, seconds=-1) == ()
    assert lock_holders.find_holders("00:00:1", lambda _: True, but=-1) == ()
    storage.close()


@linux
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"comm": "qemu-io\n", "cmdline": "/usr/bin/other\0"}, "qemu-io"),
        ({"comm": "qemu-system-x86\n", "cmdline": "/usr/bin/qemu-system-x86_64\0-m\0"}, "qemu-system-x86_64"),
        ({"comm": "qemu-system-x86\n", "cmdline": "vm: web01\0"}, "qemu-system-x86"),
        ({}, "a program"),
    ],
)
def test_a_process_is_named_in_full(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: str) -> None:
    monkeypatch.setattr(lock_holders, "_content", lambda path: files.get(os.path.basename(path), ""))
    assert lock_holders._name(1) == expected  # noqa: SLF001


# Windows, as its manual says that it behaves


class Handles:
    """LockFileEx and UnlockFileEx on one byte: a handle's own locks count against its exclusive ones."""

    def __init__(self) -> None:
        self.held: list[tuple[int, bool]] = []

    def lock(self, handle: int, exclusive: bool) -> bool:
        if exclusive:
            free = not self.held
        else:
            free = all(not other_exclusive or other == handle for other, other_exclusive in self.held)
        if free:
            self.held.append((handle, exclusive))
        return free

    def unlock(self, handle: int) -> None:
        self.held.remove((handle, True) if (handle, True) in self.held else (handle, False))


def test_on_windows_locks_are_exchanged_and_refused_likewise() -> None:
    handles = Handles()
    one, other = (WindowsLock(handles.lock, handles.unlock) for _ in range(2))
    for exclusive in (False, False, True, True, False):
        one.take(1, "a.vhd", exclusive=exclusive)
        assert handles.held == [(1, exclusive)]
    other.take(2, "a.vhd", exclusive=False)
    with pytest.raises(ImageInUseError):
        other.take(2, "a.vhd", exclusive=True)
    assert handles.held == [(1, False), (2, False)]
    handles.unlock(1)
    other.take(2, "a.vhd", exclusive=True)
    with pytest.raises(ImageInUseError):
        WindowsLock(handles.lock, handles.unlock).take(3, "a.vhd", exclusive=False)
    assert handles.held == [(2, True)]


def test_memory_is_locked_per_folder() -> None:
    folders = [MemoryFolder({"/a": b""}) for _ in range(2)]
    for folder in folders:
        keep(folder.open("/a")).lock(exclusive=True)


@linux
@pytest.mark.parametrize("writable", [False, True])
def test_at_every_step_of_an_exchange_the_file_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    """Also while it is looked whether others hold it: who looked before locking would let two in."""
    place = make_place("local", str(tmp_path))
    path = place.put("file")
    storage = place.folder.open(path, writable=writable)
    real, commands = fcntl.fcntl, []

    def tried(descriptor: int, command: int, argument: bytes) -> int | bytes:
        monkeypatch.setattr(fcntl, "fcntl", real)
        if own_locks(path) or command == fcntl.F_OFD_GETLK:
            other = place.folder.open(path)
            assert not may_hold(other, exclusive=True)
            other.close()
            commands.append(command)
        monkeypatch.setattr(fcntl, "fcntl", tried)
        return real(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", tried)
    for exclusive in (False, True, False, True):
        storage.lock(exclusive=exclusive)
    assert set(commands) == {fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK}
    monkeypatch.setattr(fcntl, "fcntl", real)
    storage.close()


def test_what_is_closed_is_free_though_a_forked_process_has_a_copy(tmp_path: Path) -> None:
    path = str(tmp_path / "a.vhd")
    for portable in (False, True):
        folder = LocalFolder(portable=portable)
        if not portable:
            folder.create(path).close()
        held = folder.open(path, writable=True)
        held.lock(exclusive=True)
        ours, childs = os.pipe(), os.pipe()
        if (child := os.fork()) == 0:
            # Closing the copy gives back nothing that is its parent's.
            os.read(ours[0], 1)
            held.close()
            os.write(childs[1], b"!")
            os.read(ours[0], 1)
            os._exit(0)
        os.write(ours[1], b"!")
        os.read(childs[0], 1)
        with pytest.raises(ImageInUseError), closing(folder.open(path, writable=True)) as other:
            other.lock(exclusive=True)
        os.write(ours[1], b"!")
        os.waitpid(child, 0)
        if (child := os.fork()) == 0:
            os.read(ours[0], 1)
            os._exit(0)
        held.close()
        with closing(folder.open(path, writable=True)) as other:
            other.lock(exclusive=True)
        os.write(ours[1], b"!")
        os.waitpid(child, 0)
