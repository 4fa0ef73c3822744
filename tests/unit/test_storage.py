"""What a Storage and a Folder must do, held against every implementation (vhdkit/storage/protocols.py)."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhdkit.storage.file_copy import LONG_BYTES, LongCopies
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhdkit.storage.protocols import Folder, Storage

KINDS = ["local", "portable", "memory"]
MIB = 1 << 20


@dataclass(frozen=True)
class Place:
    """A folder under test and the directory in it that the test may use."""

    folder: Folder
    root: str

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def put(self, name: str, content: bytes = b"") -> str:
        storage = self.folder.create(self.path(name))
        storage.write_at(0, content)
        storage.close()
        return self.path(name)

    def content(self, name: str) -> bytes:
        storage = self.folder.open(self.path(name))
        found = read(storage, 0, storage.size())
        storage.close()
        return found


def make_place(kind: str, root: str) -> Place:
    if kind == "memory":
        return Place(MemoryFolder(), "/files")
    return Place(LocalFolder(portable=kind == "portable"), root)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request.param, str(tmp_path))


@pytest.fixture(params=["local", "portable"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place on the real file system, which alone has links, pipes and permissions."""
    return make_place(request.param, str(tmp_path))


@pytest.fixture
def storage(place: Place) -> Iterator[Storage]:
    storage = place.folder.create(place.path("file"))
    yield storage
    storage.close()


def read(storage: Storage, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: storage.read_into(offset, buffer)])


def pattern(length: int) -> bytes:
    return (np.arange(length, dtype=np.int64) * 31 % 251).astype(np.uint8).tobytes()


# Reading and writing


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 5, b"01234"), (8, 2, b"89"), (8, 5, b"89"), (10, 5, b""), (1000, 5, b""), (3, 0, b"")],
)
def test_a_read_is_short_only_where_the_file_ends(storage: Storage, offset: int, length: int, expected: bytes) -> None:
    storage.write_at(0, b"0123456789")
    assert read(storage, offset, length) == expected


def test_a_short_read_leaves_the_rest_of_the_buffer_alone(storage: Storage) -> None:
    storage.write_at(0, b"abc")
    buffer = bytearray(b"......")
    assert storage.read_into(1, buffer) == 2
    assert buffer == b"bc...."


def test_arrays_are_read_and_written_like_bytes(storage: Storage) -> None:
    storage.write_at(4, np.arange(3, dtype=np.int32).data)
    found = np.zeros((2, 2), np.int32)
    assert storage.read_into(0, found.data) == 16
    assert found.tolist() == [[0, 0], [1, 2]]
    assert storage.read_into(0, np.empty(0, np.uint8).data) == 0
    storage.write_at(0, np.empty(0, np.uint8).data)


def test_a_write_changes_its_bytes_and_no_other(storage: Storage) -> None:
    storage.write_at(0, b"..........")
    storage.write_at(3, b"xyz")
    assert read(storage, 0, 99) == b"...xyz...."


def test_a_write_behind_the_end_leaves_zeros_between(storage: Storage) -> None:
    storage.write_at(0, b"ab")
    storage.write_at(5, b"c")
    assert storage.size() == 6
    assert read(storage, 0, 99) == b"ab\0\0\0c"


def test_what_is_written_is_there_for_others_that_have_the_file_open(place: Place) -> None:
    writer = place.folder.create(place.path("file"))
    reader = place.folder.open(place.path("file"))
    writer.write_at(0, b"shared")
    assert read(reader, 0, 99) == b"shared"
    writer.close()
    reader.close()


@pytest.mark.parametrize(("size", "expected"), [(0, b""), (2, b"ab"), (5, b"abcde"), (8, b"abcde\0\0\0")])
def test_truncate_cuts_or_extends_with_zeros(storage: Storage, size: int, expected: bytes) -> None:
    storage.write_at(0, b"abcde")
    storage.truncate(size)
    assert storage.size() == size
    assert read(storage, 0, 99) == expected


def test_what_was_cut_off_does_not_come_back(storage: Storage) -> None:
    storage.write_at(0, b"abcde")
    storage.truncate(2)
    storage.truncate(5)
    assert read(storage, 0, 99) == b"ab\0\0\0"


