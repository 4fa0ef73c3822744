"""Is a file, or a whole chain, what the format says? Every rule of vhd.md 4.1 and 4.2, none of them raised.

A file with an error is read on a guess, or not at all. A warning is odd, or can be mended without a guess. Information
is neither: it does not change the exit code, unless space is lost.

**Source**: docs/reference/vhd.md 4.1, 4.2; what other checkers take for errors and is none: 4.3.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.chain import chain as chains
from vhdkit.chain.catalog import Parents, read_catalog
from vhdkit.chain.folder_index import FolderIndex
from vhdkit.chain.parent_check import compare_summaries
from vhdkit.chain.parent_search import ParentSearch, find_parent
from vhdkit.chain.undo_image import undo_image_of
from vhdkit.chain.unfinished_merges import unfinished_merges
from vhdkit.corruption import Corruption
from vhdkit.disk import unique_id
from vhdkit.disk.image import DiskKind
from vhdkit.errors import (
    ChainError,
    ChainLoopError,
    CorruptImageError,
    ParentMismatchError,
    ParentRefusedError,
    UnsupportedImageError,
    VhdError,
)
from vhdkit.findings import Finding, Level, Rule
from vhdkit.formats import check_file, compare_pair, named_by_format, step_findings
from vhdkit.journal.ended_view import ended_view
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL_SUFFIX
from vhdkit.journal.merge_journal import read_journal
from vhdkit.options import ParentPolicy
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.chain.catalog import Cataloged
    from vhdkit.disk.file_check import FileCheck
    from vhdkit.disk.image import ImageFormat, ImageSummary
    from vhdkit.findings import Hint
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.units import StrPath

CLEAN = 0
NOT_CHECKED = 1
CORRUPT = 2
LEAKS = 3

_NAMED = 5  # relatives that a message names; it counts the others


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check found.

    `file_format` is that of the file that was asked about, None if that is unknown. `paths` are the files that were
    checked, leaf first. Where a rule is broken very often in one file, only the first
    are among the `findings`; `counts` has all. `leaked_bytes` is space that nothing refers to, in `leaks` stretches.
    """

    file_format: ImageFormat | None
    paths: tuple[str, ...]
    findings: tuple[Finding, ...]
    counts: Mapping[tuple[Rule, Level], int]
    leaks: int
    leaked_bytes: int

    @property
    def path(self) -> str:
        """The file that was asked about."""
        return self.paths[0]

    def count(self, level: Level) -> int:
        """Return how often rules of a level were broken."""
        return sum(number for (_, of), number in self.counts.items() if of is level)

    @property
    def not_checked(self) -> int:
        """How many files could not be judged: of no kind that is read here, or not found, or not to be looked at."""
        errors = ((rule, number) for (rule, level), number in self.counts.items() if level is Level.ERROR)
        return sum(number for rule, number in errors if not rule.is_fault)

    @property
    def exit_code(self) -> int:
        """As qemu-img's: 0 clean, 1 could not be checked, 2 corrupt, 3 space is lost and nothing worse."""
        if self.count(Level.ERROR) > self.not_checked:
            return CORRUPT
        if self.not_checked:
            return NOT_CHECKED
        return LEAKS if self.leaked_bytes else CLEAN


@checked
def check(
    path: StrPath,
    *,
    chain: bool = False,
    deep: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_id_mismatch: bool = False,
    folder: Folder | None = None,
    now: float | None = None,
) -> CheckReport:
    """Check an image, and with `chain` every image below it, how they fit, and who else reads through them.

    `deep` reads all bitmaps and the data that they say are not there. Where parents may be is said as to `open_chain`;
    it counts with `chain` only. `now` (Unix seconds) is what time stamps are held against. Nothing is raised for what
    is wrong with a file.

    Raises:
        OSError: a file cannot be opened or read, so that nothing can be said.

    """
    place = folder or LocalFolder()
    parents = ParentSearch(
        place,
        ParentPolicy.of(search, parent_map, parent, accept_id_mismatch=accept_id_mismatch),
        index=FolderIndex(place),
    )
    checker = _Checker(parents, deep=deep, now=time.time() if now is None else now)
    checker.check_leaf(place.real(as_text(path)))
    if chain:
        checker.check_below()
        checker.check_relatives()
    return checker.report()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """A file of the chain that was checked; it is closed again."""

    path: str
    identity: tuple[int, int]
    size: int
    mtime: float
    metadata: ImageSummary | None


