"""What a run did with each chain, and the report of it as a table, as JSON, as a page, and for the node exporter."""

from __future__ import annotations

import csv
import errno
import html
import io
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vhdkit.errors import VhdError, error_text
from vhdkit.findings import printable
from vhdkit.fleet.outcome import ChainOutcome
from vhdkit.job.job_record import utc_iso
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.new_file import replace_file
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vhdkit.findings import Hint
    from vhdkit.fleet.requests import FleetVerb
    from vhdkit.storage.protocols import Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """How it went with one chain. `seconds` are from its first begin to its end, over all of its `attempts`.

    `host` is the machine that its path is of, "" for any; `worker` is the machine and the process that did it. `hint`
    goes on with it, or looks into it, by itself.
    """

    path: str
    host: str = ""
    outcome: ChainOutcome
    detail: str = ""
    worker: str = ""
    total_bytes: int = 0
    seconds: float = 0.0
    attempts: int = 0
    error: VhdError | OSError | None = None
    hint: Hint | None = None

    @property
    def error_text(self) -> str:
        """What went wrong, "" if nothing did."""
        if self.error is None:
            return ""
        notes = getattr(self.error, "__notes__", [])
        return "; ".join(printable(line) for line in "\n".join([error_text(self.error), *notes]).splitlines())

    @property
    def record(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "filename": self.path,
            "host": self.host,
            "outcome": self.outcome.value,
            "detail": self.detail,
            "worker": self.worker,
            "bytes": self.total_bytes,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
            "error": self.error_text or None,
            "error-class": None if self.error is None else type(self.error).__name__,
            "command": None if self.hint is None else str(self.hint).strip("`"),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """What a run did: every chain of its plan once, those that never became a task last.

    `started` is in Unix seconds. `is_cancelled` says that the run was asked to stop.
    """

    verb: FleetVerb
    chains: tuple[ChainReport, ...]
    started: float
    seconds: float
    is_cancelled: bool = False

    @property
    def counts(self) -> Counter[ChainOutcome]:
        """How many chains have ended how."""
        return Counter(chain.outcome for chain in self.chains)

    @property
    def failures(self) -> tuple[ChainReport, ...]:
        """The chains with which something is left to be done, or looked at."""
        return tuple(chain for chain in self.chains if not chain.outcome.is_good)

    @property
    def total_bytes(self) -> int:
        """The bytes that were moved."""
        return sum(chain.total_bytes for chain in self.chains)

    @property
    def record(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "verb": self.verb.value,
            "started": utc_iso(self.started),
            "seconds": round(self.seconds, 3),
            "bytes": self.total_bytes,
            "cancelled": self.is_cancelled,
            "outcomes": {outcome.value: number for outcome, number in sorted(self.counts.items())},
            "chains": [chain.record for chain in self.chains],
        }


def as_csv(report: FleetReport) -> str:
    """Return a table with a line for each chain."""
    text = io.StringIO()
    columns = list(ChainReport(path="", outcome=ChainOutcome.DONE).record)
    # A quoted cell keeps a carriage return in a name from ending the row.
    writer = csv.DictWriter(text, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for chain in report.chains:
        writer.writerow({name: _cell(value) for name, value in chain.record.items()})
    return text.getvalue()


def _cell(value: object) -> object:
    """Return a value as a cell: a spreadsheet must not take the name of an image for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


def as_json(report: FleetReport) -> str:
    """Return the report as JSON."""
    return json.dumps(report.record, indent=2) + "\n"


def as_prometheus(report: FleetReport) -> str:
    """Return the report as Prometheus text, for the textfile collector of the node exporter."""
    verb = report.verb.value
    chains = [(f'{{verb="{verb}",outcome="{outcome.value}"}}', report.counts[outcome]) for outcome in ChainOutcome]
    failed = [
        (f'{{verb="{verb}",host="{_label(each.host)}",filename="{_label(each.path)}"}}', 1) for each in report.failures
    ]
    whole = f'{{verb="{verb}"}}'
    return "".join(
        [
            *_metric("chains", "Chains of the last run by how they have ended.", chains),
            *_metric("chain_failed", "Chains of the last run with which something is left to be done.", failed),
            *_metric("bytes", "Bytes moved by the last run.", [(whole, report.total_bytes)]),
            *_metric("seconds", "How long the last run took.", [(whole, round(report.seconds, 3))]),
            *_metric(
                "end_timestamp_seconds",
                "When the last run ended.",
                [(whole, round(report.started + report.seconds, 3))],
            ),
        ]
    )


def _metric(name: str, meaning: str, values: Iterable[tuple[str, float]]) -> list[str]:
    full = f"vhdkit_fleet_{name}"
    lines = [f"{full}{labels} {value}\n" for labels, value in values]
    return [f"# HELP {full} {meaning}\n", f"# TYPE {full} gauge\n", *lines] if lines else []


def _label(text: str) -> str:
    """Return a name as a label's value: a line's end is not what a backslash and an n would be."""
    lines = (printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))
    return "\\n".join(lines)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c1e21; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid #d8dbe0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name, code { overflow-wrap: anywhere; }
code { font-size: .9em; background: #f1f2f4; padding: .1rem .3rem; border-radius: 3px; }
.bad { color: #a61b1b; font-weight: 600; }
.good { color: #1a6b34; }
"""


_HTML_MARK = "report of many chains, by vhdkit"


def as_html(report: FleetReport) -> str:
    """Return the report as one page that needs nothing else: what went wrong first, with the command that goes on."""
    rows = [*report.failures, *(chain for chain in report.chains if chain.outcome.is_good)]
    counts = ", ".join(f"{number} {outcome.value}" for outcome, number in sorted(report.counts.items()))
    title = f"{report.verb.value.capitalize()} of {len(report.chains)} chains"
    head = "".join(f"<th>{name}</th>" for name in ("Image", "Outcome", "Bytes", "Seconds", "Worker", "Details"))
    return (
        f'<!DOCTYPE html>\n<!-- {_HTML_MARK} -->\n<html lang="en">\n'
        f'<head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f"<p>Begun {utc_iso(report.started)}, {report.seconds:.1f} seconds, {report.total_bytes:,} bytes."
        f" {counts}.</p>\n"
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(map(_row, rows))}</tbody>\n</table>\n"
        "</body>\n</html>\n"
    )


def _row(chain: ChainReport) -> str:
    record = {name: html.escape(printable(str(value or ""))) for name, value in chain.record.items()}
    where = f"{record['host']}:{record['filename']}" if chain.host else record["filename"]
    command = f"<br><code>{record['command']}</code>" if record["command"] else ""
    mark = "good" if chain.outcome.is_good else "bad"
    return (
        f'<tr><td class="name">{where}</td><td class="{mark}">{record["outcome"]}</td>'
        f'<td class="number">{chain.total_bytes:,}</td><td class="number">{chain.seconds:.1f}</td>'
        f"<td>{record['worker']}</td><td>{record['error'] or record['detail']}{command}</td></tr>\n"
    )


REPORT_FORMATS: dict[str, Callable[[FleetReport], str]] = {
    ".csv": as_csv,
    ".json": as_json,
    ".html": as_html,
    ".prom": as_prometheus,
}


def report_format(path: str) -> Callable[[FleetReport], str]:
    """Return what writes a report for a file's name.

    Raises:
        ValueError: its suffix is that of no report.

    """
    suffix = paths.splitext(path)[1].lower()
    if suffix not in REPORT_FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(REPORT_FORMATS)}")
    return REPORT_FORMATS[suffix]


