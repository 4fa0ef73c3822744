"""Options that several verbs share, and the words that they take."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, TypedDict

import click

from vhdkit.errors import ImageInUseError
from vhdkit.units import GiB, KiB, MiB, TiB

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_FACTORS = {"": 1, "K": KiB, "M": MiB, "G": GiB, "T": TiB}


FOLDER = click.Path(exists=True, file_okay=False)


class FolderOrUrl(click.Path):
    """A folder that is there, or the URL of one on another machine, which is not asked about yet."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or the URL."""
        from vhdkit.storage.remote_paths import is_remote, remote_place

        if not isinstance(value, str) or not is_remote(value):
            return super().convert(value, param, ctx)
        try:
            remote_place(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


FOLDER_OR_URL = FolderOrUrl(exists=True, file_okay=False)


class ChainOptions(TypedDict):
    """How parents are found; the arguments of `vhdkit.open_chain` by name."""

    search: tuple[str, ...]
    parent_map: dict[str, str]
    parent: str | None
    accept_id_mismatch: bool


class ReadOptions(ChainOptions):
    """The same, and whether the files are locked while they are read."""

    lock: bool


class Size(click.ParamType[int]):
    """A number of bytes, with K, M, G or T for powers of 1024."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no size: write bytes, or a number with K, M, G or T", param, ctx)
        return int(match[1]) * _FACTORS[match[2].upper()]


parallel_option = click.option(
    "--parallel",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Begin only when fewer than N merges run on the file system.  [default: 2]",
)


class Rate(Size):
    """A number of bytes a second, as `Size`; 0 for the word that lets it have no bound."""

    name = "rate"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes a second."""
        if str(value).lower() == "none":
            return 0
        rate = super().convert(value, param, ctx)
        if not rate:
            self.fail("0 bytes a second would never be done; write none for no bound", param, ctx)
        return rate


class FolderMap(click.ParamType[tuple[str, str]]):
    """A folder that absolute paths in images name, and the local one that stands for it: `C:\\vms=/mnt/vms`."""

    name = "folder=local"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the pair."""
        if isinstance(value, tuple):
            return value
        remote, equals, local = value.partition("=")
        if not (remote and equals and local):
            self.fail(f"{value!r} is no pair of folders: write FOLDER=LOCAL_FOLDER", param, ctx)
        return remote, local


parent_map_option = click.option(
    "--parent-map",
    multiple=True,
    type=FolderMap(),
    help="Take paths in images below FOLDER as below LOCAL: C:\\vms=/mnt/vms.",
)


def chain_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where parents are; `chain_arguments` takes them."""
    options = [
        click.option(
            "--search",
            multiple=True,
            type=FOLDER_OR_URL,
            metavar="DIR",
            help="Look for parents in this folder too, and below; a URL is one on another machine.",
        ),
        parent_map_option,
        click.option("--parent", metavar="FILE", help="The parent; the only way to name a raw one."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def accept_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that reads through a parent with another id; the verb gets it with those of `chain_options`."""
    text = "Read through a file that is named as a parent though its id is another; nothing is written."
    return click.option("--accept-id-mismatch", is_flag=True, help=text)(command)


def chain_arguments(
    search: tuple[str, ...], parent_map: tuple[tuple[str, str], ...], parent: str | None, *, accept_id_mismatch: bool
) -> ChainOptions:
    """Return the options of `chain_options` and `accept_option` as the library takes them."""
    return ChainOptions(
        search=search, parent_map=dict(parent_map), parent=parent, accept_id_mismatch=accept_id_mismatch
    )


def force_share_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that reads what others hold; the verb gets it as `force_share`, for `reading`.

    Where a file is in use the option is offered.
    """

    @functools.wraps(command)
    def offering(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except ImageInUseError as error:
            error.add_note("With --force-share (-U) it is read all the same; what changes meanwhile is read torn.")
            raise

    text = "Read files that others write to, without asking; what changes meanwhile is read torn."
    return click.option("-U", "--force-share", is_flag=True, help=text)(offering)


def reading(*, force_share: bool, **options: Any) -> ReadOptions:
    """Return the shared options of a verb that has `force_share` too, as the library takes them."""
    return ReadOptions(**chain_arguments(**options), lock=not force_share)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
progress_option = click.option(
    "--progress",
    type=click.Choice(["bar", "plain", "json", "none"]),
    help="How to show the progress; a bar on a terminal, else plain lines.",
)

image_format_option = click.option(
    "-f", "image_format", type=click.Choice(["vhd", "raw"]), help="Format; raw if nothing says VHD."
)
