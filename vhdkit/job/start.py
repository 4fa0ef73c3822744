"""Beginning a merge as a job: in this thread, in one beside it, or in a process of its own."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.chain.chain import open_chain_with
from vhdkit.errors import ImageInUseError, JobError
from vhdkit.findings import Advice
from vhdkit.job import events
from vhdkit.job.handle import MergeJob
from vhdkit.job.job import UNFINISHED, Job, JobState, job_id
from vhdkit.job.job_files import check_same, gone, identities_of, machine_of, of_this_process, touched
from vhdkit.job.merge_slots import MergeSlot
from vhdkit.job.on_end import check_end_command
from vhdkit.job.reconcile import is_rolling_back, noted, stands_in_the_way
from vhdkit.job.registry import Registry, RegistryError
from vhdkit.job.spawn import spawn, work
from vhdkit.job.worker import Worker
from vhdkit.journal.claims import Change, obstacles
from vhdkit.journal.merge_journal import Journal, find_journal
from vhdkit.merging.plan.plan import Resume, states_of
from vhdkit.merging.plan.planner import plan_request
from vhdkit.options import MergeRequest, RollbackRequest
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.search_scope import SearchScope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.merging.completion import Completion
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.merging.run.engine import MergeResult
    from vhdkit.options import EventTarget, Follow
    from vhdkit.progress import Cancel, Progress
    from vhdkit.units import StrPath

_LETTING_GO_SECONDS = 1.0
_IN_LINE = Advice.WAIT_IN_LINE.hint("{} waits in line for it")


@checked
def start_merge(
    child: StrPath,
    *,
    into: StrPath | None = None,
    to: StrPath | None = None,
    keep_sources: bool = False,
    undo: StrPath | None = None,
    relink_siblings: bool = False,
    verify: bool = False,
    resume: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_ended: bool = False,
    rate: int | None = None,
    parallel: int | None = None,
    machine: str = "",
    detached: bool = False,
    log_file: StrPath | None = None,
    event_log: EventTarget | None = None,
    on_end: str | None = None,
    follow: Follow | None = None,
    wait_in_line: bool = True,
) -> MergeJob:
    """Begin a merge in the background, and return at once; the arguments are those of `plan_merge`.

    It runs in a thread of this process, or with `detached` in a process of its own, which outlives this one. Jobs that
    need the same files wait for each other, in the order in which they were started, or with `wait_in_line` false are
    refused at once. `rate` is the most bytes a second, and `parallel` how many jobs may run at once on its file system,
    two if it is None; more wait. `machine` is a name to find it by, and `log_file` gets what it says (see `events`), a
    JSON object a line; `event_log` is a log of the system's that gets the same. `follow` is what the process of a
    detached job does when the merge is complete, and `on_end` names a command that is started when the job has ended in
    any way (see `set_end_command`).

    Raises:
        ImageInUseError: another process is at the files, and `wait_in_line` is false. Nothing was begun.
        VhdError, OSError: what `plan_merge` raises, or the first obstacle of the plan. Nothing was begun.

    """
    request = MergeRequest.of(
        child,
        into=into,
        to=to,
        keep_sources=keep_sources,
        undo=undo,
        relink_siblings=relink_siblings,
        verify=verify,
        resume=resume,
        search=search,
        parent_map=parent_map,
        parent=parent,
        accept_ended=accept_ended,
        rate=rate,
        parallel=parallel,
        log_file=log_file,
        event_log=event_log,
        on_end=on_end,
        follow=follow,
    )
    return start_request(request, machine=machine, detached=detached, wait_in_line=wait_in_line)


def start_request(
    request: MergeRequest, *, machine: str = "", detached: bool = False, wait_in_line: bool = True
) -> MergeJob:
    """Begin the merge that is asked for in the background; the rest is as in `start_merge`."""
    if request.log_file is not None:
        events.stop_logging(events.log_to(request.log_file))
    if request.on_end is not None:
        check_end_command(request.on_end)
    registry = Registry()
    request = request.with_paths(paths.abspath)
    try:
        expected, plan = _planned(request, machine, wait_in_line=wait_in_line)
    except ImageInUseError as error:
        if _job_in_the_way(expected_job(request, machine)) is not None:
            error.add_hint(_IN_LINE)
        raise
    other = None if wait_in_line else _job_in_the_way(expected)
    if other is not None:
        raise ImageInUseError(f"the merge job {other.id} is {other.state.plain}", path=other.destination, hint=_IN_LINE)
    job, before = _as_known(expected, registry)
    return begin(job, registry, before=before, detached=detached, plan=plan)


def run_merge(
    plan: MergePlan,
    request: MergeRequest,
    *,
    machine: str = "",
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    completion: Completion | None = None,
) -> MergeResult:
    """Carry out a plan here and now, as `vhdkit.merge` does, as a job that others can see and steer.

    It waits while as many jobs as may run at once do so on its file system, but not for files that are in use: those
    are refused. A plan that has obstacles never becomes a job.
    """
    plan.refuse_obstacles()
    registry = Registry()
    job = _new(request.with_paths(paths.abspath), plan, machine)
    if plan.journal is not None:  # a merge that begins was never listed
        job, _ = _as_known(job, registry)
    slot = MergeSlot(request, registry.directory)
    if plan.resume is Resume.FINISHES or slot.take():
        # It has its turn: should this word be the last that the list hears, it is known to have begun.
        job = job.advanced(time.time(), JobState.RUNNING)
    with Worker(job, registry, progress=progress, cancel=cancel, completion=completion, slot=slot) as at:
        return at.merge(plan)


def begin(
    job: Job, registry: Registry, *, before: Job | None = None, detached: bool, plan: MergePlan | None = None
) -> MergeJob:
    """Begin a job that is described, behind those that wait already.

    `before` is what the list knows of earlier runs; `plan` is the plan of the merge, if the files were free.

    Raises:
        JobError: another process has begun it again since that was read.

    """
    job = of_this_process(job)
    unlisted = ""
    try:
        if before is None:
            registry.put(job, clear_request=True)
        elif not registry.replace(before, job):
            raise JobError(f"the job {job.id} was begun again by another process just now", path=job.destination)
        registry.to_the_end(job.id)
    except RegistryError as error:
        unlisted = str(error)
    if detached:
        return MergeJob(job, registry, unlisted, process=spawn(job, registry, plan))
    worker = Worker(job, registry, unlisted=unlisted, plan=plan)
    thread = threading.Thread(target=work, args=(worker,), name=f"vhdkit-merge-{job.id[:8]}")
    thread.start()
    return MergeJob(job, registry, unlisted, worker=worker, thread=thread)


def restart_job(job: Job) -> Job:
    """Begin a job again that was cut off, in a process of its own, under its own id; return it as it then is.

    Raises:
        JobError: other images have the names of those that it was begun with, or one of those is gone.
        VhdError, OSError: as `start_merge`.

    """
    registry = Registry()
    try:
        fresh, plan = _planned(job.request, job.machine)
    except FileNotFoundError as error:
        raise gone(job, error) from error
    check_same(job, fresh.identities)
    return begin(_continued(replace(fresh, id=job.id), job), registry, before=job, detached=True, plan=plan).job


def roll_back_job(job: Job, *, progress: Callable[[Progress], None] | None = None, cancel: Cancel | None = None) -> Job:
    """Roll back a job that has ended, in this thread; return it as it then is.

    If it is refused, the job is what it was.

    Raises:
        JobError: the undo image is that of another merge by now.
        VhdError, OSError: as `vhdkit.rollback`.

    """
    from vhdkit.merging.rollback import roll_back_as_asked  # noqa: PLC0415 - most jobs are never taken back

    registry = Registry()
    _check_own(job)
    request = RollbackRequest(path=job.undo, parents=job.request.parents.without_named_parent())

    def work(advance: Callable[[Progress], None], stop: Cancel) -> None:
        roll_back_as_asked(request, LocalFolder(), progress=advance, cancel=stop)

    at = Worker(job, registry, progress=progress, cancel=cancel)
    try:
        with at:
            at.act("rolling back", work)
    except BaseException:
        if not is_rolling_back(job):
            # Unless another process has done it meanwhile.
            with suppress(RegistryError):
                registry.replace(at.last_word, job)
        raise
    return at.job


def _check_own(job: Job) -> None:
    """Refuse to take back what another merge has done with the same undo image's name, or what no image is kept for."""
    folder = LocalFolder()
    journal = find_journal(folder, job.destination) if folder.exists(job.destination) else None
    if isinstance(journal, Journal) and job_id(journal.begin.job) != job.id:
        message = f"the undo image {job.undo} belongs to another merge by now, the job {job_id(journal.begin.job)}"
        raise JobError(f"{message}; this one's was made final, or taken back", path=job.destination)
    if folder.exists(job.undo):
        return
    if journal is not None and not (isinstance(journal, Journal) and journal.reserved):
        message = f"nothing was changed yet by the job {job.id}, and there is nothing to take back"
        hint = Advice.RESUME_JOB.hint("{} goes on with it", job=job.id)
        raise JobError(message, path=job.destination, hint=hint)
    message = f"the undo image {job.undo} is not there: the merge was made final, or somebody has moved it"
    raise JobError(message, path=job.destination)


