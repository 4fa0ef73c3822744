from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdkit.job.job import Job, JobState, job_id, share_a_file
from vhdkit.job.registry_row import decode_job, encode_job
from vhdkit.options import Follow, MergeRequest

GOING = [state for state in JobState if not state.is_finished]


def a_job(**fields: Any) -> Job:
    known: dict[str, Any] = {
        "id": "0d4b8a3c-1111-4222-8333-444455556666",
        "state": JobState.NEW,
        "request": MergeRequest(child="/vms/a_1.avhd", search=("/vms",), parent_map={"C:\\vms": "/vms"}),
        "sources": ("/vms/a_1.avhd",),
        "destination": "/vms/a.vhd",
        "files": ("/vms/a_1.avhd", "/vms/a.vhd", "/vms/base.vhd"),
        "written": ("/vms/a_1.avhd", "/vms/a.vhd"),
        "bytes_total": 1000,
        "submitted": 100.0,
        "changed": 100.0,
    }
    return Job(**(known | fields))


def test_the_states_have_the_numbers_of_cim_and_words_of_their_own() -> None:
    assert [(int(state), state.plain) for state in JobState] == [
        (2, "waiting"),
        (3, "starting"),
        (4, "running"),
        (5, "paused"),
        (6, "stopping"),
        (7, "completed"),
        (8, "cancelled"),
        (9, "interrupted"),
        (10, "failed"),
        (11, "pending"),
    ]


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 1e6), st.sampled_from(list(JobState)), st.integers(0, 1000)), min_size=1, max_size=30
    )
)
def test_percent_never_goes_back_and_is_a_hundred_only_of_what_is_complete(
    steps: list[tuple[float, JobState, int]],
) -> None:
    job, now = a_job(), 100.0
    for seconds, state, done in steps:
        now += seconds
        after = job.advanced(now, state, bytes_done=done)
        assert after.percent >= (0 if job.percent == 100 else job.percent)
        assert (after.percent == 100) == (state is JobState.COMPLETED)
        assert after.percent >= min(99, done // 10)
        assert (after.ended == now) if state.is_finished else (after.ended is None)
        assert after.elapsed >= job.elapsed
        job = after


def test_time_counts_while_it_is_worked_at_and_not_while_it_waits_or_is_paused() -> None:
    job = a_job().advanced(110.0, JobState.STARTING)
    assert job.elapsed == 0
    job = job.advanced(112.0, JobState.RUNNING)
    assert job.elapsed == 2
    assert job.elapsed_at(113.0) == 3
    job = job.advanced(115.0, JobState.SUSPENDED)
    assert job.elapsed == job.elapsed_at(200.0) == 5
    job = job.advanced(200.0, JobState.RUNNING)
    job = job.advanced(201.0, JobState.COMPLETED)
    assert job.elapsed == job.elapsed_at(300.0) == 6


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    job = a_job(state=JobState.RUNNING, elapsed=5.0)
    assert job.advanced(50.0, JobState.RUNNING).elapsed == 5.0


def test_the_moment_of_the_last_change_of_state_is_not_that_of_the_last_word() -> None:
    job = a_job().advanced(110.0, JobState.RUNNING)
    assert job.advanced(120.0, JobState.RUNNING).state_changed == 110.0
    assert job.advanced(120.0, JobState.SUSPENDED).state_changed == 120.0


def test_what_is_left_is_told_only_while_it_moves() -> None:
    assert a_job(state=JobState.RUNNING, rate=100.0, bytes_done=500).seconds_left == 5.0
    assert a_job(state=JobState.RUNNING, rate=0.0).seconds_left is None
    assert a_job(state=JobState.SUSPENDED, rate=100.0).seconds_left is None


@pytest.mark.parametrize("state", JobState)
def test_it_may_be_cancelled_until_it_stops_or_changes_names(state: JobState) -> None:
    assert a_job(state=state, phase="copying").is_cancellable == (state < JobState.SHUTTING_DOWN)
    assert not a_job(state=state, phase="finishing").is_cancellable


def test_a_row_gives_back_the_job() -> None:
    job = a_job(state=JobState.KILLED, undo="/vms/\udcff.vhd", error="é\n", error_code=0xC03A000E)
    job = replace(job, request=msgspec.structs.replace(job.request, follow=Follow.SETTLE))
    assert decode_job(encode_job(job)) == job


def test_a_row_has_the_fields_of_a_job_and_of_its_request() -> None:
    record = json.loads(encode_job(a_job()))
    assert list(record) == ["wishes" if name == "request" else name for name in Job.__slots__ if name != "wait"]
    assert list(record["wishes"]) == list(MergeRequest.__struct_fields__)


names = st.sets(st.sampled_from("abcdef"))


@given(one=names, other=names, one_reads=names, other_reads=names)
def test_two_jobs_are_kept_apart_exactly_if_one_changes_what_the_other_needs(
    one: set[str], other: set[str], one_reads: set[str], other_reads: set[str]
) -> None:
    left = a_job(written=tuple(one), files=tuple(one | one_reads))
    right = a_job(written=tuple(other), files=tuple(other | other_reads))
    apart = any(name in other | other_reads for name in one) or any(name in one | one_reads for name in other)
    assert share_a_file(left, right) == share_a_file(right, left) == apart


def test_an_id_is_one_whatever_the_journal_says() -> None:
    assert job_id("0D4B8A3C-1111-4222-8333-444455556666") == "0d4b8a3c-1111-4222-8333-444455556666"
    assert job_id("../../etc") == job_id("../../etc") != job_id("nightly")
    assert len(job_id()) == 36


def test_a_job_that_ended_has_no_rate() -> None:
    assert replace(a_job(), rate=5.0).advanced(101.0, JobState.TERMINATED).rate == 0
