"""Finding an image's parent.

A locator inside an image is untrusted input that names a file to open. So a parent is opened only where the
caller allows it: under the child's own folder, the search folders, and the folders of the path map; and from
Hyper-V's `Snapshots` in `Virtual Hard Disks` beside it, or back. Links that lead out of them are refused. What is
opened must be a regular file, and its unique id, read from the opened file, must be the one that the child remembers.

Order: the explicit parent · the path map · relative locators · base names in the child's folder and the search
folders, with the other extensions, with other case where that is unique · by id in the child's folder, and anywhere in
the search folders.

**Source**: docs/reference/vhd.md 2.3 to 2.5, 4.4.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from vhdkit.chain import parent_paths
from vhdkit.chain.folder_index import FolderIndex, layout_folders
from vhdkit.chain.parent_paths import Clue
from vhdkit.chain.rejected_parents import EXPLICIT, RejectedParents
from vhdkit.corruption import Corruption
from vhdkit.disk import unique_id
from vhdkit.disk.file_image import FileImage
from vhdkit.disk.image import DiskKind, ImageSummary
from vhdkit.disk.parent_link import ParentLink
from vhdkit.disk.raw_image import RawImage
from vhdkit.errors import ChainError, ChainLoopError, CorruptImageError, VhdError
from vhdkit.findings import Advice, Finding
from vhdkit.formats import image_of, read_summary, step_findings
from vhdkit.options import ParentPolicy
from vhdkit.storage import paths
from vhdkit.storage.handle import closing_on_error
from vhdkit.storage.search_scope import SearchScope

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vhdkit.disk.image import Image
    from vhdkit.disk.parent_link import ParentLink
    from vhdkit.storage.protocols import Folder, Storage

_BY_ID = "unique id"
# Components of one path that are written in other case than the folders are: no tree of images is so deep.
_MOST_IN_OTHER_CASE = 64
_AMBIGUOUS = "has the right id, and so have others"


@dataclass(frozen=True, slots=True)
class ParentSearch:
    """The search for parents in a folder, as far as a policy allows, with paths as the folder understands them.

    With `lock` the parent that is found is held, shared; what is only looked at on the way never is. With
    `takes_parent` false the caller has no parent to name, and no message asks for one. Searches that follow one another
    share an `index`, so that each folder is read once.
    """

    folder: Folder
    policy: ParentPolicy = field(default_factory=ParentPolicy)
    lock: bool = field(default=False, kw_only=True)
    takes_parent: bool = field(default=True, kw_only=True)
    index: FolderIndex | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot name a file before anything is opened."""
        policy = self.policy
        given = [("parent", policy.parent or ""), *(("search", path) for path in policy.search)]
        given += [("parent_map", local) for local in policy.parent_map.values()]
        for argument, path in given:
            if not parent_paths.can_be_a_path(path):
                raise ValueError(f"{argument}: no file can be called {path!r}")

    @classmethod
    def within(cls, scope: SearchScope, *directories: str) -> ParentSearch:
        """Return the search in a scope and in more directories, each of which is read once."""
        everywhere = tuple(dict.fromkeys((*scope.directories, *directories)))
        return cls(scope.folder, ParentPolicy(search=everywhere), index=FolderIndex(scope.folder))

    @property
    def scope(self) -> SearchScope:
        """The directories that the caller named."""
        return SearchScope(self.folder, self.policy.search)

    def also_in(self, *directories: str) -> ParentSearch:
        """Return the search that looks into more directories."""
        return replace(self, policy=replace(self.policy, search=(*self.policy.search, *directories)))

    def without_named_parent(self) -> ParentSearch:
        """Return the search of a layer whose parent the caller has not named."""
        return replace(self, policy=self.policy.without_named_parent())


class Child(Protocol):
    """What a search has to know of the image whose parent it looks for; an open `Image` is one."""

    @property
    def path(self) -> str:
        """Where the file is."""
        ...

    @property
    def parent(self) -> ParentLink | None:
        """What it says of its parent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A parent, and what was odd about the way to it."""

    layer: Image
    findings: tuple[Finding, ...]
    was_explicit: bool


