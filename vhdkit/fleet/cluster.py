"""A Dask cluster as an executor: tasks go to workers that see their files, and come back as any other executor's.

Dask itself begins the tasks of a worker that is gone again on another one; they go on at the journal's mark. When the
scheduler is gone, the tasks that it had are begun again once it is back.
"""

from __future__ import annotations

import pickle
import threading
import time
import uuid
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from vhdkit.errors import FleetError, VhdError
from vhdkit.fleet.cluster_security import check_scheduler_address, distributed
from vhdkit.fleet.cluster_worker import answer, cancel_run, topic_of, version
from vhdkit.fleet.find import FoundChains, find_chains
from vhdkit.fleet.places import place_for
from vhdkit.fleet.plan import FleetTask
from vhdkit.progress import Phase, Progress
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhdkit.fleet.cluster_security import TlsFiles
    from vhdkit.fleet.patterns import Pattern
    from vhdkit.options import ParentPolicy

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
# How long a scheduler may take to answer at first, and how long it may be away later, as for being started again.
_FIRST_SECONDS = 10.0
_AWAY_SECONDS = 60.0
# How soon after a cancel a task that no worker has is given up.
_LOOK_SECONDS = 3.0
# As many tasks as are waited for at once; a thread that waits costs next to nothing.
_MOST_AT_ONCE = 256


class Cluster(Executor):
    """The workers of a scheduler; `progress` gets what their tasks report, with the task's number.

    What is submitted has to be `perform` or `measure` with a task: workers do nothing else. `tls` are the files of
    the cluster; without them the scheduler has to be on the loopback of this machine. A scheduler that stays away is
    given up for all tasks that are left.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: TlsFiles | None = None,
        progress: Callable[[int, Progress], None] | None = None,
    ) -> None:
        self._address = check_scheduler_address(address, tls)
        self._tls = tls
        self.progress = progress
        self._run = uuid.uuid4().hex
        self._guard = threading.Lock()
        self._client: Any = None
        self._lost: FleetError | None = None
        self._is_cancelled = False
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="vhdkit-cluster")
        self._connected(_FIRST_SECONDS)

    def submit(
        self, fn: Callable[_Parameters, _Result], /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> Future[_Result]:
        """Have a task done by a worker that sees its files."""
        place = next((each.place for each in args if isinstance(each, FleetTask)), "")
        return self._threads.submit(self._answered, fn.__name__, partial(fn, *args, **kwargs), place)

    def find(self, patterns: Sequence[Pattern], parents: ParentPolicy) -> list[FoundChains]:
        """Find the chains that patterns mean, each where its files are; see `find_chains`.

        Raises:
            FleetError: no worker sees what a pattern means, or it is not allowed there.

        """
        offered = self._offered()
        # A worker has another working folder than this process.
        whole = [each if each.host else replace(each, text=paths.abspath(each.text)) for each in patterns]
        places = [place_for(pattern, offered) for pattern in whole]
        futures = [
            self._threads.submit(self._answered, "find_chains", partial(find_chains, pattern, parents), place)
            for pattern, place in zip(whole, places, strict=True)
        ]
        return [replace(future.result(), place=place) for future, place in zip(futures, places, strict=True)]

    def cancel_running(self) -> None:
        """Ask the tasks that run to stop where that is safe, and give up those that no worker has."""
        self._is_cancelled = True
        with suppress(OSError, VhdError, TimeoutError):
            self._connected().run(cancel_run, self._run, on_error="ignore")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and leave the cluster when those that were submitted are done."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        with self._guard:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _answered(self, door: str, call: partial[_Result], place: str) -> _Result:
        """Have a worker answer a call, and wait for that.

        Raises:
            BrokenExecutor: the worker, or the scheduler, was lost with the task.

        """
        client = self._connected()
        payload = pickle.dumps(call.args)
        resources = {place: 1} if place else None
        future = client.submit(answer, self._run, version(), door, payload, resources=resources, pure=False)
        try:
            result: _Result = self._result_of(future, client)
        except CancelledError as error:
            raise BrokenExecutor(f"the scheduler was lost: {error}") from error
        except distributed().KilledWorker as error:
            raise FleetError(f"workers died of it: {error}") from error
        except distributed().comm.CommClosedError as error:
            raise BrokenExecutor(f"the scheduler was lost: {error}") from error
        finally:
            future.release()
        return result

    def _result_of(self, future: Any, client: Any) -> Any:  # noqa: ANN401 - distributed ships no types
        """Wait for a task; once all are cancelled, one that no worker has is cancelled there as well."""
        while True:
            try:
                return future.result(timeout=_LOOK_SECONDS)
            except TimeoutError:
                if future.done():
                    raise  # the task's own
                if self._is_cancelled and not any(future.key in keys for keys in client.processing().values()):
                    future.cancel()

    def _connected(self, seconds: float = _AWAY_SECONDS) -> Any:  # noqa: ANN401 - distributed ships no types
        """Return a client that is connected: the one that is there, or a new one if the scheduler was lost.

        Raises:
            FleetError: the scheduler does not answer.

        """
        with self._guard:
            if self._client is not None and self._client.status == "running":
                return self._client
            # Else every task that is left would wait as long again, one after another.
            if self._lost is not None:
                raise FleetError(str(self._lost))
            if self._client is not None:
                self._client.close(timeout=1)
            try:
                self._client = self._new_client(seconds)
            except FleetError as error:
                self._lost = error
                raise
            self._client.subscribe_topic(topic_of(self._run), self._take_report)
            return self._client

    def _new_client(self, seconds: float) -> Any:  # noqa: ANN401 - distributed ships no types
        security = None if self._tls is None else self._tls.security()
        until = time.monotonic() + seconds
        while True:
            try:
                return distributed().Client(self._address, security=security, set_as_default=False, timeout=5)
            except (OSError, TimeoutError) as error:
                if time.monotonic() > until:
                    raise FleetError(f"the scheduler at {self._address} does not answer: {error}") from error
                time.sleep(0.5)

    def _offered(self) -> set[str]:
        """Return the resources of all workers."""
        workers = self._connected().scheduler_info(n_workers=-1)["workers"].values()
        return {name for worker in workers for name in worker["resources"]}

    def _take_report(self, event: tuple[float, Any]) -> None:
        """Hand on how far a task is."""
        _, (number, phase, done, total) = event
        if self.progress is not None:
            self.progress(number, Progress(phase=Phase(phase), bytes_done=done, bytes_total=total))
