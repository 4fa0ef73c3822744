"""The verbs that look inside of a disk: partitions, ls, cat, stat, extract, diff."""

from __future__ import annotations

import stat as modes
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

import vhdkit
from vhdkit.cli.exit_codes import ExitCode
from vhdkit.cli.opened_chain import opened_chain
from vhdkit.cli.options import (
    accept_option,
    chain_options,
    force_share_option,
    image_format_option,
    json_option,
    progress_option,
)
from vhdkit.cli.output import bytes_out, echo, path_text, print_json, progress_shown, size_text
from vhdkit.findings import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhdkit.chain.chain import Chain
    from vhdkit.filesystem.file_changes import FileChange
    from vhdkit.filesystem.guest_files import GuestFile, GuestFiles

_LETTERS = {"file": "-", "directory": "d", "link": "l", "other": "?"}
_CHANGES = {"added": "A", "deleted": "D", "modified": "M"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """An image, and a path inside of its disk."""

    image: str
    path: str


class InsidePath(click.ParamType[Inside]):
    """LEAF:/PATH; a colon in the image's own path does no harm."""

    name = "image:/path"

    def convert(self, value: str | Inside, param: click.Parameter | None, ctx: click.Context | None) -> Inside:
        """Take the two apart at the first `:/` before which there is a file."""
        from vhdkit.storage.local_folder import LocalFolder

        if isinstance(value, Inside):
            return value
        at = value.find(":/")
        if at < 0:
            self.fail(f"{value!r} names no path inside of an image: write IMAGE:/PATH", param, ctx)
        first = at
        while at >= 0 and not LocalFolder().exists(value[:at]):
            at = value.find(":/", at + 1)
        at = first if at < 0 else at
        return Inside(image=value[:at], path=value[at + 1 :])


def _inside_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of what is opened for its files."""
    options = (
        click.option("-p", "--partition", type=click.IntRange(min=1), help="Which partition, by its number."),
        image_format_option,
        force_share_option,
        chain_options,
        accept_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def _files(inside: Inside, *, partition: int | None, **options: Any) -> Iterator[GuestFiles]:
    with opened_chain(inside.image, **options) as chain:
        yield vhdkit.open_files(chain, partition)


@click.command()
@click.argument("file")
@image_format_option
@force_share_option
@chain_options
@accept_option
@json_option
def partitions(file: str, *, as_json: bool, **options: Any) -> None:
    """List the partitions of a disk, and the file systems in them."""
    with opened_chain(file, **options) as chain:
        found = vhdkit.list_partitions(chain)
    if as_json:
        names = ("number", "start", "size", "description", "file_system")
        print_json([{name.replace("_", "-"): getattr(each, name) for name in names} for each in found])
        return
    if not found:
        echo("no partitions, and no file system that is known")
    for each in found:
        system = each.file_system or "-"
        size = size_text(each.size)
        echo(f"{each.number:>3}  {each.start:>16}  {size:<32}  {system:<8}  {printable(each.description)}")


@click.command("ls")
@click.argument("inside", type=InsidePath(), metavar="FILE:/PATH")
@click.option("-l", "--long", "is_long", is_flag=True, help="With permissions, sizes and times.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below, by its path.")
@_inside_options
@json_option
def ls(inside: Inside, *, is_long: bool, recursive: bool, as_json: bool, **options: Any) -> None:
    """List the files in a directory of a disk.

    Links are shown, and not followed. Deleted files are left out, and so are the file system's own.
    """
    with _files(inside, **options) as files:
        found = files.walk(inside.path) if recursive else iter(files.list(inside.path))
        if as_json:
            print_json([_record(each) for each in found])
            return
        for each in found:
            name = each.path if recursive else each.name
            echo(_long_line(each, name) if is_long else printable(name))


@click.command("stat")
@click.argument("inside", type=InsidePath(), metavar="FILE:/PATH")
@_inside_options
@json_option
def stat(inside: Inside, *, as_json: bool, **options: Any) -> None:
    """Show what there is to know of a file in a disk."""
    from vhdkit.cli.output import table

    with _files(inside, **options) as files:
        record = _record(files.stat(inside.path))
    if as_json:
        print_json(record)
        return
    table([(name, value) for name, value in record.items() if value is not None])


@click.command("cat")
@click.argument("inside", type=InsidePath(), metavar="FILE:/PATH")
@_inside_options
def cat(inside: Inside, **options: Any) -> None:
    """Write a file of a disk to standard output."""
    with bytes_out() as write, _files(inside, **options) as files:
        for piece in files.pieces(inside.path):
            write(piece)


@click.command("extract")
@click.argument("inside", type=InsidePath(), metavar="FILE:/PATH")
@click.argument("directory", metavar="DIR")
@progress_option
@_inside_options
@json_option
def extract(inside: Inside, directory: str, *, progress: str | None, as_json: bool, **options: Any) -> int:
    """Copy a file of a disk, or a directory with all that is below it, into DIR.

    Nothing outside of DIR is touched, and nothing in it is replaced. Links, devices and pipes are left out, and so is
    what cannot be read or have its name here: each of these is listed, and the exit code is then 1.
    """
    with _files(inside, **options) as files, progress_shown(progress, "extracting") as advance:
        done = vhdkit.extract_files(files, inside.path, directory, progress=advance)
    skipped = [{"path": each.path, "reason": each.reason} for each in done.skipped]
    if as_json:
        print_json({"directory": directory, "files": done.files, "bytes": done.bytes, "skipped": skipped})
    else:
        for each in done.skipped:
            echo(f"left out: {printable(each.path)}: {printable(each.reason)}", err=True)
        echo(f"extracted {done.files} files into {path_text(directory)}: {size_text(done.bytes)}")
    return ExitCode.FAILED if skipped else ExitCode.DONE


@click.command("diff")
@click.argument("file")
@click.option("--against", metavar="LAYER", help="A lower layer, by its file or its number in `chain`; the parent.")
@click.option("-p", "--partition", type=click.IntRange(min=1), help="Only this partition, by its number.")
@force_share_option
@chain_options
@accept_option
@json_option
def diff(file: str, *, against: str | None, partition: int | None, as_json: bool, **options: Any) -> None:
    """Name the files that changed between a lower layer and FILE: A added, D deleted, M modified.

    What was modified follows the file's name. Both are read as they are on the disk: what the guest had in
    memory at that time is in neither.
    """
    with opened_chain(file, image_format="vhd", **options) as chain:
        depth = 1 if against is None else _depth(chain, against)
        found = vhdkit.changed_files(chain, depth, partition)
        if as_json:
            print_json([_change_record(each) for each in found])
            return
        several = len({part.number for part in vhdkit.list_partitions(chain) if part.file_system}) > 1
        for each in found:
            place = f"{each.partition}:" if several else ""
            what = f"  ({', '.join(each.what)})" if each.what else ""
            echo(f"{_CHANGES[each.kind]}  {place}{printable(each.path)}{what}")


def _depth(chain: Chain, against: str) -> int:
    """Return the depth of a layer that is given by its number or its file."""
    from vhdkit.storage.local_folder import LocalFolder

    real = LocalFolder().real(against)
    paths = [layer.path for layer in chain.layers]
    if real in paths:
        return paths.index(real)
    if against.isdecimal() and int(against) < len(paths):
        return int(against)
    raise click.UsageError(f"{against!r} is no layer of the chain: give its file, or its number as in `vhdkit chain`")


def _change_record(change: FileChange) -> dict[str, Any]:
    record = {"partition": change.partition, "path": change.path, "change": change.kind.value}
    return record | {"what": list(change.what)}


def _record(file: GuestFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "kind": file.kind.value,
        "size": file.size,
        "mode": f"{file.mode:04o}",
        "uid": file.uid,
        "gid": file.gid,
        "inode": file.inode,
        "modified": _time_text(file.modified),
        "changed": _time_text(file.changed),
        "created": _time_text(file.created),
        "target": file.target,
    }


def _long_line(file: GuestFile, name: str) -> str:
    mode = _LETTERS[file.kind] + modes.filemode(file.mode)[1:]
    target = f" -> {printable(file.target)}" if file.target is not None else ""
    time = (_time_text(file.modified) or "-")[:19]
    return f"{mode}  {file.uid:>5} {file.gid:>5}  {file.size:>14}  {time:<19}  {printable(name)}{target}"


def _time_text(seconds: float) -> str | None:
    """Return a time as ISO 8601 in UTC; None if the file system has none, or one that is out of this world."""
    if not seconds:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return None
