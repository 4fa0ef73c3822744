"""The verbs that only look: info, chain, scan, map.

The first three print what headers say and lock nothing, so that they always work.
"""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

import vhdkit
from vhdkit.cli.options import (
    FOLDER_OR_URL,
    accept_option,
    chain_arguments,
    chain_options,
    force_share_option,
    json_option,
    reading,
)
from vhdkit.cli.output import UNFINISHED, echo, path_text, print_json, size_text, table, tree_lines, warn
from vhdkit.corruption import Corruption, as_finding
from vhdkit.errors import CorruptImageError, UnsupportedImageError, VhdError
from vhdkit.findings import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.chain.chain import Chain
    from vhdkit.chain.scan import ScannedImage
    from vhdkit.disk.extents import Extent
    from vhdkit.disk.image import FileSummary
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Folder

# Lines of trees are indented no further than for the longest chain that is opened.
_MOST_INDENTED = 1024
# Lines of a map that are printed by one call.
_BATCH_LINES = 512


@click.command()
@click.argument("file")
@click.option("--backing-chain", is_flag=True, help="Show the same of every layer below.")
@chain_options
@accept_option
@json_option
def info(file: str, *, backing_chain: bool, as_json: bool, **options: Any) -> None:
    """Show everything that an image says about itself."""
    from vhdkit.chain.unfinished_merges import unfinished_merges
    from vhdkit.cli.json_records import describe_layer
    from vhdkit.storage.local_folder import LocalFolder

    folder = LocalFolder()
    metadata, record, damage = _described(folder, file)
    findings = _own_findings(metadata, damage, folder.real(file))
    try:
        with vhdkit.open_chain(file, **chain_arguments(**options), lock=False) as opened:
            record["backing-chain"] = [describe_layer(layer) for layer in opened.layers]
            told = {*UNFINISHED, Corruption.VIEW_ENDED, Corruption.BLOCKS_OVERLAP, Corruption.BLOCK_IN_HEADERS}
            findings += (finding for finding in opened.findings if finding.corruption in told)
    except (VhdError, OSError) as error:
        # Without any word of parents the image alone is asked about, and may well be one whose parent is missing.
        if damage is None and (backing_chain or any(options.values())):
            raise
        if isinstance(error, CorruptImageError) and damage is None:
            findings.append(as_finding(error, error.path or folder.real(file)))
        record["backing-chain"] = []
        findings += unfinished_merges(folder, {folder.real(file): metadata.unique_id})
        findings += _ended_view(folder, file, metadata)
    _show_info(record, findings, metadata, file, backing_chain=backing_chain, as_json=as_json)


def _show_info(
    record: dict[str, Any],
    findings: list[Finding],
    metadata: FileSummary,
    file: str,
    *,
    backing_chain: bool,
    as_json: bool,
) -> None:
    from vhdkit.cli.json_records import warnings

    record["warnings"] = warnings(findings)
    if as_json:
        print_json(record)
        return
    _print_info(record)
    for layer in record["backing-chain"][1:] if backing_chain else ():
        echo()
        _print_info(layer)
    warn(findings)
    if not metadata.checksum_ok:
        echo(f"warning: {path_text(file)}: a checksum is wrong", err=True)


def _own_findings(metadata: FileSummary, damage: VhdError | None, path: str) -> list[Finding]:
    """Return what was found in a file, and the damage that keeps it from being opened, once."""
    findings = list(metadata.findings)
    if damage is not None and as_finding(damage, path).message not in {item.message for item in findings}:
        findings.append(as_finding(damage, path))
    return findings


def _ended_view(folder: Folder, file: str, metadata: FileSummary) -> list[Finding]:
    from vhdkit.journal.ended_view import ended_view

    with folder.open(folder.real(file)) as storage:
        view = ended_view(folder, storage, metadata)
    return [] if view is None else [view.finding()]


def _described(folder: Folder, file: str) -> tuple[FileSummary, dict[str, Any], VhdError | None]:
    """Return what an image says about itself, and why that is not all of it if it is damaged."""
    from vhdkit.cli.json_records import describe
    from vhdkit.formats import examine, read_summary

    with folder.open(folder.real(file)) as storage:
        try:
            metadata = read_summary(folder, storage, verify=False)
        except VhdError as error:
            seen = examine(folder, storage).summary
            if seen is None:
                raise
            return seen, describe(seen, storage, file), error
        return metadata, describe(metadata, storage, file), None


