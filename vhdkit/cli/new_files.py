"""Names of files that a verb is asked to write: `-`, and what to do where a name says another format."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vhdkit.errors import FileNameError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The formats of suffixes, as `convert` calls them, and as qemu-img calls those that are not written here.
_FORMATS = {
    **dict.fromkeys((".raw", ".img", ".iso"), "raw"),
    **{f".{name}": name for name in ("qcow2", "vmdk", "vdi")},
}
_QEMU_FORMATS = {".vhdx": "vhdx", ".avhdx": "vhdx"}

STDOUT = "-"


class NewFile(click.ParamType[str]):
    """A file, or a folder of files, to be written: anything but `-`, which means standard output to every shell."""

    name = "file"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path."""
        if value == STDOUT:
            text = "- is standard output, which takes a raw disk only (convert -O raw); ./- is the file of that name"
            self.fail(text, param, ctx)
        return value


@contextmanager
def naming_commands(source: str, destination: str) -> Iterator[None]:
    """Note on a refused name which commands write the format that the name says."""
    try:
        yield
    except FileNameError as error:
        error.add_note(f"To have that format: {_commands(source, destination, error.suffix)}")
        raise


def _commands(source: str, destination: str, suffix: str) -> str:
    if suffix in _FORMATS:
        return f"`{shlex.join(['vhdkit', 'convert', '-O', _FORMATS[suffix], source, destination])}`"
    if suffix not in _QEMU_FORMATS:
        return f"`{shlex.join(['vhdkit', 'convert', source, destination])}`"
    raw = f"{destination[: -len(suffix)]}.raw"
    first = shlex.join(["vhdkit", "convert", "-O", "raw", source, raw])
    then = shlex.join(["qemu-img", "convert", "-f", "raw", "-O", _QEMU_FORMATS[suffix], raw, destination])
    return f"`{first}`, then `{then}`"
