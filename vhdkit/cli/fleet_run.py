"""Carrying out the plan of a fleet's verb, or saying what it is: the reports, and the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vhdkit.cli.exit_codes import ExitCode
from vhdkit.cli.failure import explain, say
from vhdkit.cli.fleet_view import print_plan, print_report, screen_shown
from vhdkit.cli.output import echo
from vhdkit.cli.signals import stopping
from vhdkit.fleet import ChainOutcome, FleetVerb, run_plan, write_report
from vhdkit.fleet.dispatch import not_begun
from vhdkit.fleet.measure import measure_merges, measured_loads
from vhdkit.fleet.report import check_report_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.fleet import FleetOptions, FleetPlan, FleetReport
    from vhdkit.fleet.cluster import Cluster


# As those of `check`: corrupt, could not be checked, space is lost.
_CORRUPT, _NOT_CHECKED, _LEAKS = 2, 1, 3


def check_reports(reports: Sequence[str]) -> None:
    """Refuse what could not be written as a report before anything is begun."""
    for path in reports:
        try:
            check_report_path(path)
        except ValueError as error:
            raise click.UsageError(str(error)) from error


def say_or_do(
    plan: FleetPlan,
    options: FleetOptions,
    cluster: Cluster | None,
    reports: tuple[str, ...],
    *,
    parallel: int | None,
    dry_run: bool,
    keep_going: bool,
    progress: str | None,
    as_json: bool,
) -> int:
    """Carry a plan out, or with `dry_run` say what it is; return the exit code."""
    if dry_run and reports:
        raise click.UsageError("--report is of what was done: --dry-run goes with --json")
    if dry_run:
        return _say_plan(plan, options, cluster, parallel, as_json=as_json)
    is_refused = bool(plan.obstacles) and not keep_going
    report = _carry_out(plan, cluster, parallel, progress, is_refused=is_refused)
    return _tell(report, reports, as_json=as_json, is_refused=is_refused)


def _say_plan(
    plan: FleetPlan, options: FleetOptions, cluster: Cluster | None, parallel: int | None, *, as_json: bool
) -> int:
    merges = measure_merges(plan, cluster, parallel=parallel) if plan.verb is FleetVerb.MERGE else ()
    loads = measured_loads(plan, merges, options.rate) if merges else plan.loads
    print_plan(plan, merges, loads, as_json=as_json)
    is_refused = bool(plan.obstacles) or any(each.obstacles for each in merges)
    return ExitCode.FAILED if is_refused or any(load.lacks_space for load in loads) else ExitCode.DONE


def _carry_out(
    plan: FleetPlan, cluster: Cluster | None, parallel: int | None, progress: str | None, *, is_refused: bool
) -> FleetReport:
    if is_refused or not plan.tasks:
        return not_begun(plan)
    with screen_shown(progress, plan) as advance, stopping() as cancel:
        return run_plan(plan, cluster, parallel=parallel, progress=advance, cancel=cancel)


def _tell(report: FleetReport, reports: Sequence[str], *, as_json: bool, is_refused: bool) -> int:
    """Write the reports that were asked for, print what came of it, and return the exit code.

    The reports come first: the reader of a pipe may be gone.
    """
    lost = _write_reports(report, reports)
    print_report(report, as_json=as_json)
    if is_refused:
        echo("nothing was begun; --keep-going begins with the other chains", err=True)
    for error in lost:
        say(explain(error))
    return _exit_code(report) or (ExitCode.FAILED if lost else ExitCode.DONE)


def _write_reports(report: FleetReport, reports: Sequence[str]) -> list[OSError]:
    """Write every report that can be written; return why others cannot."""
    lost = []
    for path in reports:
        try:
            write_report(report, path)
        except OSError as error:
            lost.append(error)
    return lost


def _exit_code(report: FleetReport) -> int:
    there = {chain.outcome for chain in report.failures}
    if report.is_cancelled:
        return ExitCode.INTERRUPTED
    if ChainOutcome.CORRUPT in there:
        return _CORRUPT
    if there & {ChainOutcome.FAILED, ChainOutcome.NOT_CHECKED, ChainOutcome.CANCELLED, ChainOutcome.NOT_BEGUN}:
        return _NOT_CHECKED
    if ChainOutcome.IN_USE in there:
        return ExitCode.IN_USE
    return _LEAKS if there else ExitCode.DONE