def _print_info(record: dict[str, Any]) -> None:
    sizes = {"virtual-size", "actual-size", "file-size", "block-size"}
    rows: list[tuple[str, object]] = []
    for name, value in record.items():
        if value is None or name in {"footer", "header", "warnings", "backing-chain"}:
            continue
        rows.append((name, size_text(value) if name in sizes else value))
    for part in ("footer", "header"):
        fields = record.get(part) or {}
        rows += [(f"{part}: {name}", value) for name, value in fields.items() if name != "parent-locators"]
    for locator in (record.get("header") or {}).get("parent-locators", ()):
        rows.append((f"locator {locator['slot']}: {locator['platform-code']}", locator["path"]))
    table(rows)


@click.command()
@click.argument("file")
@chain_options
@accept_option
@json_option
def chain(file: str, *, as_json: bool, **options: Any) -> None:
    """Show an image's layers, leaf first, every link verified."""
    from vhdkit.cli.json_records import describe_layer, warnings

    try:
        with vhdkit.open_chain(file, **chain_arguments(**options), lock=False) as opened:
            layers = [describe_layer(layer) for layer in opened.layers]
            size, findings = opened.size, opened.findings
    except VhdError as error:
        is_damaged = isinstance(error, (CorruptImageError, UnsupportedImageError))
        if is_damaged or isinstance(error.__cause__, VhdError):
            _show_damaged_chain(file, error, as_json=as_json, **options)
        raise
    if as_json:
        print_json({"filename": file, "virtual-size": size, "layers": layers, "warnings": warnings(findings)})
        return
    echo("\n".join(_layer_lines(layers)))
    warn(findings)


def _layer_lines(layers: list[dict[str, Any]]) -> Iterator[str]:
    for depth, layer in enumerate(layers):
        size = "unknown" if layer["virtual-size"] is None else size_text(layer["virtual-size"])
        yield f"{depth}  {layer['disk-type'] or 'unknown':<12}  {size:<32}  {path_text(layer['filename'])}"


def _show_damaged_chain(file: str, error: VhdError, *, as_json: bool, **options: Any) -> None:
    """Print, or note on the error that is raised, the layers of a damaged chain as far as they can be read."""
    from vhdkit.chain.damaged_chain import seen_layers
    from vhdkit.chain.parent_search import ParentSearch
    from vhdkit.cli.json_records import describe_seen, warnings
    from vhdkit.options import ParentPolicy
    from vhdkit.storage.local_folder import LocalFolder

    layers: list[dict[str, Any]] = []
    findings: list[Finding] = []
    with suppress(VhdError, OSError):  # the error says it already
        parents = ParentSearch(LocalFolder(), ParentPolicy.of(**chain_arguments(**options)))
        for layer in seen_layers(file, parents):
            layers.append(describe_seen(layer))
            findings += layer.findings
    if as_json:
        size = layers[0]["virtual-size"] if layers else None
        record = {"filename": file, "virtual-size": size, "layers": layers, "warnings": warnings(findings)}
        print_json(record | {"error": str(error)})
        return
    if any(layer["virtual-size"] is not None for layer in layers):
        error.add_note("The chain as far as it can be read:")
        for line in _layer_lines(layers):
            error.add_note(f"  {line}")
        for finding in findings:
            if finding.message != getattr(error, "detail", None):
                error.add_note(f"  {path_text(finding.path)}: {finding.text} [{finding.corruption}]")


@click.command()
@click.argument("directory", metavar="DIR")
@click.option(
    "--search",
    multiple=True,
    type=FOLDER_OR_URL,
    metavar="DIR",
    help="Look for families in this folder too, and below.",
)
@json_option
def scan(directory: str, *, search: tuple[str, ...], as_json: bool) -> None:
    """Show a folder's images as family trees.

    That is bases with everything that reads through them, orphans with the id that they look for, files that share an
    id, and files that should be images and cannot be read.
    """
    from vhdkit.cli.json_records import describe_scan

    found = vhdkit.scan(directory, search=search)
    record = describe_scan(found)
    if as_json:
        print_json(record)
        return
    _print_trees("bases", found.bases)
    _print_trees("orphans", found.orphans)
    for entry in record["ambiguous"]:
        echo(f"{path_text(entry['filename'])} may have one of several parents:")
        _print_paths(entry["parents"])
    for entry in record["duplicates"]:
        echo(f"these share the id {entry['unique-id']}:")
        _print_paths(entry["filenames"])
    if record["unreadable"]:
        echo("unreadable:")
        for entry in record["unreadable"]:
            echo(f"    {path_text(entry['filename'])}: {printable(entry['error'])}")
    if not any(record.values()):
        echo(f"no images in {path_text(directory)}")
    warn(found.unfinished)


