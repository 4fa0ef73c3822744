"""Planning a merge: what is asked for, what an earlier run has left of it, and what will be done.

Nothing is written.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from vhdkit.arguments import checked
from vhdkit.chain.chain import Chain, open_chain_with
from vhdkit.chain.convert import dynamic_layout
from vhdkit.chain.merged_layers import MergedLayers
from vhdkit.disk.file_name import FileFormat, check_file_name
from vhdkit.errors import MergeError, NotEnoughSpaceError, ReadOnlyImageError, VhdError
from vhdkit.findings import Advice
from vhdkit.formats import STEP_SUFFIX, block_size_as_vhd
from vhdkit.journal.claims import Change, obstacles
from vhdkit.journal.ended_view import SUFFIX as ENDED_SUFFIX
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL_SUFFIX
from vhdkit.journal.merge_journal import read_journal
from vhdkit.journal.named_files import check_names
from vhdkit.merging.completion import SUFFIX as COMPLETION_SUFFIX
from vhdkit.merging.plan.finish import plan_if_complete, plan_without_leaf
from vhdkit.merging.plan.in_place import plan_in_place
from vhdkit.merging.plan.plan import MergePlan, states_of
from vhdkit.merging.plan.resume import is_about, noting_unreadable_journals
from vhdkit.options import MergeRequest
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.search_scope import SearchScope
from vhdkit.units import SECTOR
from vhdkit.vhd.bat import UNALLOCATED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath

# Names that files beside an image have while it is changed.
_RESERVED = (JOURNAL_SUFFIX, STEP_SUFFIX, COMPLETION_SUFFIX, ENDED_SUFFIX, ".partial")


@checked
def plan_merge(
    path: StrPath,
    *,
    into: StrPath | None = None,
    to: StrPath | None = None,
    keep_sources: bool = False,
    undo: StrPath | None = None,
    relink_siblings: bool = False,
    verify: bool = False,
    resume: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_ended: bool = False,
    folder: Folder | None = None,
    acting_for: str = "",
) -> MergePlan:
    """Plan to merge an image into its parent, into the ancestor `into`, or with its whole chain into a new file `to`.

    The way parents are found is `open_chain`'s. Siblings, that is other images which read through a file that would
    change, are looked for in the chain's folders and in `search`, below them and just above: also through symbolic
    links and mounts there, within a bound, beyond which a warning of the plan names what was not looked into.

    With `undo` what is overwritten goes to that new image first, and the sources are kept until it is dropped;
    `relink_siblings` then makes it the parent of the destination's other children. With `verify` the leaf's view is
    read before, the destination's after, and no source goes unless they agree. A merge of the same files that was cut
    off is continued anyway; with `resume` there must be one, and it says what it goes into.

    A layer that was kept when a merge went past it no longer shows what it did: it is neither merged nor merged into
    unless `accept_ended`.

    What the snapshots of a machine need is an obstacle. Snapshots' own merges say with `acting_for`, the path of the
    machine's manifest, for which machine they plan; see `vhdkit.journal.claims`.

    Raises:
        MergeError: there is nothing to merge into as asked, or nothing to resume.
        FileNameError: the suffix of `to` or `undo` is that of another format.
        JournalError: a journal names files that are not what it says.
        ImageInUseError: somebody holds a file of the chain.
        VhdError, OSError: the chain cannot be opened. Everything less is one of the plan's obstacles.

    """
    request = MergeRequest.of(
        path,
        into=into,
        to=to,
        keep_sources=keep_sources,
        undo=undo,
        relink_siblings=relink_siblings,
        verify=verify,
        resume=resume,
        search=search,
        parent_map=parent_map,
        parent=parent,
        accept_ended=accept_ended,
    )
    return plan_request(request, folder or LocalFolder(), acting_for=acting_for)


def plan_request(request: MergeRequest, folder: Folder, *, acting_for: str = "") -> MergePlan:
    """Plan the merge that is asked for; the rest is as in `plan_merge`."""
    if request.undo is not None:
        request = msgspec.structs.replace(request, undo=folder.real(request.undo))
    _check_request(request, folder)
    scope = SearchScope(folder, request.search)
    plan = plan_without_leaf(request, scope) or _plan_with_leaf(request, scope)
    return plan if plan.is_new_file else _with_claims(plan, scope, acting_for)


def _plan_with_leaf(request: MergeRequest, scope: SearchScope) -> MergePlan:
    folder = scope.folder
    with noting_unreadable_journals(request.child, scope):
        opened = open_chain_with(request.child, request.parents, folder)
    with opened as chain:
        if request.to is not None:
            return _plan_new_file(chain, folder, folder.real(request.to), request.search)
        depth = _resumed_depth(chain, folder) if request.resume else _destination_depth(chain, folder, request.into)
        merged = MergedLayers(chain.layers, depth)
        journal = read_journal(folder, merged.destination.path)
        if journal is not None:
            check_names(journal, folder, _named_directories(merged, request))
        finishing = None if journal is None else plan_if_complete(merged, scope, request, journal)
        plan = finishing or plan_in_place(merged, scope, request, journal)
        return replace(plan, findings=(*chain.findings, *plan.findings))


def _with_claims(plan: MergePlan, scope: SearchScope, acting_for: str) -> MergePlan:
    """Return a plan with what the snapshots of machines have against it among its obstacles."""
    change = Change(
        destination=plan.destination,
        sources=plan.sources,
        others=tuple(relink.child for relink in (*plan.relinks, *plan.sibling_relinks)),
        acting_for=acting_for,
    )
    claimed = obstacles(scope, change)
    if not claimed:
        return plan
    # That a frozen layer is marked read-only is no obstacle of its own: nobody is to lift the mark.
    others = [
        each for each in plan.obstacles if not (isinstance(each, ReadOnlyImageError) and each.path in change.files)
    ]
    return replace(plan, obstacles=(*claimed, *others))


def _named_directories(merged: MergedLayers, request: MergeRequest) -> tuple[str, ...]:
    """Return where a merge may find files: the directories of its chain, and those that the caller named."""
    files = [layer.path for layer in merged.layers]
    files += filter(None, [request.undo])
    return (*dict.fromkeys(map(paths.dirname, files)), *request.parents.folders)


def _check_request(request: MergeRequest, folder: Folder) -> None:
    path, into, to, undo = request.child, request.into, request.to, request.undo
    if into is not None and to is not None:
        raise MergeError("a merge goes into an ancestor or to a new file, not both", path=path)
    if to is not None and (undo is not None or request.verify):
        raise MergeError(
            "a merge to a new file changes nothing: there is nothing to undo, and a comparison verifies", path=path
        )
    _check_undo_name(request)
    for new_file in filter(None, (to, undo)):
        check_file_name(new_file, FileFormat.VHD)
    if to is not None and folder.exists(to):
        raise FileExistsError(errno.EEXIST, "the file exists already; a merge never replaces one", to)


def _check_undo_name(request: MergeRequest) -> None:
    undo = request.undo
    if undo is not None and undo.endswith(_RESERVED):
        raise MergeError(f"the name of an undo image cannot end in {paths.splitext(undo)[1]}", path=undo)
    if request.relink_siblings and undo is None:
        hint = Advice.UNDO_IMAGE.hint("name one with {}")
        raise MergeError("siblings can only be relinked to an undo image", path=request.child, hint=hint)


def _resumed_depth(chain: Chain, folder: Folder) -> int:
    for depth, layer in enumerate(chain.layers[1:], 1):
        journal = read_journal(folder, layer.path)
        if journal is not None and is_about(journal, chain.layers[:depth], layer):
            return depth
    hint = Advice.RESUME.hint("merge it without {}")
    raise MergeError("there is no merge of it that could be resumed", path=chain.path, hint=hint)


def _destination_depth(chain: Chain, folder: Folder, into: str | None) -> int:
    if len(chain.layers) == 1:
        message = "it has no parent to be merged into; name the child, which is merged into its parent"
        raise MergeError(message, path=chain.path)
    if into is None:
        return 1
    with folder.open(folder.real(into)) as storage:
        identity = storage.identity
    for depth, layer in enumerate(chain.layers[1:], 1):
        if layer.storage.identity == identity:
            return depth
    names = ", ".join(layer.path for layer in chain.layers[1:])
    raise MergeError(f"{into} is not one of its ancestors: {names}", path=chain.path)


def _plan_new_file(chain: Chain, folder: Folder, to: str, search: tuple[str, ...]) -> MergePlan:
    """Plan to write the leaf's view into a new dynamic image; no input changes."""
    block_size = block_size_as_vhd(chain.leaf)
    size, added, payload = dynamic_layout(chain, block_size)
    free = folder.free_space(paths.dirname(to))
    in_the_way: list[VhdError] = []
    if not folder.may_write(paths.dirname(to)):
        in_the_way.append(ReadOnlyImageError("its folder may not be written", path=to))
    if size > free:
        in_the_way.append(NotEnoughSpaceError(path=to, needed=size, available=free))
    if size // SECTOR >= UNALLOCATED:
        in_the_way.append(MergeError("the file would pass 2 TiB, which a BAT cannot address", path=to))
    return MergePlan(
        sources=tuple(layer.path for layer in chain.layers),
        destination=to,
        is_new_file=True,
        block_size=block_size,
        payload_bytes=payload,
        blocks_added=added,
        virtual_size=chain.size,
        virtual_size_before=0,
        destination_size=size,
        destination_size_before=0,
        space_needed=size,
        space_free=free,
        keep_sources=True,
        layers=states_of(chain.layers),
        search=search,
        findings=chain.findings,
        obstacles=tuple(in_the_way),
    )
