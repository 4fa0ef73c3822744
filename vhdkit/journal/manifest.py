"""The manifest of a machine: its disks, layers and snapshots as frozen records, and as the JSON of the side file.

Paths are relative to the manifest's folder, with slashes, so that the folder can be moved. The file is untrusted input:
each record is checked for types, ranges and names, and all of them against each other. What remains to be checked
where the files lie (folders, links, owners) is `snapshot.allowed_folders`.

It is read in this room so that a merge can find out which machine needs a file; see `claims`.
"""

from __future__ import annotations

import json
import posixpath
import re
from functools import cached_property
from itertools import pairwise
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from vhdkit.errors import SnapshotError
from vhdkit.journal.field_types import ClockTime, Digest, FileTime, IdText, ImageId, Size
from vhdkit.journal.held_names import held_names, let_go
from vhdkit.journal.records import check_keys
from vhdkit.journal.relative_paths import check_path, is_plain_name

VERSION = 1
_KIND = "vhdkit snapshots"
# A layer and a snapshot take about 700 bytes of a manifest: this is 6,000 of each, and read within 150 MiB of memory.
MAX_BYTES = 4 << 20
# What is shorter may be the name of another snapshot, mistyped: a letter alone begins every sixteenth id.
_SHORTEST_ID = 8
# As names of files have it.
GUID = re.compile(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}")
# Hyper-V gives a machine 260 at most.
_MAX_DISKS = 300

Checksum = Annotated[int, Meta(ge=0, lt=1 << 32)]
Id = Annotated[str, Meta(pattern=rf"^{GUID.pattern}\Z")]

Known = TypeVar("Known", bound="ManifestRecord")


class ManifestRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a manifest."""


class LayerMark(ManifestRecord, frozen=True, kw_only=True):
    """What a frozen layer's file is like: size in bytes, mtime in Unix seconds, CRC-32 of its structures."""

    size: Size
    mtime: FileTime
    footer: Checksum
    header: Checksum
    table: Checksum


class LayerRecord(ManifestRecord, frozen=True, kw_only=True):
    """One image of a disk: `parent` is the path of the one below, `unique_id` in hexadecimal.

    `mark` is what its file was like when it was frozen, None for one that may be written.
    """

    path: str
    parent: str | None
    unique_id: ImageId
    mark: LayerMark | None = None


class Disk(ManifestRecord, frozen=True, kw_only=True, dict=True):
    """One disk: `stem` is its base's name without extension, `active` the layer that the machine writes to.

    `directory` is where new layers are made.
    """

    stem: str
    active: str
    directory: str
    layers: tuple[LayerRecord, ...]

    @cached_property
    def parents(self) -> dict[str, str | None]:
        """The tree of its layers."""
        return {layer.path: layer.parent for layer in self.layers}

    @cached_property
    def base(self) -> str:
        """The path of its base, the one layer without a parent."""
        return next(layer.path for layer in self.layers if layer.parent is None)

    @cached_property
    def by_path(self) -> dict[str, LayerRecord]:
        """Its layers by their paths."""
        return {layer.path: layer for layer in self.layers}

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """The paths of what reads through each layer that anything reads through."""
        children: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.parent is not None:
                children.setdefault(layer.parent, []).append(layer.path)
        return children

    def layer(self, path: str) -> LayerRecord:
        """Return the layer at a path; KeyError if there is none."""
        return self.by_path[path]


class FileMark(ManifestRecord, frozen=True, kw_only=True):
    """What a kept file is like: size in bytes, mtime and ctime in Unix seconds, SHA-256 of its bytes."""

    size: Size
    mtime: FileTime
    ctime: FileTime
    digest: Digest


class StateFile(ManifestRecord, frozen=True, kw_only=True):
    """An opaque file that is kept with a snapshot: the `name` that it was given under, and where it is kept.

    `mark` is None where an earlier version has kept it.
    """

    name: str
    path: str
    mark: FileMark | None = None


class Snapshot(ManifestRecord, frozen=True, kw_only=True):
    """What every disk was at an instant: `layers` has the layer that was frozen then, disk by disk.

    `taken` is in Unix seconds, 0 where it is not known; `parent` is the id of the snapshot before.
    """

    id: Id
    name: str
    note: str = ""
    taken: ClockTime = 0.0
    parent: str | None = None
    layers: tuple[str, ...]
    state: tuple[StateFile, ...] = ()


class Made(ManifestRecord, frozen=True, kw_only=True):
    """A file that an operation makes or has made; `unique_id` is "" for one that is no image."""

    path: str
    unique_id: IdText


