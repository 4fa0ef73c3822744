"""What a merge finds of an earlier one: whether its journal speaks of these files, and how far it can be believed.

A journal speaks of the sources that it names if their ids and headers are the same, whatever their names are by now.
How far it is believed then is for `evidence`; what is left of a merge that is complete, for `finishing`.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from vhdkit.chain.catalog import read_catalog
from vhdkit.chain.children import parent_of
from vhdkit.chain.parent_search import ParentSearch
from vhdkit.chain.siblings import identity_at, leads_to
from vhdkit.errors import JournalError, VhdError
from vhdkit.formats import open_changeable, open_image
from vhdkit.journal.file_state import Seen
from vhdkit.journal.merge_journal import SUFFIX, JournalFile, read_journal
from vhdkit.journal.merge_records import FileState
from vhdkit.storage import paths
from vhdkit.storage.new_file import is_partial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vhdkit.disk.image import Image
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.storage.search_scope import SearchScope
    from vhdkit.vhd.growth_plan import Growth
    from vhdkit.vhd.sparse_image import Placement


def file_state(layer: Image, journal: JournalFile, now: float = 0.0) -> FileState:
    """Return what a journal keeps of a file at a time; a raw one has no id and no header."""
    return FileState(
        path=journal.relative(layer.path),
        unique_id=layer.unique_id.hex(),
        header=layer.digest,
        size=layer.storage.size(),
        mtime=layer.storage.mtime,
        seen=Seen.of(layer.storage, now),
    )


def is_about(journal: Journal, sources: Sequence[Image], destination: Image) -> bool:
    """Whether a journal speaks of a merge of these files: the same ids and headers, in the same order."""
    begin = journal.begin
    if len(begin.sources) != len(sources):
        return False
    now = [(layer.unique_id.hex(), layer.digest) for layer in sources]
    then = [(state.unique_id, state.header) for state in begin.sources]
    return now == then and begin.destination.unique_id == destination.unique_id.hex()


def is_as_left(left: tuple[int, float], destination: Image) -> bool:
    """Whether the destination has the size and time of change that a journal says it was left with."""
    size, mtime = left
    return destination.storage.size() == size and same_time(destination.storage.mtime, mtime)


def with_names(journal: Journal, sources: Sequence[Image], undo: str = "") -> Journal:
    """Return a journal of a merge of these sources as it reads with the names that they, and the undo image, have now.

    A source that was renamed since is the one that it speaks of, by its id; what goes on later must find it.
    """
    names = zip(journal.begin.sources, sources, strict=True)
    states = tuple(msgspec.structs.replace(state, path=journal.relative(layer.path)) for state, layer in names)
    undo = journal.relative(undo) if undo else journal.begin.undo
    return replace(journal, begin=msgspec.structs.replace(journal.begin, sources=states, undo=undo))


def plan_digest(
    sources: Sequence[Image],
    destination: Image,
    place: Placement,
    growth: Growth | None,
    added: NDArray[np.uint32],
    sizes: tuple[int, int, int],
) -> str:
    """Return the digest of everything that decides which bytes go where."""
    facts = [
        [layer.digest for layer in sources],
        [destination.unique_id.hex(), destination.block_size, *place, *sizes],
        growth.to_record() if growth is not None else None,
    ]
    total = sha256(json.dumps(facts, sort_keys=True).encode())
    total.update(added.astype(">u4").tobytes())
    return total.hexdigest()


@contextmanager
def noting_unreadable_journals(path: str, scope: SearchScope) -> Iterator[None]:
    """Add to the error of a file that is not there which journals could not be read that may be about it."""
    try:
        yield
    except FileNotFoundError as error:
        for journal in journals_near(path, scope):
            if isinstance(journal, JournalError):
                error.add_note(f"A journal was passed over: {journal}")
        raise


def journals_near(path: str, scope: SearchScope) -> Iterator[Journal | JournalError]:
    """Yield the journals in the folder of an image and in a scope, or why one of them cannot be read."""
    folder = scope.folder
    for directory in dict.fromkeys([paths.dirname(folder.real(path)), *map(folder.real, scope.directories)]):
        for entry in folder.walk(directory, one_device=True):
            if entry.path.endswith(SUFFIX):
                try:
                    journal = read_journal(folder, entry.path.removesuffix(SUFFIX))
                except JournalError as unreadable:
                    yield unreadable
                except OSError:
                    continue
                else:
                    if journal is not None:
                        yield journal


def same_time(now: float, then: float) -> bool:
    """Whether a file has the time of change that it had; archives and some file systems keep whole seconds only."""
    return now == then or (now.is_integer() and now == then // 1)


def parents_beside(journal: Journal, scope: SearchScope) -> ParentSearch:
    """Return the search for the parents of the files that a journal names: in its folder, and where the caller says."""
    return ParentSearch.within(scope, paths.dirname(journal.path))


def find_source(journal: Journal, source: FileState, destination: tuple[int, int], parents: ParentSearch) -> str | None:
    """Return where a source of a merge is, by the name that the journal has or, renamed since, by its id.

    None if it is gone. The search is that of `parents_beside`, as it is for the checks below.

    Raises:
        JournalError: the file of that name is not of this chain, or cannot be opened.

    """
    path, folder = journal.resolve(source.path), parents.folder
    if not folder.exists(path):
        near = dict.fromkeys([paths.dirname(path), paths.dirname(journal.path)])
        images = read_catalog(folder, list(near), deep=False).images.values()
        ours = (image.path for image in images if image.unique_id.hex() == source.unique_id)
        found = [path for path in ours if not is_partial(path)]
        if len(found) != 1:
            return None
        path = found[0]
    try:
        is_ours = leads_to(path, destination, parents)
        with open_image(path, folder=folder) as image:
            is_ours = is_ours and image.unique_id.hex() == source.unique_id
    except (VhdError, OSError) as error:
        raise JournalError(f"it names {path}, which cannot be opened: {error}", path=journal.path) from error
    if not is_ours:
        raise JournalError(f"it names {path}, which is not of this chain", path=journal.path)
    return path


def check_undo(journal: Journal, undo: Image, destination: Image, parents: ParentSearch) -> None:
    """Refuse an undo image that is not the one that the journal speaks of, or not of this destination.

    Raises:
        JournalError: it is not.

    """
    wanted = destination.storage.identity
    if undo.unique_id.hex() != journal.begin.undo_id or parent_of(undo.path, parents) != wanted:
        raise JournalError(f"{undo.path} is not the undo image that it speaks of", path=journal.path)


def check_relinks(journal: Journal, destination: Image, parents: ParentSearch) -> None:
    """Refuse relinks of files that are not children in this chain, or that would change more than the parent.

    Raises:
        JournalError: there are some.

    """
    folder = parents.folder
    family = [journal.destination, *(journal.resolve(source.path) for source in journal.begin.sources[:1])]
    parents = parents.also_in(*map(paths.dirname, family))
    identities = {identity_at(path, folder) for path in family} - {None}
    for relink in (*journal.former_relinks, *(journal.relinks or ())):
        path = journal.resolve(relink.path)
        if not folder.exists(path):
            continue
        if parent_of(path, parents) not in identities:
            message = f"it names {path}, which reads through another file, or through none that is found: it was put"
            message += " back, or changed since. Put it back as the merge left it; or move it elsewhere, as it is, and"
            message += " the same command again goes on without it"
            raise JournalError(message, path=journal.path)
        with open_changeable(path, writable=False, folder=folder) as child:
            if not child.is_parent_change(relink.patches, destination.unique_id):
                message = f"what it says of {path} is no relinking to this destination, or more than that"
                raise JournalError(message, path=journal.path)
