"""A worker of a cluster, from its start to its end: it goes back to a scheduler that was away.

A worker that has lost its scheduler stops its tasks where that is safe, before it offers itself again: what it was at
may have been given to another by then.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vhdkit.fleet.cluster_security import check_scheduler_address, distributed
from vhdkit.fleet.cluster_worker import ALLOWED, RUNNING
from vhdkit.fleet.places import places_of
from vhdkit.storage.process import this_process

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from vhdkit.fleet.cluster_security import TlsFiles

# A merge notices within a second that it should stop, but for a sync, which takes as long as the disk does.
_STOP_SECONDS = 600.0
_NAP_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterWorker:
    """How a worker is started: whose it is, which folders it may work in, and how many tasks it does at once.

    `host` is the name by which patterns mean its files, this machine's own if it is "".
    """

    scheduler: str
    folders: tuple[str, ...]
    tls: TlsFiles | None = None
    host: str = ""
    threads: int = 2


def serve_cluster(worker: ClusterWorker, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Work for a scheduler until `stop` is set; `tell` gets a line whenever it is found or lost.

    Raises:
        FleetError: the scheduler is elsewhere, and there are no files for TLS.
        OSError: a folder cannot be listed.

    """
    address = check_scheduler_address(worker.scheduler, worker.tls)
    folders = ALLOWED.allow(worker.folders)
    name = worker.host or this_process()[1]
    options: dict[str, Any] = {
        "nthreads": worker.threads,
        "resources": places_of(name, folders),
        "security": None if worker.tls is None else worker.tls.security(),
        # Without TLS only this machine may reach it, too.
        "host": "127.0.0.1" if worker.tls is None else None,
        "memory_limit": 0,
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
    }
    # Dask logs every connection; warnings are enough.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    while not stop.is_set():
        asyncio.run(_work(address, options, stop, tell))
        RUNNING.cancel()
        RUNNING.wait(_STOP_SECONDS)


async def _started(address: str, options: dict[str, Any]) -> Any:  # noqa: ANN401 - distributed ships no types
    return await distributed().Worker(address, **options)


async def _work(address: str, options: dict[str, Any], stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Work until the scheduler is lost, or `stop` is set; return at once if there is no scheduler."""
    starting = asyncio.ensure_future(_started(address, options))
    while not (stop.is_set() or starting.done()):
        await asyncio.wait([starting], timeout=_NAP_SECONDS)
    if not starting.done():
        starting.cancel()
        return
    try:
        working = starting.result()
    except (OSError, TimeoutError):
        await asyncio.sleep(_NAP_SECONDS)
        return
    tell(f"working for {address}")
    finished = asyncio.ensure_future(working.finished())
    while not (stop.is_set() or finished.done()):
        await asyncio.wait([finished], timeout=_NAP_SECONDS)
    RUNNING.cancel()
    if not finished.done():
        with suppress(OSError, TimeoutError):
            await working.close(nanny=False)
    tell(f"no longer working for {address}")
