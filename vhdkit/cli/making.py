"""The verbs that make or compare disks: create, convert, compare."""

from __future__ import annotations

from typing import Any

import click

import vhdkit
from vhdkit.cli.options import Size, chain_options, json_option, progress_option, where
from vhdkit.cli.output import path_text, print_json, progress_shown, size_text
from vhdkit.errors import VhdError

_DIFFERENT = 1
_NOT_COMPARED = 2


@click.command()
@click.argument("file")
@click.option("--size", type=Size(), help="Size of the disk, such as 40M or 127G; a child takes its parent's.")
@click.option(
    "--type", "disk_type", type=click.Choice(["dynamic", "fixed"]), help="How it is kept; dynamic unless told."
)
@click.option("--parent", metavar="FILE", help="Make a differencing child of this image.")
@click.option("--block-size", type=Size(), help="Bytes in a block; 2M unless told, a child takes its parent's.")
@click.option("--parent-map", multiple=True, metavar="FOLDER=LOCAL", help="Which Windows folder a local one is.")
@json_option
def create(
    file: str,
    *,
    size: int | None,
    disk_type: str | None,
    parent: str | None,
    block_size: int | None,
    parent_map: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make an empty image, or a differencing child of one."""
    if parent is None and size is None:
        raise click.UsageError("--size or --parent is needed")
    if parent is not None and disk_type is not None:
        raise click.UsageError("a child is differencing: --type and --parent exclude each other")
    pairs = dict(entry.partition("=")[::2] for entry in parent_map)
    vhdkit.create_image(
        file, size=size, disk_type=disk_type or "dynamic", parent=parent, block_size=block_size, parent_map=pairs
    )
    with vhdkit.open_image(file) as image:
        label, size, file_size = image.label, image.size, image.storage.size()
    if as_json:
        print_json({"filename": file, "disk-type": label, "virtual-size": size, "file-size": file_size})
    else:
        click.echo(f"created {path_text(file)}: {label}, {size_text(size)}")


@click.command()
@click.option(
    "-O", "output_format", type=click.Choice(["raw", "fixed", "dynamic"]), default="dynamic", show_default=True
)
@click.argument("source")
@click.argument("destination")
@progress_option
@chain_options
@json_option
def convert(
    source: str, destination: str, *, output_format: str, progress: str | None, as_json: bool, **options: Any
) -> None:
    """Write what SOURCE shows through its chain to a new file; holes and zeros take no space."""
    with progress_shown(progress, "converting") as advance:
        size = vhdkit.convert(
            source,
            destination,
            output_format=output_format,
            progress=lambda done, total: advance("copying", done, total),
            **where(**options),
        )
    if as_json:
        print_json({"source": source, "destination": destination, "format": output_format, "file-size": size})
    else:
        click.echo(f"wrote {path_text(destination)}: {output_format}, {size_text(size)}")


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--strict", is_flag=True, help="Disks of different size differ, even if the rest is zeros.")
@chain_options
@json_option
def compare(a: str, b: str, *, strict: bool, as_json: bool, **options: Any) -> int:
    """Compare what two chains or raw files show: exit 0 if the same, 1 if they differ, 2 if it cannot be told."""
    try:
        result = vhdkit.compare(a, b, **where(**options))
    except (VhdError, OSError) as error:
        from vhdkit.cli.main import explain

        click.echo(explain(error), err=True)
        return _NOT_COMPARED
    equal = result.equal and (result.same_size or not strict)
    if as_json:
        record = {"equal": equal, "first-difference": result.first_difference}
        print_json(record | {"size-a": result.size_a, "size-b": result.size_b})
    elif result.first_difference is not None:
        click.echo(f"they differ, first at offset {result.first_difference} ({result.first_difference:#x})")
    elif result.same_size:
        click.echo("they are the same")
    else:
        rest = "differ in size" if strict else "are the same but for their size"
        click.echo(f"they {rest}: {result.size_a} and {result.size_b} bytes, the rest zeros")
    return 0 if equal else _DIFFERENT