class Fold(ManifestRecord, frozen=True, kw_only=True):
    """Layers to be merged into one, in one pass: the topmost first; what the topmost shows the destination shows then.

    The destination takes the topmost one's place, and keeps its own name.
    """

    sources: Annotated[tuple[str, ...], Meta(min_length=1)]
    destination: str

    @property
    def top(self) -> str:
        """The layer whose place the destination takes."""
        return self.sources[0]

    @property
    def layers(self) -> tuple[str, ...]:
        """All of them, topmost first."""
        return (*self.sources, self.destination)


class Folding(ManifestRecord, frozen=True, kw_only=True):
    """A merge that was begun on a disk (by its index): it is complete when its topmost source is gone.

    One that moves nothing (`is_empty`) need not have written to its destination.
    """

    disk: Size
    fold: Fold
    is_empty: bool = False


class Manifest(ManifestRecord, frozen=True, kw_only=True, dict=True):
    """All of it. `now` is the id of the snapshot that the machine's present state began with, None for none.

    `begun`, `doomed` and `foldings` are operations under way; what a power cut leaves of them is settled later.
    `state_to` is the folder where the machine's saved state belongs, None where that was not said.
    """

    id: Id
    machine: str
    disks: Annotated[tuple[Disk, ...], Meta(min_length=1, max_length=_MAX_DISKS)]
    snapshots: tuple[Snapshot, ...] = ()
    now: str | None = None
    begun: tuple[Made, ...] = ()
    doomed: tuple[Made, ...] = ()
    foldings: tuple[Folding, ...] = ()
    state_to: str | None = None

    def find(self, name: str) -> Snapshot:
        """Return the snapshot of that name, or of an id that begins so: with its first eight digits at least.

        Raises:
            SnapshotError: there is none, or several.

        """
        named = [each for each in self.snapshots if each.name == name]
        is_id = len(name) >= _SHORTEST_ID
        by_id = [each for each in self.snapshots if is_id and each.id.startswith(name.upper())]
        found = named or by_id
        if len(found) == 1:
            return found[0]
        known = ", ".join(each.name for each in self.snapshots) or "there are none yet"
        if found:
            raise SnapshotError(f"several snapshots are called {name!r}: {', '.join(each.id for each in found)}")
        raise SnapshotError(f"there is no snapshot {name!r} of {self.machine}; its snapshots: {known}")

    @cached_property
    def _by_id(self) -> dict[str | None, Snapshot]:
        return {each.id: each for each in self.snapshots}

    @cached_property
    def names_of(self) -> tuple[dict[str, list[str]], ...]:
        """The names of the snapshots that each layer has been frozen for, disk by disk."""
        names: tuple[dict[str, list[str]], ...] = tuple({} for _ in self.disks)
        for each in self.snapshots:
            for named, path in zip(names, each.layers, strict=True):
                named.setdefault(path, []).append(each.name)
        return names

    def by_id(self, snapshot_id: str | None) -> Snapshot | None:
        """Return the snapshot of an id, None if there is none."""
        return self._by_id.get(snapshot_id)

    def needed(self, disk: int) -> frozenset[str]:
        """Return the layers of a disk that a snapshot has, or the machine writes to."""
        return frozenset({self.disks[disk].active, *self.names_of[disk]})

    def with_disk(self, index: int, disk: Disk) -> Manifest:
        """Return the manifest with one disk changed."""
        return msgspec.structs.replace(self, disks=(*self.disks[:index], disk, *self.disks[index + 1 :]))

    # As JSON

    def to_json(self) -> bytes:
        """Return the file's bytes.

        Raises:
            SnapshotError: there are more than `from_json` takes.

        """
        record = {"kind": _KIND, "version": VERSION, **msgspec.to_builtins(self)}
        if self.state_to is None:
            # Whoever knows nothing of it can read the manifest.
            del record["state_to"]
        raw = (json.dumps(record, indent=1, ensure_ascii=True) + "\n").encode()
        if len(raw) > MAX_BYTES:
            raise SnapshotError(f"the list of snapshots would have {len(raw)} bytes, more than {MAX_BYTES}")
        return raw

    @classmethod
    def from_json(cls, raw: bytes) -> Manifest:
        """Return the manifest of a file's bytes.

        Raises:
            SnapshotError: they are no manifest of a version that is known here.

        """
        try:
            return _decoded(raw)
        except (ValueError, RecursionError) as error:
            raise SnapshotError(f"it cannot be read as a manifest of snapshots ({error})") from error


class _Head(msgspec.Struct):
    """What says whether the rest can be read; not decoded, for it may be anything."""

    kind: msgspec.Raw = msgspec.Raw()
    version: msgspec.Raw = msgspec.Raw()


