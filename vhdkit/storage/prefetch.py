"""Say which ranges will be read next, one by one: a file of another machine asks for all of them in one round trip.

Where a read is a call of the system, reading them by one call each is quickest: of 4,096 bitmaps that takes 16 ms, and
handing all of them on at once 26 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.storage.protocols import Storage


def prefetch(storage: Storage, offsets: Sequence[int], length: int) -> None:
    """Have a storage that is far away get ranges of one length, in any order; others do nothing."""
    far = getattr(storage, "prefetch", None)
    if far is not None:
        far(offsets, length)
