from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_job import a_job
from vhdkit.job import cim
from vhdkit.job.job import JobState
from vhdkit.job.wql import Where
from vhdkit.job.wql_tokens import FilterError

RUNNING = a_job(
    state=JobState.RUNNING,
    phase="copying",
    bytes_done=420,
    percent=42,
    submitted=1236695130.123456,
    started=1236695131.0,
    changed=1236695135.5,
    state_changed=1236695131.0,
    elapsed=4.5,
    runs=2,
    user="anna",
)
PRINTED = r"""__GENUS                 : 2
__CLASS                 : Msvm_ConcreteJob
__SUPERCLASS            : CIM_ConcreteJob
__DYNASTY               : CIM_ManagedElement
__RELPATH               : Msvm_ConcreteJob.InstanceID="0d4b8a3c-1111-4222-8333-444455556666"
__PROPERTY_COUNT        : 36
__DERIVATION            : {CIM_ConcreteJob, CIM_Job, CIM_LogicalElement, CIM_ManagedSystemElement...}
__SERVER                : HOST
__NAMESPACE             : root\virtualization
__PATH                  : \\HOST\root\virtualization:Msvm_ConcreteJob.InstanceID="0d4b8a3c-1111-4222-8333-444455556666"
Cancellable             : True
Caption                 : Merge in Progress
DeleteOnCompletion      : False
Description             : Merge in Progress
ElapsedTime             : 00000000000005.000000:000
ElementName             : Merge in Progress
ErrorCode               : 0
ErrorDescription        :@
ErrorSummaryDescription :@
HealthState             : 5
InstallDate             : 16010101000000.000000-000
InstanceID              : 0d4b8a3c-1111-4222-8333-444455556666
JobRunTimes             : 1
JobState                : 4
JobStatus               : Job is running
LocalOrUtcTime          : 2
Name                    : Merge in Progress
Notify                  :@
OperationalStatus       : {2}
OtherRecoveryAction     :@
Owner                   : anna
PercentComplete         : 42
Priority                : 0
RecoveryAction          : 0
RunDay                  : 0
RunDayOfWeek            : 0
RunMonth                : 0
RunStartInterval        : 00000000000000.000000:000
ScheduledStartTime      : 16010101000000.000000-000
StartTime               : 20090310142531.000000+000
Status                  :@
StatusDescriptions      : {OK}
TimeBeforeRemoval       : 00000000000500.000000:000
TimeOfLastStateChange   : 20090310142531.000000+000
TimeSubmitted           : 20090310142530.123456+000
UntilTime               : 16010101000000.000000-000
""".replace("@", " ")
OURS = """Machine                 :@
Disk                    : /vms/a.vhd
""".replace("@", " ")


def test_a_running_merge_is_printed_as_powershell_prints_one() -> None:
    assert cim.text([RUNNING], 1236695136.0, "HOST", is_strict=True) == PRINTED
    with_ours = PRINTED.replace(": 36\n", ": 38\n") + OURS
    assert cim.text([RUNNING], 1236695136.0, "HOST") == with_ours


def test_two_jobs_have_a_blank_line_between_them() -> None:
    other = replace(RUNNING, id="ffffffff-1111-4222-8333-444455556666")
    both = cim.text([RUNNING, other], 1236695136.0, "HOST", is_strict=True)
    assert both.startswith(PRINTED + "\n__GENUS")
    assert [each["InstanceID"] for each in cim.parse(both)] == [RUNNING.id, other.id]
    assert cim.text([], 0.0, "HOST") == ""


def test_the_class_has_the_36_properties_in_its_order() -> None:
    names = list(cim.properties(RUNNING, 0.0, "HOST"))
    assert (len(names), names[-2:]) == (10 + 36 + 2, ["Machine", "Disk"])
    assert names[10:-2] == sorted(names[10:-2])
    assert cim.properties(RUNNING, 0.0, "HOST")["__PROPERTY_COUNT"] == 38
    strict = cim.properties(RUNNING, 0.0, "HOST", is_strict=True)
    assert (list(strict), strict["__PROPERTY_COUNT"]) == (names[:-2], 36)


