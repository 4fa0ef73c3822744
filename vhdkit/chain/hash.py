"""The digest of what a disk shows, by which its content is recognised: that of the raw file that it would make.

The next piece is read on another thread while one is hashed. What no layer holds is not read; its zeros are hashed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from vhdkit.arguments import checked
from vhdkit.chain.held_pieces import PIECE_BYTES, read_pieces
from vhdkit.chain.open_view import open_view, view_length
from vhdkit.errors import Cancelled
from vhdkit.options import ParentPolicy
from vhdkit.progress import Phase, Reporter
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.disk.image import Image
    from vhdkit.options import ReadFormat
    from vhdkit.progress import Cancel, Progress
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath


class HashAlgorithm(StrEnum):
    """How a view is hashed. BLAKE3 uses every processor; it needs the package `blake3`."""

    SHA256 = "sha256"
    BLAKE3 = "blake3"


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewHash:
    """The digest of a view, in hexadecimal; `path` is the layer that shows it, `size` the bytes hashed."""

    path: str
    size: int
    algorithm: HashAlgorithm
    digest: str


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


@checked
def hash_image(
    path: StrPath,
    *,
    algorithm: str = HashAlgorithm.SHA256,
    layers: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_id_mismatch: bool = False,
    image_format: ReadFormat | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    lock: bool = True,
    folder: Folder | None = None,
) -> tuple[ViewHash, ...]:
    """Return the digest of what an image shows through its chain, as a raw file of that content would have it.

    With `layers` the digest of what each layer shows follows, from the leaf down. `image_format` is "vhd" or "raw";
    with None a file without any footer is taken as raw, as `compare` does. `progress` is called with how much is done,
    and `cancel` (a `threading.Event`) stops the work; the other arguments are as in `open_chain`.

    Raises:
        ValueError: an algorithm or a format of another name is asked for.
        ModuleNotFoundError: BLAKE3 is asked for and the extra `blake3` is not installed.
        Cancelled: it was stopped.
        VhdError, OSError: the image cannot be read.

    """
    if image_format not in {None, "vhd", "raw"}:
        raise ValueError(f"the format is {image_format!r}: expected vhd or raw")
    wanted = HashAlgorithm(algorithm)
    policy = ParentPolicy.of(search, parent_map, parent, accept_id_mismatch=accept_id_mismatch)
    with open_view(as_text(path), image_format, policy, folder or LocalFolder(), lock=lock) as chain:
        chain.check_readable()
        views = [chain.layers[depth:] for depth in range(len(chain.layers) if layers else 1)]
        sizes = [view_length(view[0]) for view in views]
        reporter = Reporter(sum(sizes), 0, progress, cancel, cancelled=Cancelled("the hashing was cancelled"))
        found = []
        for view, size in zip(views, sizes, strict=True):
            digest = _digest(view, size, _new_hash(wanted), reporter)
            found.append(ViewHash(path=view[0].path, size=size, algorithm=wanted, digest=digest))
        return tuple(found)


def _digest(layers: Sequence[Image], size: int, total: _Hash, reporter: Reporter) -> str:
    """Return the digest of the first `size` bytes of a view."""
    zeros = memoryview(bytes(PIECE_BYTES))
    done = 0

    def update(data: memoryview) -> None:
        nonlocal done
        total.update(data)
        done += len(data)
        reporter.reach(reporter.done + len(data), Phase.HASHING)

    def zeros_to(stop: int) -> None:
        while done < stop:
            update(zeros[: stop - done])

    with read_pieces(layers, layers[0].size) as pieces:
        for start, data in pieces:
            zeros_to(start)
            # The last sector of a raw file may be cut short.
            update(data.data[: size - start])
    zeros_to(size)
    return total.hexdigest()


def _new_hash(algorithm: HashAlgorithm) -> _Hash:
    if algorithm is HashAlgorithm.SHA256:
        return sha256()
    from blake3 import blake3  # noqa: PLC0415 - an extra

    new: _Hash = blake3(max_threads=blake3.AUTO)
    return new