class _Checker:
    """One check: the files so far, leaf first, and what was found in and between them."""

    def __init__(self, parents: ParentSearch, *, deep: bool, now: float) -> None:
        self.parents = parents
        self.deep = deep
        self.now = now
        self.layers: list[_Checked] = []
        self.files: list[FileCheck] = []
        self.findings: list[Finding] = []
        self.parent_unused = parents.policy.parent is not None

    def check_leaf(self, path: str) -> None:
        with self.parents.folder.open(path) as storage:
            self._check_storage(storage)

    def check_below(self) -> None:
        """Follow the parents for as long as they can be found, whatever is wrong with them."""
        while (metadata := self.layers[-1].metadata) is not None and (link := metadata.parent) is not None:
            child = self.layers[-1]
            if len(self.layers) == chains.MAX_LAYERS:
                message = f"the chain has more than {chains.MAX_LAYERS} layers"
                self._note(Corruption.CHAIN_TOO_LONG, child.path, message, Level.ERROR)
                break
            if not self._check_parent(child, metadata):
                return
            parent = self.layers[-1]
            odd = compare_summaries(metadata, parent.metadata, path=parent.path, size=parent.size, mtime=parent.mtime)
            # That it names its own id as its parent's was said of the file already.
            own = link.unique_id == metadata.unique_id
            self.findings += (item for item in odd if not (own and item.corruption is Corruption.PARENT_ID_IS_OWN))
            if parent.metadata is not None:
                self.findings += compare_pair(metadata, parent.metadata)
        if self.parent_unused:
            message = f"the parent given, {self.parents.policy.parent}, is none that any layer looks for"
            self._note(Corruption.PARENT_ID_DIFFERS, self.layers[0].path, message, Level.ERROR)

    def _check_parent(self, child: _Checked, metadata: ImageSummary) -> bool:
        """Find, check and append the parent of a layer; return whether there is a link to it."""
        parents = self.parents if self.parent_unused else self.parents.without_named_parent()
        try:
            found = find_parent(metadata, parents, {layer.identity for layer in self.layers})
        except ChainError as error:
            rule = _rule_of(error)
            message = "\n  ".join([error.message, *map(str, error.candidates)])
            self._note(rule, child.path, message, Level.ERROR, error.hint)
            if isinstance(error.__cause__, VhdError):
                # What has the parent's name and cannot be read is most likely the parent.
                self._check_damaged(error.__cause__)
            return False
        except (CorruptImageError, UnsupportedImageError) as error:
            return self._check_damaged(error)
        with found.layer:
            if found.was_explicit:
                self.parent_unused = False
            # That its own id for its parent is null was said of the child already.
            self.findings += (item for item in found.findings if item.corruption is not Corruption.PARENT_ID_NULL)
            self._check_storage(found.layer.storage, is_raw=found.layer.kind is DiskKind.RAW)
        return True

    def _check_damaged(self, error: VhdError) -> bool:
        """Check the file that an error speaks of; return whether it can be the next layer."""
        known = {layer.path for layer in self.layers}
        if not error.path or error.path in known:
            return False
        self.check_leaf(error.path)
        self.parent_unused = self.parent_unused and error.path != self.parents.folder.real(
            self.parents.policy.parent or ""
        )
        return self.layers[-1].metadata is not None

    def _check_storage(self, storage: Storage, *, is_raw: bool = False) -> None:
        metadata = None
        size = storage.size()
        if not is_raw:
            self.findings += step_findings(self.parents.folder, storage)
            journal = _journal(self.parents.folder, storage.path)
            checked = check_file(self.parents.folder, storage, deep=self.deep, now=self.now, journal=journal)
            self.files.append(checked)
            metadata = checked.metadata
            self._check_view(storage, metadata)
        unique_id = b"" if metadata is None else metadata.unique_id
        self.findings += unfinished_merges(self.parents.folder, {storage.path: unique_id})
        layer = _Checked(
            path=storage.path,
            identity=storage.identity,
            size=size if metadata is None else metadata.size,
            mtime=storage.mtime,
            metadata=metadata,
        )
        self.layers.append(layer)

    def _check_view(self, storage: Storage, metadata: ImageSummary | None) -> None:
        """Report a layer that a merge went past, and which no longer shows what it did."""
        if metadata is None:
            return
        view = ended_view(self.parents.folder, storage, metadata)
        if view is not None:
            ids = {layer.metadata.unique_id for layer in self.layers if layer.metadata is not None}
            self.findings.append(view.finding(is_hidden=view.leaf_id in ids))

    def check_relatives(self) -> None:
        """Report the other images that read through the chain's files, and those that have the ids of its files."""
        directories = dict.fromkeys(paths.dirname(layer.path) for layer in self.layers)
        catalog = read_catalog(self.parents.folder, directories, deep=False)
        own = {layer.identity: layer for layer in self.layers}
        children: dict[tuple[int, int], list[Cataloged]] = {}
        by_id: dict[bytes, dict[tuple[int, int], str]] = {}
        for layer in self.layers:
            if layer.metadata is not None:
                by_id.setdefault(layer.metadata.unique_id, {})[layer.identity] = layer.path
        parents = Parents(catalog)
        for image in catalog.images.values():
            if image.identity in own:
                continue
            for parent in parents.of(image):
                children.setdefault(parent.identity, []).append(image)
            if image.unique_id in by_id:
                by_id[image.unique_id].setdefault(image.identity, image.path)
        for layer in self.layers:
            self._check_children(layer, children.get(layer.identity, []))
        for key, files in by_id.items():
            self._check_shared_id(key, list(files.values()))

    def _check_children(self, layer: _Checked, others: list[Cataloged]) -> None:
        """Report which images read through a layer besides the one above it, and which is only an undo image."""
        undo = undo_image_of(self.parents.folder, layer.path) if others else None
        names = []
        for other in others:
            if undo is not None and undo.is_it(other):
                self._note(Corruption.UNDO_IMAGE, other.path, undo.message, Level.INFO)
            else:
                names.append(other.path)
        if names:
            message = f"other images read through it, and writing to it would spoil them: {_listed(names)}"
            self._note(Corruption.SIBLINGS, layer.path, message, Level.INFO)

    def _check_shared_id(self, key: bytes, files: list[str]) -> None:
        """A file without an id, or a child that has its parent's, was told of already."""
        order = [layer.path for layer in self.layers]
        is_link = len(files) == 2 and (files[0], files[1]) in pairwise(order)
        if len(files) > 1 and key != unique_id.NULL and not is_link:
            message = f"its id is also that of {_listed(files[1:])}: only names tell which of them is a child's parent"
            self._note(Corruption.ID_SHARED, files[0], message, Level.WARNING)

    def _note(self, corruption: Corruption, path: str, message: str, level: Level, hint: Hint | None = None) -> None:
        self.findings.append(Finding(corruption=corruption, path=path, message=message, level=level, hint=hint))

    def report(self) -> CheckReport:
        own = {layer.path: layer.metadata for layer in self.layers}
        findings = [item for file in self.files for item in file.tally.findings]
        findings += (named_by_format(own.get(item.path), item) for item in self.findings)
        counts = Counter((item.corruption, item.level) for item in findings)
        for file in self.files:
            for corruption, (level, number) in file.tally.unlisted.items():
                counts[corruption, level] += number
        leaf = self.layers[0].metadata
        return CheckReport(
            file_format=None if leaf is None else leaf.file_format,
            paths=tuple(layer.path for layer in self.layers),
            findings=tuple(findings),
            counts=dict(counts),
            leaks=sum(checked.leaks.stretches for checked in self.files),
            leaked_bytes=sum(checked.leaks.size for checked in self.files),
        )


def _journal(folder: Folder, path: str) -> Journal | None:
    """Return the journal of an unfinished merge into a file, or that has the file for its undo image.

    What is wrong with one is reported elsewhere.
    """
    directory = paths.dirname(path)
    beside = [paths.join(directory, name) for name in folder.names(directory) if name.endswith(JOURNAL_SUFFIX)]
    for found in (path, *(name.removesuffix(JOURNAL_SUFFIX) for name in beside)):
        with suppress(VhdError, OSError):
            journal = read_journal(folder, found)
            if journal is None:
                continue
            if found == path or (journal.begin.undo and journal.resolve(journal.begin.undo) == path):
                return journal
    return None


def _rule_of(error: ChainError) -> Corruption:
    rules: list[tuple[type[ChainError], Corruption]] = [
        (ChainLoopError, Corruption.CHAIN_LOOP),
        (ParentRefusedError, Corruption.PARENT_REFUSED),
        (ParentMismatchError, Corruption.PARENT_ID_DIFFERS),
    ]
    return next((rule for kind, rule in rules if isinstance(error, kind)), Corruption.PARENT_NOT_FOUND)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(paths.basename(name) for name in names[:_NAMED]) + more