@pytest.mark.parametrize(
    ("offset", "length", "size"), [(0, 3, 5), (0, 0, 5), (2, 9, 11), (5, 4096, 4101), (9, 1, 10), (9, 0, 9)]
)
def test_reserve_makes_room_and_changes_no_byte(storage: Storage, offset: int, length: int, size: int) -> None:
    storage.write_at(0, b"abcde")
    storage.reserve(offset, length)
    assert storage.size() == size
    assert read(storage, 0, 9999) == b"abcde".ljust(size, b"\0")


def test_reserved_space_is_taken_and_truncated_space_is_not(disk: Place) -> None:
    reserved, sparse = (disk.folder.create(disk.path(name)) for name in "ab")
    reserved.reserve(0, 4 * MIB)
    sparse.truncate(4 * MIB)
    assert reserved.allocated_size >= 4 * MIB
    assert sparse.allocated_size < MIB
    reserved.close()
    sparse.close()


@contextmanager
def opened(kind: str) -> Iterator[Storage]:
    with tempfile.TemporaryDirectory() as root:
        place = make_place(kind, root)
        storage = place.folder.create(place.path("file"))
        try:
            yield storage
        finally:
            storage.close()


numbers = st.integers(0, 300)
programs = st.lists(
    st.one_of(
        st.tuples(st.just("write"), numbers, st.binary(max_size=60)),
        st.tuples(st.just("truncate"), numbers),
        st.tuples(st.just("reserve"), numbers, numbers),
        st.tuples(st.just("copy"), numbers, numbers, st.integers(0, 60)),
    ),
    max_size=12,
)


def apply(content: bytearray, operation: tuple[Any, ...]) -> None:
    """Do to plain bytes what a storage should do to a file."""
    match operation:
        case ("write", offset, data) if data:
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data
        case ("truncate", size):
            content.extend(bytes(max(0, size - len(content))))
            del content[size:]
        case ("reserve", offset, length):
            content.extend(bytes(max(0, offset + length - len(content))))


def may_copy(content: bytearray, source: int, target: int, length: int) -> bool:
    return source + length <= len(content) and abs(source - target) >= length


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(program=programs)
def test_any_program_leaves_the_bytes_that_it_leaves_in_an_array(kind: str, program: list[tuple[Any, ...]]) -> None:
    content = bytearray()
    with opened(kind) as storage:
        for operation in program:
            match operation:
                case ("write", offset, data):
                    storage.write_at(offset, data)
                case ("truncate", size):
                    storage.truncate(size)
                case ("reserve", offset, length):
                    storage.reserve(offset, length)
                case ("copy", source, target, length) if may_copy(content, source, target, length):
                    storage.copy_from(storage, source, target, length)
                    apply(content, ("write", target, bytes(content[source : source + length])))
            apply(content, operation)
            assert read(storage, 0, 999) == content
            assert storage.size() == len(content)


# Copying


@pytest.fixture
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither shared extents nor direct writes, which come before the kernel's own copying."""
    monkeypatch.setattr(LongCopies, "copy", lambda _, __, pieces, ___: [(0, 0)] * len(pieces))


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
@pytest.mark.parametrize("length", [0, 1, 5000, 8 * MIB + 3])
def test_bytes_are_copied_between_any_two_storages(
    tmp_path: Path, source_kind: str, target_kind: str, length: int
) -> None:
    content = pattern(length + 20)
    places = make_place(source_kind, str(tmp_path)), make_place(target_kind, str(tmp_path))
    source = places[0].folder.open(places[0].put("source", content))
    target = places[1].folder.create(places[1].path("target"))
    target.write_at(0, b"." * 40)
    target.copy_from(source, 7, 30, length)
    assert read(target, 0, length + 99) == (b"." * 30 + content[7 : 7 + length]).ljust(40, b".")
    source.close()
    target.close()


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_copying_past_the_end_of_the_source_fails(tmp_path: Path, source_kind: str, target_kind: str) -> None:
    places = make_place(source_kind, str(tmp_path)), make_place(target_kind, str(tmp_path))
    source = places[0].folder.open(places[0].put("source", b"abc"))
    target = places[1].folder.create(places[1].path("target"))
    with pytest.raises(OSError, match="ended"):
        target.copy_from(source, 1, 0, 3)
    source.close()
    target.close()


