"""A chain of two whose leaf can be made to name any parent."""

from __future__ import annotations

from tests.model import Create, Kind, ModelChain, Snapshot, specs
from tests.plainbuild import ImageSpec

LEAF, BASE = (
    spec
    for _, spec in specs(ModelChain.run([Create(kind=Kind.DYNAMIC, sector_count=64), Snapshot()]))
    if isinstance(spec, ImageSpec)
)
