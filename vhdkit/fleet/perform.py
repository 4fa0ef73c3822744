"""One task, done by a worker: the verb's own function, and what came of it as plain values.

Every task may be done again, after any end and by another worker: a merge goes on at its journal's mark or is known to
be done, a new file that shows the same is known to be done, and checks and hashes change nothing.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from vhdkit.chain.chain import open_chain_with
from vhdkit.chain.check import CLEAN, CORRUPT, LEAKS, check
from vhdkit.chain.compare import compare
from vhdkit.chain.convert import convert
from vhdkit.chain.hash import hash_image
from vhdkit.disk.image import ImageFormat
from vhdkit.errors import VhdError
from vhdkit.findings import Level
from vhdkit.fleet.channel import TaskReporter
from vhdkit.fleet.outcome import ChainOutcome
from vhdkit.fleet.requests import CheckRequest, ConvertRequest, FleetRequest, HashRequest
from vhdkit.formats import open_image
from vhdkit.job.start import run_merge
from vhdkit.merging.ensure_merged import Ensured, ensure
from vhdkit.options import EnsureRequest
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.new_file import remove_partial_files
from vhdkit.storage.process import this_process

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhdkit.chain.check import CheckReport
    from vhdkit.fleet.plan import FleetTask
    from vhdkit.merging.completion import Completion
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.merging.run.engine import MergeResult
    from vhdkit.options import ParentPolicy


_ENSURED = {
    Ensured.BEGUN: ChainOutcome.DONE,
    Ensured.RESUMED: ChainOutcome.RESUMED,
    Ensured.WAS_DONE: ChainOutcome.WAS_DONE,
}
_CHECKED = {CLEAN: ChainOutcome.CLEAN, LEAKS: ChainOutcome.LEAKS, CORRUPT: ChainOutcome.CORRUPT}


class _Parents(TypedDict):
    """A policy for parents as the arguments of the verbs' functions."""

    search: tuple[str, ...]
    parent_map: Mapping[str, str]
    parent: str | None
    accept_id_mismatch: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """What came of a task. `detail` is a digest, a number of findings or the new file; `total_bytes` is what was moved.

    `worker` is the machine and the process that did it.
    """

    outcome: ChainOutcome
    detail: str = ""
    total_bytes: int = 0
    seconds: float = 0.0
    worker: str = ""


def perform(task: FleetTask) -> Performed:
    """Do what a task asks for, here and now.

    Raises:
        VhdError, OSError: what the verb's own function raises.

    """
    begun = time.monotonic()
    if isinstance(task.request, ConvertRequest):
        # A cluster gives the task of a worker that died to another one without a word, so that `attempt` is 0.
        with suppress(FileNotFoundError):
            remove_partial_files(LocalFolder(), task.request.destination)
    outcome, detail, moved = _done(task.request, TaskReporter(task.number))
    process, host = this_process()
    return Performed(
        outcome=outcome,
        detail=detail,
        total_bytes=moved,
        seconds=time.monotonic() - begun,
        worker=f"{host}:{process}",
    )


def _done(request: FleetRequest, reporter: TaskReporter) -> tuple[ChainOutcome, str, int]:
    """Do it; return how it ended, its detail, and the bytes that were moved."""
    match request:
        case CheckRequest():
            return _checked(request)
        case HashRequest():
            return _hashed(request, reporter)
        case ConvertRequest():
            return _converted(request, reporter)
        case EnsureRequest():
            return _merged(request, reporter)


def _checked(request: CheckRequest) -> tuple[ChainOutcome, str, int]:
    report = check(
        request.path,
        chain=True,
        deep=request.deep,
        **_arguments(request.parents),
    )
    return _CHECKED.get(report.exit_code, ChainOutcome.NOT_CHECKED), _findings(report), 0


def _arguments(parents: ParentPolicy) -> _Parents:
    return _Parents(
        search=parents.search,
        parent_map=parents.parent_map,
        parent=parents.parent,
        accept_id_mismatch=parents.accept_id_mismatch,
    )


def _findings(report: CheckReport) -> str:
    """Return the first finding of the worst level that counts, and how many there are.

    Hints are left out: this text may be made on another machine.
    """
    errors = [finding for finding in report.findings if finding.level is Level.ERROR]
    if not errors:
        return f"{report.leaked_bytes} bytes lost" if report.leaked_bytes else ""
    more = report.count(Level.ERROR) - 1
    first, *_ = errors[0].message.splitlines()
    return f"{errors[0].path}: {first}" + (f" (and {more} more)" if more else "")


def _hashed(request: HashRequest, reporter: TaskReporter) -> tuple[ChainOutcome, str, int]:
    (view,) = hash_image(
        request.path,
        algorithm=request.algorithm,
        **_arguments(request.parents),
        progress=reporter,
        cancel=reporter.cancel,
    )
    return ChainOutcome.DONE, view.digest, view.size


def _converted(request: ConvertRequest, reporter: TaskReporter) -> tuple[ChainOutcome, str, int]:
    try:
        size = convert(
            request.path,
            request.destination,
            output_format=request.output_format,
            **_arguments(request.parents),
            progress=reporter,
            cancel=reporter.cancel,
        )
    except FileExistsError:
        if not _shows_the_same(request):
            raise
        return ChainOutcome.WAS_DONE, request.destination, 0
    return ChainOutcome.DONE, request.destination, size


def _shows_the_same(request: ConvertRequest) -> bool:
    """Whether the new file is there already, as it was asked for, and shows what the chain does."""
    if not _is_of_format(request):
        return False
    found = compare(
        request.path,
        request.destination,
        format_b="raw" if request.output_format == "raw" else None,
        **_arguments(request.parents),
    )
    return found.equal and found.same_size


def _is_of_format(request: ConvertRequest) -> bool:
    """Whether a file has the format that was asked for, and is no image of the chain itself."""
    folder = LocalFolder()
    with (
        folder.open(request.destination) as made,
        open_chain_with(request.path, request.parents, folder) as chain,
    ):
        if made.identity in {layer.storage.identity for layer in chain.layers}:
            return False
    if request.output_format == "raw":
        # As raw bytes, an image of any other format shows another disk.
        return True
    try:
        with open_image(request.destination, folder=folder) as image:
            return image.file_format is ImageFormat.VHD and image.kind.value == request.output_format
    except VhdError:
        return False


def _merged(request: EnsureRequest, reporter: TaskReporter) -> tuple[ChainOutcome, str, int]:
    def carry_out(plan: MergePlan, completion: Completion | None) -> MergeResult:
        plan.refuse_obstacles()
        return run_merge(plan, request.merge, progress=reporter, cancel=reporter.cancel, completion=completion)

    done = ensure(request, carry_out, LocalFolder())
    copied = 0 if done.merge is None else done.merge.bytes_copied
    return _ENSURED[done.outcome], done.destination, copied
