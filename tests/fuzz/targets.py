"""What is fuzzed: a target takes bytes, makes hostile files of them, and raises where one does what none may.

The bytes choose what is changed, and how; checksums are right again, so that what lies behind them is reached. Only
VhdError and OSError may come out of a verb, nothing of another folder may change, and what is read must be what the
oracle reads (tests/plainvhd).
"""

from __future__ import annotations

import json
import tarfile
from base64 import b64encode
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vhdkit
from tests.corrupt import forged_vhdx
from tests.corrupt.forged import NAMES, State, Tally, contents, journal_states, sealed, step_states, try_all
from tests.model import Kind, Snapshot
from tests.plaincheck import validate
from tests.plainvhd import FOOTER_CHECKSUM, HEADER_CHECKSUM, FormatError, flat, parse, seal
from tests.unit.test_merge_laws import chain_over, in_memory, put
from vhdkit.chain import parent_paths
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd.footer import Footer
from vhdkit.vhd.header import DynamicHeader
from vhdkit.vhd.locator import decode_locator, encode_locator
from vhdkit.vhd.read_metadata import examine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Places of fields in a footer and a header, with their lengths (docs/reference/vhd.md 1.2, 1.4).
FOOTER_FIELDS = (
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 4),
    (28, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (68, 16),
    (84, 1),
)
HEADER_FIELDS = ((0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (40, 16), (56, 4), (64, 512))
LOCATOR_FIELDS = ((0, 4), (4, 4), (8, 4), (12, 4), (16, 8))
TELLING = (0, 1, 2, 3, 4, 511, 512, 513, 1536, 4096, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1)


ODD_VALUES = ("1" + "0" * 400, "NaN", "1e400", "1e300", "null", "[]", "{}", "true", '""', '"\\ud800"', "1.5")


class FoundError(AssertionError):
    """A fault that was looked for."""


class Bytes:
    """Choices made by bytes, zeros when they are used up."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def is_used_up(self) -> bool:
        return self._at >= len(self._raw)

    def take(self, length: int) -> bytes:
        found = self._raw[self._at : self._at + length]
        self._at += length
        return found.ljust(length, b"\0")

    def number(self, below: int) -> int:
        return int.from_bytes(self.take(1 if below <= 256 else 4)) % max(1, below)

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[self.number(len(choices))]

    def value(self, length: int) -> bytes:
        """Return bytes of a field: any, or a telling number."""
        if self.number(2):
            return self.take(length)
        number: int = self.one_of(TELLING)
        return (number % (1 << 8 * length)).to_bytes(length)


# Images


@cache
def _chains() -> tuple[dict[str, bytes], ...]:
    found = []
    for chain in (
        chain_over(Kind.DYNAMIC, put(0, 24, 1), Snapshot(), put(3, 9, 2), Snapshot(), put(16, 20, 3)),
        chain_over(Kind.FIXED, put(0, 24, 1), Snapshot(), put(3, 9, 2)),
        chain_over(Kind.DYNAMIC, put(0, 40, 1), Snapshot(sector_count=2000), put(100, 9, 2)),
    ):
        folder, _ = in_memory(chain)
        found.append(contents(folder))
    return tuple(found)


def _mutated(raw: bytes, choose: Bytes) -> bytes:
    """Return an image with some fields changed, its checksums right again for the most part."""
    out = bytearray(raw)
    footer_at = len(out) - 512
    header_at = 512 if out[512:520] == b"cxsparse" else None
    table_at = int.from_bytes(out[header_at + 16 : header_at + 24]) if header_at is not None else 1536
    for _ in range(1 + choose.number(4)):
        match choose.number(8):
            case 0 | 1:
                at, length = choose.one_of(FOOTER_FIELDS)
                value = choose.value(length)
                for base in choose.one_of(((footer_at,), (0,), (footer_at, 0))):
                    out[base + at : base + at + length] = value
            case 2 | 3 if header_at is not None:
                at, length = choose.one_of(HEADER_FIELDS)
                out[header_at + at : header_at + at + length] = choose.value(length)
            case 4 if header_at is not None:
                at, length = choose.one_of(LOCATOR_FIELDS)
                at += header_at + 576 + 24 * choose.number(8)
                out[at : at + length] = choose.value(length)
            case 5 if header_at is not None:
                at, other = (table_at + 4 * choose.number(6) for _ in range(2))
                out[at : at + 4] = out[other : other + 4] if choose.number(2) else choose.value(4)
            case 6:
                del out[choose.number(len(out)) // 512 * 512 + choose.one_of((0, 0, 0, 1, 511)) :]
                break
            case _:
                at = choose.number(max(1, len(out)))
                out[at : at + 1] = choose.take(1)
    return _resealed(out, footer_at, header_at) if choose.number(8) else bytes(out)


def _resealed(out: bytearray, footer_at: int, header_at: int | None) -> bytes:
    for at, length, place in ((footer_at, 512, FOOTER_CHECKSUM), (header_at, 1024, HEADER_CHECKSUM)):
        if at is not None and len(out) >= at + length:
            out[at : at + length] = seal(bytes(out[at : at + length]), place)
    if header_at is not None and len(out) >= 512 and out[:8] == b"conectix":
        out[:512] = seal(bytes(out[:512]), FOOTER_CHECKSUM)
    return bytes(out)


def images(raw: bytes) -> None:
    """Open, read, check, scan, plan and merge a chain with hostile images in it."""
    choose = Bytes(raw)
    files = dict(choose.one_of(_chains()))
    paths = sorted(files, reverse=True)
    for _ in range(1 + choose.number(2)):
        path = choose.one_of(paths)
        files[path] = _mutated(files[path], choose)
    folder = MemoryFolder(files)
    top = choose.one_of(paths[:-1])
    with suppress(vhdkit.VhdError, OSError):
        vhdkit.check(paths[0], chain=True, deep=True, folder=folder)
    with suppress(vhdkit.VhdError, OSError):
        vhdkit.scan("/vms", folder=folder)
    view = _view(folder, paths[0])
    if view is not None:
        _hold_against_oracle(folder, paths, view)
    _merge(folder, top, paths[0], view)


def _view(folder: MemoryFolder, path: str) -> bytes | None:
    try:
        with vhdkit.open_chain(path, folder=folder) as chain:
            return chain.read(0, chain.size) if chain.size < 1 << 24 else None
    except (vhdkit.VhdError, OSError):
        return None


def _hold_against_oracle(folder: MemoryFolder, paths: list[str], view: bytes) -> None:
    """What was read without a word is what the oracle reads."""
    with vhdkit.open_chain(paths[0], folder=folder) as chain:
        if chain.findings or any(finding for layer in chain.layers for finding in getattr(layer, "findings", ())):
            return
        found = [layer.path for layer in chain.layers]
    problems = [text for path in found for text in validate(bytes(folder[path].content))]
    misplaced = [text for text in problems if text.startswith("block") and "overlaps block" in text]
    if misplaced:
        raise FoundError(f"blocks that lie wrong were read without a word: {misplaced[0]}")
    try:
        expected = flat([parse(bytes(folder[path].content)) for path in found]).tobytes()
    except (FormatError, ValueError, IndexError) as error:
        raise FoundError(f"what the oracle refuses ({error}) was read without a word") from error
    if expected[: len(view)] != view:
        raise FoundError("what was read is not what the oracle reads")


def _merge(folder: MemoryFolder, top: str, leaf: str, view: bytes | None) -> None:
    before = contents(folder)
    try:
        plan = vhdkit.plan_merge(top, folder=folder)
        if contents(folder) != before:
            raise FoundError("a plan has changed files")
        vhdkit.merge(plan, folder=folder)
    except (vhdkit.VhdError, OSError):
        if view is not None and _view(folder, leaf) != view:
            raise FoundError("the leaf's view changed by a merge that failed") from None
        return
    now = _view(folder, leaf if folder.exists(leaf) else plan.destination)
    if view is not None and now != view:
        raise FoundError("the leaf's view changed by a merge")


# Side files


@cache
def _states() -> tuple[State, ...]:
    return (*journal_states(), *step_states())


def side_files(raw: bytes) -> None:
    """Let every verb meet a journal or a step file with a line of which something is changed."""
    choose = Bytes(raw)
    state = choose.one_of(_states())
    found = state.records()
    texts = [json.dumps(record, sort_keys=True, separators=(",", ":")) for record in found]
    if "patches" in found[0] and choose.number(3) == 0:
        texts[0] = json.dumps({"image": "x", "patches": _forged_patches(state, choose)})
    for _ in range(choose.number(3)):
        index = choose.number(len(found))
        texts[index] = _forged_text(found[index], texts[index], choose)
    tally = Tally()
    try_all(state, sealed(texts), "fuzzed", tally)
    if tally.faults:
        raise FoundError(tally.faults[0])


def _forged_text(record: Any, text: str, choose: Bytes) -> str:
    """Return a record's text with a value, a key or some letters of it changed."""
    kind = choose.number(4)
    if kind == 0:
        at = choose.number(len(text))
        return text[:at] + choose.take(1 + choose.number(3)).decode("latin-1") + text[at + choose.number(4) :]
    holders = list(_holders(record))
    holder = choose.one_of(holders)
    key = choose.one_of(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
    marker = "\ue000"
    kept, holder[key] = holder[key], marker
    changed = json.dumps(record, sort_keys=True, separators=(",", ":"))
    holder[key] = kept
    return changed.replace(json.dumps(marker), _value(kept, choose), 1)


def _forged_patches(state: State, choose: Bytes) -> list[dict[str, object]]:
    """Return a step that writes somewhere, its headers whole and claiming that place for a locator, or not."""
    raw = state.files[state.forged.removesuffix(".vhdkit-header")]
    at, now = choose.number(len(raw) - 16), raw[512:1536]
    entry = b"W2ku" + (4096).to_bytes(4) + (16).to_bytes(4) + bytes(4) + at.to_bytes(8)
    slot = 576 + 24 * choose.number(8)
    claims = seal(now[:slot] + entry + now[slot + 24 :], HEADER_CHECKSUM)
    before, after = choose.one_of(((claims, now), (now, claims), (claims, claims), (now, now)))
    pieces = ((at, raw[at : at + 16], b"EVIL" * 4), (512, before, after))
    return [{"offset": at, "b": b64encode(b).decode(), "a": b64encode(a).decode()} for at, b, a in pieces]


def _holders(value: Any) -> Any:
    if isinstance(value, dict | list) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item)


def _value(kept: object, choose: Bytes) -> str:
    """Return JSON for another value."""
    match choose.number(6):
        case 0:
            return str(choose.one_of(TELLING) * choose.one_of((1, -1)))
        case 1:
            return str(choose.one_of(ODD_VALUES))
        case 2:
            return json.dumps(choose.one_of(NAMES))
        case 3 if isinstance(kept, int | float):
            return str(kept + choose.number(3) - 1)
        case 4 if isinstance(kept, str):
            at = choose.number(max(1, len(kept)))
            return json.dumps(kept[:at] + choose.take(1).decode("latin-1") + kept[at + choose.number(2) :])
        case _:
            return json.dumps(choose.take(choose.number(24)).decode("latin-1"))


# Manifests


def manifests(raw: bytes) -> None:
    """Read bytes, and changed manifests, as a machine's manifest."""
    from vhdkit.journal.manifest import Manifest  # noqa: PLC0415 - an earlier version, which is fuzzed too, has none

    choose = Bytes(raw)
    manifest = _manifest()
    text = _forged_text(manifest, json.dumps(manifest), choose)
    for each in (text.encode("utf-8", "surrogatepass"), raw):
        with suppress(ValueError, vhdkit.VhdError):
            Manifest.from_json(each).to_json()


@cache
def _manifest() -> Any:
    """Return the manifest of a machine with a tree of snapshots."""
    with tarfile.open(Path(__file__).parents[1] / "snapshots" / "dfd6f62" / "tree.tar.xz") as tar:
        for member in tar.getmembers():
            found = tar.extractfile(member) if member.name.endswith("-snapshots.json") else None
            if found is not None:
                return json.load(found)
    raise AssertionError("there is no manifest in the archive")


# Headers and locators


def headers(raw: bytes) -> None:
    """Read headers, footers and locators: what is read is written as it was, and nothing else comes out."""
    choose = Bytes(raw)
    which = choose.one_of(_chains())
    path = choose.one_of(sorted(which))
    image = _mutated(which[path], choose)
    for kind, part in ((Footer, image[-512:]), (DynamicHeader, image[512:1536])):
        with suppress(vhdkit.VhdError):
            if len(part) in {512, 1024} and kind.from_bytes(part).to_bytes() != part:
                raise FoundError(f"a {kind.__name__} is written otherwise than it was read")
    folder = MemoryFolder({path: image})
    with folder.open(path) as storage:
        metadata = examine(storage).metadata
    if metadata is not None and metadata.parent is not None:
        list(parent_paths.named_paths(metadata.parent, "/vms"))
        list(parent_paths.base_names(metadata.parent))
    code, data = choose.take(4), choose.take(choose.number(300))
    for each in (code, choose.one_of((b"W2ru", b"W2ku", b"Wi2r", b"Wi2k", b"MacX"))):
        text = decode_locator(each, data)
        if text is not None:
            encode_locator(each, text)


# VHDX


def vhdx(raw: bytes) -> None:
    """Check, scan and read a VHDX with changed fields over its parent: as the oracle does, or not at all."""
    choose = Bytes(raw)
    name = choose.one_of(sorted(forged_vhdx.ORIGINALS))
    content = forged_vhdx.ORIGINALS[name]
    for _ in range(1 + choose.number(4)):
        which: forged_vhdx.Field = choose.one_of(_vhdx_fields(name))
        value = choose.value(which.length)[::-1]
        for record in (which.record, forged_vhdx.COPIES.get(which.record, 0) if choose.number(2) else 0):
            if record or not which.record:
                content = forged_vhdx.put(content, record + which.offset, value)
                content = forged_vhdx.with_sums(content, record) if choose.number(8) else content
    if not choose.number(8):
        content = content[: choose.number(len(content))]
    tally = forged_vhdx.VhdxTally()
    forged_vhdx.try_content(name, content, tally)
    if tally.faults:
        raise FoundError(tally.faults[0])


@cache
def _vhdx_fields(name: str) -> list[forged_vhdx.Field]:
    return forged_vhdx.fields(name)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "images": images,
    "side-files": side_files,
    "manifests": manifests,
    "headers": headers,
    "vhdx": vhdx,
}
