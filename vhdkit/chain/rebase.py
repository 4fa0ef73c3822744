"""Telling a child where its parent is now: one that was moved, renamed, or given another id.

Only the child's header and its locators' data change, in one step that a power cut cannot halve. What can be compared
is compared first and told: ids, sizes, time stamps, and whether the new parent shows what the old one did, as far as
that one can still be found.

**Order**: that of `vhd.header_update`; at every instant the child reads through the old parent or through the new one.

**Source**: docs/reference/vhd.md 2.6, 2.8, 2.9.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.arguments import checked
from vhdkit.chain.ancestry import Ancestry, ancestry_of
from vhdkit.chain.compare import compare
from vhdkit.chain.parent_check import compare_summaries
from vhdkit.chain.parent_search import ParentSearch, find_parent
from vhdkit.chain.rebase_checks import (
    check_children,
    check_claims,
    check_difference,
    check_free,
    check_merged,
    check_not_ended,
    check_size,
    mismatch_error,
)
from vhdkit.chain.rebase_plan import Fit, Rebase
from vhdkit.chain.relink import Relink, apply_patches, check_may_relink, relink_patches
from vhdkit.corruption import Corruption
from vhdkit.disk import timestamp, unique_id
from vhdkit.disk.image import DiskKind
from vhdkit.disk.raw_image import RawImage
from vhdkit.errors import (
    ChainError,
    ChainLoopError,
    CorruptImageError,
    ImageInUseError,
    VhdError,
)
from vhdkit.findings import Advice
from vhdkit.formats import check_pair, open_changeable, open_image, summary_after
from vhdkit.journal.claims import Claim, claims_on
from vhdkit.options import ParentPolicy, RebaseRequest
from vhdkit.storage import paths
from vhdkit.storage.handle import closing_on_error
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.search_scope import SearchScope

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vhdkit.disk.image import Image
    from vhdkit.findings import Hint
    from vhdkit.formats import RelinkableImage
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath


@checked
def plan_rebase(
    child: StrPath,
    parent: StrPath,
    *,
    ignore_id_mismatch: bool = False,
    accept_header_checksum: bool = False,
    accept_ended: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    folder: Folder | None = None,
) -> Rebase:
    """Compare a child with the file that shall be its parent, and return what would be written; nothing is.

    With `accept_header_checksum` the child's header is taken as it is though its checksum is wrong, if all else in it
    can be true, as after an edit by hand; what is written has the right one. A layer that was kept when a merge went
    past it no longer shows what it did, and is refused as a parent unless `accept_ended`. The old parent is looked for
    as `open_chain` does, also in `search`, to be compared with the new one. A header that was being changed when that
    was cut off is read as if it were done.

    Raises:
        ParentMismatchError: the id is not the one that the child looks for, and that is not to be ignored.
        ChainLoopError: the parent is the child, or reads through it.
        ChainError: the child is no differencing image, or what the new parent shows differs from the old one.
        MergeError: the parent has another id and a larger disk, or the new path does not fit into the child's locator.
        SnapshotError: the child is a layer of a machine, and its snapshots need it above another image.
        SiblingsError: images read through the child, and would not show what they do.
        JournalError: a merge of one of them is not finished, or the view of the parent has ended.
        ReadOnlyImageError: one of them belongs to a saved machine state, or the child may not be written.
        ImageInUseError: somebody writes to one of them.
        CorruptImageError, UnsupportedImageError, OSError: one of them cannot be read.

    """
    request = RebaseRequest.of(
        child,
        parent,
        ignore_id_mismatch=ignore_id_mismatch,
        accept_header_checksum=accept_header_checksum,
        accept_ended=accept_ended,
        search=search,
        parent_map=parent_map,
    )
    return plan_as_asked(request, folder or LocalFolder())


def plan_as_asked(request: RebaseRequest, folder: Folder) -> Rebase:
    """Plan the rebase that is asked for; the rest is as in `plan_rebase`."""
    parents = ParentSearch(folder, request.parents)
    verify = not request.accept_header_checksum
    with (
        open_changeable(request.child, writable=False, verify_header=verify, exclusive=False, folder=folder) as image,
        _new_parent(request.parent, image, folder) as below,
    ):
        return _planned(image, below, parents, request)


@checked
def rebase(
    child: StrPath,
    parent: StrPath,
    *,
    ignore_id_mismatch: bool = False,
    accept_header_checksum: bool = False,
    accept_ended: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    folder: Folder | None = None,
) -> Rebase:
    """Let a child read through another file from now on; no data is touched. See `plan_rebase`, and the module.

    Both are held from the first look to the last write; the child for nobody else only if something is to be written.

    Raises:
        ImageInUseError: somebody reads the child.
        VhdError, OSError: as `plan_rebase`. Nothing was changed.

    """
    request = RebaseRequest.of(
        child,
        parent,
        ignore_id_mismatch=ignore_id_mismatch,
        accept_header_checksum=accept_header_checksum,
        accept_ended=accept_ended,
        search=search,
        parent_map=parent_map,
    )
    return rebase_as_asked(request, folder or LocalFolder())


def rebase_as_asked(request: RebaseRequest, folder: Folder) -> Rebase:
    """Do the rebase that is asked for; the rest is as in `rebase`."""
    own = folder.real(request.child)
    request = replace(request, child=own)
    with _thawed(own, SearchScope(folder, request.parents.search)) as is_thawed:
        if is_thawed:
            # What is refused is refused while the layer is still marked.
            plan = plan_as_asked(request, folder)
            if plan.changes_nothing:
                return plan
            folder.protect(own, is_protected=False)
        return _rebased(request, folder)


def _rebased(request: RebaseRequest, folder: Folder) -> Rebase:
    own = request.child
    # One that may not be written is still compared: perhaps nothing is to be written.
    writable = folder.exists(own) and folder.may_write(own)
    with (
        open_changeable(
            own,
            writable=writable,
            verify_header=not request.accept_header_checksum,
            exclusive=False,
            finish_step=False,
            folder=folder,
        ) as image,
        _new_parent(request.parent, image, folder) as below,
    ):
        parents = ParentSearch(folder, request.parents, lock=True)
        plan = _planned(image, below, parents, request)
        if not plan.changes_nothing:
            image.storage.lock(exclusive=True)
            # Until then others were let in.
            check_free(image, below, folder)
            if image.is_step_changed(folder):
                raise ImageInUseError("its header was changed while it was looked at; try again", path=own)
            image.finish_step(folder)
            apply_patches(folder, image, plan.patches)
    return plan


@contextmanager
def _thawed(child: str, scope: SearchScope) -> Iterator[bool]:
    """Say whether a machine's frozen layer is about to be relinked, and see to it that it is marked read-only after."""
    folder = scope.folder
    is_frozen = (
        folder.exists(child)
        and not folder.may_write(child)
        and any(not claim.is_active for claim in claims_on(scope, [child]))
    )
    try:
        yield is_frozen
    finally:
        if is_frozen:
            folder.protect(child, is_protected=True)


