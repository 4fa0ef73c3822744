"""What is open: of no use once it is closed, closed with a warning when it is dropped, never copied."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import vhdkit
from tests.keeping import keep
from vhdkit.chain.open_view import open_raw
from vhdkit.disk.parent_link import ParentChange
from vhdkit.disk.raw_image import RawImage
from vhdkit.disk.written_sectors import WrittenSectors
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL_SUFFIX
from vhdkit.journal.merge_journal import read_journal
from vhdkit.merging.completion import SUFFIX as COMPLETION_SUFFIX
from vhdkit.merging.completion import read_completions
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd.header_update import SUFFIX as STEP_SUFFIX
from vhdkit.vhd.header_update import _record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vhdkit.chain.chain import Chain
    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.vhd.image import VhdImage

SIZE = 4 << 20


@pytest.fixture(params=["local", "portable", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Three files: a base, its child, and a raw disk."""
    monkeypatch.chdir(tmp_path)
    folder: Folder = MemoryFolder() if request.param == "memory" else LocalFolder(portable=request.param == "portable")
    vhdkit.create_image("base.vhd", size=SIZE, folder=folder)
    with vhdkit.open_chain("base.vhd", writable=True, folder=folder) as chain:
        chain.write(0, b"held" * 1024)
    vhdkit.create_image("leaf.avhd", parent="base.vhd", folder=folder)
    with folder.create("disk.raw") as storage:
        storage.truncate(SIZE)
    return folder


def storage_of(place: Folder) -> Storage:
    return place.open(place.real("base.vhd"), writable=True)


def image_of(place: Folder) -> VhdImage:
    return vhdkit.open_image("leaf.avhd", writable=True, folder=place)


def chain_of(place: Folder) -> Chain:
    return vhdkit.open_chain("leaf.avhd", writable=True, folder=place)


def raw_of(place: Folder) -> RawImage:
    (layer,) = open_raw("disk.raw", place).layers
    assert isinstance(layer, RawImage)
    return layer


HANDLES: dict[str, Callable[[Folder], Any]] = {
    "storage": storage_of,
    "image": image_of,
    "raw": raw_of,
    "chain": chain_of,
}
# What still answers: what was known when it was opened, and closing once more.
QUIET = {"close", "begin_close", "check_open"}
NONE = np.empty(0, np.int64)
ARGUMENTS: dict[str, Any] = {
    "offset": 0,
    "buffer": bytearray(512),
    "data": bytes(512),
    "length": 512,
    "size": SIZE,
    "stop": SIZE,
    "count": 1,
    "new_blocks": 1,
    "new_end": SIZE,
    "used_end": SIZE,
    "reserve": False,
    "sync": False,
    "exclusive": False,
    "source_offset": 0,
    "source_offsets": [0],
    "offsets": np.array([0], np.int64),
    "lengths": [512],
    "buffers": [memoryview(bytearray(512))],
    "patches": (),
    "unique_id": bytes(16),
    "change": ParentChange(old_parent="", new_parent="/vms/base.vhd", unique_id=bytes(16), timestamp=0),
    "written": WrittenSectors(NONE, NONE, NONE.astype(np.bool_), NONE, NONE, NONE),
    "blocks": np.array([0], np.int64),
    "rest": memoryview(bytearray(512)),
}


