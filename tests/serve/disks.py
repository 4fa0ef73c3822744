"""Chains to serve, with what they show: by the model, not by vhdkit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.model import Create, Kind, ModelChain, Snapshot, Write, write_files

if TYPE_CHECKING:
    from pathlib import Path

SECTORS = 600
SIZE = SECTORS * 512


def three_layers(base: Kind = Kind.DYNAMIC) -> ModelChain:
    """A chain with data of every layer, zeros over data, and holes."""
    return ModelChain.run(
        [
            Create(kind=base, sector_count=SECTORS),
            Write(offset=0, length=40_000, fill=1),
            Write(offset=200_000, length=30_000, fill=2),
            Snapshot(),
            Write(offset=10_240, length=5_120, fill=3),
            Write(offset=205_000, length=4_000, fill=0),
            Snapshot(),
            Write(offset=12_288, length=512, fill=4),
            *(Write(offset=90_112 + 1_024 * each, length=512, fill=5) for each in range(64)),
        ]
    )


def on_disk(model: ModelChain, folder: Path) -> Path:
    """Write the model's files, and return the leaf."""
    folder.mkdir(exist_ok=True)
    return write_files(model, folder)[0]


@pytest.fixture(name="model")
def model_of_three_layers() -> ModelChain:
    """What the chain shows, by the model."""
    return three_layers()


@pytest.fixture(name="leaf")
def leaf_on_disk(model: ModelChain, tmp_path: Path) -> Path:
    """The chain as files."""
    return on_disk(model, tmp_path / "chain")