def _what_claims_it(claim: Claim) -> str:
    hint = Advice.ADOPT.hint("{} lets the snapshots know where its parent lies", paths=(claim.active_path,))
    return f"it is {claim.text()}; {hint}"


def _new_parent(path: str, child: RelinkableImage, folder: Folder) -> Image:
    """Open the new parent with a shared lock."""
    try:
        return open_image(path, exclusive=False, folder=folder)
    except CorruptImageError as error:
        if error.corruption not in {Corruption.NOT_A_VHD, Corruption.FILE_TOO_SHORT}:
            raise
        if child.parent is None or child.parent.unique_id != unique_id.NULL:
            error.add_note("A raw file has no id, and the parent of this child has one.")
            raise
    storage = folder.open(folder.real(path))
    with closing_on_error(storage):
        storage.lock(exclusive=False)
        return RawImage(storage)


def _planned(child: RelinkableImage, parent: Image, parents: ParentSearch, request: RebaseRequest) -> Rebase:
    link = child.parent
    if link is None:
        raise ChainError("it is no differencing image: it has no parent", path=child.path)
    found = parent.unique_id or unique_id.NULL
    is_same_id = found == link.unique_id
    old, new = ancestry_of(child, parents), ancestry_of(parent, parents)
    check_pair(child, parent)
    _check_links(child, parent, old, new, parents.folder)
    if not is_same_id:
        check_size(child, parent)
    old_path = old.paths[1] if len(old.paths) > 1 else ""
    claims = check_claims(child, found, parents)
    if not is_same_id and not request.ignore_id_mismatch:
        raise mismatch_error(child, parent, found, old_path)
    difference = _compared(old, new, parents)
    remarks = _checked_views(child, parent, parents, request, difference, claims, new, old_path)
    relink = Relink(child=child.path, old_parent=old_path, new_parent=parent.path, new_parent_id=found)
    patches = relink_patches(child, relink, parent_mtime=parent.storage.mtime)
    remarks += _found_by(child, parent, patches, parents.folder)
    remarks += [_what_claims_it(claim) for claim in claims]
    result = Rebase(
        child=child.path,
        parent=parent.path,
        before=old_path,
        expected_id=link.unique_id,
        found_id=found,
        child_size=child.size,
        parent_size=parent.size,
        child_block_size=child.block_size,
        parent_block_size=parent.block_size,
        remembered_stamp=link.timestamp,
        made_stamp=parent.timestamp if parent.kind is not DiskKind.RAW else None,
        changed_stamp=timestamp.from_unix(parent.storage.mtime),
        fits=difference.fits,
        difference=difference.at,
        remarks=tuple(remarks),
        patches=patches,
        has_step=child.has_step,
    )
    if not result.changes_nothing and all(claim.is_active for claim in claims):
        check_may_relink(parents.folder, child.path)
    return result


