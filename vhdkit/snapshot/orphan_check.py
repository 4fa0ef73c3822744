"""Images that no snapshot of a machine has: where they would fit, and what can be done with them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vhdkit.chain.catalog import Parents
from vhdkit.chain.parent_paths import named_paths
from vhdkit.disk import unique_id
from vhdkit.disk.parent_link import ParentLink
from vhdkit.findings import Advice
from vhdkit.snapshot.remark import Remark, RemarkKind
from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.chain.catalog import Catalog, Cataloged
    from vhdkit.findings import Hint
    from vhdkit.journal.manifest import LayerRecord, Manifest
    from vhdkit.snapshot.manifest_file import ManifestFile


def remark_on_orphan(file: ManifestFile, manifest: Manifest, image: Cataloged, catalog: Catalog) -> Remark:
    """Tell of an image that no snapshot has: where it fits, and what can be done with it."""
    known = {file.absolute(layer.path): layer for disk in manifest.disks for layer in disk.layers}
    parents = Parents(catalog).of(image)
    export = Advice.CONVERT.hint(path=image.path, new_path=f"{paths.splitext(image.path)[0]}-export.vhd")
    parent = next((each.path for each in parents if each.path in known), None)
    if parent is not None:
        message, hints = _of_fitting(file, manifest, image.path, parent)
        return Remark(kind=RemarkKind.ORPHAN, path=image.path, message=message, hints=(*hints, export))
    if parents:
        message = f"it reads through {parents[0].path}, which is no layer of this machine"
        return Remark(kind=RemarkKind.ORPHAN, path=image.path, message=message, hints=(export,))
    wanted = unique_id.guid(image.parent_id or unique_id.NULL)
    message = f"its parent, with the id {wanted}, is not here"
    if any(paths.basename(image.path).startswith(f"{disk.stem}_") for disk in manifest.disks):
        message += "; by its name it belongs to this machine"
    fitting = _may_be_parents(image, catalog, known)
    hints = tuple(Advice.COMPARE_PARENT.hint(path=image.path, parent=path, ignore_id_mismatch=True) for path in fitting)
    if fitting:
        message += "; layers of its size can be compared with it, and only one known to be its parent may become that"
    return Remark(kind=RemarkKind.ORPHAN, path=image.path, message=message, hints=hints)


def _of_fitting(file: ManifestFile, manifest: Manifest, image: str, parent: str) -> tuple[str, tuple[Hint, ...]]:
    """Return what is to be said of an orphan that fits above a layer, and what attaches it."""
    actives = tuple(file.absolute(disk.active) for disk in manifest.disks)
    fits = f"it fits above {paths.basename(parent)}"
    if parent in actives:
        # Of several disks a layer of one alone was made with nothing.
        attach = (Advice.ADOPT.hint(paths=(image,)),) if len(actives) == 1 else ()
        message = f"{fits}, which the machine writes to: a merge brings into that what it holds"
        message += "; a list of the snapshots with it lets the machine go on in it" if attach else ""
        return message, (Advice.MERGE.hint(path=image), *attach)
    # Merged into what is frozen it would ruin the snapshots that read through that.
    attach = (Advice.ADOPT.hint(paths=actives),) if len(actives) == 1 else ()
    return f"{fits}, and no snapshot has it" + ("; a new list of the snapshots makes it one" if attach else ""), attach


def _may_be_parents(image: Cataloged, catalog: Catalog, known: dict[str, LayerRecord]) -> list[str]:
    """Return the layers of an orphan's size: those called as its parent was, else the bases."""
    size = image.metadata.size
    sized = [path for path in known if path in catalog.images and catalog.images[path].metadata.size == size]
    named = {
        re.split(r"[\\/]", path)[-1].lower()
        for path in named_paths(image.metadata.parent or ParentLink(), paths.dirname(image.path))
    }
    called = [path for path in sized if paths.basename(path).lower() in named]
    return called or [path for path in sized if known[path].parent is None]