@pytest.mark.fast_path("kernel-copy")
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.parametrize("done", [0, 1000])
@pytest.mark.usefixtures("buffered")
def test_a_copy_that_the_kernel_gives_up_is_finished_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, done: int
) -> None:
    kernel, calls = os.copy_file_range, []

    def give_up(source: int, target: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if len(calls) > 1 or not done:
            raise OSError(code, os.strerror(code))
        return kernel(source, target, done, *offsets)

    monkeypatch.setattr(os, "copy_file_range", give_up)
    place = make_place("local", str(tmp_path))
    source = place.folder.open(place.put("source", pattern(LONG_BYTES + 5000)))
    target = place.folder.create(place.path("target"))
    target.copy_from(source, 0, 0, LONG_BYTES + 5000)
    assert calls
    assert read(target, 0, 2 * LONG_BYTES) == pattern(LONG_BYTES + 5000)
    source.close()
    target.close()


@pytest.mark.fast_path("kernel-copy")
@pytest.mark.usefixtures("buffered")
def test_a_full_disk_is_told_when_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    place = make_place("local", str(tmp_path))
    source = place.folder.open(place.put("source", bytes(LONG_BYTES)))
    target = place.folder.create(place.path("target"))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="space") as caught:
        target.copy_from(source, 0, 0, LONG_BYTES)
    assert caught.value.filename == target.path
    source.close()
    target.close()


def test_short_calls_of_the_kernel_are_continued(disk: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv, os_read, os_write = os.pwrite, os.preadv, os.read, os.write
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:1000], at))
    monkeypatch.setattr(os, "preadv", lambda file, views, at: preadv(file, [views[0][:1000]], at))
    monkeypatch.setattr(os, "write", lambda file, data: os_write(file, data[:1000]))
    monkeypatch.setattr(os, "read", lambda file, count: os_read(file, min(count, 1000)))
    storage = disk.folder.create(disk.path("file"))
    storage.write_at(3, pattern(4567))
    assert read(storage, 3, 9999) == pattern(4567)
    storage.close()


# What a storage says of itself


def test_a_storage_knows_its_path_and_whether_it_may_be_written(place: Place) -> None:
    path = place.put("file")
    for writable in (False, True):
        storage = place.folder.open(path, writable=writable)
        assert (storage.path, storage.writable) == (path, writable)
        storage.close()


def test_two_storages_have_one_identity_exactly_if_they_are_one_file(place: Place) -> None:
    first, second = place.put("a", b"same"), place.put("b", b"same")
    one, again, other = (place.folder.open(path) for path in (first, first, second))
    assert one.identity == again.identity
    assert one.identity != other.identity
    for storage in (one, again, other):
        storage.close()


def test_names_of_one_file_share_its_identity_and_are_counted(disk: Place) -> None:
    path = disk.put("a")
    os.link(path, disk.path("b"))
    one, other = disk.folder.open(path), disk.folder.open(disk.path("b"))
    assert one.identity == other.identity
    assert one.link_count == 2
    one.close()
    other.close()


def test_a_file_with_one_name_has_one_link(storage: Storage) -> None:
    assert storage.link_count == 1


def test_the_time_of_change_is_that_of_the_file(disk: Place) -> None:
    path = disk.put("file")
    os.utime(path, (5e8, 1e9))
    storage = disk.folder.open(path)
    assert storage.mtime == 1e9
    storage.close()