def _checked_views(
    child: RelinkableImage,
    parent: Image,
    parents: ParentSearch,
    request: RebaseRequest,
    difference: _Difference,
    claims: Sequence[Claim],
    new: Ancestry,
    old_path: str,
) -> list[str]:
    """Refuse a parent that shows something else than the old one; return what is odd about it all the same.

    Raises:
        JournalError, SnapshotError, ChainError, SiblingsError: as said.

    """
    fits = difference.fits
    is_same_id = child.parent is not None and (parent.unique_id or unique_id.NULL) == child.parent.unique_id
    check_not_ended(child, parent, parents.folder, is_accepted=request.accept_ended or fits is Fit.YES)
    remarks = _remarks(child, parent, new, is_proven=fits is not Fit.UNKNOWN or is_same_id)
    if fits is Fit.NO:
        is_ignored = request.ignore_id_mismatch
        remarks.append(check_difference(child, parent, old_path, difference.at, claims, is_ignored=is_ignored))
    if fits is Fit.NO or (fits is Fit.UNKNOWN and old_path and not is_same_id):
        check_children(child, parents)
    return remarks


def _check_links(child: RelinkableImage, parent: Image, old: Ancestry, new: Ancestry, folder: Folder) -> None:
    """Refuse a loop, and images that a merge or a saved state needs as they are.

    Raises:
        ChainLoopError, ReadOnlyImageError, JournalError: as said.

    """
    if child.storage.identity in new.identities:
        message = f"{parent.path} reads through it, and cannot be its parent: the chain would be a loop"
        raise ChainLoopError(message, path=child.path)
    check_free(child, parent, folder)
    for path in (*old.paths[1:], *new.paths[1:]):
        check_merged(child, path, folder)


def _remarks(child: RelinkableImage, parent: Image, new: Ancestry, *, is_proven: bool) -> list[str]:
    mtime = parent.storage.mtime
    odd = compare_summaries(child, parent, path=parent.path, size=parent.size, mtime=mtime)
    remarks = [finding.text for finding in odd]
    if not child.is_sealed:
        remarks.append("the checksum of its header was wrong, and the header is taken as it is")
    if new.is_cut_off:
        remarks.append(f"what {parent.path} itself reads through is not found")
    if not is_proven:
        remarks.append(f"nothing proves that {parent.path} shows what its parent did when it was made")
    return remarks


class _Difference(NamedTuple):
    """Whether what two parents show fits, and the first byte at which it differs."""

    fits: Fit
    at: int | None = None


def _compared(old: Ancestry, new: Ancestry, parents: ParentSearch) -> _Difference:
    """Read both parents, if the old one is there and is another file."""
    if len(old.paths) == 1:
        return _Difference(Fit.UNKNOWN)
    if old.identities[1] == new.identities[0]:
        return _Difference(Fit.YES)
    try:
        result = compare(
            old.paths[1],
            new.paths[0],
            search=parents.policy.search,
            parent_map=parents.policy.parent_map,
            folder=parents.folder,
        )
    except ImageInUseError as error:
        error.add_note("What the child reads now can be compared with the new parent when nobody writes to either.")
        raise
    except (VhdError, OSError):
        return _Difference(Fit.UNKNOWN)
    return _Difference(Fit.YES if result.equal else Fit.NO, result.first_difference)


def _named(parent: Image) -> Hint:
    return Advice.THIS_PARENT.hint("{} names it", path=parent.path)


def _found_by(child: RelinkableImage, parent: Image, patches: Sequence[Patch], folder: Folder) -> list[str]:
    """Return the options that readers need to find the parent again, by searching as they will."""
    if parent.kind is DiskKind.RAW:
        return [f"a raw parent is read only where it is named: {_named(parent)}"]
    rebased = summary_after(child.storage, patches)

    def found(*search: str) -> tuple[tuple[int, int], str] | None:
        try:
            with find_parent(
                rebased, ParentSearch(folder, ParentPolicy(search=search)), {child.storage.identity}
            ).layer as layer:
                return layer.storage.identity, layer.path
        except (VhdError, OSError):
            return None

    unasked = found()
    if unasked is not None and unasked[0] == parent.storage.identity:
        return []
    there = paths.dirname(parent.path)
    searched = found(there)
    is_searched = searched is not None and searched[0] == parent.storage.identity
    how = Advice.SEARCH_THERE.hint("{} finds it", folder=there) if is_searched else _named(parent)
    if unasked is not None:
        return [f"whoever reads it unasked takes {unasked[1]}, which has the same id, for its parent; {how}"]
    if not paths.is_below(there, [paths.dirname(child.path)]):
        return [f"its parent lies outside of its own folder, where parents are looked for unasked; {how}"]
    return [f"no path in it leads to its parent; {how}"]
