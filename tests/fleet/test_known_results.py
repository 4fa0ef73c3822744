"""New files that are there already, and the command that does one chain of a fleet by itself."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.fleet.machines_on_disk import make_machines, outcomes, plan_of, run_here
from vhdkit import fleet
from vhdkit.command_hints import command_words
from vhdkit.fleet.dispatch import not_begun
from vhdkit.options import EnsureRequest, MergeRequest

if TYPE_CHECKING:
    from pathlib import Path

    from vhdkit.fleet.requests import FleetRequest


def test_a_new_file_of_another_format_is_not_the_one_that_was_asked_for(vms: Path, tmp_path: Path) -> None:
    make_machines(vms, 1, levels=1)
    out = tmp_path / "out"
    out.mkdir()
    assert outcomes(run_here(plan_of(vms, "convert", destination=str(out), output_format="dynamic"))) == {"done": 1}
    report = run_here(plan_of(vms, "convert", destination=str(out), output_format="fixed"))
    assert outcomes(report) == {"failed": 1}
    assert isinstance(report.failures[0].error, FileExistsError)


@pytest.mark.parametrize("pattern", ["disk.vhd", "disk.avhd"])
def test_an_image_of_the_chain_is_not_its_new_file(vms: Path, pattern: str) -> None:
    """An empty child shows what its parent does, and the parent has the name of the child's new file."""
    vhdkit.create_image(str(vms / "disk.vhd"), size=1 << 20)
    vhdkit.create_image(str(vms / "disk.avhd"), parent=str(vms / "disk.vhd"))
    assert outcomes(run_here(plan_of(vms, "convert", pattern, destination=str(vms)))) == {"failed": 1}


PARENTS = fleet.ParentPolicy.of(["/more"])


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (fleet.CheckRequest(path="/a.vhd", deep=True, parents=PARENTS), ["--deep"]),
        (fleet.HashRequest(path="/a.vhd", algorithm="blake3", parents=PARENTS), ["--blake3"]),
        (fleet.ConvertRequest(path="/a.vhd", destination="/b", output_format="raw", parents=PARENTS), ["-O", "raw"]),
        (
            EnsureRequest(merge=MergeRequest.of("/a.avhd", into="/a.vhd", verify=True, search=["/more"]), leaf_id="ID"),
            ["--verify"],
        ),
    ],
)
def test_the_command_for_one_chain_by_itself_has_the_options_of_the_run(
    request_: FleetRequest, options: list[str]
) -> None:
    task = fleet.FleetTask(number=0, request=request_, targets=(), group=0, cost=1)
    (chain,) = not_begun(fleet.FleetPlan(verb=fleet.FleetVerb.CHECK, tasks=(task,))).chains
    assert chain.hint is not None
    words = shlex.split(command_words()(chain.hint).strip("`"))
    assert " ".join(options) in " ".join(words)
    assert words[words.index("--search") + 1] == "/more"
