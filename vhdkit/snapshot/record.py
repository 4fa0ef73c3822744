"""What is known of a machine's disks and snapshots, as frozen records and as the JSON of the manifest.

Paths are relative to the manifest's folder, with slashes, so that the folder can be moved.

**Source**: DESIGN 7.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from vhdkit.errors import SnapshotError
from vhdkit.snapshot.tree import Fold
from vhdkit.storage import paths

VERSION = 1
_KIND = "vhdkit snapshots"
# The last second of the year 9999.
_LAST_INSTANT = 253402300800
# More than any size in bytes or time in seconds.
_MOST = 1 << 63
# What is shorter may be the name of another snapshot, mistyped: a letter alone begins every sixteenth id.
_SHORTEST_ID = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a frozen layer's file is like: size in bytes, mtime in Unix seconds, CRC-32 of its structures."""

    size: int
    mtime: float
    footer: int
    header: int
    table: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One image of a disk: `parent` is the path of the one below, `unique_id` in hexadecimal.

    `mark` is what its file was like when it was frozen, None for one that may be written.
    """

    path: str
    parent: str | None
    unique_id: str
    mark: Mark | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk: `stem` is its base's name without extension, `active` the layer that the machine writes to.

    `directory` is where new layers are made.
    """

    stem: str
    active: str
    directory: str
    layers: tuple[LayerRecord, ...]

    @property
    def parents(self) -> dict[str, str | None]:
        """The tree of its layers."""
        return {layer.path: layer.parent for layer in self.layers}

    def layer(self, path: str) -> LayerRecord:
        """Return the layer at a path; KeyError if there is none."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """An opaque file that is kept with a snapshot: the `name` that it was given under, and where it is kept."""

    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What every disk was at an instant: `layers` has the layer that was frozen then, disk by disk.

    `taken` is in Unix seconds, 0 where it is not known; `parent` is the id of the snapshot before.
    """

    id: str
    name: str
    note: str = ""
    taken: float = 0.0
    parent: str | None = None
    layers: tuple[str, ...]
    state: tuple[StateFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file that an operation makes or has made; `unique_id` is "" for one that is no image."""

    path: str
    unique_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """A merge that was begun on a disk (by its index): it is complete when its topmost source is gone.

    One that moves nothing (`is_empty`) need not have written to its destination.
    """

    disk: int
    fold: Fold
    is_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All of it. `now` is the id of the snapshot that the machine's present state began with, None for none.

    `begun`, `doomed` and `foldings` are operations under way; what a power cut leaves of them is settled later.
    """

    id: str
    machine: str
    disks: tuple[Disk, ...]
    snapshots: tuple[Snapshot, ...] = ()
    now: str | None = None
    begun: tuple[Made, ...] = ()
    doomed: tuple[Made, ...] = ()
    foldings: tuple[Folding, ...] = ()

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

    def by_id(self, snapshot_id: str | None) -> Snapshot | None:
        """Return the snapshot of an id, None if there is none."""
        return next((each for each in self.snapshots if each.id == snapshot_id), None)

    def needed(self, disk: int) -> frozenset[str]:
        """Return the layers of a disk that a snapshot has, or the machine writes to."""
        return frozenset({self.disks[disk].active, *(each.layers[disk] for each in self.snapshots)})

    def with_disk(self, index: int, disk: Disk) -> Manifest:
        """Return the manifest with one disk changed."""
        return replace(self, disks=(*self.disks[:index], disk, *self.disks[index + 1 :]))

    # As JSON

    def to_json(self) -> bytes:
        """Return the file's bytes."""
        record = {"kind": _KIND, "version": VERSION, **asdict(self)}
        return (json.dumps(record, indent=1, ensure_ascii=True) + "\n").encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Manifest:
        """Return the manifest of a file's bytes.

        Raises:
            SnapshotError: they are no manifest of a version that is known here.

        """
        try:
            record = json.loads(raw)
            if not isinstance(record, dict) or record.get("kind") != _KIND:
                raise ValueError("it is no list of snapshots")
            if record.get("version") != VERSION:
                raise ValueError(f"version {record.get('version')!r}; a later vhdkit may know it")
            manifest = _manifest(record)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            message = f"it cannot be read as a manifest of snapshots ({error})"
            raise SnapshotError(f"{message}; `vhdkit snapshot init DISK` makes it anew from the images") from error
        return manifest


def _manifest(record: dict[str, Any]) -> Manifest:
    disks = tuple(
        Disk(
            stem=_text(disk["stem"]),
            active=_text(disk["active"]),
            directory=_text(disk["directory"]),
            layers=tuple(_layer(layer) for layer in disk["layers"]),
        )
        for disk in record["disks"]
    )
    manifest = Manifest(
        id=_text(record["id"]),
        machine=_text(record["machine"]),
        disks=disks,
        snapshots=tuple(_snapshot(each) for each in record["snapshots"]),
        now=_text_or_none(record["now"]),
        begun=tuple(Made(**_texts(each, "path", "unique_id")) for each in record["begun"]),
        doomed=tuple(Made(**_texts(each, "path", "unique_id")) for each in record["doomed"]),
        foldings=tuple(_folding(each) for each in record["foldings"]),
    )
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Hold the records against each other: nothing may be looked for that is not there."""
    if not manifest.disks:
        raise ValueError("it has no disks")
    for disk in manifest.disks:
        _check_disk(disk)
    _check_snapshots(manifest)
    for folding in manifest.foldings:
        known = manifest.disks[folding.disk].parents if folding.disk < len(manifest.disks) else {}
        layers = folding.fold.layers
        if not known.keys() >= set(layers) or len(set(layers)) < len(layers):
            raise ValueError("a merge has layers that are not there, or one twice")


def _check_disk(disk: Disk) -> None:
    parents = disk.parents
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
        fits = len(each.layers) == len(manifest.disks) and (each.parent is None or each.parent in ids)
        if not fits or any(path not in disk.parents for path, disk in zip(each.layers, manifest.disks, strict=True)):
            raise ValueError(f"the snapshot {each.name} has layers or a parent that are not there")
    _check_order({each.id: each.parent for each in manifest.snapshots}, "the snapshots")
    if manifest.now is not None and manifest.now not in ids:
        raise ValueError("the snapshot above now is not there")


def _check_order(parents: dict[str, str | None], what: str) -> None:
    seen: set[str] = set()
    for path in parents:
        line = []
        at: str | None = path
        while at is not None and at not in seen:
            if at in line:
                raise ValueError(f"{what} hang in a loop")
            line.append(at)
            at = parents[at]
        seen.update(line)


def _layer(record: dict[str, Any]) -> LayerRecord:
    mark = record["mark"]
    return LayerRecord(
        path=_text(record["path"]),
        parent=_text_or_none(record["parent"]),
        unique_id=bytes.fromhex(_text(record["unique_id"])).hex(),
        mark=None if mark is None else Mark(**{name: _number(mark[name]) for name in Mark.__slots__}),
    )


def _snapshot(record: dict[str, Any]) -> Snapshot:
    snapshot_id = _text(record["id"])
    return Snapshot(
        id=snapshot_id,
        name=_text(record["name"]),
        note=_text(record["note"]),
        taken=_instant(record["taken"]),
        parent=_text_or_none(record["parent"]),
        layers=tuple(_text(path) for path in record["layers"]),
        state=tuple(_state(each, snapshot_id) for each in record["state"]),
    )


def _instant(value: object) -> float:
    seconds = float(_number(value))
    if not 0 <= seconds < _LAST_INSTANT:
        raise ValueError(f"{value!r} is no time")
    return seconds


def _state(record: dict[str, Any], snapshot_id: str) -> StateFile:
    """Return a kept file; it is called as only kept files are, and leads nowhere else: archives come from anywhere."""
    state = StateFile(**_texts(record, "name", "path"))
    is_plain = state.name not in {"", ".", ".."} and paths.basename(state.name) == state.name
    if not is_plain or not paths.basename(state.path).endswith(f"_{snapshot_id}_{state.name}"):
        raise ValueError(f"{state.name!r} at {state.path!r} is no file that was kept")
    return state


def _folding(record: dict[str, Any]) -> Folding:
    fold = record["fold"]
    sources = tuple(_text(path) for path in fold["sources"])
    if not sources or not isinstance(record["disk"], int) or record["disk"] < 0:
        raise ValueError("a merge of nothing")
    return Folding(
        disk=record["disk"],
        fold=Fold(sources=sources, destination=_text(fold["destination"])),
        is_empty=record.get("is_empty", False) is True,
    )


def _texts(record: dict[str, Any], *names: str) -> dict[str, str]:
    return {name: _text(record[name]) for name in names}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    if "\0" in value:
        raise ValueError(f"{value!r} can be no path or name")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _number(value: object) -> Any:  # noqa: ANN401 - int or float, as it was written
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    if not -_MOST < value < _MOST:  # nor is a NaN between any two
        raise ValueError(f"{value!r} is no size, time or checksum")
    return value