def find_parent(child: Child, parents: ParentSearch, above: Collection[tuple[int, int]]) -> Found:
    """Open the parent of a differencing image; `above` are the identities of the chain's files so far.

    Raises:
        ParentNotFoundError, ParentMismatchError, ParentRefusedError: with every candidate and why it was not taken.
        ChainLoopError: the image named as the parent is part of the chain already.
        CorruptImageError, UnsupportedImageError: the parent was found, and cannot be read.
        ImageInUseError: the parent was found, is to be locked, and somebody writes to it.

    """
    return _Search(child, parents, above).run()


def parent_identity(child: Child, parents: ParentSearch, above: Collection[tuple[int, int]]) -> tuple[int, int]:
    """Return which file is an image's parent: what `find_parent` opens and why not, without reading its table."""
    with _Search(child, parents, above, glance=True).run().layer as layer:
        return layer.storage.identity


def parent_path(child: Child, parents: ParentSearch, above: Collection[tuple[int, int]]) -> str:
    """Return where an image's parent is, as `parent_identity`."""
    with _Search(child, parents, above, glance=True).run().layer as layer:
        return layer.path


class _Search(RejectedParents):
    """One search: it gathers the candidates that were not taken. With `glance` the parent's table is not read."""

    def __init__(
        self, child: Child, parents: ParentSearch, above: Collection[tuple[int, int]], *, glance: bool = False
    ) -> None:
        super().__init__(child, parents)
        self.glance = glance
        self.folder = parents.folder
        self.index = parents.index or FolderIndex(parents.folder)
        self.above = above
        self.directory = paths.dirname(self.folder.real(child.path))
        self.seen: set[str] = set()
        self.unreadable: VhdError | None = None
        self.searched = [self.folder.real(path) for path in parents.policy.search]
        self.roots = [self.directory, *self.searched, *layout_folders(self.folder, self.directory)]

    def run(self) -> Found:
        explicit = self._explicit()
        if explicit is not None:
            return explicit
        for clue, roots in self._clues():
            parent = self._try(clue, roots)
            if parent is not None and not self._has_rival(parent[0], clue):
                return self._found(*parent, clue)
            if self.ambiguous:
                raise self.failure()
        if self.wanted != unique_id.NULL:
            parent = self._by_id()
            if parent is not None:
                return self._found(*parent, Clue(parent[0].path, _BY_ID))
        if self.parents.policy.accept_id_mismatch and self.mismatched is not None:
            return self._accepted(*self.mismatched)
        raise self.unreadable or self.failure()

    def _accepted(self, clue: Clue, found: bytes) -> Found:
        """Open the file that the child, or the caller, names as its parent, and that has another id."""
        storage = self.folder.open(clue.path)
        with closing_on_error(storage):
            metadata = read_summary(self.folder, storage)
            message = (
                f"{paths.as_given(clue.path)} is taken for its parent, as you asked: it has the id"
                f" {unique_id.guid(found)}, and the parent has {unique_id.guid(self.wanted)}, so that the disk may read"
                " wrongly"
            )
            findings = [self._finding(Corruption.PARENT_ID_DIFFERS, message)]
            layer = self._layer(storage, metadata, findings, found)
        return Found(layer=layer, findings=tuple(findings), was_explicit=clue.origin == EXPLICIT)

    def _explicit(self) -> Found | None:
        """Return the parent that the caller named, if it is this image's."""
        if self.parents.policy.parent is None:
            return None
        clue = Clue(self.folder.real(self.parents.policy.parent), EXPLICIT)
        storage = self.folder.open(clue.path)
        with closing_on_error(storage):
            metadata = self._metadata_or_raw(storage)
            found = unique_id.NULL if metadata is None else metadata.unique_id
            if found in self.link.ids:
                findings: list[Finding] = []
                layer = self._layer(storage, metadata, findings, found)
                return Found(layer=layer, findings=tuple(findings), was_explicit=True)
            if metadata is None:
                self.reject(clue, "it is a raw file, and the parent has an id")
            else:
                self.reject_mismatch(clue, storage, found, is_above=storage.identity in self.above)
        storage.close()
        return None

    def _metadata_or_raw(self, storage: Storage) -> ImageSummary | None:
        try:
            return read_summary(self.folder, storage)
        except CorruptImageError as error:
            if error.corruption in {Corruption.NOT_A_VHD, Corruption.FILE_TOO_SHORT}:
                self.unreadable = error
                return None
            raise

    def _clues(self) -> Iterator[tuple[Clue, list[str]]]:
        for local, clue in parent_paths.mapped(self.link, self.parents.policy.parent_map):
            root = self.folder.real(local)
            yield self._below(root, clue, [root]), [root]
        for clue in parent_paths.relative(self.link):
            yield self._below(self.directory, clue, self.roots), self.roots
        for clue in parent_paths.base_names(self.link):
            for directory in self.roots:
                yield self._below(directory, clue, self.roots), self.roots

    def _below(self, directory: str, clue: Clue, roots: list[str]) -> Clue:
        """Return the clue with its path below a directory; what does not exist is taken in other case if unique.

        No folder outside of the roots is listed for that, and nothing below a folder that is not there is asked for: a
        path may have thousands of components.
        """
        parts = [part for part in clue.path.split("/") if part not in {"", "."}]
        here, derived = directory, clue.derived
        for _ in range(_MOST_IN_OTHER_CASE):
            missing = self._first_missing(here, parts, roots)
            if missing is None:
                break
            there = paths.join(here, *parts[:missing])
            alike = self.index.alike(there, parts[missing]) if self._may_list(there, roots) else ()
            if len(alike) != 1:
                break
            here, parts, derived = paths.join(there, alike[0]), parts[missing + 1 :], True
        return Clue(paths.join(here, *parts), clue.origin, derived)

    def _first_missing(self, directory: str, parts: list[str], roots: list[str]) -> int | None:
        """Return which part of a path below a directory is the first that is not there, None if all of them are.

        Where one is missing, so is everything behind it: so few of them have to be asked for. Those that lie outside
        of the roots, by their text, are not asked for at all.
        """
        asked, here = [], directory
        for number, part in enumerate(parts):
            if part == "..":
                here = paths.dirname(here)
                continue
            if paths.is_below(here, roots):
                asked.append(number)
            here = paths.join(here, part)

        def is_missing(number: int) -> bool:
            return not self.folder.exists(paths.join(directory, *parts[: number + 1]))

        if not asked or not is_missing(asked[-1]):
            return None
        return asked[bisect_left(asked, True, key=is_missing)]  # noqa: FBT003 - False sorts before True

    def _may_list(self, directory: str, roots: list[str]) -> bool:
        return paths.is_below(paths.normpath(directory), roots) and paths.is_below(self.folder.real(directory), roots)

    def _try(self, clue: Clue, roots: list[str]) -> tuple[Storage, ImageSummary] | None:
        """Open a candidate if it is allowed, is there, is a VHD and has the right id."""
        # First by its text alone: even asking the system about a path outside can wake an automounter.
        real = paths.normpath(clue.path)
        if paths.is_below(paths.dirname(real), roots):
            real = self.folder.real(clue.path)
        if real in self.seen:
            return None
        self.seen.add(real)
        if not paths.is_below(paths.dirname(real), roots):
            self.refused = True
            hint = Advice.SEARCH_THERE.hint("{} would allow it", folder=self.folder.display(paths.dirname(real)))
            self.reject(clue, "outside of the folders allowed", hint)
            return None
        try:
            storage = self.folder.open(real)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
                raise  # of the file it says nothing
            self.reject(clue, (getattr(error, "strerror", None) or str(error)).lower())
            return None
        if not self.folder.is_without_links(real, storage.identity):
            storage.close()
            self.reject(clue, "a folder in its path was replaced while it was opened")
            return None
        metadata = self._fitting_metadata(storage, clue)
        if metadata is None:
            storage.close()
            return None
        return storage, metadata

    def _fitting_metadata(self, storage: Storage, clue: Clue) -> ImageSummary | None:
        """Read an opened candidate; None if it cannot be the parent."""
        if clue.derived and storage.identity in self.above:
            return None
        try:
            metadata = read_summary(self.folder, storage)
        except VhdError as error:
            self.damaged = self.damaged or error
            self.reject(clue, str(error))
            return None
        if metadata.unique_id not in self.link.ids:
            self.reject_mismatch(clue, storage, metadata.unique_id, is_above=storage.identity in self.above)
            return None
        return metadata

    def _has_rival(self, storage: Storage, clue: Clue) -> bool:
        """Whether a base name led to another folder while a file beside the child has the id as well.

        One of them is a backup, and which, the caller has to say.
        """
        if "base name" not in clue.origin or paths.dirname(storage.path) == self.directory:
            return False
        near = self._with_an_id(self.directory, deep=False)
        rivals = [path for path, identity in near if identity != storage.identity and identity not in self.above]
        if rivals:
            self.ambiguous = True
            storage.close()
            for path in (storage.path, *rivals):
                self.reject(Clue(path, _BY_ID), _AMBIGUOUS, self.choice)
        return self.ambiguous

    def _with_an_id(self, directory: str, *, deep: bool) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield (path, identity) of the images in a folder that have one of the ids that fit."""
        for wanted in self.link.ids:
            yield from self.index.with_id(directory, wanted, deep=deep)

    def _by_id(self) -> tuple[Storage, ImageSummary] | None:
        """Look through whole folders for the id; several files that fit are as good as none."""
        fitting: dict[tuple[int, int], str] = {}
        for root in dict.fromkeys(self.roots):
            # What lies below the image's own folder unnamed may well be a backup; a search folder was asked for.
            deep = root in self.searched
            for path, identity in self._with_an_id(root, deep=deep):
                if identity not in self.above:
                    fitting.setdefault(identity, path)
        if len(fitting) == 1:
            self.seen.clear()
            return self._try(Clue(next(iter(fitting.values())), _BY_ID), self.roots)
        self.ambiguous = bool(fitting)
        for path in fitting.values():
            self.reject(Clue(path, _BY_ID), _AMBIGUOUS, self.choice)
        for root in dict.fromkeys(self.roots):
            # A web server does not say what it has: there a parent is found by its name alone.
            if root in self.index.unlisted and paths.is_remote(root):
                self.reject(Clue(root, _BY_ID), str(self.index.unlisted[root].strerror))
        return None

    def _found(self, storage: Storage, metadata: ImageSummary, clue: Clue) -> Found:
        findings = []
        expected = {paths.basename(path) for path in parent_paths.named_paths(self.link, "")}
        if clue.origin == _BY_ID or paths.basename(storage.path) not in expected:
            message = f"its parent was found by {clue.origin}: {paths.as_given(storage.path)}"
            findings.append(self._finding(Corruption.PARENT_FOUND_ELSEWHERE, message))
        if self.wanted == unique_id.NULL:
            message = "it remembers a null id, so that only the name says that this is its parent"
            findings.append(self._finding(Corruption.PARENT_ID_NULL, message))
        with closing_on_error(storage):
            layer = self._layer(storage, metadata, findings, metadata.unique_id)
            return Found(layer=layer, findings=tuple(findings), was_explicit=False)

    def _layer(
        self, storage: Storage, metadata: ImageSummary | None, findings: list[Finding], expected: bytes
    ) -> Image:
        """Make a layer of what fits, which has been glanced at so far: once it is locked it is read again."""
        self._refuse_loop(storage)
        if self.parents.lock:
            storage.lock(exclusive=False)
            if metadata is not None:
                metadata = read_summary(self.folder, storage)
                if metadata.unique_id != expected:
                    raise ChainError("it was given another id while it was opened; try again", path=storage.path)
        if self.glance:
            return FileImage(storage, 0, DiskKind.RAW)
        findings += step_findings(self.folder, storage)
        return RawImage(storage) if metadata is None else image_of(storage, metadata)

    def _refuse_loop(self, storage: Storage) -> None:
        if storage.identity in self.above:
            message = f"its parent {paths.as_given(storage.path)} is part of the chain above it: the chain is a loop"
            raise ChainLoopError(message, path=self.child.path, candidates=tuple(self.candidates))

    def _finding(self, corruption: Corruption, message: str) -> Finding:
        return Finding(corruption=corruption, path=self.child.path, message=message)
