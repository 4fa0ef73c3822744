"""The completion record: a small file beside a destination that says which leaves `ensure_merged` has merged into it.

Without it a leaf that is gone may be merged or lost. It is written when every sector is durable in the destination and
before the first source is removed, so that it is there whenever a leaf is gone that `ensure_merged` has merged.

It is untrusted. What it says of a leaf counts only while the destination shows it:

 - its id is the one recorded, and its disk no smaller;
 - up to 16 places in the disk are sampled that the merge changes, with what they held before and hold after. If the
   destination holds at any of them what it held before, it was put back from an earlier version;
 - at least one sample holds what the merge wrote, or the file is untouched since (see `journal.file_state`). A machine
   that has written to the disk since has overwritten some of the samples, hardly all.

What a forger gains who can write into the folder as the images' owner, and so could remove the leaf or write to the
destination as well: that `ensure_merged` calls a leaf merged which he has removed himself. Nothing in the record is a
name of a file that is opened, and nothing is changed or removed by it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from vhdkit.chain.disk_view import DiskView
from vhdkit.chain.resolve_layers import resolve
from vhdkit.disk.extents import Kind
from vhdkit.errors import JournalError
from vhdkit.journal.field_types import ClockTime, IdText, ImageId, Size
from vhdkit.journal.file_state import Seen
from vhdkit.journal.merge_records import MAX_SAMPLE_BYTES, MAX_SAMPLES, Sample, Samples
from vhdkit.journal.records import Record, decode_object, is_believable
from vhdkit.storage import paths
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.chain.merged_layers import MergedLayers
    from vhdkit.disk.image import Image, WritableImage
    from vhdkit.storage.protocols import Folder, Storage

SUFFIX = ".vhdkit-merged"
# So many leaves are remembered; the oldest is forgotten first.
MOST_LEAVES = 32
# 32 leaves with 16 samples each take 120 KB.
_MOST_BYTES = 1 << 20

_LeafName = Annotated[str, Meta(min_length=1, max_length=1024)]


class MergedLeaf(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A leaf that was merged: ids as hexadecimal text, sizes in bytes, `merged` in Unix seconds.

    `leaf` is the name that its file had, for people; `file_size` and `seen` are the destination's after the merge.
    """

    leaf_id: ImageId
    leaf: _LeafName
    base_id: IdText
    virtual_size: Size
    file_size: Size
    payload_bytes: Size
    merged: ClockTime
    seen: Seen
    samples: Samples


class _Completions(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1]
    merges: Annotated[tuple[MergedLeaf, ...], Meta(max_length=MOST_LEAVES)]


_DECODER = msgspec.json.Decoder(_Completions)


def completion_path(destination: str) -> str:
    """Return where the completion record of merges into a file lies."""
    return destination + SUFFIX


