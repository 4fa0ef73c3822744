"""The verb that judges: check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import vhdkit
from vhdkit.cli.options import accept_option, chain_arguments, chain_options, json_option
from vhdkit.cli.output import echo, path_text, print_json
from vhdkit.errors import CorruptImageError
from vhdkit.findings import Level, printable

if TYPE_CHECKING:
    from vhdkit.chain.check import CheckReport
    from vhdkit.findings import Finding


@click.command()
@click.argument("file")
@click.option("--chain", is_flag=True, help="Check every image below too, and how they fit.")
@click.option("--deep", is_flag=True, help="Also read the data that the bitmaps say are not there.")
@click.option("--repair-footers", is_flag=True, help="First write footers that are lost or differ from their copy.")
@chain_options
@accept_option
@json_option
def check(file: str, *, chain: bool, deep: bool, repair_footers: bool, as_json: bool, **options: Any) -> int:
    """Hold an image against the rules of the format.

    Exit codes, as qemu-img's: 0 clean, 1 could not be checked, 2 corrupt, 3 space is lost and nothing worse. Warnings
    and information do not count.
    """
    if any(options.values()) and not chain:
        raise click.UsageError(
            "--search, --parent-map, --parent and --accept-id-mismatch are about parents: they need --chain"
        )
    done = _repair(file) if repair_footers else ""
    report = vhdkit.check(file, chain=chain, deep=deep, **chain_arguments(**options))
    if as_json:
        print_json(_record(file, report) | ({"repaired": done or None} if repair_footers else {}))
        return report.exit_code
    if done:
        echo(f"repaired: {path_text(file)}: {done}")
    for finding in report.findings:
        echo(_line(finding))
    echo(_summary(file, report))
    return report.exit_code


def _repair(file: str) -> str:
    """Return what was repaired; where the image is too damaged for that, say so, and let it be checked all the same."""
    try:
        return vhdkit.repair_footers(file)
    except CorruptImageError as error:
        echo(f"vhdkit: {error}", err=True)
        return ""


def _line(finding: Finding) -> str:
    at = "" if finding.offset is None else f" at {finding.offset:#x}"
    message = "\n  ".join(printable(line) for line in finding.text.splitlines())
    return f"{finding.level}: {path_text(finding.path)}{at}: {message} [{finding.corruption}]"


def _summary(file: str, report: CheckReport) -> str:
    verdicts = ("clean", "could not be checked", "corrupt", "sound, but space is lost")
    counts = ", ".join(_numbered(report.count(level), name) for level, name in _COUNTED)
    files = "" if len(report.paths) == 1 else f" ({len(report.paths)} files)"
    unlisted = sum(report.counts.values()) - len(report.findings)
    more = f"; {unlisted} more of the same kinds are not listed" if unlisted else ""
    lost = f", {report.leaked_bytes} bytes lost" if report.leaked_bytes else ""
    return f"{path_text(file)}{files}: {verdicts[report.exit_code]}: {counts}{lost}{more}"


_COUNTED = ((Level.ERROR, "error"), (Level.WARNING, "warning"), (Level.INFO, "note"))


def _numbered(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _record(file: str, report: CheckReport) -> dict[str, Any]:
    return {
        "filename": file,
        "format": "vhd" if report.file_format is None else report.file_format.lower(),
        "check-errors": report.not_checked,
        "corruptions": report.count(Level.ERROR) - report.not_checked,
        "leaks": report.leaks,
        "leaked-bytes": report.leaked_bytes,
        "warnings": report.count(Level.WARNING),
        "files": list(report.paths),
        "findings": [
            {
                "corruption": finding.corruption.value,
                "level": finding.level.value,
                "path": finding.path,
                "offset": finding.offset,
                "message": finding.text,
            }
            for finding in report.findings
        ],
    }
