"""Which machine's snapshots need a file: an obstacle of whatever else would change or remove it.

A machine is found as its layers find it: by a manifest in the folder of a file, in the folder above, or by a signpost
there. It is read here, below merging, so that every plan finds out, whoever makes it. Without the manifest the images
are nobody's layers.

Snapshots' own merges act for a machine, named by its manifest: that lets a merge be planned which takes no view that
the machine needs; one that the manifest notes as begun may be gone on with by anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.errors import SnapshotError, VhdError
from vhdkit.findings import Advice
from vhdkit.storage import paths
from vhdkit.storage.process import this_user
from vhdkit.storage.protocols import read_bytes
from vhdkit.storage.search_scope import SearchScope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhdkit.findings import Hint
    from vhdkit.journal.manifest import Disk, LayerRecord, Manifest
    from vhdkit.storage.protocols import Folder

# Repeated by `manifest_pointer`, which is loaded only where a file of such a name lies: most merges have none near.
_SUFFIXES = (".vhdkit-snapshots.json", ".vhdkit-snapshots.at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is about to be done to files, by real paths: a merge has sources, topmost first, and a destination.

    `others` are changed or removed besides: children that are relinked, an undo image. `acting_for` is the manifest of
    the machine that asks for it, "" for none.
    """

    destination: str = ""
    sources: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    acting_for: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.sources, *((self.destination,) if self.destination else ()), *self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A layer of a machine's disk: where its manifest lies, what that says, and which layer it is.

    `active_path` is where the layer lies that the machine writes to.
    """

    path: str
    manifest_path: str
    manifest: Manifest
    disk: int
    layer: LayerRecord
    active_path: str

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The names of the snapshots that the layer was frozen for."""
        return tuple(self.manifest.names_of[self.disk].get(self.layer.path, ()))

    @property
    def is_active(self) -> bool:
        """Whether the machine writes to it."""
        return self.manifest.disks[self.disk].active == self.layer.path

    @property
    def is_needed(self) -> bool:
        """Whether its own view counts: it is a snapshot's, or what the machine writes to."""
        return self.is_active or bool(self.snapshots)

    @property
    def parent_id(self) -> str | None:
        """The unique id of the layer below it in hexadecimal, None for a base."""
        layer = self.layer.parent
        return None if layer is None else self.manifest.disks[self.disk].layer(layer).unique_id

    def text(self) -> str:
        """Return what the layer is, in words."""
        what = f"a layer of the machine {self.manifest.machine}"
        if self.snapshots:
            names = ", ".join(map(repr, self.snapshots[:3])) + (" and others" if len(self.snapshots) > 3 else "")
            return f"{what}, frozen as snapshot {names} (listed in {self.manifest_path})"
        if self.is_active:
            return f"{what}, which writes to it (listed in {self.manifest_path})"
        return f"{what}, which others of its layers read through (listed in {self.manifest_path})"


def claims_on(scope: SearchScope, files: Iterable[str]) -> tuple[Claim, ...]:
    """Return what machines claim of files, by real paths.

    Manifests are looked for beside the files, one folder above, and in the scope.

    Raises:
        SnapshotError: a manifest that is called as one of the files cannot be read, so that it cannot be told.

    """
    wanted = dict.fromkeys(files)
    found: list[Claim] = []
    for path in _manifests_near(scope, wanted):
        try:
            found += _claims_of(scope.folder, path, wanted)
        except (VhdError, OSError) as error:
            named = next((file for file in wanted if is_named_for(path, file)), None)
            if named is None:
                continue
            why = error.message if isinstance(error, VhdError) else error.strerror
            message = f"whether snapshots need it cannot be told, for {path} cannot be read: {why}"
            raise SnapshotError(message, path=named) from error
    return tuple(found)


def is_named_for(manifest: str, image: str) -> bool:
    """Whether an image is called as the layers of a manifest are that cannot be read."""
    stem = paths.basename(manifest).removesuffix(_SUFFIXES[0])
    return paths.basename(image).startswith((f"{stem}.", f"{stem}_"))


def _manifests_near(scope: SearchScope, files: Iterable[str]) -> tuple[str, ...]:
    folder, own = scope.folder, dict.fromkeys(map(paths.dirname, files))
    directories = dict.fromkeys([*own, *map(paths.dirname, own), *map(folder.real, scope.directories)])
    near = [directory for directory in directories if _has_any(folder, directory)]
    if not near:
        return ()
    from vhdkit.journal.manifest_pointer import manifest_paths  # noqa: PLC0415 - see _SUFFIXES

    return tuple(dict.fromkeys(path for directory in near for path in manifest_paths(folder, directory)))


def _has_any(folder: Folder, directory: str) -> bool:
    return any(name.endswith(_SUFFIXES) for name in folder.names(directory))


