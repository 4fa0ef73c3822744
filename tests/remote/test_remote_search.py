"""Parents that were renamed or moved, in folders of other machines: by id where they can be listed, else by name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import spawn
from tests.plainbuild import build, locator
from tests.remote.attacked_images import LEAF
from tests.remote.sftp_server import OPENDIR, READ, READDIR
from tests.serve.disks import SIZE
from vhdkit.storage import transport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.model import ModelChain
    from tests.remote.conftest import Bucket
    from tests.remote.range_server import RangeServer
    from tests.remote.sftp_server import SftpServer


@pytest.fixture(params=["s3", "sftp"])
def publish(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Serve a folder by a protocol that has listings, and return its URL."""
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("empty_bucket")

        def uploaded(folder: Path) -> str:
            bucket.upload(folder)
            return "s3://backups/vms"

        return uploaded
    server: SftpServer = request.getfixturevalue("sftp_server")
    return lambda folder: f"{server.url}{folder}"


def test_a_parent_that_was_renamed_is_found_by_its_id(
    model: ModelChain, folder: Path, publish: Callable[[Path], str]
) -> None:
    (folder / "layer-1.avhd").rename(folder / "renamed.bak")
    with vhdkit.open_chain(f"{publish(folder)}/layer-2.avhd") as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)
        assert any("found by unique id" in finding.text for finding in chain.findings)


def test_a_folder_to_search_is_looked_through_with_what_is_below(
    model: ModelChain, folder: Path, publish: Callable[[Path], str]
) -> None:
    (folder / "old" / "er").mkdir(parents=True)
    (folder / "vms").mkdir()
    (folder / "layer-0.vhd").rename(folder / "old" / "er" / "renamed.vhd")
    (folder / "layer-1.avhd").rename(folder / "old" / "layer-1.avhd")
    (folder / "layer-2.avhd").rename(folder / "vms" / "layer-2.avhd")
    url = publish(folder)
    with pytest.raises(vhdkit.ParentNotFoundError):
        vhdkit.open_chain(f"{url}/vms/layer-2.avhd")
    with vhdkit.open_chain(f"{url}/vms/layer-2.avhd", search=[f"{url}/old"]) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)


def test_of_two_files_with_the_id_none_is_taken(folder: Path, publish: Callable[[Path], str]) -> None:
    (folder / "layer-1.avhd").rename(folder / "one.avhd")
    (folder / "two.avhd").write_bytes((folder / "one.avhd").read_bytes())
    with pytest.raises(vhdkit.ParentNotFoundError, match="several files"):
        vhdkit.open_chain(f"{publish(folder)}/layer-2.avhd")


def test_a_folder_with_too_many_names_is_refused_and_not_looked_through_in_part(
    folder: Path, publish: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "layer-1.avhd").rename(folder / "renamed.avhd")
    url = publish(folder)
    monkeypatch.setattr(transport, "MOST_LISTED", 2)
    with pytest.raises(OSError, match="more than 2 names"):
        vhdkit.open_chain(f"{url}/layer-2.avhd")


def test_a_scan_shows_the_same_families_as_of_the_folder_itself(folder: Path, publish: Callable[[Path], str]) -> None:
    (folder / "below").mkdir()
    (folder / "layer-2.avhd").rename(folder / "below" / "layer-2.avhd")
    (folder / "damaged.vhd").write_bytes(b"no image" * 100)
    url = publish(folder)
    local, there = vhdkit.scan(folder), vhdkit.scan(url)
    assert [image.unique_id for image in there.bases] == [image.unique_id for image in local.bases]
    assert [image.unique_id for image in there.orphans] == [image.unique_id for image in local.orphans]
    assert len(there.unreadable) == len(local.unreadable) == 1


# Where folders cannot be listed


def test_a_web_server_is_asked_by_name_and_says_why_not_by_id(
    model: ModelChain, folder: Path, server: RangeServer
) -> None:
    (folder / "old").mkdir()
    (folder / "vms").mkdir()
    (folder / "layer-0.vhd").rename(folder / "old" / "layer-0.vhd")
    (folder / "layer-1.avhd").rename(folder / "old" / "layer-1.avhd")
    (folder / "layer-2.avhd").rename(folder / "vms" / "layer-2.avhd")
    leaf, search = f"{server.url}/vms/layer-2.avhd", [f"{server.url}/old"]
    with vhdkit.open_chain(leaf, search=search) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    (folder / "old" / "layer-1.avhd").rename(folder / "old" / "renamed.avhd")
    with pytest.raises(vhdkit.ParentNotFoundError) as caught:
        vhdkit.open_chain(leaf, search=search)
    reasons = {each.path: each.reason for each in caught.value.candidates if each.origin == "unique id"}
    assert [path.rpartition("/")[2] for path in reasons] == ["vms", "old"]
    assert set(reasons.values()) == {"folders cannot be listed by http"}


