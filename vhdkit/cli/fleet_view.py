"""What the verbs over many chains print: the chains, a plan, one screen for all that runs, and what came of it."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vhdkit.cli.output import echo, path_text, print_json, progress_style, short_size, terminal_console
from vhdkit.disk import unique_id
from vhdkit.errors import VhdError, error_text
from vhdkit.findings import printable
from vhdkit.fleet import Begun, ChainOutcome, Ended, FleetVerb, Moved, WorkerLost
from vhdkit.fleet.requests import written_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from vhdkit.fleet import ChainReport, FleetEvent, FleetPlan, FleetReport, FleetTask, FoundChain, FoundChains
    from vhdkit.fleet.measure import MeasuredMerge
    from vhdkit.fleet.plan import TargetLoad

# Running chains for which a screen has room.
_MOST_ROWS = 16


def _name(path: str, host: str) -> str:
    return f"{host}:{printable(path)}" if host else path_text(path)


# The chains


def print_chains(found: Sequence[FoundChains], *, as_json: bool) -> bool:
    """Print the chains that were found; return whether something is wrong with any."""
    if as_json:
        print_json([_found_record(here) for here in found])
    else:
        for here in found:
            _print_found(here)
    return any(here.unreadable or here.unmatched or any(chain.problem for chain in here.chains) for here in found)


def _found_record(here: FoundChains) -> dict[str, Any]:
    return {
        "host": here.host,
        "chains": [_chain_record(chain) for chain in here.chains],
        "unfinished": [
            {"leaf": each.leaf, "into": each.destination, "undo": each.undo_image or None} for each in here.unfinished
        ],
        "unmatched": [each.text for each in here.unmatched],
        "unreadable": [{"filename": path, "error": error_text(error)} for path, error in here.unreadable.items()],
    }


def _chain_record(chain: FoundChain) -> dict[str, Any]:
    return {
        "filename": chain.leaf.path,
        "virtual-size": chain.size,
        "error": None if chain.problem is None else str(chain.problem),
        "layers": [
            {
                "filename": layer.path,
                "unique-id": unique_id.guid(layer.unique_id),
                "file-size": layer.file_size,
                "meant": layer.is_matched,
            }
            for layer in chain.layers
        ],
    }


def _print_found(here: FoundChains) -> None:
    for chain in here.chains:
        if chain.problem is not None:
            echo(f"{_name(chain.leaf.path, here.host)}: {chain.problem}")
            continue
        size = sum(layer.file_size for layer in chain.layers)
        meant = sum(layer.is_matched for layer in chain.layers)
        leaf, base = (_name(path, here.host) for path in (chain.leaf.path, chain.layers[-1].path))
        echo(f"{leaf}: {_counted(len(chain.layers), 'layer')} ({meant} meant) down to {base}, {short_size(size)}")
    for each in here.unfinished:
        into = f"{_name(each.leaf, here.host)}: a merge into {_name(each.destination, here.host)}"
        how = _waiting_text(each.undo_image, here.host) if each.undo_image else "is not finished"
        echo(f"{into} {how}")
    for unmatched in here.unmatched:
        echo(f"{_name(unmatched.text, here.host)}: no image is there")
    for path, error in here.unreadable.items():
        echo(f"{_name(path, here.host)}: {_reason(error)}")


def _waiting_text(undo_image: str, host: str) -> str:
    return f"is complete, and waits for {_name(undo_image, host)} to be dropped, or rolled back"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _reason(error: VhdError | OSError) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or str(error)


# A plan


def print_plan(plan: FleetPlan, merges: Sequence[MeasuredMerge], loads: Sequence[TargetLoad], *, as_json: bool) -> None:
    """Print what would be done for each chain and on each file system, and what stands in the way."""
    if as_json:
        print_json(_plan_record(plan, merges, loads))
        return
    for task, merge in _paired(plan, merges):
        echo(_task_line(task, merge))
        for error in () if merge is None else merge.obstacles:
            echo(f"  in the way: {error}")
    for obstacle in plan.obstacles:
        echo(f"{_name(obstacle.path, obstacle.host)}: {obstacle.error}")
    for waiting in plan.waiting:
        echo(f"{_name(waiting.path, waiting.host)}: {_waiting_text(waiting.undo_image, waiting.host)}")
    for load in loads:
        echo(_load_line(load))
    if not (plan.tasks or plan.obstacles or plan.waiting):
        echo("nothing to be done: no image that is meant needs it")


def _paired(plan: FleetPlan, merges: Sequence[MeasuredMerge]) -> list[tuple[FleetTask, MeasuredMerge | None]]:
    """Return each task with what was planned for it to the byte, None for verbs that merge nothing."""
    return list(zip(plan.tasks, merges, strict=True)) if merges else [(task, None) for task in plan.tasks]


def _task_line(task: FleetTask, merge: MeasuredMerge | None) -> str:
    name = _name(task.path, task.host)
    if merge is None:
        written = written_path(task.request)
        return f"{name}: about {short_size(int(task.cost))}" + (f" to {_name(written, task.host)}" if written else "")
    resumed = {"continues": ", goes on where it was cut off", "restarts": ", begins again", "finishes": ", is finished"}
    into = _name(merge.destination, task.host)
    return f"{name}: {short_size(merge.payload_bytes)} into {into}{resumed.get(merge.resume, '')}"


def _load_line(load: TargetLoad) -> str:
    parts = [
        f"file system {printable(load.name)}: {_counted(load.task_count, 'chain')}, {short_size(load.total_bytes)}"
    ]
    if load.space_free is not None:
        parts.append(f"{short_size(load.space_needed)} of {short_size(load.space_free)} free needed at once")
    if load.lacks_space:
        parts.append("which is not enough")
    if load.seconds is not None:
        parts.append(f"about {load.seconds:.0f} seconds one after another")
    return ", ".join(parts)


def _plan_record(plan: FleetPlan, merges: Sequence[MeasuredMerge], loads: Sequence[TargetLoad]) -> dict[str, Any]:
    return {
        "verb": plan.verb.value,
        "chains": [
            {"filename": task.path, "host": task.host, "group": task.group, "destination": written_path(task.request)}
            | ({} if merge is None else _merge_record(merge))
            for task, merge in _paired(plan, merges)
        ],
        "obstacles": [
            {"filename": each.path, "host": each.host, "message": error_text(each.error)} for each in plan.obstacles
        ],
        "waiting": [{"filename": each.path, "host": each.host, "undo": each.undo_image} for each in plan.waiting],
        "file-systems": [
            {
                "name": load.name,
                "chains": load.task_count,
                "bytes": load.total_bytes,
                "space-needed": load.space_needed,
                "space-free": load.space_free,
                "seconds-expected": None if load.seconds is None else round(load.seconds, 1),
            }
            for load in loads
        ],
    }


def _merge_record(merge: MeasuredMerge) -> dict[str, Any]:
    return {
        "bytes-to-copy": merge.payload_bytes,
        "space-needed": merge.space_needed,
        "space-free": merge.space_free,
        "resume": merge.resume or None,
        "obstacles": [str(error) for error in merge.obstacles],
    }


# A run


@contextmanager
def screen_shown(style: str | None, plan: FleetPlan) -> Iterator[Callable[[FleetEvent], None]]:
    """Lend a function that shows on stderr what happens to all chains, in the style asked for."""
    style = progress_style(style, sys.stderr)
    if style == "bar":
        with _bars(plan) as advance:
            yield advance
    elif style == "none":
        yield lambda _event: None
    else:
        yield _Lines(len(plan.tasks), as_json=style == "json").show


class _Lines:
    """A line for each chain that has ended, or as JSON for everything that happens."""

    def __init__(self, count: int, *, as_json: bool) -> None:
        self._count = count
        self._as_json = as_json

    def show(self, event: FleetEvent) -> None:
        """Print what happens."""
        text = json.dumps(_event_record(event)) if self._as_json else self._line(event)
        # The reader of a pipe may have gone, or a disk be full; the work goes on.
        with suppress(OSError):
            if text:
                echo(text, err=True)

    def _line(self, event: FleetEvent) -> str:
        match event:
            case Ended(task=task, report=report, left=left):
                return f"{self._count - left}/{self._count} {_name(task.path, task.host)}: {_outcome_text(report)}"
            case WorkerLost(task=task, error=error):
                return f"{_name(task.path, task.host)}: {error}; it begins again"
            case _:
                return ""


def _outcome_text(report: ChainReport) -> str:
    words = report.outcome.value.replace("-", " ")
    size = f", {short_size(report.total_bytes)}" if report.total_bytes else ""
    return f"{words}{size}, {report.seconds:.1f} seconds"


def _event_record(event: FleetEvent) -> dict[str, Any]:
    record: dict[str, Any] = {"filename": event.task.path, "host": event.task.host}
    match event:
        case Begun():
            return {"event": "begun", **record}
        case Moved(state=state):
            done = {"phase": state.phase.value, "bytes-done": state.bytes_done, "bytes-total": state.bytes_total}
            return {"event": "progress", **record, **done}
        case WorkerLost(error=error):
            return {"event": "worker-lost", **record, "error": error}
        case Ended(report=report, left=left):
            return {"event": "ended", **record, **report.record, "left": left}


@contextmanager
def _bars(plan: FleetPlan) -> Iterator[Callable[[FleetEvent], None]]:
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TextColumn("{task.percentage:>3.0f}%"),
        rich.TimeElapsedColumn(),
    )
    with rich.Progress(*columns, console=terminal_console()) as bars:
        yield Screen(bars, plan).show


class Screen:
    """One bar for all chains, and one for each that runs, as far as there is room."""

    def __init__(self, bars: Bars, plan: FleetPlan) -> None:
        self._bars = bars
        self._verb = plan.verb.value
        self._bad = 0
        self._rows: dict[int, TaskID] = {}
        self._all = bars.add_task(self._title(), total=len(plan.tasks))

    def show(self, event: FleetEvent) -> None:
        """Draw what happens."""
        number = event.task.number
        match event:
            case Begun(task=task) if len(self._rows) < _MOST_ROWS and number not in self._rows:
                self._rows[number] = self._bars.add_task(_name(task.path, task.host), total=None)
            case Moved(task=task, state=state) if number in self._rows:
                text = f"{_name(task.path, task.host)}: {state.phase}"
                row = self._rows[number]
                self._bars.update(row, description=text, completed=state.bytes_done, total=state.bytes_total)
            case Ended(report=report):
                if number in self._rows:
                    self._bars.remove_task(self._rows.pop(number))
                self._bad += not report.outcome.is_good
                self._bars.update(self._all, advance=1, description=self._title())

    def _title(self) -> str:
        return f"{self._verb}, {self._bad} not well" if self._bad else self._verb


# What came of it


def print_report(report: FleetReport, *, as_json: bool) -> None:
    """Print what came of all chains: digests as they are asked for, failures on stderr, and how many ended how."""
    if as_json:
        print_json(report.record)
        return
    for chain in report.chains:
        if report.verb is FleetVerb.HASH and chain.outcome is ChainOutcome.DONE:
            echo(f"{chain.detail}  {_name(chain.path, chain.host)}")
    for chain in report.chains:
        _print_open_end(chain)
    if report.is_cancelled:
        echo("vhdkit: interrupted; the same command goes on with what is left", err=True)
    if not report.chains:
        echo("nothing to be done: no image that is meant needs it", err=True)
    elif report.verb is not FleetVerb.HASH:
        counts = ", ".join(f"{number} {outcome.value.replace('-', ' ')}" for outcome, number in report.counts.items())
        moved = f", {short_size(report.total_bytes)}" if report.total_bytes else ""
        echo(f"{_counted(len(report.chains), 'chain')}: {counts}{moved}, {report.seconds:.1f} seconds")


def _print_open_end(chain: ChainReport) -> None:
    """Print what is left to be done with a chain, or looked at; nothing if it is as asked, or was not begun."""
    if chain.outcome is ChainOutcome.WAITS_FOR_DROP:
        waiting = f"{_name(chain.path, chain.host)}: {_waiting_text(chain.detail, chain.host)}"
        echo(f"{waiting}; {printable(str(chain.hint))}", err=True)
    elif not chain.outcome.is_good and chain.outcome not in {ChainOutcome.NOT_BEGUN, ChainOutcome.CANCELLED}:
        _print_failure(chain)


def _print_failure(chain: ChainReport) -> None:
    """Print what went wrong with a chain, and the command that goes on with it."""
    text = chain.error_text or printable(chain.detail) or chain.outcome.value.replace("-", " ")
    if not text.startswith(printable(chain.path)):
        text = f"{_name(chain.path, chain.host)}: {text}"
    command = "" if chain.hint is None else f"; by itself: {printable(str(chain.hint))}"
    echo(f"vhdkit: {text}{command}", err=True)