def _print_paths(paths: list[str]) -> None:
    for path in paths:
        echo(f"    {path_text(path)}")


def _print_trees(title: str, images: tuple[ScannedImage, ...]) -> None:
    """Print trees, with a stack of our own: a chain may be deeper than Python's."""
    if not images:
        return
    fork, corner, bar = tree_lines()
    echo(title)
    todo = [(image, "", place == 0, 0) for place, image in enumerate(reversed(images))]
    while todo:
        image, indent, is_last, depth = todo.pop()
        needs = "" if depth or image.parent_id is None else f", {_needs(image)}"
        # Further in, the lines of a long chain would be all indent: a number says how deep they are.
        deep = f"({depth}) " if depth > _MOST_INDENTED else ""
        echo(f"{indent}{corner if is_last else fork}{deep}{_image_text(image)}{needs}")
        indent += "" if depth >= _MOST_INDENTED else "    " if is_last else bar
        todo += [(child, indent, place == 0, depth + 1) for place, child in enumerate(reversed(image.children))]


def _image_text(image: ScannedImage) -> str:
    undo = f", undo image of the merge into {path_text(image.undo_of)}" if image.undo_of else ""
    return f"{path_text(image.path)}  {image.metadata.kind}, {size_text(image.metadata.size)}{undo}"


def _needs(orphan: ScannedImage) -> str:
    from vhdkit.disk.unique_id import NULL, guid

    if orphan.parent_id is None or orphan.parent_id == NULL:
        return "needs a raw parent, which --parent must name"
    return f"looks for {guid(orphan.parent_id)}"


@click.command("map")
@click.argument("file")
@force_share_option
@chain_options
@accept_option
@json_option
def map_(file: str, *, as_json: bool, **options: Any) -> None:
    """Show which layer each stretch of the disk comes from.

    Starts, lengths and offsets in the layer's file are in bytes.
    """
    with vhdkit.open_chain(file, **reading(**options)) as opened:
        opened.check_readable()
        if as_json:
            separator = "[\n"
            for some in _in_batches(_map_records(opened)):
                echo(separator + ",\n".join(f"  {json.dumps(record)}" for record in some), nl=False)
                separator = ",\n"
            echo("\n]" if separator == ",\n" else "[]")
            return
        echo(f"{'start':>16}  {'length':>16}  depth  {'content':<7}  {'offset':>16}  file")
        names = [path_text(layer.path) for layer in opened.layers]
        for some in _in_batches(_map_records(opened)):
            echo("\n".join(_map_line(record, names) for record in some))
        warn(opened.findings)


def _in_batches(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield records as lists: a call for each line is a third of the time of a map of thousands."""
    while some := list(islice(records, _BATCH_LINES)):
        yield some


def _map_line(record: dict[str, Any], names: list[str]) -> str:
    content = "data" if record["data"] else "zero"
    offset = "-" if record["offset"] is None else record["offset"]
    start, length, depth = record["start"], record["length"], record["depth"]
    name = names[depth] if record["file"] else "-"
    return f"{start:>16}  {length:>16}  {depth:>5}  {content:<7}  {offset:>16}  {name}"


def _map_records(opened: Chain) -> Iterator[dict[str, Any]]:
    """Yield the map in qemu-img's words; stretches that continue each other are one."""
    last: Extent | None = None
    for extents in opened.extents():
        for here in extents:
            if last is not None and _continues(last, here):
                last = last._replace(length=last.length + here.length)
                continue
            if last is not None:
                yield _map_record(opened, last)
            last = here
    if last is not None:
        yield _map_record(opened, last)


def _continues(last: Extent, here: Extent) -> bool:
    if (last.kind, last.depth) != (here.kind, here.depth):
        return False
    return here.file_offset < 0 or here.file_offset == last.file_offset + last.length


def _map_record(opened: Chain, here: Extent) -> dict[str, Any]:
    is_data = here.file_offset >= 0
    return {
        "start": here.start,
        "length": here.length,
        "depth": here.depth,
        "present": is_data,
        "zero": not is_data,
        "data": is_data,
        "offset": here.file_offset if is_data else None,
        "file": opened.layers[here.depth].path if is_data else None,
    }