class _Written(Manifest, frozen=True, kw_only=True):
    kind: str
    version: int


def _decoded(raw: bytes) -> Manifest:
    held = held_names(raw)
    head = msgspec.json.decode(held, type=_Head)
    if bytes(head.kind) != json.dumps(_KIND).encode():
        raise ValueError("it is no list of snapshots")
    if bytes(head.version) != str(VERSION).encode():
        version = bytes(head.version)[:20].decode(errors="replace")
        raise ValueError(f"it has version {version}, expected {VERSION}; a later vhdkit may know it")
    written = msgspec.json.decode(held, type=_Written)
    check_keys(held)
    manifest = Manifest(**{name: getattr(written, name) for name in Manifest.__struct_fields__})
    if held is not raw:
        manifest = let_go(manifest)
    _check(manifest)
    return manifest


# Against each other


def _check(manifest: Manifest) -> None:
    """Check the records against each other: no name may lead elsewhere, or to what is not there."""
    layers = set[str]()
    for disk in manifest.disks:
        _check_disk(disk)
        if not layers.isdisjoint(disk.parents):
            raise ValueError("two disks have one layer")
        layers.update(disk.parents)
    for made in (*manifest.begun, *manifest.doomed):
        check_path(made.path)
    if manifest.state_to is not None:
        check_path(posixpath.normpath(posixpath.join(manifest.state_to, "x")))
    _check_snapshots(manifest)
    _check_foldings(manifest)


def _check_disk(disk: Disk) -> None:
    if not is_plain_name(disk.stem):
        raise ValueError(f"{disk.stem[:80]!r} is no name of a disk")
    check_path(posixpath.normpath(posixpath.join(disk.directory, "x")))
    parents = disk.parents
    for path in parents:
        check_path(path)
    if len(parents) != len(disk.layers) or disk.active not in parents:
        raise ValueError(f"the layers of {disk.stem} contradict each other")
    if any(parent is not None and parent not in parents for parent in parents.values()):
        raise ValueError(f"a layer of {disk.stem} has an unknown parent")
    if sum(parent is None for parent in parents.values()) > 1:
        raise ValueError(f"{disk.stem} has several bases")
    _check_order(parents, f"the layers of {disk.stem}")


def _check_snapshots(manifest: Manifest) -> None:
    ids = {each.id for each in manifest.snapshots}
    if len(ids) < len(manifest.snapshots) or len({each.name for each in manifest.snapshots}) < len(ids):
        raise ValueError("two snapshots have one name, or one id")
    for each in manifest.snapshots:
        if not _has_its_layers(each, manifest.disks) or each.parent not in {None, *ids}:
            raise ValueError(f"the snapshot {each.name} has layers or a parent that are not there")
        for state in each.state:
            _check_state(state, each.id)
    _check_order({each.id: each.parent for each in manifest.snapshots}, "the snapshots")
    if manifest.now not in {None, *ids}:
        raise ValueError("the snapshot above now is not there")


def _has_its_layers(snapshot: Snapshot, disks: tuple[Disk, ...]) -> bool:
    """Whether a snapshot has a layer of each disk."""
    if len(snapshot.layers) != len(disks):
        return False
    return all(path in disk.parents for path, disk in zip(snapshot.layers, disks, strict=True))


def _check_state(state: StateFile, snapshot_id: str) -> None:
    """Refuse a kept file that is not called as only kept files are: archives come from anywhere."""
    check_path(state.path)
    end = f"_{snapshot_id}_{state.name}"
    base = posixpath.basename(state.path)
    if not is_plain_name(state.name) or not base.endswith(end) or base == end:
        raise ValueError(f"{state.name!r} at {state.path!r} is no file that was kept")


def _check_foldings(manifest: Manifest) -> None:
    used = set[tuple[int, str]]()
    for folding in manifest.foldings:
        known = manifest.disks[folding.disk].parents if folding.disk < len(manifest.disks) else {}
        layers = folding.fold.layers
        if any(known.get(above, "") != below for above, below in pairwise(layers)) or layers[-1] not in known:
            raise ValueError("a merge has layers that are not there, or that do not lie on each other")
        named = {(folding.disk, path) for path in layers}
        if used & named:
            raise ValueError("two merges have one layer")
        used |= named


def _check_order(parents: dict[str, str | None], what: str) -> None:
    seen: set[str] = set()
    for path in parents:
        line: dict[str, None] = {}
        at: str | None = path
        while at is not None and at not in seen:
            if at in line:
                raise ValueError(f"{what} hang in a loop")
            line[at] = None
            at = parents[at]
        seen.update(line)
