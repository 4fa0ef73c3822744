"""A disk between two runs, as a value: files with numbers and times, and what people do to them.

A real file system identifies a file by its number, and says of it a modification time, which anybody may set, and a
change time, which nobody may: putting a file back, renaming it and setting its times all move it to the present.

    disk = Disk.of(folder)
    disk = disk.put_back("/vms/base.vhd", older.content, mtime=older.mtime, in_place=False)
    again = disk.folder()    # a CrashFolder on which all of it is durable

"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.crashfs import CrashFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.crash.survivals import Survival


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file at rest. Its times are in seconds."""

    content: bytes
    number: int
    mtime: float
    ctime: float
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """All files by their paths, and the time; each change takes a second. `next_number` is no file's yet."""

    files: Mapping[str, StoredFile]
    now: float
    next_number: int

    @classmethod
    def of(cls, folder: CrashFolder) -> Disk:
        """Return what a folder has now, all of it durable."""
        files = {
            path: StoredFile(
                content=bytes(file.content),
                number=file.number,
                mtime=file.mtime,
                ctime=file.ctime,
                read_only=file.read_only,
            )
            for path, file in folder.names_of.items()
        }
        return cls(files=files, now=folder.now, next_number=folder.next_number)

    @classmethod
    def found(cls, survival: Survival) -> Disk:
        """Return what a cut has left."""
        return cls.of(survival.folder(clock=True))

    def folder(self, *, clock: bool = True) -> CrashFolder:
        """Return a folder to go on with, its log empty."""
        folder = CrashFolder(
            {path: file.content for path, file in self.files.items()},
            numbers={path: file.number for path, file in self.files.items()},
            times={file.number: file.mtime for file in self.files.values()},
            ctimes={file.number: file.ctime for file in self.files.values()},
            now=self.now,
            clock=clock,
        )
        folder.next_number = self.next_number
        for path, file in self.files.items():
            folder[path].read_only = file.read_only
        return folder

    def contents(self) -> dict[str, bytes]:
        """Return every file's bytes."""
        return {path: file.content for path, file in self.files.items()}

    # What people do

    def put_back(self, path: str, content: bytes, *, mtime: float | None = None, in_place: bool = True) -> Disk:
        """Let a path lead to other content: written over the file that is there (`cp`), or a new file (`rsync`, `mv`).

        With `mtime` the file gets that modification time (`cp -p`, `rsync -t`); its change time is the present anyway.
        """
        now = self.now + 1
        there = self.files.get(path) if in_place else None
        number = self.next_number if there is None else there.number
        file = StoredFile(content=content, number=number, mtime=now if mtime is None else mtime, ctime=now)
        return Disk(files={**self.files, path: file}, now=now, next_number=self.next_number + (there is None))

    def removed(self, path: str) -> Disk:
        """Take a file away."""
        files = {name: file for name, file in self.files.items() if name != path}
        return replace(self, files=files, now=self.now + 1)

    def renamed(self, path: str, new_path: str) -> Disk:
        """Give a file another name; what had that name loses it."""
        files = {name: file for name, file in self.files.items() if name not in {path, new_path}}
        file = replace(self.files[path], ctime=self.now + 1)
        return replace(self, files={**files, new_path: file}, now=self.now + 1)

    def copied(self, *, with_times: bool) -> Disk:
        """Return the whole of it copied elsewhere and given its old path: other numbers, in the order of the names."""
        disk = replace(self, files={})
        for path, file in sorted(self.files.items()):
            disk = disk.put_back(path, file.content, mtime=file.mtime if with_times else None)
        return disk