def calls(handle: Any, others: dict[str, Any]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield every public method, with arguments by the names of its parameters."""
    for name, method in inspect.getmembers(type(handle), inspect.isfunction):
        if name.startswith("_") or name in QUIET:
            continue
        parameters = [each for each in inspect.signature(method).parameters.values() if each.default is each.empty]
        given = {each.name: (ARGUMENTS | others)[each.name] for each in parameters[1:]}
        bound = getattr(handle, name)

        def call(bound: Callable[..., object] = bound, given: dict[str, Any] = given) -> object:
            result = bound(**given)
            return next(result) if inspect.isgenerator(result) else result

        yield name, call
    yield "with", handle.__enter__


@pytest.mark.parametrize("kind", HANDLES)
def test_every_method_of_a_closed_one_raises_value_error(place: Folder, kind: str) -> None:
    handle, others = HANDLES[kind](place), {"source": keep(place.open(place.real("disk.raw"))), "folder": place}
    handle.close()
    handle.close()
    word = {"storage": "file", "raw": "image"}.get(kind, kind)
    names = []
    for name, call in calls(handle, others):
        with pytest.raises(ValueError, match=rf"^.*(base\.vhd|leaf\.avhd|disk\.raw): the ({word}|file) is closed$"):
            call()
        names.append(name)
    assert len(names) > 5
    assert handle.path


@pytest.mark.parametrize("name", ["link_count", "mtime", "ctime", "owner", "allocated_size", "is_protected"])
def test_what_the_system_would_be_asked_of_a_closed_storage_is_not_known(place: Folder, name: str) -> None:
    storage = storage_of(place)
    getattr(storage, name)
    storage.close()
    with pytest.raises(ValueError, match="the file is closed"):
        getattr(storage, name)
    assert (storage.path, storage.writable, len(storage.identity)) == (place.real("base.vhd"), True, 2)


def test_a_copy_from_a_closed_storage_is_refused(place: Folder) -> None:
    source, target = storage_of(place), keep(place.create("new"))
    source.close()
    with pytest.raises(ValueError, match=r"base\.vhd: the file is closed"):
        target.copy_from(source, 0, 0, 512)
    with pytest.raises(ValueError, match=r"base\.vhd: the file is closed"):
        target.copy_many_from(source, [0], [0], [512])


def test_what_was_not_held_reads_as_nothing_once_the_chain_is_closed(place: Folder) -> None:
    """It was zeros before: where no layer holds anything no file is asked."""
    chain = chain_of(place)
    assert (chain.read(0, 4), chain.read(SIZE - 4, 4)) == (b"held", bytes(4))
    stream, windows = chain.open_stream(buffered=False), chain.extents()
    chain.close()
    for ask in (lambda: chain.read(SIZE - 4, 4), lambda: stream.read(4), lambda: next(windows)):
        with pytest.raises(ValueError, match="is closed"):
            ask()
    stream.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the number of open files is read from /proc")
@pytest.mark.parametrize("kind", HANDLES)
def test_one_that_is_dropped_warns_and_gives_back_its_files_and_locks(place: Folder, kind: str) -> None:
    gc.collect()
    before = open_files()
    for _ in range(3):
        handle = HANDLES[kind](place)
        path = handle.path
        (handle if kind == "storage" else getattr(handle, "layers", [handle])[0].storage).lock(exclusive=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del handle
            gc.collect()
        assert any(path in str(each.message) for each in caught)
        assert {each.category for each in caught} == {ResourceWarning}
        assert {each.source is not None for each in caught} == {True}
    assert open_files() == before
    with place.open(path, writable=True) as storage:
        storage.lock(exclusive=True)


SIDE_FILES: dict[str, Callable[[Folder, str], object]] = {
    JOURNAL_SUFFIX: read_journal,
    STEP_SUFFIX: _record,
    COMPLETION_SUFFIX: read_completions,
}


@pytest.mark.parametrize("suffix", SIDE_FILES)
def test_a_side_file_whose_image_is_gone_stays_open_nowhere(place: Folder, suffix: str) -> None:
    """Where one of two files can be opened and the other cannot, the first is closed again."""
    path = place.real("gone.vhd")
    place.create(path + suffix).close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress(OSError):
            SIDE_FILES[suffix](place, path)
        gc.collect()
    assert caught == []


def test_one_that_was_closed_and_dropped_says_nothing(place: Folder) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for make in HANDLES.values():
            with make(place):
                pass
            gc.collect()
        with pytest.raises(vhdkit.CorruptImageError):
            vhdkit.open_image("disk.raw", folder=place)
        gc.collect()
    assert caught == []


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("kind", HANDLES)
def test_none_is_pickled_or_copied(place: Folder, kind: str, act: Callable[[Any], object]) -> None:
    handle = keep(HANDLES[kind](place))
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        act(handle)


def test_a_lock_of_this_very_process_is_said_to_be_that(place: Folder) -> None:
    keep(vhdkit.open_chain("leaf.avhd", folder=place))
    with pytest.raises(vhdkit.ImageInUseError, match="by this process itself") as caught:
        chain_of(place)
    (holder,) = caught.value.holders
    assert holder in str(caught.value)
    assert str(os.getpid()) not in str(caught.value)


def test_open_things_say_what_they_are(place: Folder) -> None:
    chain = chain_of(place)
    leaf = place.real("leaf.avhd")
    assert repr(chain) == f"<Chain {leaf!r}: 2 layers, {SIZE} bytes>"
    assert repr(chain.leaf) == f"<SparseImage {leaf!r}: differencing, {SIZE} bytes>"
    assert repr(leaf) in repr(chain.leaf.storage)
    chain.close()
    assert repr(chain).endswith("bytes (closed)>")
    assert repr(chain.leaf).endswith("bytes (closed)>")
    assert repr(chain.leaf.storage).endswith(" (closed)>")
