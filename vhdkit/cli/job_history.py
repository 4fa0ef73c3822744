"""How long merges took: job history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vhdkit.cli.options import json_option
from vhdkit.cli.output import echo, print_json, short_size
from vhdkit.cli.time_text import local_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.job.job import Job

_HEADINGS = ("ID", "STATE", "MACHINE", "STARTED", "TOOK", "COPIED", "RATE")


@click.command()
@click.option("--machine", metavar="NAME", help="Those of the machine NAME, or in the folder NAME.")
@click.option("--disk", metavar="FILE", help="Those that touch FILE, be it source, destination or below.")
@click.option("--format", "style", type=click.Choice(["table", "csv"]), default="table", help="How to print.")
@json_option
def history(*, machine: str | None, disk: str | None, style: str, as_json: bool) -> None:
    """Show how long merges took that have ended, how much they copied, and how fast."""
    from vhdkit.job.history import history_record, job_history

    if as_json and style == "csv":
        raise click.UsageError("--json and --format exclude each other")
    found = job_history(machine=machine, disk=disk)
    if as_json:
        print_json([history_record(job) for job in found])
    elif style == "csv":
        echo(_csv(found), nl=False)
    elif found:
        for line in _table(found):
            echo(line)
    else:
        echo("no merge has ended yet", err=True)


def _csv(found: Sequence[Job]) -> str:
    import csv
    import io

    from vhdkit.findings import printable
    from vhdkit.job.history import history_record

    names = "id", "machine", "state", "destination", "started", "ended", "seconds", "bytes", "rate", "runs"
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for job in found:
        # A cell stays on one line, whatever a file is called.
        record = history_record(job)
        writer.writerow({name: printable(value) if isinstance(value, str) else value for name, value in record.items()})
    return text.getvalue()


def _table(found: Sequence[Job]) -> list[str]:
    """Return the jobs as lines of columns, and what those come to together that were not rolled back."""
    from vhdkit.cli.job_view import columns_of, duration, short_machine, short_state, shortest_ids
    from vhdkit.job.history import mean_rate

    shortest = shortest_ids(found)
    rows = [
        (
            job.id[:shortest],
            short_state(job),
            short_machine(job),
            local_text(job.started)[:16],
            duration(job.elapsed),
            short_size(job.bytes_done),
            f"{short_size(round(mean_rate([job])))}/s",
        )
        for job in found
    ]
    kept = [job for job in found if not job.rolled_back]
    count = "1 merge" if len(kept) == 1 else f"{len(kept)} merges"
    size, seconds = sum(job.bytes_done for job in kept), sum(job.elapsed for job in kept)
    total = f"{count}: {short_size(size)} in {duration(seconds)}, {short_size(round(mean_rate(kept)))}/s"
    if len(kept) < len(found):
        total += f"; {len(found) - len(kept)} rolled back"
    return [*columns_of([_HEADINGS, *rows]), total]