# How the files of each format begin.
_BEGINNINGS = {
    ".csv": '"filename","host","outcome",',
    ".json": '{\n  "verb": "',
    ".html": f"<!DOCTYPE html>\n<!-- {_HTML_MARK} -->",
    ".prom": "# HELP vhdkit_fleet_",
}


def check_report_path(path: str, folder: Folder | None = None) -> None:
    """Refuse a report's path that has no folder, or that any file has which is no earlier report.

    An empty file may be replaced. A link is refused: the file that it leads to was not named.

    Raises:
        ValueError: its suffix is that of no report.
        OSError: it cannot be written there.

    """
    place = folder or LocalFolder()
    report_format(path)
    directory = place.real(paths.dirname(paths.abspath(path)))
    place.check_directory(directory)
    name = paths.join(directory, paths.basename(path))
    if paths.basename(path) not in place.names(directory):
        return
    if place.real(name) != name:
        raise FileExistsError(errno.EEXIST, "a link has this name, and no report replaces it", path)
    expected = _BEGINNINGS[paths.splitext(path)[1].lower()].encode()
    with place.open(name) as storage:
        size = storage.size()
        begins = read_bytes(storage, 0, min(size, len(expected)))
    if size and begins != expected:
        raise FileExistsError(errno.EEXIST, "a file that is no report has this name, and is not replaced", path)


def write_report(report: FleetReport, path: str, folder: Folder | None = None) -> None:
    """Write a report in the format that the file's name says, over an earlier one: a reader sees either whole.

    Raises:
        ValueError: its suffix is that of no report.
        OSError: it cannot be written, or a file that is no report has the name; what was there is still there.

    """
    place, content = folder or LocalFolder(), report_format(path)(report).encode("utf-8", "backslashreplace")
    check_report_path(path, place)
    real = place.real(path)
    replace_file(place, real, content)
    place.sync(paths.dirname(real))
