"""What a worker is asked to do with one chain: plain values, which any executor can carry to another machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from vhdkit.options import EnsureRequest, OutputFormat, ParentPolicy


class FleetVerb(StrEnum):
    """What is done with every chain."""

    CHECK = "check"
    HASH = "hash"
    CONVERT = "convert"
    MERGE = "merge"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """An image that shall be checked with all below it, as `vhdkit.check` does."""

    path: str
    deep: bool = False
    parents: ParentPolicy = field(default_factory=ParentPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashRequest:
    """An image whose view shall be hashed, as `vhdkit.hash_image` does."""

    path: str
    algorithm: str = "sha256"
    parents: ParentPolicy = field(default_factory=ParentPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest:
    """An image whose view shall be written to a new file, as `vhdkit.convert` does.

    A new file that is there already and shows the same was made by an earlier run; any other one is never replaced.
    """

    path: str
    destination: str
    output_format: OutputFormat = "dynamic"
    parents: ParentPolicy = field(default_factory=ParentPolicy)


FleetRequest: TypeAlias = CheckRequest | ConvertRequest | EnsureRequest | HashRequest


def verb_of(request: FleetRequest) -> FleetVerb:
    """Return what is done for a request."""
    match request:
        case CheckRequest():
            return FleetVerb.CHECK
        case HashRequest():
            return FleetVerb.HASH
        case ConvertRequest():
            return FleetVerb.CONVERT
        case EnsureRequest():
            return FleetVerb.MERGE


def path_of(request: FleetRequest) -> str:
    """Return the image that a request is about: the leaf."""
    return request.merge.child if isinstance(request, EnsureRequest) else request.path


def written_path(request: FleetRequest) -> str | None:
    """Return the file that a request writes, None if it only reads."""
    match request:
        case EnsureRequest():
            return request.merge.into
        case ConvertRequest():
            return request.destination
        case _:
            return None