@pytest.mark.parametrize("state", JobState)
def test_every_state_says_what_it_is(state: JobState) -> None:
    job = a_job(state=state, error="the disk is full\r\nreally", error_code=0x80070070, percent=12)
    values = cim.properties(job, 200.0, "HOST")
    assert values["JobState"] == int(state)
    assert values["Cancellable"] is (state < JobState.SHUTTING_DOWN)
    assert (values["ElementName"] == "Merge in Progress") == state.is_running
    failed = state is JobState.EXCEPTION
    assert values["ErrorCode"] == (0x0070 if failed else 0)
    assert (values["ErrorDescription"] == job.error) == failed
    assert (values["HealthState"] == 5) == (not failed)
    assert all(len(line.split(" : ", 1)) == 2 for line in cim.text([job], 200.0, "HOST").splitlines())


def test_a_failure_without_a_code_is_a_failure_all_the_same() -> None:
    assert cim.properties(a_job(state=JobState.EXCEPTION, error="?"), 0.0, "HOST")["ErrorCode"] == 32768


@given(
    machine=st.text(max_size=20),
    error=st.text(max_size=60),
    user=st.text(max_size=10),
    state=st.sampled_from(list(JobState)),
    elapsed=st.floats(0, 1e8),
)
def test_what_was_printed_is_read_back(machine: str, error: str, user: str, state: JobState, elapsed: float) -> None:
    job = a_job(state=state, machine=machine, error=error, user=user, elapsed=elapsed)
    (read,) = cim.parse(cim.text([job], 200.0, "HOST"))
    assert read == {name: cim.shown(value).strip() for name, value in cim.properties(job, 200.0, "HOST").items()}


@given(st.floats(0, 1e9))
def test_an_interval_has_its_days_hours_minutes_and_seconds(seconds: float) -> None:
    written = cim.interval(seconds)
    match = re.fullmatch(r"(\d{8})(\d\d)(\d\d)(\d\d)\.(\d{6}):000", written)
    assert match is not None
    days, hours, minutes, rest, micro = map(int, match.groups())
    assert hours < 24
    assert minutes < 60
    assert rest < 60
    assert abs(((days * 24 + hours) * 60 + minutes) * 60 + rest + micro / 1e6 - seconds) < 1e-5


