"""Images, plans and results as the plain values that `--json` prints: kebab-case keys, bytes as integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhdkit.disk import unique_id
from vhdkit.disk.image import DiskKind, ImageSummary
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhdkit.chain.damaged_chain import SeenLayer
    from vhdkit.chain.scan import Scan, ScannedImage
    from vhdkit.disk.image import Image
    from vhdkit.findings import Finding
    from vhdkit.job.history import Estimate
    from vhdkit.merging.ensure_merged import EnsuredMerge
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.merging.run.engine import MergeResult
    from vhdkit.storage.protocols import Storage


def describe_layer(layer: Image) -> dict[str, Any]:
    """Return what is to say about a layer of a chain."""
    from vhdkit.formats import summary_of

    if layer.kind is not DiskKind.RAW:
        return describe(summary_of(layer), layer.storage, paths.as_given(layer.path))
    return {
        "filename": paths.as_given(layer.path),
        "format": "raw",
        "virtual-size": layer.size,
        "actual-size": layer.storage.allocated_size,
        "file-size": layer.storage.size(),
        "disk-type": "raw",
    }


def describe_seen(layer: SeenLayer) -> dict[str, Any]:
    """Return what is to say about a layer of a chain that cannot be opened; what is unknown is None."""
    if layer.metadata is not None:
        return describe(layer.metadata, layer.storage, paths.as_given(layer.path))
    return {
        "filename": paths.as_given(layer.path),
        "format": None,
        "virtual-size": None,
        "actual-size": layer.storage.allocated_size,
        "file-size": layer.storage.size(),
        "disk-type": None,
    }


def describe(summary: ImageSummary, storage: Storage, filename: str) -> dict[str, Any]:
    """Return everything that an image says about itself."""
    from vhdkit.formats import fields

    return {**fields(summary, storage, filename), "warnings": warnings(summary.findings)}


def warnings(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Return findings as plain values."""
    return [{"rule": f.corruption.value, "filename": paths.as_given(f.path), "message": f.text} for f in findings]


def describe_scan(found: Scan) -> dict[str, Any]:
    """Return a folder's family trees as plain values."""
    return {
        "bases": [describe_scanned(image) for image in found.bases],
        "orphans": [describe_scanned(image) for image in found.orphans],
        "ambiguous": [
            {"filename": paths.as_given(path), "parents": [paths.as_given(each) for each in parents]}
            for path, parents in found.ambiguous.items()
        ],
        "duplicates": [
            {
                "unique-id": unique_id.guid(key),
                "unique-id-big-endian": unique_id.big_endian(key),
                "filenames": [paths.as_given(each) for each in files],
            }
            for key, files in found.duplicates.items()
        ],
        "unreadable": [
            {"filename": paths.as_given(path), "error": str(error)} for path, error in found.unreadable.items()
        ],
        "unfinished": warnings(found.unfinished),
    }


def describe_scanned(image: ScannedImage) -> dict[str, Any]:
    """Return one image of a family tree, its children inside."""
    record = _scanned(image)
    todo = [(image, record)]
    for parent, told in todo:  # which grows: a chain may be deeper than Python's stack
        below = [(child, _scanned(child)) for child in parent.children]
        told["children"] = [child for _, child in below]
        todo += below
    return record


def _scanned(image: ScannedImage) -> dict[str, Any]:
    parent_id = image.parent_id
    return {
        "filename": paths.as_given(image.path),
        "disk-type": image.metadata.kind.value,
        "virtual-size": image.metadata.size,
        "unique-id": unique_id.guid(image.unique_id),
        "parent-unique-id": None if parent_id is None else unique_id.guid(parent_id),
        "unique-id-big-endian": unique_id.big_endian(image.unique_id),
        "parent-unique-id-big-endian": None if parent_id is None else unique_id.big_endian(parent_id),
    }


def describe_plan(plan: MergePlan) -> dict[str, Any]:
    """Return what a merge would do."""
    return {
        "sources": list(plan.sources),
        "destination": plan.destination,
        "new-file": plan.is_new_file,
        "bytes-to-copy": plan.payload_bytes,
        "blocks-to-add": len(plan.blocks_added),
        "blocks-to-move": plan.blocks_moved,
        "virtual-size": plan.virtual_size,
        "virtual-size-before": plan.virtual_size_before,
        "destination-size": plan.destination_size,
        "destination-size-before": plan.destination_size_before,
        "space-needed": plan.space_needed,
        "space-free": plan.space_free,
        "to-relink": [relink.child for relink in plan.relinks],
        "siblings-to-relink": [relink.child for relink in plan.sibling_relinks],
        "to-remove": list(plan.removals),
        "undo": plan.undo.path if plan.undo is not None else None,
        "undo-size": plan.undo.size if plan.undo is not None else 0,
        "undo-space": plan.undo.space if plan.undo is not None else 0,
        "resume": plan.resume,
        "bytes-done": plan.bytes_done,
        "ending-views": list(plan.ending_views),
        "obstacles": [str(obstacle) for obstacle in plan.obstacles],
        "warnings": warnings(plan.findings),
    }


def describe_estimate(expected: Estimate | None) -> dict[str, Any]:
    """Return how long a merge will take, None where nothing is known of its file system."""
    return {
        "seconds-expected": None if expected is None else round(expected.seconds, 1),
        "rate-expected": None if expected is None else round(expected.rate),
        "jobs-seen": 0 if expected is None else expected.job_count,
    }


def describe_result(result: MergeResult) -> dict[str, Any]:
    """Return what a merge did."""
    return {
        "sources": list(result.sources),
        "destination": result.destination,
        "bytes-copied": result.bytes_copied,
        "blocks-added": result.blocks_added,
        "destination-size": result.destination_size,
        "seconds": round(result.seconds, 3),
        "removed": list(result.removed),
        "relinked": list(result.relinked),
        "undo": result.undo or None,
        "resumed": result.resumed,
    }


def describe_ensured(done: EnsuredMerge) -> dict[str, Any]:
    """Return how a merge came to be complete, with what this run did of it."""
    found: dict[str, Any] = {} if done.merge is None else describe_result(done.merge)
    return {**found, "destination": done.destination, "outcome": done.outcome.value}
