"""What a worker of a cluster does with a task: it looks who asks, for what, and where, before it does it.

A task comes as a version, the name of one of a few functions, and its pickled arguments: a client of another version is
refused before anything is unpickled. Each path of a request has to lie in a folder that the worker was started for,
links followed; parents are only opened beside and below their children, and in folders that a request names.
"""

from __future__ import annotations

import pickle
import threading
import time
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from vhdkit.errors import FleetError
from vhdkit.fleet.channel import set_channel
from vhdkit.fleet.find import find_chains
from vhdkit.fleet.measure import measure
from vhdkit.fleet.patterns import Pattern
from vhdkit.fleet.perform import perform
from vhdkit.fleet.plan import FleetTask
from vhdkit.fleet.requests import ConvertRequest
from vhdkit.options import EnsureRequest, ParentPolicy
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.process import this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vhdkit.fleet.find import FoundChains
    from vhdkit.fleet.requests import FleetRequest
    from vhdkit.progress import Cancel, Progress


def _find_allowed(pattern: Pattern, parents: ParentPolicy) -> FoundChains:
    return find_chains(pattern, parents, check_root=ALLOWED.check)


_DOORS: dict[str, Callable[..., object]] = {"perform": perform, "measure": measure, "find_chains": _find_allowed}


def version() -> str:
    """Return this package's version."""
    try:
        return metadata.version("vhdkit")
    except metadata.PackageNotFoundError:
        return "unknown"


class AllowedFolders:
    """The folders in which a worker may work, links followed; none until it is started."""

    def __init__(self) -> None:
        self._folders: tuple[str, ...] = ()

    def allow(self, folders: Iterable[str]) -> tuple[str, ...]:
        """Allow folders and what is below them; return where they really are."""
        place = LocalFolder()
        for folder in folders:
            place.check_directory(folder)
        self._folders = tuple(map(place.real, folders))
        return self._folders

    def check(self, path: str) -> None:
        """Refuse a path that leads out of the folders.

        Raises:
            FleetError: it does.

        """
        real = LocalFolder().real(path)
        if not paths.is_below(real, self._folders):
            _, host = this_process()
            raise FleetError(f"the worker on {host} is not allowed there", path=path)


# Of this process, set once as it starts: see `serve_cluster`.
ALLOWED = AllowedFolders()


class RunningTasks:
    """The tasks that this process does, by the run that they are of, so that they can be stopped."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._cancels: dict[str, threading.Event] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def counted(self, run: str) -> Iterator[threading.Event]:
        """Count a task of a run while it is done; yield what says that it should stop."""
        with self._guard:
            cancel = self._cancels.setdefault(run, threading.Event())
            self._counts[run] = self._counts.get(run, 0) + 1
        try:
            yield cancel
        finally:
            with self._guard:
                self._counts[run] -= 1
                if not self._counts[run]:
                    del self._counts[run], self._cancels[run]

    def cancel(self, run: str | None = None) -> None:
        """Ask the tasks of a run to stop where that is safe, or with None all tasks."""
        with self._guard:
            for name, event in self._cancels.items():
                if run in {None, name}:
                    event.set()

    def wait(self, seconds: float) -> None:
        """Wait until no task runs, but no longer than that."""
        until = time.monotonic() + seconds
        while self._counts and time.monotonic() < until:
            time.sleep(0.05)


RUNNING = RunningTasks()


def cancel_run(run: str) -> None:
    """Ask the tasks of a run on this worker to stop: what a client has every worker do."""
    RUNNING.cancel(run)


def answer(run: str, asked_version: str, door: str, payload: bytes) -> object:
    """Do what a client asks for: what the scheduler has this worker run.

    Raises:
        FleetError: the client has another version of this package, or asks for files outside of the allowed folders.
        VhdError, OSError: what the function raises.

    """
    own = version()
    if asked_version != own:
        _, host = this_process()
        raise FleetError(
            f"the worker on {host} has vhdkit {own}, and the client {asked_version}: they must be the same"
        )
    arguments: tuple[Any, ...] = pickle.loads(payload)  # noqa: S301 - a client that may send this may run anything here
    for argument in arguments:
        _check(argument)
    with RUNNING.counted(run) as cancel:
        set_channel(_ClusterChannel(run, cancel))
        return _DOORS[door](*arguments)


def _check(argument: object) -> None:
    """Refuse what leads out of the allowed folders."""
    match argument:
        case Pattern():
            # What has wildcards may also be the name of a file or a folder: see `find_chains`.
            ALLOWED.check(argument.root)
            ALLOWED.check(argument.text)
        case ParentPolicy():
            for folder in argument.folders:
                ALLOWED.check(folder)
        case FleetTask(request=request):
            for path in _paths_of(request):
                ALLOWED.check(path)


def _paths_of(request: FleetRequest) -> tuple[str, ...]:
    """Return every path in a request."""
    if isinstance(request, EnsureRequest):
        return request.merge.paths
    parent = () if request.parents.parent is None else (request.parents.parent,)
    written = (request.destination,) if isinstance(request, ConvertRequest) else ()
    return (request.path, *written, *parent, *request.parents.folders)


class _ClusterChannel:
    """The channel of a task of a cluster's worker: reports are events of the scheduler's, by the name of the run."""

    def __init__(self, run: str, cancel: Cancel) -> None:
        self.cancel = cancel
        self._run = run

    def report(self, number: int, state: Progress) -> None:
        """Say how far a task is; if the report cannot be sent, the work goes on."""
        from distributed import get_worker  # noqa: PLC0415 - an extra, which is there where this is run

        with suppress(Exception):
            get_worker().log_event(
                topic_of(self._run), (number, state.phase.value, state.bytes_done, state.bytes_total)
            )


def topic_of(run: str) -> str:
    """Return the name under which the events of a run are kept."""
    return f"vhdkit-{run}"