def _claims_of(folder: Folder, path: str, wanted: dict[str, None]) -> Iterator[Claim]:
    from vhdkit.journal.manifest import MAX_BYTES, Manifest  # noqa: PLC0415 - see _SUFFIXES
    from vhdkit.journal.relative_paths import RelativePaths  # noqa: PLC0415 - see _SUFFIXES

    with folder.open(path) as storage:
        owner, size = storage.owner, storage.size()
        if size > MAX_BYTES:
            raise SnapshotError(f"it has {size} bytes, too many for a manifest", path=path)
        manifest = Manifest.from_json(read_bytes(storage, 0, size))
    place = RelativePaths(folder, paths.dirname(path))
    for index, disk in enumerate(manifest.disks):
        for layer in disk.layers:
            file = place.absolute(layer.path)
            if file in wanted and _may_speak(folder, owner, file):
                active = place.absolute(disk.active)
                yield Claim(
                    path=file, manifest_path=path, manifest=manifest, disk=index, layer=layer, active_path=active
                )


def begun_layers(folder: Folder, active: str) -> dict[str, str]:
    """Return the files, with their unique ids in hexadecimal, that an operation had begun to make over an active layer.

    Raises:
        SnapshotError: as `claims_on`.

    """
    from vhdkit.journal.relative_paths import RelativePaths  # noqa: PLC0415 - see _SUFFIXES

    found: dict[str, str] = {}
    for claim in claims_on(SearchScope(folder), [active]):
        if claim.is_active:
            place = RelativePaths(folder, paths.dirname(claim.manifest_path))
            found |= {place.absolute(made.path): made.unique_id for made in claim.manifest.begun}
    return found


def _may_speak(folder: Folder, owner: int, image: str) -> bool:
    """Whether the owner of a manifest may speak for an image: the same as for any side file."""
    if owner in {0, this_user()}:
        return True
    try:
        with folder.open(image) as storage:
            return storage.owner == owner
    except OSError:
        return False


# What may be done all the same


def obstacles(scope: SearchScope, change: Change) -> tuple[SnapshotError, ...]:
    """Return what the snapshots of machines have against a change, one error a machine's disk."""
    try:
        found = claims_on(scope, change.files)
    except SnapshotError as error:
        return (error,)
    by_disk: dict[tuple[str, int], list[Claim]] = {}
    for claim in found:
        by_disk.setdefault((claim.manifest_path, claim.disk), []).append(claim)
    return tuple(_refusal(claims) for claims in by_disk.values() if not _is_allowed(claims, change))


def _is_allowed(claims: list[Claim], change: Change) -> bool:
    """Whether a change takes nothing that a disk's snapshots need."""
    first = claims[0]
    disk = first.manifest.disks[first.disk]
    if len(claims) == 1 and first.path == change.destination and first.is_active:
        # Another image is brought into what the machine writes to: it could have written that.
        return True
    at = {claim.path: claim.layer.path for claim in claims}
    if any(path not in at for path in (*change.sources, change.destination)):
        return False
    sources, destination = [at[path] for path in change.sources], at[change.destination]
    if _is_begun(first, sources, destination, _others(change, at), disk):
        return True
    top = sources[0] if sources else destination
    if change.acting_for != first.manifest_path or not _others(change, at) <= {*disk.children.get(top, ())}:
        return False
    return not _is_any_needed(claims, {*sources[1:], destination})


def _is_any_needed(claims: Iterable[Claim], layers: set[str]) -> bool:
    return any(claim.is_needed for claim in claims if claim.layer.path in layers)


def _others(change: Change, at: dict[str, str]) -> set[str]:
    return {at[path] for path in change.others if path in at}


def _is_begun(first: Claim, sources: list[str], destination: str, others: set[str], disk: Disk) -> bool:
    """Whether it is a merge that the manifest notes as begun, of which some sources may be gone already."""
    return any(
        folding.disk == first.disk
        and folding.fold.destination == destination
        and {*sources} <= {*folding.fold.sources}
        and others <= {*disk.children.get(folding.fold.top, ()), *disk.children.get(destination, ())}
        for folding in first.manifest.foldings
    )


def _refusal(claims: list[Claim]) -> SnapshotError:
    shown = next((claim for claim in claims if claim.snapshots), claims[0])
    message = f"it is {shown.text()}, whose snapshots would be lost by this"
    hint = Advice.DELETE_ANY.hint("{} merges what is not needed", path=shown.path)
    return SnapshotError(message, path=shown.path, hint=hint)


def frozen_by(folder: Folder, path: str) -> tuple[str, Hint | None]:
    """Return which snapshot has frozen a file, in words, and how to go on from it; "" if none has."""
    try:
        found = claims_on(SearchScope(folder), [path])
    except (VhdError, OSError):
        return "", None
    claim = next((each for each in found if not each.is_active), None)
    if claim is None:
        return "", None
    text = "{} lets the machine go on from a snapshot in a new layer"
    if claim.snapshots:
        return f"it is {claim.text()}", Advice.APPLY.hint(text, name=claim.snapshots[0], path=claim.active_path)
    return f"it is {claim.text()}", Advice.APPLY_ANY.hint(text, path=claim.active_path)
