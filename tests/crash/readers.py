"""Reading a disk that was found, twice: with vhdkit, and with the independent reader and judge of the tests."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import vhdkit
from tests.crashfs import SECTOR
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, FormatError, PlainImage, flat, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vhdkit.storage.protocols import Folder


@lru_cache(maxsize=4096)
def parsed(raw: bytes) -> PlainImage | str:
    """Return an image as the independent reader sees it, or why it does not."""
    try:
        return parse(raw)
    except FormatError as error:
        return str(error)


@lru_cache(maxsize=4096)
def judged(raw: bytes) -> tuple[str, ...]:
    """Return what the independent judge finds wrong."""
    return tuple(validate(raw))


def images_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return those that have an image's name."""
    return {path: raw for path, raw in files.items() if path.endswith((".vhd", ".avhd"))}


def plain_view(files: Mapping[str, bytes], path: str) -> bytes:
    """Read an image through parents that are found by unique id alone."""
    by_id: dict[bytes, PlainImage] = {}
    for raw in images_of(files).values():
        image = parsed(raw)
        if isinstance(image, PlainImage):
            by_id[image.unique_id] = image
    image = parsed(files[path])
    layers = []
    while isinstance(image, PlainImage):
        layers.append(image)
        if image.disk_type != DIFFERENCING:
            return flat(layers).tobytes()
        if image.parent_id not in by_id or len(layers) > len(by_id):
            raise FormatError("its parent is not there")
        image = by_id[image.parent_id]
    raise FormatError(image)


def vhdkit_view(folder: Folder, path: str) -> bytes:
    """Read an image as everybody does."""
    with vhdkit.open_chain(path, folder=folder) as chain:
        return chain.read(0, chain.size)


def differs(path: str, reader: str, expected: bytes, read: Callable[[], bytes]) -> Iterator[str]:
    """Yield how a view is not what it should be."""
    try:
        found = read()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        yield f"{path}: {reader}: {type(error).__name__}: {error}"
        return
    if len(found) != len(expected):
        yield f"{path}: {reader} finds {len(found)} bytes instead of {len(expected)}"
    elif found != expected:
        at = next(index for index, (left, right) in enumerate(zip(found, expected, strict=True)) if left != right)
        yield f"{path}: {reader} finds other bytes, first in sector {at // SECTOR}"
