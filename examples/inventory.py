"""List the chains below a folder as CSV: `python examples/inventory.py FOLDER > chains.csv`.

Nothing is written to the images. An orphan has no base; a chain that is not clean says why.
"""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, TextIO

import vhdkit

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = ["leaf", "base", "layers", "size", "state"]


def leaves(image: vhdkit.ScannedImage, depth: int = 1) -> Iterator[tuple[vhdkit.ScannedImage, int]]:
    """Yield the images that nothing reads through, with the number of layers down to the base."""
    if not image.children:
        yield image, depth
    for child in image.children:
        yield from leaves(child, depth + 1)


def state_of(leaf: str) -> str:
    """Return "clean", or the names of the rules that the chain breaks."""
    report = vhdkit.check(leaf, chain=True)
    errors = {str(item.corruption.value) for item in report.findings if item.level is vhdkit.Level.ERROR}
    return " ".join(sorted(errors)) or "clean"


def write_inventory(folder: str, out: TextIO) -> None:
    """Write a line for each chain."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(HEAD)
    found = vhdkit.scan(folder)
    for base in found.bases:
        for leaf, layers in leaves(base):
            rows.writerow([leaf.path, base.path, layers, leaf.metadata.size, state_of(leaf.path)])
    for orphan in found.orphans:
        rows.writerow([orphan.path, "", "", orphan.metadata.size, "orphan"])


if __name__ == "__main__":
    write_inventory(sys.argv[1], sys.stdout)
