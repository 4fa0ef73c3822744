"""The verbs that make or compare disks: create, convert, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import vhdkit
from vhdkit.cli.new_files import STDOUT, NewFile, naming_commands
from vhdkit.cli.options import (
    FolderMap,
    Size,
    accept_option,
    chain_options,
    force_share_option,
    json_option,
    progress_option,
    reading,
)
from vhdkit.cli.output import (
    JSON_OUTPUT,
    bytes_out,
    echo,
    path_text,
    print_json,
    progress_shown,
    size_text,
    warn_before_reading,
)
from vhdkit.corruption import Corruption
from vhdkit.errors import CorruptImageError, FileNameError, ImageInUseError, VhdError

if TYPE_CHECKING:
    from vhdkit.chain.compare import Comparison

_OWN_FORMATS = ("raw", "fixed", "dynamic")
_QEMU_FORMATS = ("qcow2", "vmdk", "vdi")
_DIFFERENT = 1
_NOT_COMPARED = 2
_NO_VHD = {Corruption.NOT_A_VHD, Corruption.FILE_TOO_SHORT}


@click.command()
@click.argument("file", type=NewFile())
@click.option("--size", type=Size(), help="Size of the disk, such as 40M or 127G; a child takes its parent's.")
@click.option(
    "--type", "disk_type", type=click.Choice(["dynamic", "fixed"]), help="The type of the image; dynamic by default."
)
@click.option("--parent", metavar="FILE", help="Make a differencing child of this image.")
@click.option("--accept-ended", is_flag=True, help="Take a parent that a merge went past, as it reads now.")
@click.option("--block-size", type=Size(), help="Bytes in a block; 2M by default, for a child its parent's.")
@click.option(
    "--parent-map",
    multiple=True,
    type=FolderMap(),
    help="Name the parent as below this folder of a Windows machine: C:\\vms=/mnt/vms.",
)
@json_option
def create(
    file: str,
    *,
    size: int | None,
    disk_type: Any,
    parent: str | None,
    accept_ended: bool,
    block_size: int | None,
    parent_map: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Make an empty image, or a differencing child of one."""
    if parent is None and size is None:
        raise click.UsageError("--size or --parent is needed")
    if disk_type == "fixed" and block_size is not None:
        raise click.UsageError("a fixed disk has no blocks: --type fixed and --block-size exclude each other")
    if parent is not None and disk_type is not None:
        raise click.UsageError("a child is differencing: --type and --parent exclude each other")
    try:
        vhdkit.create_image(
            file,
            size=size,
            disk_type=disk_type or "dynamic",
            parent=parent,
            accept_ended=accept_ended,
            block_size=block_size,
            parent_map=dict(parent_map),
        )
    except FileNameError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with vhdkit.open_image(file) as image:
        label, size, file_size = image.kind, image.size, image.storage.size()
    if as_json:
        print_json({"filename": file, "disk-type": label, "virtual-size": size, "file-size": file_size})
    else:
        echo(f"created {path_text(file)}: {label}, {size_text(size)}")


@click.command()
@click.option(
    "-O",
    "output_format",
    type=click.Choice([*_OWN_FORMATS, *_QEMU_FORMATS]),
    default="dynamic",
    show_default=True,
    help="Format of the new file; qcow2, vmdk and vdi are written by qemu-img.",
)
@click.argument("source")
@click.argument("destination")
@progress_option
@force_share_option
@chain_options
@accept_option
@json_option
def convert(
    source: str, destination: str, *, output_format: Any, progress: str | None, as_json: bool, **options: Any
) -> None:
    """Write what SOURCE shows through its chain to a new file; with -O raw, `-` is standard output.

    Holes and zeros take no space in a file. It gets its name when it is complete. Its name has to fit: .vhd, .avhd or
    .vud for a VHD, .raw, .img or .iso for a raw disk, that of the format, or a suffix that is none of a disk's.
    """
    if destination == STDOUT:
        _convert_to_stdout(source, output_format, progress, as_json=as_json, **options)
        return
    warn_before_reading(source, reading(**options))
    with naming_commands(source, destination), progress_shown(progress, "converting") as advance:
        write = vhdkit.convert if output_format in _OWN_FORMATS else vhdkit.export_disk
        size = write(
            source,
            destination,
            output_format=output_format,
            progress=advance,
            **reading(**options),
        )
    if as_json:
        print_json({"source": source, "destination": destination, "format": output_format, "file-size": size})
    else:
        echo(f"wrote {path_text(destination)}: {output_format}, {size_text(size)}")


def _convert_to_stdout(source: str, output_format: str, progress: str | None, *, as_json: bool, **options: Any) -> None:
    """Write the disk to standard output; what else there is to say goes to stderr."""
    if output_format != "raw":
        raise click.UsageError("only a raw disk can be written to standard output: convert -O raw SOURCE -")
    if as_json:
        JSON_OUTPUT.is_wanted = False  # a reader of the disk must not get an error object in its place
        raise click.UsageError("--json prints to standard output, to which the disk goes")
    from vhdkit.chain.convert import write_stream

    with bytes_out() as write:
        warn_before_reading(source, reading(**options))
        with (
            vhdkit.open_chain(source, **reading(**options)) as chain,
            progress_shown(progress, "converting") as advance,
        ):
            write_stream(chain, write, progress=advance)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("-f", "format_a", type=click.Choice(["vhd", "raw"]), help="Format of A; raw if nothing says VHD.")
@click.option("-F", "format_b", type=click.Choice(["vhd", "raw"]), help="Format of B; raw if nothing says VHD.")
@click.option("--strict", is_flag=True, help="Disks of different size differ, even if the rest is zeros.")
@force_share_option
@chain_options
@accept_option
@json_option
def compare(
    a: str,
    b: str,
    *,
    format_a: Any,
    format_b: Any,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Compare what A and B show: exit 0 the same, 1 different, 2 cannot tell, 75 in use.

    Both are chains, or raw files if they have no footer; one that is empty, or has a suffix such as .vhd, needs -f raw
    or -F raw. --parent is the parent of A.
    """
    for file in (a, b):
        warn_before_reading(file, reading(**options) if file == a else {})
    try:
        result = vhdkit.compare(a, b, format_a=format_a, format_b=format_b, **reading(**options))
    except ImageInUseError:
        raise
    except (VhdError, OSError) as error:
        from vhdkit.cli.failure import report_failure
        from vhdkit.storage.local_folder import LocalFolder

        if isinstance(error, CorruptImageError) and error.corruption in _NO_VHD:
            error.add_note(f"If it is a raw disk, {'-F' if error.path == LocalFolder().real(b) else '-f'} raw says so.")
        report_failure(error, _NOT_COMPARED)
        return _NOT_COMPARED
    equal = result.equal and (result.same_size or not strict)
    _print_comparison(result, equal=equal, strict=strict, as_json=as_json)
    return 0 if equal else _DIFFERENT


def _print_comparison(result: Comparison, *, equal: bool, strict: bool, as_json: bool) -> None:
    if as_json:
        record = {"equal": equal, "same-size": result.same_size, "first-difference": result.first_difference}
        print_json(record | {"size-a": result.size_a, "size-b": result.size_b})
    elif result.first_difference is not None:
        echo(f"they differ, first at offset {result.first_difference} ({result.first_difference:#x})")
    elif result.same_size:
        echo("they are the same")
    else:
        rest = "differ in size" if strict else "are the same but for their size"
        echo(f"they {rest}: {result.size_a} and {result.size_b} bytes, the rest zeros")