def test_a_parent_on_a_web_server_can_be_named(model: ModelChain, folder: Path, server: RangeServer) -> None:
    (folder / "old").mkdir()
    (folder / "layer-0.vhd").rename(folder / "old" / "renamed.vhd")
    leaf, parent = f"{server.url}/layer-2.avhd", f"{server.url}/old/renamed.vhd"
    with vhdkit.open_chain(leaf, parent=parent) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)


def test_a_leaf_here_has_its_parents_there_if_that_folder_is_named(
    model: ModelChain, folder: Path, publish: Callable[[Path], str], tmp_path: Path
) -> None:
    leaf = (folder / "layer-2.avhd").rename(tmp_path / "layer-2.avhd")
    url = publish(folder)
    with pytest.raises(vhdkit.ParentNotFoundError):
        vhdkit.open_chain(leaf)
    with vhdkit.open_chain(leaf, search=[url]) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)


@pytest.mark.parametrize("status", ["301", "403"])
def test_a_folder_that_a_web_server_does_not_show_is_no_failure_of_the_search(
    folder: Path, server: RangeServer, status: str
) -> None:
    """Which part of a path is missing is asked for folder by folder, and of folders servers say all sorts of things."""
    links = (locator(0, b"W2ru", ".\\sub\\gone.vhd"),)
    (folder / "leaf.avhd").write_bytes(build(replace(LEAF, parent_name="gone.vhd", locators=links)))
    server.fault = lambda _count, path: status if path == "/sub" else None
    with pytest.raises(vhdkit.ParentNotFoundError):
        vhdkit.open_chain(f"{server.url}/leaf.avhd")
    assert "/sub" in server.requests


def test_a_web_server_is_not_scanned(server: RangeServer) -> None:
    with pytest.raises(OSError, match="cannot be listed by http"):
        vhdkit.scan(server.url)


# What is asked for, and what is not


def test_a_parent_that_is_where_its_child_says_has_no_folder_listed(
    folder: Path, sftp_server: SftpServer, tmp_path: Path
) -> None:
    for number in range(5):
        (folder / f"other-{number}.vhd").write_bytes((folder / "layer-0.vhd").read_bytes())
    leaf = f"{sftp_server.url}{folder}/layer-2.avhd"
    with vhdkit.open_chain(leaf) as chain:
        chain.read(0, SIZE)
    vhdkit.merge(vhdkit.plan_merge(leaf, to=tmp_path / "new.vhd"))
    assert not {OPENDIR, READDIR} & {kind for kind, _ in sftp_server.requests}
    assert not [path for kind, path in sftp_server.requests if kind == READ and "other" in path]


def test_names_that_would_lead_out_of_a_folder_are_left_out(folder: Path, empty_bucket: Bucket) -> None:
    """S3 takes any key, and a listing of `vms/` has these as folders and files in it."""
    parent = (folder / "layer-1.avhd").read_bytes()
    (folder / "layer-1.avhd").unlink()
    empty_bucket.upload(folder)
    for key in ("vms/../outside/layer-1.bak", "vms//layer-1.bak", "vms/./layer-1.bak"):
        empty_bucket.client.put_object(Bucket="backups", Key=key, Body=parent)
    empty_bucket.server.forget()
    with pytest.raises(vhdkit.ParentNotFoundError):
        vhdkit.open_chain("s3://backups/vms/layer-2.avhd", search=["s3://backups/vms"])
    assert not [path for path in empty_bucket.server.requests if path.endswith("bak")]


def test_the_command_line_searches_a_url(folder: Path, sftp_server: SftpServer, tmp_path: Path) -> None:
    (folder / "old").mkdir()
    (folder / "layer-0.vhd").rename(folder / "old" / "renamed.vhd")
    leaf, search = f"{sftp_server.url}{folder}/layer-2.avhd", f"{sftp_server.url}{folder}/old"
    assert spawn("chain", leaf, cwd=tmp_path).code == 1
    assert spawn("chain", leaf, "--search", search, cwd=tmp_path).code == 0
    refused = spawn("chain", leaf, "--search", "ftp://host/old", cwd=tmp_path)
    assert refused.code == 64
    assert "ftp:// is not read here" in refused.err
