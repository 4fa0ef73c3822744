"""A folder that counts what is asked of it, and what is read from its files."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.through import ThroughFolder, ThroughStorage
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Folder, Storage, Walk


class CountingStorage(ThroughStorage):
    """Counts reads, and the bytes that are read."""

    def __init__(self, inner: Storage, calls: Counter[str]) -> None:
        super().__init__(inner)
        self.calls = calls

    def read_into(self, offset: int, buffer: Buffer) -> int:
        self.calls["reads"] += 1
        self.calls["bytes"] += memoryview(buffer).nbytes
        return super().read_into(offset, buffer)


class CountingFolder(ThroughFolder):
    """Counts what is asked of a folder, this machine's by default."""

    def __init__(self, inner: Folder | None = None) -> None:
        super().__init__(inner or LocalFolder())
        self.calls: Counter[str] = Counter()

    def open(self, path: str, *, writable: bool = False) -> Storage:
        self.calls["opens"] += 1
        return CountingStorage(super().open(path, writable=writable), self.calls)

    def real(self, path: str) -> str:
        self.calls["reals"] += 1
        return super().real(path)

    def exists(self, path: str) -> bool:
        self.calls["exists"] += 1
        return super().exists(path)

    def names(self, directory: str) -> tuple[str, ...]:
        self.calls["names"] += 1
        return super().names(directory)

    def walk(self, directory: str, **options: Any) -> Walk:
        self.calls["walks"] += 1
        return super().walk(directory, **options)
