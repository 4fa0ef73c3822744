"""A background merge is planned once, unless its files change between the plan and the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, make_chain, view
from vhdkit.job import start, worker
from vhdkit.job.job import Job, JobState
from vhdkit.job.spawn import task_of, work_at
from vhdkit.merging.plan import planner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vhdkit.job.registry import Registry
    from vhdkit.merging.plan.plan import MergePlan


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The destinations of the merges that are planned from now on."""
    found: list[str] = []
    plan = planner.plan_request

    def noted(*arguments: object, **options: object) -> MergePlan:
        made = plan(*arguments, **options)  # type: ignore[arg-type]
        found.append(made.destination)
        return made

    monkeypatch.setattr(start, "plan_request", noted)
    monkeypatch.setattr(worker, "plan_request", noted)
    return found


def in_this_process(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object] = lambda: None) -> list[Job]:
    """Let the work of a background process be done in this one, after `before`; return the jobs that ended."""
    ended: list[Job] = []

    def spawn(job: Job, registry: Registry, plan: MergePlan | None = None) -> None:
        task = task_of(job, registry.directory, plan)
        before()
        ended.append(work_at(task))

    monkeypatch.setattr(start, "spawn", spawn)
    return ended


def test_a_thread_carries_out_the_plan_that_its_job_was_begun_with(tmp_path: Path, planned: list[str]) -> None:
    leaf = make_chain(tmp_path, "a", 1)
    vhdkit.start_merge(leaf).result(HANGS_SECONDS)
    assert planned == [str(tmp_path / "a.vhd")]


def test_a_process_carries_out_the_plan_that_its_job_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: list[str]
) -> None:
    leaf = make_chain(tmp_path, "a", 1)
    before, ended = view(leaf), in_this_process(monkeypatch)
    vhdkit.start_merge(leaf, detached=True)
    assert [job.state for job in ended] == [JobState.COMPLETED]
    assert planned == [str(tmp_path / "a.vhd")]
    assert view(str(tmp_path / "a.vhd")) == before


def test_what_was_written_after_the_plan_is_planned_again_and_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: list[str]
) -> None:
    leaf = make_chain(tmp_path, "a", 1)

    def write() -> None:
        with vhdkit.open_chain(leaf, writable=True) as chain:
            chain.write(40 << 20, b"written later")

    ended = in_this_process(monkeypatch, write)
    vhdkit.start_merge(leaf, detached=True)
    assert [job.state for job in ended] == [JobState.COMPLETED]
    assert planned == [str(tmp_path / "a.vhd")] * 2
    with vhdkit.open_chain(tmp_path / "a.vhd") as chain:
        assert chain.read(40 << 20, 13) == b"written later"


def test_a_sibling_made_after_the_plan_is_not_ruined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: list[str]
) -> None:
    leaf, sibling = make_chain(tmp_path, "a", 1), str(tmp_path / "sibling.avhd")
    ended = in_this_process(monkeypatch, lambda: vhdkit.create_image(sibling, parent=tmp_path / "a.vhd"))
    before = view(str(tmp_path / "a.vhd"))
    vhdkit.start_merge(leaf, detached=True)
    assert [(job.state, job.error_class) for job in ended] == [(JobState.EXCEPTION, "SiblingsError")]
    assert len(planned) == 2
    assert view(sibling) == before
