"""Finding an image's parent.

A locator inside an image is untrusted input that names a file to open. So a parent is opened only where the
caller allows it: under the child's own folder, the search folders, and the folders of the path map; links that
lead out of them are refused like any other path. What is opened must be a regular file, and its unique id, read
from the opened file, must be the one that the child remembers.

Order: the explicit parent · the path map · relative locators · base names in the child's folder and the search
folders, with the other extensions, with other case where that is unique · by id anywhere in those folders.

**Source**: reference 2.3 to 2.5, 4.5.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vhdkit.chain import names
from vhdkit.chain.catalog import read_entries
from vhdkit.chain.names import Clue
from vhdkit.errors import (
    Candidate,
    ChainError,
    ChainLoopError,
    CorruptImageError,
    Corruption,
    Finding,
    ParentMismatchError,
    ParentNotFoundError,
    ParentRefusedError,
    VhdError,
    printable,
)
from vhdkit.format import unique_id
from vhdkit.image.image import Image, Layer, RawImage
from vhdkit.image.metadata import Metadata, read_metadata

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from vhdkit.storage.seam import Folder, Storage

_BY_ID = "unique id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where parents may be looked for: the caller's permissions, with paths as the folder understands them."""

    folder: Folder
    search: tuple[str, ...] = ()
    parent_map: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A parent, and what was odd about the way to it."""

    layer: Layer
    findings: tuple[Finding, ...]
    was_explicit: bool


def find_parent(child: Image, where: Where, above: Collection[tuple[int, int]]) -> Found:
    """Open the parent of a differencing image; `above` are the identities of the chain's files so far.

    Raises:
        ParentNotFoundError, ParentMismatchError, ParentRefusedError: with every candidate and why it was not taken.
        ChainLoopError: the image named as the parent is part of the chain already.
        CorruptImageError, UnsupportedImageError: the parent was found, and cannot be read.

    """
    return _Search(child, where, above).run()


class _Search:
    """One search: it gathers the candidates that were not taken."""

    def __init__(self, child: Image, where: Where, above: Collection[tuple[int, int]]) -> None:
        self.child = child
        self.where = where
        self.folder = where.folder
        self.above = above
        self.directory = os.path.dirname(self.folder.real(child.path))
        self.candidates: list[Candidate] = []
        self.seen: set[str] = set()
        self.refused = False
        self.mismatched: bytes | None = None
        self.damaged: VhdError | None = None
        header = child.header
        self.wanted = header.parent_unique_id if header is not None else unique_id.NULL
        self.roots = [self.directory, *(self.folder.real(path) for path in where.search)]

    def run(self) -> Found:
        explicit = self._explicit()
        if explicit is not None:
            return explicit
        for clue, roots in self._clues():
            parent = self._try(clue, roots)
            if parent is not None:
                return self._found(*parent, clue)
        if self.wanted != unique_id.NULL:
            parent = self._by_id()
            if parent is not None:
                return self._found(*parent, Clue(parent[0].path, _BY_ID))
        raise self._failure()

    def _explicit(self) -> Found | None:
        if self.where.parent is None:
            return None
        storage = self.folder.open(self.folder.real(self.where.parent))
        try:
            metadata = read_metadata(storage)
        except CorruptImageError as error:
            if self.wanted == unique_id.NULL and error.corruption in {
                Corruption.NOT_A_VHD,
                Corruption.FILE_TOO_SHORT,
            }:
                self._refuse_loop(storage)
                return Found(layer=RawImage(storage), findings=(), was_explicit=True)
            storage.close()
            raise
        if metadata.footer.unique_id != self.wanted:
            self._reject(Clue(storage.path, "--parent"), self._mismatch(metadata.footer.unique_id))
            storage.close()
            return None
        self._refuse_loop(storage)
        return Found(layer=Image(storage, metadata), findings=(), was_explicit=True)

    def _clues(self) -> Iterator[tuple[Clue, list[str]]]:
        metadata = self.child.metadata
        map_roots = [self.folder.real(local) for local in self.where.parent_map.values()]
        for clue in names.mapped(metadata, self.where.parent_map):
            yield clue, map_roots
        for clue in names.relative(metadata):
            yield Clue(self._matching_case(self.directory, clue.path), clue.origin), self.roots
        for clue in names.base_names(metadata):
            for directory in self.roots:
                yield Clue(self._matching_case(directory, clue.path), clue.origin), self.roots

    def _matching_case(self, directory: str, path: str) -> str:
        """Return the path, components that do not exist replaced by the only one that differs in case alone."""
        for part in (part for part in path.split("/") if part not in {"", "."}):
            here = os.path.join(directory, part)
            if part != ".." and not self.folder.exists(here):
                alike = [name for name in self.folder.names(directory) if name.lower() == part.lower()]
                here = os.path.join(directory, alike[0]) if len(alike) == 1 else here
            directory = here
        return directory

    def _try(self, clue: Clue, roots: list[str]) -> tuple[Storage, Metadata] | None:
        """Open a candidate if it is allowed, is there, is a VHD and has the right id."""
        real = self.folder.real(clue.path)
        if real in self.seen:
            return None
        self.seen.add(real)
        if not any(_is_inside(real, root) for root in roots):
            self.refused = True
            option = f"--search {printable(self.folder.display(os.path.dirname(real)))}"
            self._reject(clue, f"outside of the folders allowed; {option} would allow it")
            return None
        try:
            storage = self.folder.open(real)
        except OSError as error:
            self._reject(clue, (error.strerror or str(error)).lower())
            return None
        try:
            metadata = read_metadata(storage)
        except VhdError as error:
            self.damaged = self.damaged or error
            self._reject(clue, str(error))
            storage.close()
            return None
        if metadata.footer.unique_id == self.wanted:
            return storage, metadata
        self._reject(clue, self._mismatch(metadata.footer.unique_id))
        storage.close()
        return None

    def _by_id(self) -> tuple[Storage, Metadata] | None:
        """Look through whole folders for the id; several files that fit are as good as none."""
        fitting: dict[tuple[int, int], str] = {}
        for root in dict.fromkeys(self.roots):
            for path, image in read_entries(self.folder, self.folder.walk(root), {}):
                if image.unique_id == self.wanted and image.identity not in self.above:
                    fitting.setdefault(image.identity, path)
        if len(fitting) == 1:
            self.seen.clear()
            return self._try(Clue(next(iter(fitting.values())), _BY_ID), self.roots)
        for path in fitting.values():
            self._reject(Clue(path, _BY_ID), "has the right id, and so have others; choose with --parent")
        return None

    def _found(self, storage: Storage, metadata: Metadata, clue: Clue) -> Found:
        self._refuse_loop(storage)
        findings = []
        expected = {os.path.basename(path) for path in names.named_paths(self.child.metadata, "")}
        if clue.origin == _BY_ID or os.path.basename(storage.path) not in expected:
            message = f"its parent was found by {clue.origin}: {printable(storage.path)}"
            findings.append(self._finding(Corruption.PARENT_FOUND_ELSEWHERE, message))
        if self.wanted == unique_id.NULL:
            message = "it remembers a null id, so that only the name says that this is its parent"
            findings.append(self._finding(Corruption.PARENT_ID_NULL, message))
        try:
            return Found(layer=Image(storage, metadata), findings=tuple(findings), was_explicit=False)
        except BaseException:
            storage.close()
            raise

    def _refuse_loop(self, storage: Storage) -> None:
        if storage.identity in self.above:
            storage.close()
            message = f"its parent {printable(storage.path)} is part of the chain above it: the chain is a loop"
            raise ChainLoopError(message, path=self.child.path, candidates=tuple(self.candidates))

    def _finding(self, corruption: Corruption, message: str) -> Finding:
        return Finding(corruption=corruption, path=self.child.path, message=message)

    def _reject(self, clue: Clue, reason: str) -> None:
        self.candidates.append(Candidate(path=clue.path, origin=clue.origin, reason=reason))

    def _mismatch(self, found: bytes) -> str:
        self.mismatched = self.mismatched or found
        return f"its id is {self._shown(found)}, expected {self._shown(self.wanted)}"

    def _shown(self, value: bytes) -> str:
        return unique_id.display(value, self.child.footer.creator_application)

    def _failure(self) -> ChainError:
        for clue in names.texts(self.child.metadata):
            if names.is_absolute(clue.path):
                reason = "an absolute path is not followed; --parent-map FOLDER=LOCAL_FOLDER would allow it"
                self._reject(clue, reason)
        candidates = tuple(self.candidates)
        path = self.child.path
        if self.wanted == unique_id.NULL:
            message = "its parent has no id: it is a raw file, which is read only if --parent names it"
            return ParentRefusedError(message, path=path, candidates=candidates)
        looked_for = f"its parent, id {self._shown(self.wanted)}"
        if self.mismatched is not None:
            other = self._shown(self.mismatched)
            return ParentMismatchError(
                f"{looked_for}, was not found; what has its name has the id {other}."
                " Find the right file and add --search FOLDER",
                path=path,
                expected=self.wanted,
                found=self.mismatched,
                candidates=candidates,
            )
        if self.refused:
            message = f"{looked_for}, is named outside of the folders that may be looked into"
            return ParentRefusedError(message, path=path, candidates=candidates)
        message = f"{looked_for}, was not found; add --search FOLDER or --parent FILE"
        error = ParentNotFoundError(message, path=path, candidates=candidates)
        error.__cause__ = self.damaged
        return error


def _is_inside(path: str, root: str) -> bool:
    return path.startswith(root.rstrip(os.sep) + os.sep)
