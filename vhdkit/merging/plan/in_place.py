"""Planning a merge into a layer of the chain: what an earlier run has left, the checks, and where everything goes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.chain.relink import Relink
from vhdkit.chain.siblings import find_relatives
from vhdkit.corruption import Corruption
from vhdkit.debug_log import debug
from vhdkit.disk.image import DiskKind
from vhdkit.findings import Finding
from vhdkit.merging.plan import checks
from vhdkit.merging.plan.destination_pieces import DestinationBlocks
from vhdkit.merging.plan.earlier_run import earlier_run, undo_doubt
from vhdkit.merging.plan.placement import as_destination, lay_out, target_of, window_writes
from vhdkit.merging.plan.plan import MergePlan, states_of
from vhdkit.merging.plan.undo_image import plan_undo
from vhdkit.storage import paths
from vhdkit.vhd.constants import FOOTER_SIZE

if TYPE_CHECKING:
    from vhdkit.chain.merged_layers import MergedLayers
    from vhdkit.chain.siblings import Relatives
    from vhdkit.disk.image import WritableImage
    from vhdkit.errors import VhdError
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.merging.plan.earlier_run import EarlierRun
    from vhdkit.merging.plan.placement import Layout
    from vhdkit.merging.plan.plan import Resume, UndoPlan
    from vhdkit.options import MergeRequest
    from vhdkit.storage.search_scope import SearchScope


def plan_in_place(
    merged: MergedLayers, scope: SearchScope, request: MergeRequest, journal: Journal | None
) -> MergePlan:
    """Plan to merge layers into another of their chain; `journal` is the one beside that."""
    with earlier_run(merged, scope, request, journal) as earlier:
        found = earlier.obstacles
        found += _layer_obstacles(earlier)
        found += checks.size_obstacles(merged, as_destination(merged.destination))
        relatives = find_relatives(merged, scope, earlier.undo_id)
        may_relink = earlier.may_relink_siblings
        found += checks.relative_obstacles(relatives, merged, scope.folder, may_relink_siblings=may_relink)
        layout, resume = lay_out(merged, target_of(merged), earlier.journal)
        found += layout.obstacles
        undo = _undo(earlier)
    if resume is not None:
        debug("merging", "%s: a merge was cut off before: it %s", merged.destination.path, resume)
    return _plan(earlier, relatives, layout, resume, undo)


def _layer_obstacles(earlier: EarlierRun) -> list[VhdError]:
    folder, images = earlier.scope.folder, earlier.merged.family
    destination = as_destination(earlier.merged.destination)
    found = [*checks.destination_obstacles(destination, folder)]
    for image in images:
        found += checks.image_obstacles(image)
        if image is not destination and not earlier.keeps_sources:
            found += checks.source_obstacles(image.path, folder)
    if not earlier.request.accept_ended and earlier.journal is None:
        # What an earlier run has begun was accepted then.
        found += checks.ended_obstacles(images, folder)
    return found


def _undo(earlier: EarlierRun) -> UndoPlan | None:
    path, existing, merged = earlier.request.undo, earlier.undo_image, earlier.merged
    if path is None:
        return None
    earlier.obstacles += checks.undo_file_obstacles(path, earlier.scope.folder, is_known=existing is not None)
    target = target_of(merged)
    found = window_writes(merged, target)
    # A destination that has grown already showed less before.
    size = existing.size if existing is not None else target.size
    plan = plan_undo(path, earlier.undo_id, as_destination(merged.destination), size, found, existing)
    return replace(plan, doubt=undo_doubt(earlier))


def _plan(
    earlier: EarlierRun, relatives: Relatives, layout: Layout, resume: Resume | None, undo: UndoPlan | None
) -> MergePlan:
    merged, request, folder = earlier.merged, earlier.request, earlier.scope.folder
    destination = as_destination(merged.destination)
    size = destination.storage.size()
    size_after = size if destination.kind is DiskKind.FIXED else layout.file_end + FOOTER_SIZE
    needed = max(0, size_after - size) + _hole_bytes(merged, destination, layout)
    undo_needed = 0 if undo is None else undo.space
    earlier.obstacles += checks.space_obstacles(destination.path, needed, request.undo, undo_needed, folder)
    siblings = _sibling_relinks(relatives, destination, earlier)
    earlier.obstacles += checks.relink_obstacles(siblings, folder)
    earlier.obstacles += checks.undo_place_obstacles(siblings, request.search)
    sources = tuple(layer.path for layer in merged.sources)
    return MergePlan(
        sources=sources,
        destination=destination.path,
        is_new_file=False,
        block_size=destination.block_size,
        payload_bytes=layout.payload,
        blocks_added=layout.added,
        blocks_moved=layout.moved,
        virtual_size=max(merged.size, destination.size),
        virtual_size_before=destination.size,
        destination_size=size_after,
        destination_size_before=size,
        space_needed=needed + undo_needed,
        space_free=folder.free_space(paths.dirname(destination.path)),
        relatives=relatives,
        removals=() if earlier.keeps_sources else sources,
        keep_sources=request.keep_sources,
        growth=layout.growth,
        place=layout.place,
        file_end=layout.file_end,
        undo=undo,
        relink_siblings=request.relink_siblings,
        sibling_relinks=siblings,
        verify=request.verify,
        journal=earlier.journal,
        resume=resume,
        spent=earlier.spent,
        read_back=layout.read_back,
        digest=layout.digest,
        layers=states_of(merged.layers),
        search=request.search,
        findings=(*relatives.findings, *_doubt_findings(undo)),
        obstacles=tuple(earlier.obstacles),
    )


def _doubt_findings(undo: UndoPlan | None) -> list[Finding]:
    if undo is None or not undo.doubt:
        return []
    message = f"the merge can go on, and cannot be rolled back: {undo.doubt}"
    return [Finding(corruption=Corruption.UNDO_DOUBTED, path=undo.path, message=message)]


def _sibling_relinks(relatives: Relatives, destination: WritableImage, earlier: EarlierRun) -> tuple[Relink, ...]:
    """Return how the destination's other children are to be relinked to the undo image, if that is asked for."""
    undo = earlier.request.undo
    if not earlier.may_relink_siblings or undo is None:
        return ()
    return tuple(
        Relink(child=child, old_parent=destination.path, new_parent=undo, new_parent_id=earlier.undo_id)
        for child in relatives.of_destination
    )


def _hole_bytes(merged: MergedLayers, destination: WritableImage, layout: Layout) -> int:
    """Return the bytes of holes in a sparse file that the merge will fill."""
    storage = destination.storage
    if storage.allocated_size >= storage.size():
        return 0
    blocks = DestinationBlocks(destination, layout.added, layout.place, layout.moved)
    return sum(
        storage.hole_bytes(offset, length)
        for writes, wipes, _ in window_writes(merged, target_of(merged))
        for offset, length in blocks.places_in_old_blocks(writes, wipes)
    )