CHANGES: dict[str, Callable[[Storage], None]] = {
    "write": lambda storage: storage.write_at(0, b"x"),
    "write behind the end": lambda storage: storage.write_at(99, b"x"),
    "truncate": lambda storage: storage.truncate(1),
    "extend": lambda storage: storage.truncate(99),
    "reserve": lambda storage: storage.reserve(0, 99),
    "copy": lambda storage: storage.copy_from(storage, 0, 1, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_opened_for_reading_cannot_be_changed(place: Place, change: str) -> None:
    storage = place.folder.open(place.put("file", b"abc"))
    with pytest.raises(OSError):  # noqa: PT011 - systems differ in the number that they give
        CHANGES[change](storage)
    storage.close()
    assert place.content("file") == b"abc"


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_opened_for_writing_can_be_changed(place: Place, change: str) -> None:
    storage = place.folder.open(place.put("file", b"abc"), writable=True)
    CHANGES[change](storage)
    storage.sync()
    storage.close()
    assert place.content("file") != b"abc"


USES: dict[str, Callable[[Storage], object]] = {
    "read": lambda storage: storage.read_into(0, bytearray(1)),
    "size": lambda storage: storage.size(),
    "sync": lambda storage: storage.sync(),
    **CHANGES,
}


def test_a_closed_storage_is_of_no_use(place: Place) -> None:
    storage = place.folder.open(place.put("file", b"abc"), writable=True)
    storage.close()
    for use in USES.values():
        with pytest.raises((OSError, ValueError)):
            use(storage)
    assert place.content("file") == b"abc"


def test_closing_twice_is_allowed_and_closes_no_other_file(disk: Place) -> None:
    first = disk.folder.open(disk.put("a"))
    first.close()
    second = disk.folder.open(disk.put("b", b"abc"))  # very likely gets the number that the first had
    first.close()
    assert read(second, 0, 9) == b"abc"
    second.close()


def test_a_file_that_is_being_closed_is_of_no_use_and_is_free_when_it_is_closed(place: Place) -> None:
    storage = place.folder.open(place.put("file", b"abc"), writable=True)
    storage.lock(exclusive=True)
    storage.begin_close()
    for use in USES.values():
        with pytest.raises((OSError, ValueError)):
            use(storage)
    storage.begin_close()
    storage.close()
    storage.close()
    other = place.folder.open(place.path("file"))
    other.lock(exclusive=False)
    assert read(other, 0, 9) == b"abc"
    other.close()


@pytest.mark.fast_path("closing")
def test_closing_goes_on_aside_until_it_is_waited_for(disk: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, may_close, closed = disk.folder.open(disk.put("file", b"abc")), Event(), []

    def close(descriptor: int, real: Callable[[int], None] = os.close) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert may_close.wait(10)
            closed.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "close", close)
    storage.begin_close()
    assert not closed
    may_close.set()
    storage.close()
    assert len(closed) == 1


@pytest.mark.fast_path("closing")
def test_an_error_of_closing_aside_is_told_by_who_waits(disk: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = disk.folder.open(disk.put("file", b"abc"))

    def close(descriptor: int, real: Callable[[int], None] = os.close) -> None:
        real(descriptor)
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", close)
    storage.begin_close()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        storage.close()
    storage.close()


# Opening


@pytest.mark.parametrize("writable", [False, True])
def test_a_missing_file_is_not_found(place: Place, writable: bool) -> None:
    with pytest.raises(FileNotFoundError):
        place.folder.open(place.path("missing"), writable=writable)


def opens_within_a_second(folder: Folder, path: str, *, writable: bool) -> BaseException | None:
    """Open in a thread that may hang: what it raised, or a TimeoutError."""
    outcome: list[BaseException | None] = []

    def attempt() -> None:
        try:
            folder.open(path, writable=writable).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(1)
    return outcome[0] if outcome else TimeoutError(path)


def make_pipe(path: str) -> None:
    os.mkfifo(path)


def make_link(path: str) -> None:
    Path(path + ".target").write_bytes(b"abc")
    os.symlink(path + ".target", path)


def make_link_to_device(path: str) -> None:
    os.symlink("/dev/zero", path)


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("make", [os.mkdir, make_pipe, make_link, make_link_to_device])
def test_what_is_no_regular_file_is_refused_at_once(disk: Place, make: Callable[[str], None], writable: bool) -> None:
    path = disk.path("special")
    make(path)
    files = len(os.listdir("/proc/self/fd"))
    error = opens_within_a_second(disk.folder, path, writable=writable)
    assert isinstance(error, OSError)
    assert not isinstance(error, TimeoutError)
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("writable", [False, True])
def test_a_device_is_refused(disk: Place, writable: bool) -> None:
    with pytest.raises(OSError, match="not a regular file"):
        disk.folder.open("/dev/null", writable=writable)


def test_a_directory_of_memory_is_refused() -> None:
    with pytest.raises(OSError, match="directory"):
        MemoryFolder({"/files/a": b""}).open("/files")


def test_a_link_is_opened_by_its_real_path(disk: Place) -> None:
    make_link(disk.path("link"))
    real = disk.folder.real(disk.path("link"))
    assert real == os.path.realpath(disk.path("link.target"))
    disk.folder.open(real).close()


def test_more_files_are_opened_than_the_soft_limit_allows(disk: Place) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = disk.put("file")
    lowest = max(map(int, os.listdir("/proc/self/fd"))) + 5
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        storages = [disk.folder.open(path) for _ in range(30)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for storage in storages:
        storage.close()


# Names


def test_create_never_opens_what_is_there(place: Place) -> None:
    path = place.put("file", b"abc")
    with pytest.raises(FileExistsError):
        place.folder.create(path)
    assert place.content("file") == b"abc"


def test_create_does_not_follow_a_link_that_leads_nowhere(disk: Place) -> None:
    os.symlink(disk.path("nowhere"), disk.path("link"))
    with pytest.raises(FileExistsError):
        disk.folder.create(disk.path("link"))
    assert not disk.folder.exists(disk.path("nowhere"))


def test_a_new_file_is_empty_and_writable(storage: Storage) -> None:
    assert storage.size() == 0
    assert storage.writable


def test_publish_gives_the_file_its_name_and_takes_the_old_one(place: Place) -> None:
    temporary = place.put("file.partial", b"abc")
    place.folder.publish(temporary, place.path("file"))
    assert place.content("file") == b"abc"
    assert place.folder.names(place.root) == ("file",)


def refuse_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("hard_links", [True, False])
def test_publish_never_replaces(place: Place, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", refuse_links)
    temporary = place.put("file.partial", b"new")
    place.put("file", b"old")
    with pytest.raises(FileExistsError):
        place.folder.publish(temporary, place.path("file"))
    assert place.content("file") == b"old"
    assert place.content("file.partial") == b"new"


@pytest.mark.parametrize("hard_links", [True, False])
def test_publish_does_not_replace_a_link_that_leads_nowhere(
    disk: Place, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", refuse_links)
    os.symlink("nowhere", disk.path("file"))
    with pytest.raises(FileExistsError):
        disk.folder.publish(disk.put("file.partial"), disk.path("file"))
    assert os.readlink(disk.path("file")) == "nowhere"


def test_publish_works_where_there_are_no_hard_links(disk: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    disk.folder.publish(disk.put("file.partial", b"abc"), disk.path("file"))
    assert disk.content("file") == b"abc"
    assert disk.folder.names(disk.root) == ("file",)


def test_what_is_not_there_cannot_be_published_or_removed(place: Place) -> None:
    with pytest.raises(FileNotFoundError):
        place.folder.remove(place.path("missing"))
    with pytest.raises(FileNotFoundError):
        place.folder.publish(place.path("missing"), place.path("file"))
    assert not place.folder.exists(place.path("file"))


def test_a_removed_file_is_gone_and_its_name_free(place: Place) -> None:
    path = place.put("file", b"abc")
    assert place.folder.exists(path)
    place.folder.remove(path)
    assert not place.folder.exists(path)
    assert place.put("file") == path


def test_a_link_that_leads_nowhere_exists(disk: Place) -> None:
    os.symlink("nowhere", disk.path("link"))
    assert disk.folder.exists(disk.path("link"))


def make_tree(place: Place) -> None:
    if not isinstance(place.folder, MemoryFolder):
        os.makedirs(place.path("sub/deeper"))
    for name in ("b", "a", "sub/c", "sub/deeper/d"):
        place.put(name, name.encode())


def test_names_are_those_of_files_and_folders_sorted(place: Place) -> None:
    make_tree(place)
    assert place.folder.names(place.root) == ("a", "b", "sub")
    assert place.folder.names(place.path("sub")) == ("c", "deeper")
    assert place.folder.names(place.path("missing")) == ()


def test_a_folder_exists(place: Place) -> None:
    make_tree(place)
    assert place.folder.exists(place.path("sub"))
    assert place.folder.exists(place.path("sub/deeper"))
    assert not place.folder.exists(place.path("su"))


@pytest.mark.parametrize("one_device", [False, True])
def test_walk_yields_every_file_below(place: Place, one_device: bool) -> None:
    make_tree(place)
    found = list(place.folder.walk(place.root, one_device=one_device))
    assert {entry.path for entry in found} == {place.path(name) for name in ("a", "b", "sub/c", "sub/deeper/d")}
    assert [entry.path for entry in place.folder.walk(place.root)] == [entry.path for entry in found]
    for entry in found:
        storage = place.folder.open(entry.path)
        assert (entry.size, entry.identity) == (storage.size(), storage.identity)
        storage.close()


def test_walk_need_not_go_deep(place: Place) -> None:
    make_tree(place)
    found = [entry.path for entry in place.folder.walk(place.root, deep=False)]
    assert found == [place.path("a"), place.path("b")]


def test_walk_of_what_cannot_be_listed_yields_nothing(place: Place) -> None:
    assert list(place.folder.walk(place.path("missing"))) == []
    assert list(place.folder.walk(place.put("file"))) == []


def test_walk_follows_no_link_and_yields_no_special_file(disk: Place) -> None:
    make_tree(disk)
    os.symlink(disk.path("a"), disk.path("link"))
    os.symlink(disk.path("sub"), disk.path("way"))
    os.symlink("..", disk.path("sub/loop"))
    os.symlink("nowhere", disk.path("dangling"))
    os.mkfifo(disk.path("pipe"))
    found = [os.path.basename(entry.path) for entry in disk.folder.walk(disk.root)]
    assert sorted(found) == ["a", "b", "c", "d"]


def test_real_paths_are_absolute_and_plain(place: Place) -> None:
    assert place.folder.real(place.path("x/../a/./b")) == place.folder.real(place.path("a/b"))
    assert os.path.isabs(place.folder.real("a"))


def test_a_path_is_displayed_as_short_as_it_leads_there(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (place.path("a"), "/x"):
        shown = place.folder.display(path)
        assert len(shown) <= len(path)
        assert place.folder.real(shown) == place.folder.real(path)
    assert LocalFolder().display(str(tmp_path / "a")) == "a"


def test_a_directory_that_cannot_be_listed_is_told(disk: Place) -> None:
    disk.folder.check_directory(disk.root)
    with pytest.raises(FileNotFoundError):
        disk.folder.check_directory(disk.path("missing"))
    with pytest.raises(NotADirectoryError):
        disk.folder.check_directory(disk.put("file"))


def mark_read_only(place: Place, path: str) -> None:
    if isinstance(place.folder, MemoryFolder):
        place.folder[path].read_only = True
    else:
        os.chmod(path, 0o444)


def test_a_file_marked_read_only_may_not_be_written_by_anyone(place: Place) -> None:
    path = place.put("file")
    assert place.folder.may_write(path)
    assert place.folder.may_write(place.root)
    mark_read_only(place, path)
    assert not place.folder.may_write(path)


def test_there_is_room_and_directories_can_be_synced(place: Place) -> None:
    assert place.folder.free_space(place.root) > 0
    place.folder.sync(place.root)


def test_a_run_of_data_is_walked_once_and_holes_are_told_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tmpfs the end of a run is found page by page: to ask for it again with each block took 40 of 45 seconds."""
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.write(b"x" * (1 << 20))
        file.truncate(2 << 20)
        file.seek(3 << 20)
        file.write(b"y" * (1 << 20))
    asked = []
    real = os.lseek

    def counted(descriptor: int, offset: int, whence: int) -> int:
        asked.append(offset)
        return real(descriptor, offset, whence)

    with LocalFolder().open(str(path)) as storage:
        monkeypatch.setattr(os, "lseek", counted)
        whole = storage.hole_bytes(0, 4 << 20)
        if not whole:
            pytest.skip("the file system has no holes")
        assert whole == 2 << 20
        asked.clear()
        assert sum(storage.hole_bytes(at, 4096) for at in range(3 << 20, 4 << 20, 4096)) == 0
        assert len(asked) <= 2
        assert storage.hole_bytes((1 << 20) - 4096, 8192) == 4096
        assert storage.hole_bytes((3 << 20) - 4096, 8192) == 4096
        assert storage.hole_bytes(4 << 20, 4096) == 0


def test_holes_of_a_file_that_is_written_are_told_as_they_are_now(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * (1 << 20))
    with LocalFolder().open(str(path), writable=True) as storage:
        assert storage.hole_bytes(0, 1 << 20) == 0
        storage.truncate(0)
        storage.truncate(1 << 20)
        assert storage.hole_bytes(0, 1 << 20) in {0, 1 << 20}
        if storage.hole_bytes(0, 1 << 20):
            storage.write_at(0, b"y" * 4096)
            assert storage.hole_bytes(0, 1 << 20) == (1 << 20) - 4096