def _as_known(job: Job, registry: Registry) -> tuple[Job, Job | None]:
    """Return a new job as the one that goes on with its earlier runs, and what the list knows of those.

    Where another process is about to go on with them, or at it, this is a job of its own, and waits.
    """
    before = _known_before(job, registry)
    if before is not None and not before.state.is_finished:
        return replace(job, id=job_id()), None
    return _continued(job, before), before


def _known_before(job: Job, registry: Registry) -> Job | None:
    """Return what the list knows of earlier runs of a job, None if that is nothing or the list cannot be had."""
    with suppress(RegistryError):
        for before in registry.find(job.id):
            # What is replaced later must be what the list says.
            return noted(before, registry)
    return None


def _continued(job: Job, before: Job | None) -> Job:
    """Return a job that goes on where an earlier run has stopped."""
    if before is None:
        return job
    fields = ("machine", "submitted", "started", "elapsed", "percent", "runs")
    return replace(job, **{name: getattr(before, name) for name in fields})


def _planned(request: MergeRequest, machine: str, *, wait_in_line: bool = True) -> tuple[Job, MergePlan | None]:
    """Return a new job of a request, and its plan, None if it has to wait before it can be planned.

    What cannot be done is refused at once, and so is what would have to wait unless it may.
    """
    folder, until = LocalFolder(), time.monotonic() + _LETTING_GO_SECONDS
    while True:
        try:
            plan = plan_request(request, folder)
            break
        except ImageInUseError:
            expected = expected_job(request, machine)
            _refuse_claimed(expected)
            # Another job is at it: this one waits, and is planned when its turn has come.
            is_listed = _job_in_the_way(expected) is not None
            if is_listed or time.monotonic() > until:
                if wait_in_line:
                    return expected, None
                raise
        # A process that was killed lets go of its files a moment later.
        time.sleep(0.05)
    in_use = [obstacle for obstacle in plan.obstacles if isinstance(obstacle, ImageInUseError)]
    if plan.obstacles and not (in_use and wait_in_line):
        raise (in_use or plan.obstacles)[0]
    return _new(request, plan, machine), _to_hand_on(plan)


