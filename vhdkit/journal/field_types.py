"""What the fields of side files, and of the list of jobs, may hold: checked when one is read."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# Hexadecimal text: the id of an image, or a SHA-256 digest.
ImageId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
# The same, or "" where there is none.
IdText = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{32})?\Z")]
DigestText = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]
# Bytes, or an offset in bytes: 2^60 is beyond every file system.
Size = Annotated[int, Meta(ge=0, le=1 << 60)]
# A time of change, in Unix seconds: file systems keep 64 bits of them.
FileTime = Annotated[float, Meta(ge=-(2.0**63), le=2.0**63)]
# A time that a clock has shown, in Unix seconds, up to the year 9987: a calendar holds it in every time zone.
ClockTime = Annotated[float, Meta(ge=0.0, le=253_000_000_000.0)]
# A path relative to the file's own folder, with slashes, as `check_relative_path` has it.
PathText = Annotated[str, Meta(min_length=1, max_length=8192)]
