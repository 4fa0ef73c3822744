"""The files inside of one file system of a disk.

    with vhdkit.open_chain("leaf.avhd") as chain:
        files = vhdkit.open_files(chain)
        for each in files.walk("/etc"):
            print(each.path, each.size)
        passwd = files.read("/etc/passwd")

What lies on the disk is untrusted, and nothing of it is followed: links are reported, and not followed; a directory
that contains itself ends a walk there. Deleted files are left out, and so are the file system's own ($MFT and such).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from vhdkit.arguments import checked
from vhdkit.errors import GuestFileError
from vhdkit.filesystem.disk_source import DiskSource
from vhdkit.findings import Advice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.chain.disk_view import DiskView
    from vhdkit.filesystem.disk_source import Partition

_PIECE_BYTES = 1 << 20
# Deeper than any path that a system would take (4,096 bytes), and more files than disks hold in practice.
MOST_DEPTH = 2048
MOST_ENTRIES = 1 << 24
# The first entries of an MFT are the file system's own, but for the root (5).
_NTFS_OWN = 24
_NTFS_ROOT = 5


class FileKind(StrEnum):
    """What a name leads to."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFile:
    """A file inside of a disk. Times are in Unix seconds, 0.0 where the file system has none.

    `path` begins with a slash; bytes of a name that are no UTF-8 are surrogates, as in the paths of this system.
    `inode` is the file system's number of it. `target` is where a link leads.
    """

    path: str
    kind: FileKind
    size: int
    mode: int
    uid: int
    gid: int
    inode: int
    modified: float
    changed: float
    created: float
    target: str | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class GuestFiles:
    """One file system of a disk, read through its chain, which it borrows."""

    def __init__(self, source: DiskSource, partition: Partition) -> None:
        self.partition = partition
        self._source = source
        self._tsk = source.tsk
        self._system = source.file_system_at(partition.start)
        kind = partition.file_system or ""
        self._ignores_case = kind.startswith(("ntfs", "fat", "exfat", "hfs"))
        self._is_ntfs = kind.startswith("ntfs")

    def __repr__(self) -> str:
        """Return the partition's number and its file system."""
        return f"<GuestFiles of partition {self.partition.number}: {self.partition.file_system}>"

    @property
    def block_size(self) -> int:
        """Bytes in a block (or cluster, or sector) of the file system, in which `runs` counts."""
        return int(self._system.info.block_size)

    def stat(self, path: str) -> GuestFile:
        """Return what there is to know of a file.

        Raises:
            GuestFileError: there is no such file.

        """
        return self._described(self._find(path), _normal(path))

    def list(self, path: str = "/") -> tuple[GuestFile, ...]:
        """Return the files in a directory, by name; or the file itself, if it is no directory.

        Raises:
            GuestFileError: there is no such file.

        """
        found, path = self._find(path), _normal(path)
        described = self._described(found, path)
        if described.kind is not FileKind.DIRECTORY:
            return (described,)
        entries = (self._described(each, _joined(path, name)) for name, each in self._entries(found))
        return tuple(sorted(entries, key=lambda each: each.path))

    def walk(self, path: str = "/") -> Iterator[GuestFile]:
        """Yield a file, and everything below it if it is a directory, each directory before what is in it.

        Raises:
            GuestFileError: there is no such file, or there are more than any disk has.

        """
        top = self._find(path)
        todo, seen, count = [(_normal(path), top, 0)], set[int](), 0
        while todo:
            here, entry, depth = todo.pop()
            described = self._described(entry, here)
            count += 1
            if count > MOST_ENTRIES or depth > MOST_DEPTH:
                raise GuestFileError(f"there are too many files below {path}, or too deep", path=self._source.path)
            yield described
            if described.kind is not FileKind.DIRECTORY or described.inode in seen:
                continue
            seen.add(described.inode)
            below = sorted(self._entries(entry), key=lambda each: each[0], reverse=True)
            todo += [(_joined(here, name), each, depth + 1) for name, each in below]

    def pieces(self, file: str | GuestFile) -> Iterator[bytes]:
        """Yield the content of a file, given by its path or as it was found, a MiB at a time; holes are zeros.

        Raises:
            GuestFileError: there is no such file, or it is none that has content, or it cannot be read.

        """
        entry, described = self._opened(file)
        path = described.path
        if described.kind is not FileKind.FILE:
            raise GuestFileError(f"{path} is no file, but: {described.kind}", path=self._source.path)
        at = 0
        while at < described.size:
            with self._source.failures_of(f"reading {path}"):
                piece = entry.read_random(at, min(_PIECE_BYTES, described.size - at))
            if not piece:
                message = f"{path} ends at {at}, and its size is {described.size}"
                raise GuestFileError(message, path=self._source.path)
            yield piece
            at += len(piece)

    def read(self, file: str | GuestFile) -> bytes:
        """Return the content of a file; see `pieces`."""
        return b"".join(self.pieces(file))

    def runs(self, file: str | GuestFile) -> tuple[tuple[int, int], ...]:
        """Return where the content of a file lies on the disk, as (start, stop) in bytes; none if in its own record."""
        found: list[tuple[int, int]] = []
        size, start = self.block_size, self.partition.start
        entry, described = self._opened(file)
        with self._source.failures_of(f"reading {described.path}"):
            for attribute in entry:
                for run in attribute:
                    if run.flags & (self._tsk.TSK_FS_ATTR_RUN_FLAG_SPARSE | self._tsk.TSK_FS_ATTR_RUN_FLAG_FILLER):
                        continue
                    found.append((start + run.addr * size, start + (run.addr + run.len) * size))
        return tuple(found)

    def _opened(self, file: str | GuestFile) -> tuple[Any, GuestFile]:
        """Return what The Sleuth Kit has for a file; for one that was found before no directory is read again."""
        if isinstance(file, str):
            entry = self._find(file)
            return entry, self._described(entry, _normal(file))
        with self._source.failures_of(f"opening {file.path}"):
            return self._system.open_meta(file.inode), file

    def _find(self, path: str) -> Any:  # noqa: ANN401 - pytsk3 ships no types
        """Return what The Sleuth Kit has for a path."""
        with self._source.failures_of("reading the root directory"):
            entry = self._system.open_meta(self._system.info.root_inum)
        for name in _normal(path).split("/"):
            if name:
                entry = self._in_directory(entry, name, path)
        return entry

    def _in_directory(self, directory: Any, name: str, path: str) -> Any:  # noqa: ANN401
        entries = list(self._entries(directory))
        for found, entry in entries:
            if found == name:
                return entry
        if self._ignores_case:
            for found, entry in entries:
                if found.casefold() == name.casefold():
                    return entry
        raise GuestFileError(f"there is no {path} inside of it", path=self._source.path)

    def _entries(self, directory: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
        """Yield (name, entry) of what is in a directory; nothing of what is none."""
        if directory.info.meta is None or directory.info.meta.type != self._tsk.TSK_FS_META_TYPE_DIR:
            return
        with self._source.failures_of("reading a directory"):
            for entry in directory.as_directory():
                name = entry.info.name.name.decode("utf-8", "surrogateescape")
                if not self._is_hidden(entry, name):
                    yield name, entry

    def _is_hidden(self, entry: Any, name: str) -> bool:  # noqa: ANN401
        """Whether an entry is none of the guest's files: deleted, of the file system itself, or no name at all."""
        tsk, info = self._tsk, entry.info
        if name in {"", ".", ".."} or "/" in name or "\0" in name:
            return True
        if info.name.flags & tsk.TSK_FS_NAME_FLAG_UNALLOC or info.meta is None:
            return True
        if info.name.type in {tsk.TSK_FS_NAME_TYPE_VIRT, tsk.TSK_FS_NAME_TYPE_VIRT_DIR}:
            return True
        if info.meta.type in {tsk.TSK_FS_META_TYPE_VIRT, tsk.TSK_FS_META_TYPE_VIRT_DIR}:
            return True
        if self._is_ntfs:
            return bool(info.meta.addr < _NTFS_OWN and info.meta.addr != _NTFS_ROOT)
        return name.endswith(" (Volume Label Entry)") and not info.meta.size

    def _described(self, entry: Any, path: str) -> GuestFile:  # noqa: ANN401
        tsk, meta = self._tsk, entry.info.meta
        kinds = {
            tsk.TSK_FS_META_TYPE_REG: FileKind.FILE,
            tsk.TSK_FS_META_TYPE_DIR: FileKind.DIRECTORY,
            tsk.TSK_FS_META_TYPE_LNK: FileKind.LINK,
        }
        kind = kinds.get(meta.type, FileKind.OTHER)
        target = None
        if kind is FileKind.LINK and meta.link:
            target = meta.link.decode("utf-8", "surrogateescape")
        return GuestFile(
            path=path,
            kind=kind,
            size=max(0, int(meta.size)),
            mode=int(meta.mode) & 0o7777,
            uid=int(meta.uid),
            gid=int(meta.gid),
            inode=int(meta.addr),
            modified=_time(meta, "mtime"),
            changed=_time(meta, "ctime"),
            created=_time(meta, "crtime"),
            target=target,
        )


@checked
def open_files(chain: DiskView, partition: int | None = None) -> GuestFiles:
    """Return the files of a disk: of a partition by its number, or of the only one that holds a file system.

    They are read through the chain, which must stay open.

    Raises:
        MissingExtraError: pytsk3 is not installed.
        GuestFileError: there is no such partition, no file system, or several to choose from.

    """
    source = DiskSource(chain)
    parts = source.partitions()
    known = [part for part in parts if part.file_system is not None]
    if partition is None:
        if len(known) == 1:
            return GuestFiles(source, known[0])
        if not known:
            raise GuestFileError("it holds no file system that is known here", path=source.path)
        numbers = ", ".join(f"{part.number} ({part.file_system})" for part in known)
        message = f"several of its partitions hold files: {numbers}"
        raise GuestFileError(message, path=source.path, hint=Advice.PARTITION.hint("{} chooses one"))
    for part in parts:
        if part.number == partition:
            if part.file_system is None:
                raise GuestFileError(f"partition {partition} holds no file system that is known", path=source.path)
            return GuestFiles(source, part)
    raise GuestFileError(f"it has no partition {partition}: it has {len(parts)}", path=source.path)


@checked
def list_partitions(chain: DiskView) -> tuple[Partition, ...]:
    """Return the partitions of a disk.

    Raises:
        MissingExtraError: pytsk3 is not installed.

    """
    return DiskSource(chain).partitions()


def _normal(path: str) -> str:
    """Return a path with one slash between its parts, and one at its beginning."""
    return "/" + "/".join(part for part in path.split("/") if part not in {"", "."})


def _joined(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"


def _time(meta: Any, field: str) -> float:  # noqa: ANN401
    return int(getattr(meta, field)) + int(getattr(meta, f"{field}_nano", 0)) / 1e9