def read_completions(folder: Folder, destination: str) -> tuple[MergedLeaf, ...]:
    """Return what the record beside a file says, oldest first; nothing if there is none.

    Raises:
        JournalError: it is no such record, or belongs to another user than the image.

    """
    path = completion_path(destination)
    if not folder.exists(path):
        return ()
    with folder.open(path) as storage, folder.open(destination) as image:
        if not is_believable(storage, image):
            raise JournalError("it belongs to another user than the image beside it, and is not believed", path=path)
        if storage.size() > _MOST_BYTES:
            raise JournalError(f"it has {storage.size()} bytes, more than any completion record", path=path)
        try:
            return decode_object(read_bytes(storage, 0, storage.size()), _DECODER).merges
        except ValueError as error:
            message = f"it is no completion record of a version that is known here ({error}); remove it if it is wrong"
            raise JournalError(message, path=path) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What to record when a merge is complete: the leaf, and earlier leaves that the destination still shows."""

    leaf_id: str
    leaf: str
    payload_bytes: int
    samples: tuple[Sample, ...]
    earlier: tuple[MergedLeaf, ...]

    def write(self, folder: Folder, destination: WritableImage) -> None:
        """Write the record durably, in place of the one that is there.

        **Order**: 1 the whole record in a file of another name, synced (a cut leaves that, and the next run replaces
        it) · 2 it gets its name, the folder synced.
        """
        path = completion_path(destination.path)
        partial = f"{path}.partial"
        if folder.exists(partial):
            folder.remove(partial)
        with folder.create(partial, private=True) as storage:
            # The file system's own clock says whether the destination could have changed since in the same tick.
            storage.write_at(0, b"{")
            seen = Seen.of(destination.storage, max(0.0, storage.ctime))
            record = self._record(destination, seen, max(0.0, storage.ctime))
            storage.write_at(0, json.dumps(record, separators=(",", ":")).encode())
            storage.sync()
        folder.replace(partial, path)
        folder.sync(paths.dirname(path))

    def _record(self, destination: WritableImage, seen: Seen, now: float) -> dict[str, object]:
        new = MergedLeaf(
            leaf_id=self.leaf_id,
            leaf=self.leaf,
            base_id=destination.unique_id.hex(),
            virtual_size=destination.size,
            file_size=destination.storage.size(),
            payload_bytes=self.payload_bytes,
            merged=now,
            seen=seen,
            samples=self.samples,
        )
        earlier = [replace(each, seen=seen) for each in self.earlier if each.leaf_id != self.leaf_id]
        return {"version": 1, "merges": [msgspec.to_builtins(each) for each in (*earlier, new)][-MOST_LEAVES:]}


def is_shown(entry: MergedLeaf, destination: Sequence[Image]) -> bool:
    """Whether a destination, given with the layers below it, shows that a leaf was merged into it."""
    image = destination[0]
    if image.unique_id.hex() != entry.base_id or image.size < entry.virtual_size:
        return False
    chain = DiskView(destination)
    found = [(_digest(chain, sample.offset, sample.length), sample) for sample in entry.samples]
    if any(digest == sample.before for digest, sample in found):
        return False
    if not entry.payload_bytes or any(digest == sample.after for digest, sample in found):
        return True
    return looks_untouched(entry.seen, image.storage)


def looks_untouched(seen: Seen, storage: Storage) -> bool:
    """Whether a file is what it was as far as its size and times show; see `Seen.proves` for what is certain."""
    return seen.ctime > 0 and replace(seen, now=0.0) == Seen.of(storage, 0.0)


def samples_of(merged: MergedLayers, known: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return the samples of a merge, those that an earlier run of it took (`known`) among them."""
    kept = list(_renewed(known, merged.view()))
    taken = {sample.offset for sample in kept}
    kept += [sample for sample in take_samples(merged) if sample.offset not in taken]
    return tuple(sorted(kept[:MAX_SAMPLES], key=lambda sample: sample.offset))


def carried_on(entries: Sequence[MergedLeaf], after: DiskView) -> tuple[MergedLeaf, ...]:
    """Return entries whose destination a merge changes so that it shows what `after` does.

    A sample that holds again what it held before that leaf's merge is no sign any longer, and is dropped.
    """
    return tuple(replace(entry, samples=tuple(_renewed(entry.samples, after))) for entry in entries)


def _renewed(samples: Sequence[Sample], after: DiskView) -> Iterator[Sample]:
    for sample in samples:
        digest = _digest(after, sample.offset, sample.length)
        if digest != sample.before:
            yield replace(sample, after=digest)


def take_samples(merged: MergedLayers) -> tuple[Sample, ...]:
    """Return places in the disk that a merge will change, the last ones among them.

    A merge goes upwards: a destination in which the last place is as before is one of before, or of half-way.
    """
    view, below = merged.view(), merged.destination_view()
    samples: list[Sample] = []
    for offset, length in _candidates(merged.sources, view.size):
        before, after = (_digest(chain, offset, length) for chain in (below, view))
        if before != after:
            samples.append(Sample(offset=offset, length=length, before=before, after=after))
            if len(samples) == MAX_SAMPLES:
                break
    return tuple(sorted(samples, key=lambda sample: sample.offset))


def _candidates(sources: Sequence[Image], size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of places where a source holds sectors: in its last blocks, then in some spread evenly."""
    images = [layer for layer in sources if layer.block_size]
    step = max((image.block_size for image in images), default=0)
    if not step:
        return
    touched = [layer.allocated_blocks(0, min(size, layer.size)) * layer.block_size // step for layer in images]
    blocks = np.unique(np.concatenate(touched))
    half = MAX_SAMPLES // 2
    if not len(blocks):
        return
    spread = np.linspace(0, len(blocks) - 1, 2 * half).astype(np.int64)
    chosen = dict.fromkeys([*blocks[::-1][:half].tolist(), *blocks[spread].tolist()])
    per_block = max(1, 2 * MAX_SAMPLES // max(1, len(chosen)))
    for block in chosen:
        held = resolve(sources, block * step, min(size, (block + 1) * step)).of(Kind.DATA)
        starts, stops = held.start.tolist(), held.stop.tolist()
        for start, stop in list(zip(starts, stops, strict=True))[::-1][:per_block]:
            at = max(start, stop - MAX_SAMPLE_BYTES)
            yield at, stop - at


def _digest(chain: DiskView, offset: int, length: int) -> str:
    # Past the end of a disk that will grow are zeros.
    return sha256(chain.read(offset, length).ljust(length, b"\0")).hexdigest()
