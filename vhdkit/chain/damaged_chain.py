"""A chain's layers as far as they can be read, however damaged they are: for showing, never for reading data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.chain.chain import MAX_LAYERS
from vhdkit.chain.parent_search import parent_path
from vhdkit.errors import ChainError, CorruptImageError, UnsupportedImageError, VhdError
from vhdkit.formats import examine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.chain.parent_search import ParentSearch
    from vhdkit.disk.image import FileSummary
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLayer:
    """A layer whose file is open until the next is asked for; `metadata` is None if it says nothing of itself."""

    storage: Storage
    metadata: FileSummary | None
    findings: tuple[Finding, ...]

    @property
    def path(self) -> str:
        """Where the file is."""
        return self.storage.path


def seen_layers(path: str, parents: ParentSearch) -> Iterator[SeenLayer]:
    """Yield the layers from a leaf down for as long as parents can be found; no table is read, nobody asked for a lock.

    Raises:
        ChainError: why there are no more.
        OSError: a file cannot be opened or read.

    """
    known: set[tuple[int, int]] = set()
    at: str | None = parents.folder.real(path)
    while at is not None:
        if len(known) == MAX_LAYERS:
            raise ChainError(f"the chain has more than {MAX_LAYERS} layers", path=path)
        with parents.folder.open(at) as storage:
            known.add(storage.identity)
            examined = examine(parents.folder, storage)
            yield SeenLayer(storage=storage, metadata=examined.summary, findings=examined.findings)
            at = _below(at, examined.summary, parents, known)


def _below(path: str, metadata: FileSummary | None, parents: ParentSearch, known: set[tuple[int, int]]) -> str | None:
    if metadata is None or metadata.parent is None:
        return None
    try:
        return parent_path(metadata, parents, known)
    except (CorruptImageError, UnsupportedImageError) as error:
        return error.path or None
    except ChainError as error:
        # What has the parent's name and cannot be read is most likely the parent.
        damaged = error.__cause__
        if isinstance(damaged, VhdError) and damaged.path and damaged.path != path:
            return damaged.path
        raise
