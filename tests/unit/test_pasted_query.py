from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdkit.job.wql import Where
from vhdkit.job.wql_tokens import FilterError

# What administrators type on a Hyper-V host, as they have written it down.
THE_QUERY = "select * from Msvm_ConcreteJob where ElementName = 'Merge in Progress'"
THE_FILTER = "$_.ElementName -eq 'Merge in Progress' -and $_.PercentComplete -lt 50"
THE_SLIP = "$_.ElementName - eq 'Merge in Progress' - and $_.PercentComplete - lt 50"

MERGING: dict[str, Any] = {
    "ElementName": "Merge in Progress",
    "PercentComplete": 42,
    "Cancellable": True,
    "Notify": None,
    "JobState": 4,
}
DONE = {**MERGING, "ElementName": "Merge Completed", "PercentComplete": 100, "Cancellable": False, "JobState": 7}


@pytest.mark.parametrize(
    "query",
    [
        THE_QUERY,
        f"{THE_QUERY};",
        "SELECT * FROM msvm_concretejob WHERE ElementName LIKE 'Merge in%' AND NOT PercentComplete = 100",
        "select *\nfrom Msvm_ConcreteJob\nwhere Notify IS NULL and JobState = 4",
        "select * from Msvm_StorageJob where JobState <> 7",
        THE_FILTER,
        THE_SLIP,
        f"{{ {THE_FILTER} }}",
        f"{{$_.Cancellable -and {THE_FILTER}}}",
        "-not ($_.JobState -eq 7)",
        "!($_.JobState -eq 7) -and !$_.Notify -or $_.Cancellable",
        "$_.Notify -eq $null -and $_.Cancellable -eq $true",
        "$_.ElementName -like 'merge in *' -and $_.ElementName -notlike '*complete?'",
        "$PSItem.JobState -ieq 4",
        rf"Get-WmiObject -Namespace root\virtualization Msvm_ConcreteJob | where {{ {THE_FILTER} }}",
        rf"gwmi Msvm_ConcreteJob -Namespace 'root\virtualization\v2' | ? {{{THE_SLIP}}}",
        rf"Get-CimInstance -ClassName Msvm_ConcreteJob -Namespace root/virtualization | Where-Object {{{THE_FILTER}}}",
        rf'Get-WmiObject -Namespace root\virtualization -Query "{THE_QUERY}"',
        'Get-WmiObject -Class Msvm_ConcreteJob -Filter "JobState = 4"',
    ],
)
def test_a_query_for_merges_in_progress_is_taken_as_it_was_pasted(query: str) -> None:
    where = Where(query)
    assert (where.matches(MERGING), where.matches(DONE)) == (True, False)


@pytest.mark.parametrize("query", ["select * from Msvm_ConcreteJob", "Get-WmiObject Msvm_ConcreteJob"])
def test_a_query_without_a_condition_asks_for_every_job(query: str) -> None:
    assert Where(query).matches(MERGING)
    assert Where(query).matches(DONE)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("select * from Win32_Process where Name = 'x'", "no class Win32_Process"),
        ("select ElementName from Msvm_ConcreteJob", "SELECT ElementName is not known"),
        ("select count(*) from Msvm_ConcreteJob", r"SELECT count\(\*\) is not known"),
        ("select * from Msvm_ConcreteJob within 5 where JobState = 4", "within is not known"),
        ("select * from Msvm_ConcreteJob where JobState = 4 group within 5", "GROUP, at character 51"),
        ("select * from Msvm_ConcreteJob where JobState = 4 order by JobState", "ORDER, at character 51"),
        ("select * from Msvm_ConcreteJob where TargetInstance isa 'Msvm_ConcreteJob'", "ISA, at character 53"),
        ("select *", "no FROM"),
        ("associators of {Msvm_ConcreteJob} where AssocClass = Msvm_AffectedJobElement", "ASSOCIATORS OF"),
        ("references of {Msvm_ConcreteJob}", "REFERENCES OF"),
        ("JobType = 50 and JobState = 4", "no property JobType"),
        ("$_.JobState -match '4'", "PowerShell's -match, at character 13, is not known"),
        ("$_.JobState -ceq 4", "-ceq"),
        ("$_.Colour -eq 4", "no property Colour"),
        ("-not $_.JobState -eq 4", "needs parentheses"),
        ("{ $_.JobState -eq 4", "a { without }"),
        ("{ $_.JobState -eq 4 } | ft", r"'\| ft' is not known"),
        ("Get-WmiObject Win32_Process", "no class Win32_Process"),
        (r"Get-WmiObject -Namespace root\cimv2 Msvm_ConcreteJob", "no namespace root"),
        ("Get-WmiObject -ComputerName HV01 Msvm_ConcreteJob", "-computername of Get-WmiObject"),
        ("Get-WmiObject Msvm_ConcreteJob | select ElementName", r"'\| select ElementName' is not known"),
        ("Get-WmiObject", "names no class"),
        ("Get-WmiObject -Query", "-query has no value"),
        ("ElementName like 'a[b'", r"a \[ without \]"),
    ],
)
def test_what_wmi_has_and_a_filter_of_merges_lacks_is_refused_by_name(query: str, name: str) -> None:
    with pytest.raises(FilterError, match=name):
        Where(query).matches(MERGING)


def test_a_place_in_a_pasted_query_is_counted_from_its_begin() -> None:
    with pytest.raises(FilterError, match="at character 56: expected a value"):
        Where("select * from Msvm_ConcreteJob where PercentComplete < or")
    with pytest.raises(FilterError, match="at character 44: expected a value"):
        Where("gwmi Msvm_ConcreteJob | ? { $_.JobState -eq }")


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("JobState = 4 or JobState = 4 and JobState = 7", True),
        ("$_.JobState -eq 4 -or $_.JobState -eq 4 -and $_.JobState -eq 7", False),
        ("$_.JobState -eq 7 -and $_.JobState -eq 7 -or $_.JobState -eq 4", True),
        ("$_.JobState -eq 4 -or ($_.JobState -eq 4 -and $_.JobState -eq 7)", True),
    ],
)
def test_and_and_or_bind_as_in_the_language_that_is_written(expression: str, fits: bool) -> None:
    assert Where(expression).matches(MERGING) is fits


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("[l-n]erge in Progress", True),
        ("[^a-c]erge%", True),
        ("[^l-n]erge%", False),
        ("M[a=f]rge%", True),
        ("%Progres[st]", True),
        ("%Progre[]s]s", True),
        ("Merge[ ]in[-_ ]Progress", True),
    ],
)
def test_a_pattern_may_have_sets_of_letters(pattern: str, fits: bool) -> None:
    assert Where(f"ElementName like '{pattern}'").matches(MERGING) is fits


WORDS = ["select * from", "Msvm_ConcreteJob", "where", "gwmi", "|", "{", "}", "$_.JobState", "- eq", "-not", "4", "'x'"]


@given(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
def test_no_query_does_anything_but_be_read_or_refused(query: str) -> None:
    with contextlib.suppress(FilterError):
        Where(query).matches(MERGING)
