from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path

import msgspec
import pytest

import vhdkit
from vhdkit.options import Follow, MergeRequest, ParentPolicy, RebaseRequest

# Arguments of the public functions that say how a plan is made or carried out, not what is asked for.
_OTHERS = {"path", "folder", "acting_for", "machine", "detached", "wait_in_line"}

request = MergeRequest.of(
    Path("a.avhd"),
    into="a.vhd",
    undo="undo.vhd",
    search=[Path("images")],
    parent_map={"C:\\vms": Path("vms")},
    parent="raw",
    rate=1 << 20,
    follow=Follow.SETTLE,
)


@pytest.mark.parametrize("function", [vhdkit.plan_merge, vhdkit.start_merge])
def test_a_request_has_every_argument_of_the_public_functions(function: object) -> None:
    names = set(inspect.signature(function).parameters) - _OTHERS  # type: ignore[arg-type] # both are functions
    assert names <= set(MergeRequest.__struct_fields__)
    assert set(inspect.signature(MergeRequest.of).parameters) == set(MergeRequest.__struct_fields__)


def test_a_request_passes_through_json_and_pickle_unchanged() -> None:
    record = json.loads(json.dumps(msgspec.to_builtins(request)))
    assert msgspec.convert(record, MergeRequest) == request
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - our own bytes
    other = RebaseRequest.of("a.avhd", "b.vhd", search=["images"])
    assert pickle.loads(pickle.dumps(other)) == other  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    "change", [{"rate": 0}, {"rate": "1"}, {"search": "images"}, {"follow": "rm"}, {"shell": "rm"}]
)
def test_a_record_that_is_no_request_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(request) | change, MergeRequest)


def test_every_path_of_a_request_is_converted() -> None:
    there = request.with_paths("/there/{}".format)
    assert sorted(there.paths) == sorted(f"/there/{path}" for path in request.paths)
    assert there.parent_map == {"C:\\vms": "/there/vms"}


def test_the_policy_of_a_request_is_what_was_asked() -> None:
    assert request.parents == ParentPolicy.of(["images"], {"C:\\vms": "vms"}, "raw")
    assert request.parents.folders == ("images", "vms")


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="more than none"):
        MergeRequest.of("a.avhd", rate=0)


def test_a_rebase_request_has_every_argument_of_the_public_functions() -> None:
    names = set(inspect.signature(vhdkit.plan_rebase).parameters) - _OTHERS
    assert names == set(inspect.signature(vhdkit.rebase).parameters) - _OTHERS
    assert names == set(inspect.signature(RebaseRequest.of).parameters)