VALUES: dict[str, Any] = {
    "ElementName": "Merge in Progress",
    "PercentComplete": 42,
    "Cancellable": True,
    "Notify": None,
    "OperationalStatus": (2, 5),
    "Quoted": 'it\'s "so"',
}


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("ElementName = 'Merge in Progress' and PercentComplete < 50", True),
        ("elementname='MERGE IN PROGRESS'AND percentcomplete<50", True),
        ('ElementName = "Merge in Progress"', True),
        ("PercentComplete = 42", True),
        ("PercentComplete <> 42", False),
        ("PercentComplete != 41", True),
        ("PercentComplete < 42", False),
        ("PercentComplete <= 42", True),
        ("PercentComplete > -5", True),
        ("PercentComplete >= 43", False),
        ("ElementName < 'N'", True),
        ("Cancellable = TRUE", True),
        ("Cancellable <> false", True),
        ("ElementName like 'merge%'", True),
        ("ElementName like '%in%'", True),
        ("ElementName like '_erge in %ress'", True),
        ("ElementName like 'Merge'", False),
        ("ElementName not like 'Copy%'", True),
        ("Notify is null", True),
        ("Notify is not null", False),
        ("ElementName is not null", True),
        ("Notify = null", True),
        ("Notify <> null", False),
        ("Notify = 'x'", False),
        ("Notify like '%'", False),
        ("Notify not like '%'", False),
        ("OperationalStatus = 5", True),
        ("OperationalStatus = 3", False),
        ("not PercentComplete = 42", False),
        ("not (PercentComplete = 42 and Cancellable = false)", True),
        ("PercentComplete = 1 or PercentComplete = 42 and Cancellable = true", True),
        ("(PercentComplete = 42 or PercentComplete = 1) and Cancellable = false", False),
        ("Quoted = 'it''s \"so\"'", True),
        ('Quoted = "it\'s ""so"""', True),
    ],
)
def test_the_filter_says_what_wql_says(expression: str, fits: bool) -> None:
    assert Where(expression).matches(VALUES) is fits


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "expected the name of a property, found the end"),
        ("PercentComplete", "expected one of = <> < <= > >=, LIKE or IS"),
        ("PercentComplete =", "expected a value"),
        ("PercentComplete = 1 PercentComplete = 2", "at character 21: expected AND, OR or the end"),
        ("(PercentComplete = 1", r"expected AND, OR or \)"),
        ("PercentComplete = 'x", 'at character 19: "\'x"'),
        ("= 3", "at character 1: expected the name of a property"),
        ("and = 3", "expected the name of a property"),
        ("PercentComplete is 3", "expected NULL"),
        ("PercentComplete not = 3", "expected LIKE"),
        ("PercentComplete like 3", "LIKE takes a text"),
        ("PercentComplete < null", "NULL is neither less"),
        ("PercentComplete = 3; drop", "at character 20"),
        ("not " * 40 + "PercentComplete = 3", "more than 32"),
        ("(" * 5000, "characters"),
        ("(" * 40 + "PercentComplete = 3" + ")" * 40, "more than 32"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_place(expression: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        Where(expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("Colour = 1", "no property Colour"),
        ("PercentComplete = 42 or Colour = 1", "no property Colour"),
        ("PercentComplete = '42'", "a number, and is compared with a text"),
        ("ElementName > 3", "a text, and is compared with a number"),
        ("Cancellable = 1", "a truth value, and is compared with a number"),
    ],
)
def test_what_does_not_fit_the_object_is_an_error_and_no_answer(expression: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        Where(expression).matches(VALUES)


@pytest.mark.parametrize(
    ("expression", "may_fit"),
    [
        ("A = 1 and B = 2", True),
        ("A = 2 and B = 2", False),
        ("B = 2 and A = 2", False),
        ("A = 1 or B = 2", True),
        ("A = 2 or B = 2", True),
        ("A = 2 or not (A = 1 or B = 2)", False),
        ("not (A = 1 and B = 2)", True),
        ("not A = 1 and B like '%'", False),
        ("B is null", True),
        ("B is not null or A = 2", True),
    ],
)
def test_what_is_unknown_fits_unless_the_rest_decides(expression: str, may_fit: bool) -> None:
    assert Where(expression).matches({"A": 1, "B": cim.UNKNOWN}) is may_fit


@given(
    words=st.lists(st.sampled_from(["and", "or", "and not", "or not"]), min_size=1, max_size=6),
    values=st.lists(st.integers(0, 2), min_size=7, max_size=7),
    known=st.sets(st.sampled_from("ABCDEFG")),
)
def test_what_fits_when_all_is_known_may_fit_before(words: list[str], values: list[int], known: set[str]) -> None:
    names = "ABCDEFG"[: len(words) + 1]
    where = Where("A = 1 " + " ".join(f"{word} {name} = 1" for word, name in zip(words, names[1:], strict=True)))
    whole = dict(zip(names, values, strict=False))
    if where.matches(whole):
        assert where.matches({name: value if name in known else cim.UNKNOWN for name, value in whole.items()})


@pytest.mark.parametrize("state", JobState)
def test_what_is_said_of_a_state_is_so_of_each_job_in_it(state: JobState) -> None:
    of_all = cim.of_state(state)
    for job in (
        a_job(state=state, phase="finishing", error="!", error_code=0x80070070, error_class="OSError", percent=12),
        a_job(state=state, phase="copying", user="anna", started=5.0, elapsed=2.0, undo="/u", rolled_back=True),
    ):
        values = cim.properties(job, 200.0, "HOST")
        assert list(of_all) == list(values)
        assert {name: values[name] for name in of_all if of_all[name] is not cim.UNKNOWN} == {
            name: value for name, value in of_all.items() if value is not cim.UNKNOWN
        }


@given(text=st.text(alphabet="ab_c", max_size=12), pattern=st.text(alphabet="ab_%", max_size=8))
def test_like_is_what_a_regular_expression_says(text: str, pattern: str) -> None:
    meant = "".join({"%": ".*", "_": "."}.get(letter, re.escape(letter)) for letter in pattern)
    expected = re.fullmatch(meant, text, re.DOTALL) is not None
    assert Where(f"T like '{pattern}'").matches({"T": text}) is expected


@given(st.text(max_size=80))
def test_no_text_does_anything_but_be_read_or_refused(expression: str) -> None:
    with contextlib.suppress(FilterError):
        Where(expression).matches(VALUES)


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not Where("T like '" + "%a" * 1000 + "b'").matches({"T": "a" * 4000})
