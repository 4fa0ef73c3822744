"""The same verbs over many chains, through any `concurrent.futures.Executor`.

    from vhdkit import fleet

    if __name__ == "__main__":  # the processes of a pool load the main module, too
        found = fleet.find_chains(fleet.Pattern.of("/vms/**/*.avhd"), fleet.ParentPolicy())
        plan = fleet.plan_fleet([found], fleet.FleetOptions(verb=fleet.FleetVerb.MERGE))
        report = fleet.run_plan(plan)  # or fleet.run(requests, executor, per_target=2)
        fleet.write_report(report, "night.html")

The names below are loaded when they are first used: a worker process needs few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdkit.fleet.dispatch import Begun, Ended, FleetEvent, Moved, WorkerLost, run, run_plan
    from vhdkit.fleet.find import FoundChain, FoundChains, find_chains
    from vhdkit.fleet.outcome import ChainOutcome
    from vhdkit.fleet.patterns import Pattern
    from vhdkit.fleet.plan import FleetPlan, FleetTask
    from vhdkit.fleet.planner import FleetOptions, plan_fleet, plan_requests
    from vhdkit.fleet.process_pool import ProcessPool
    from vhdkit.fleet.report import ChainReport, FleetReport, write_report
    from vhdkit.fleet.requests import CheckRequest, ConvertRequest, FleetVerb, HashRequest
    from vhdkit.options import EnsureRequest, MergeRequest, ParentPolicy

_HOMES = {
    "vhdkit.fleet.dispatch": ("Begun", "Ended", "FleetEvent", "Moved", "WorkerLost", "run", "run_plan"),
    "vhdkit.fleet.find": ("FoundChain", "FoundChains", "find_chains"),
    "vhdkit.fleet.outcome": ("ChainOutcome",),
    "vhdkit.fleet.patterns": ("Pattern",),
    "vhdkit.fleet.plan": ("FleetPlan", "FleetTask"),
    "vhdkit.fleet.planner": ("FleetOptions", "plan_fleet", "plan_requests"),
    "vhdkit.fleet.process_pool": ("ProcessPool",),
    "vhdkit.fleet.report": ("ChainReport", "FleetReport", "write_report"),
    "vhdkit.fleet.requests": ("CheckRequest", "ConvertRequest", "FleetVerb", "HashRequest"),
    "vhdkit.options": ("EnsureRequest", "MergeRequest", "ParentPolicy"),
}

__all__ = [
    "Begun",
    "ChainOutcome",
    "ChainReport",
    "CheckRequest",
    "ConvertRequest",
    "Ended",
    "EnsureRequest",
    "FleetEvent",
    "FleetOptions",
    "FleetPlan",
    "FleetReport",
    "FleetTask",
    "FleetVerb",
    "FoundChain",
    "FoundChains",
    "HashRequest",
    "MergeRequest",
    "Moved",
    "ParentPolicy",
    "Pattern",
    "ProcessPool",
    "WorkerLost",
    "find_chains",
    "plan_fleet",
    "plan_requests",
    "run",
    "run_plan",
    "write_report",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
