"""Showing live how jobs go on: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vhdkit.cli.job_view import describe_job, duration
from vhdkit.cli.output import echo, progress_style
from vhdkit.findings import printable
from vhdkit.job.control import Follower, jobs
from vhdkit.job.registry import RegistryError
from vhdkit.snapshot.pending_jobs import find_begun_job
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vhdkit.job.job import Job

_ASK_SECONDS = 0.25


def watch(ids: Sequence[str], style: str | None) -> None:
    """Show jobs until all have ended, those that have not ended unless ids are given."""
    watched = [find_begun_job(each) for each in ids] if ids else list(jobs(running=True))
    if not watched:
        echo("no jobs are running", err=True)
        return
    style = progress_style(style, sys.stdout)
    shown = {"bar": _bars, "plain": _plain, "json": _json, "none": _nothing}[style]
    try:
        with shown() as show:
            _follow_all(watched, show, with_new=not ids)
    except KeyboardInterrupt as error:
        error.add_note("The jobs go on; `vhdkit job list` shows them.")
        raise


def _follow_all(watched: list[Job], show: Callable[[Sequence[Job]], None], *, with_new: bool) -> None:
    """Show jobs until all have ended; `with_new` those that begin meanwhile as well."""
    follow = Follower()
    while True:
        show(watched)
        if all(job.state.is_finished for job in watched):
            return
        time.sleep(_ASK_SECONDS)
        watched = [job if job.state.is_finished else follow(job) for job in watched]
        if with_new:
            known = {job.id for job in watched}
            with suppress(RegistryError):
                watched += [job for job in jobs(running=True) if job.id not in known]


@contextmanager
def _nothing() -> Iterator[Callable[[Sequence[Job]], None]]:
    yield lambda _jobs: None


@contextmanager
def _plain() -> Iterator[Callable[[Sequence[Job]], None]]:
    yield _lines(_line)


@contextmanager
def _json() -> Iterator[Callable[[Sequence[Job]], None]]:
    yield _lines(lambda job: json.dumps(describe_job(job)))


def _lines(text: Callable[[Job], str]) -> Callable[[Sequence[Job]], None]:
    """Return a function that prints a line for each new state, phase and tenth of a job."""
    before: dict[str, object] = {}

    def show(watched: Sequence[Job]) -> None:
        for job in watched:
            now = (job.state, job.phase, job.percent // 10)
            if before.get(job.id) != now:
                before[job.id] = now
                echo(text(job))
                sys.stdout.flush()

    return show


def _line(job: Job) -> str:
    left = job.seconds_left
    more = f", {job.phase}" if job.phase and not job.state.is_finished else ""
    more += "" if left is None else f", {duration(left)} left"
    more += f": {printable(job.error)}" if job.error else ""
    return f"{job.id[:8]} {_name(job)}: {job.state.plain}, {job.percent} %{more}"


def _name(job: Job) -> str:
    return printable(f"{job.machine} {paths.basename(job.destination)}")


@contextmanager
def _bars() -> Iterator[Callable[[Sequence[Job]], None]]:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[state]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns) as progress:
        tasks = {}

        def show(watched: Sequence[Job]) -> None:
            for job in watched:
                if job.id not in tasks:
                    tasks[job.id] = progress.add_task(f"{job.id[:8]} {_name(job)}", total=100, state="", left="")
                left = job.seconds_left
                state = job.state.plain + (f": {printable(job.error)}" if job.error else "")
                text = f"{duration(left)} left" if left is not None else duration(job.elapsed_at(time.time()))
                progress.update(tasks[job.id], completed=job.percent, state=state, left=text)
            progress.refresh()

        yield show