def _to_hand_on(plan: MergePlan) -> MergePlan | None:
    """Return a plan that is carried out as it is if the job need not wait, None if the job plans again.

    What an earlier run has left may be finished by another process first.
    """
    return None if plan.obstacles or plan.resume is not None else plan


def _refuse_claimed(job: Job) -> None:
    """Refuse a job that waits for its files, if it could not be done when they are free.

    Raises:
        SnapshotError: the snapshots of a machine need what it would change.

    """
    if job.request.to is None:
        change = Change(destination=job.destination, sources=job.sources)
        for obstacle in obstacles(SearchScope(LocalFolder(), job.request.search), change):
            raise obstacle


def _job_in_the_way(job: Job) -> Job | None:
    """Return a job that goes on and needs the files of another, None if the list knows of none."""
    try:
        going = Registry().jobs(states=UNFINISHED)
    except RegistryError:
        return None
    return next((other for other in going if stands_in_the_way(other, job)), None)


def _new(request: MergeRequest, plan: MergePlan, machine: str) -> Job:
    now = time.time()
    begun = plan.journal.begin if plan.journal is not None else None
    return Job(
        id=job_id(begun.job if begun is not None else ""),
        state=JobState.NEW,
        request=request,
        machine=machine or machine_of(plan.layers[-1].path),
        bytes_total=plan.payload_bytes,
        submitted=now,
        changed=now,
        **touched(plan),
    )


def expected_job(request: MergeRequest, machine: str) -> Job:
    """Return the job of a merge whose files may be in use: what it will touch, as far as that can be seen unasked."""
    with open_chain_with(request.child, request.parents, LocalFolder(), lock=False) as chain:
        files = [layer.path for layer in chain.layers]
        identities = identities_of(states_of(chain.layers))
    depth = 1
    if request.into is not None:
        names = [request.into, Registry.real(request.into)]
        depth = next((at for at, path in enumerate(files) if path in names), 1)
    destination = request.to or files[min(depth, len(files) - 1)]
    written = [request.to] if request.to is not None else files[: depth + 1]
    undo = request.undo or ""
    now = time.time()
    return Job(
        id=job_id(),
        state=JobState.NEW,
        request=request,
        sources=tuple(files if request.to is not None else files[:depth]),
        destination=destination,
        files=tuple(dict.fromkeys([*files, destination, *filter(None, [undo])])),
        written=(*written, *filter(None, [undo])),
        machine=machine or machine_of(files[-1]),
        undo=undo,
        submitted=now,
        changed=now,
        identities=identities,
    )
