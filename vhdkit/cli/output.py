"""What people and programs get to see: JSON, sizes, warnings, progress."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from vhdkit.corruption import Corruption
from vhdkit.findings import Level, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rich.console import Console

    from vhdkit.findings import Finding
    from vhdkit.progress import Progress


# What says that an earlier run of something was cut off.
UNFINISHED = {Corruption.MERGE_UNFINISHED, Corruption.HEADER_UNFINISHED}
# No line is indented further than at this depth: as JSON a family 2,000 deep would be 69 MiB of spaces.
MOST_INDENTED = 64
_CHUNK_PARTS = 4096


class JsonOutput:
    """Whether a command prints its result as JSON, and whether it has begun to: then no other object may follow."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.is_begun = False

    def begin_command(self, arguments: Sequence[str]) -> None:
        """Take note of what a command line asks for."""
        own = arguments[: arguments.index("--")] if "--" in arguments else arguments
        self.is_wanted, self.is_begun = "--json" in own, False


# One for the process: it runs one command at a time, and has one stdout.
JSON_OUTPUT = JsonOutput()


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines, control characters in them escaped: whatever a file is called, a terminal only gets text.

    All that the program prints goes through here. Line ends are the caller's own: what is not ours, such as a name, has
    been escaped before it became part of several lines.
    """
    click.echo("\n".join(map(printable, text.split("\n"))), err=err, nl=nl)


@contextmanager
def bytes_out() -> Iterator[Callable[[bytes | memoryview], object]]:
    """Give a function that writes bytes to standard output as they are; a terminal is refused by `UsageError`."""
    out = sys.stdout.buffer
    if out.isatty():
        raise click.UsageError("standard output is a terminal; send the bytes to a program or a file")
    yield out.write
    out.flush()


def print_json(value: object) -> None:
    """Print a value as JSON; bytes that are no text in a path come out escaped."""
    JSON_OUTPUT.is_begun = True
    parts = _json_parts(value)
    while chunk := "".join(islice(parts, _CHUNK_PARTS)):
        echo(chunk, nl=False)
    echo()


def _json_parts(value: object) -> Iterator[str]:
    """Yield what json.dumps(value, indent=2) returns, by parts; with a stack of our own, for a tree may be deep.

    >>> "".join(_json_parts({"a": [1, {}], "b": None})) == json.dumps({"a": [1, {}], "b": None}, indent=2)
    True
    """
    todo: list[tuple[Iterator[tuple[str, object]], str]] = [(iter([("", value)]), "")]
    is_first = True
    while todo:
        members, end = todo[-1]
        indent = "\n" + "  " * min(len(todo) - 1, MOST_INDENTED)
        member = next(members, None)
        if member is None:
            todo.pop()
            outer = "\n" + "  " * min(len(todo) - 1, MOST_INDENTED)
            yield (outer if todo else "") + end
            is_first = False
            continue
        name, content = member
        if len(todo) > 1:
            yield ("" if is_first else ",") + indent + name
        is_first = False
        if isinstance(content, dict) and content:
            yield "{"
            todo.append((((f"{json.dumps(key)}: ", each) for key, each in content.items()), "}"))
            is_first = True
        elif isinstance(content, (list, tuple)) and content:
            yield "["
            todo.append(((("", each) for each in content), "]"))
            is_first = True
        else:
            yield json.dumps(content)


def short_size(size: int) -> str:
    """Return about how large something is.

    >>> short_size(512), short_size(40 << 20)
    ('512 bytes', '40.0 MiB')
    """
    value, unit = float(size), ""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def size_text(size: int) -> str:
    """Return a size for people, also to the byte.

    >>> size_text(512), size_text(40 << 20)
    ('512 bytes', '40.0 MiB (41943040 bytes)')
    """
    short = short_size(size)
    return short if short.endswith("bytes") else f"{short} ({size} bytes)"


def tree_lines() -> tuple[str, str, str]:
    """Return the beginnings of a tree's lines: fork, corner and bar; a terminal may lack line-drawing characters."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return ("├── ", "└── ", "│   ") if encoding.lower().startswith("utf") else ("+-- ", "`-- ", "|   ")


def path_text(path: str) -> str:
    """Return a path for people: relative if that is shorter, control characters escaped."""
    from vhdkit.storage.local_folder import LocalFolder

    return printable(LocalFolder().display(path))


def warn(findings: Iterable[Finding]) -> None:
    """Print what is odd about images, to stderr."""
    for finding in findings:
        message = f"{printable(finding.text)} [{finding.corruption}]"
        echo(f"warning: {path_text(finding.path)}: {message}", err=True)


def warn_before_reading(file: str, options: Mapping[str, Any]) -> None:
    """Say of a chain that is about to be read what is wrong with it though it can be, or not finished."""
    import vhdkit
    from vhdkit.errors import VhdError

    with suppress(VhdError, OSError), vhdkit.open_chain(file, **{**options, "lock": False}) as chain:
        # Blocks that share bytes are not read: the failure says it.
        errors = (item for item in chain.findings if item.level is Level.ERROR)
        told = [item for item in errors if item.corruption is not Corruption.BLOCKS_OVERLAP]
        warn([*told, *(item for item in chain.findings if item.corruption in UNFINISHED)])


def table(rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values in two columns."""
    texts = [(printable(name), printable(str(value))) for name, value in rows]
    width = max(len(name) for name, _ in texts)
    for name, text in texts:
        echo(f"{name:<{width}}  {text}")


def progress_style(style: str | None, stream: TextIO | None) -> str:
    """Return the style asked for; without one a bar on a terminal, and lines elsewhere."""
    return style or ("bar" if stream is not None and stream.isatty() else "plain")


@contextmanager
def progress_shown(style: str | None, title: str) -> Iterator[Callable[[Progress], None]]:
    """Lend a function that shows progress on stderr in the style asked for."""
    style = progress_style(style, sys.stderr)
    if style == "bar":
        with _bar(title) as advance:
            yield advance
    elif style == "none":
        yield lambda _state: None
    else:
        yield _lines(as_json=style == "json")


class _Terminal:
    """A terminal that may be closed while a bar is drawn on it: the work goes on, or ends by its SIGHUP."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def terminal_console() -> Console:
    """Return what rich draws progress on: stderr, which may be closed."""
    from rich.console import Console

    return Console(file=cast("TextIO", _Terminal(sys.stderr)))


@contextmanager
def _bar(title: str) -> Iterator[Callable[[Progress], None]]:
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TextColumn("{task.percentage:>3.0f}%"),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=terminal_console()) as bar:
        task = bar.add_task(title, total=None)

        def advance(state: Progress) -> None:
            bar.update(task, description=f"{title}: {state.phase}", completed=state.bytes_done, total=state.bytes_total)

        yield advance


def _lines(*, as_json: bool) -> Callable[[Progress], None]:
    """Return a function that prints a line at every new phase and every tenth of the way."""
    last: tuple[str, int] | None = None

    def advance(state: Progress) -> None:
        nonlocal last
        phase, done, total = state.phase.value, state.bytes_done, state.bytes_total
        tenth = 10 if not total else done * 10 // total
        if (phase, tenth) == last:
            return
        last = (phase, tenth)
        percent = 100 if not total else done * 100 // total
        record = {"phase": phase, "percent-complete": percent, "bytes-done": done, "bytes-total": total}
        plain = f"{phase}: {percent} %, {done} of {total} bytes"
        # Whoever read the progress may have gone, or has it written to a disk that is full; the work goes on.
        with suppress(OSError):
            echo(json.dumps(record) if as_json else plain, err=True)

    return advance
