"""Chains of other machines, by HTTP: the same disk, a bounded number of round trips, and never a mixture."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import spawn
from tests.conformance.tools import requires
from tests.plainvhd import flat, parse
from tests.serve.disks import SIZE
from tests.serve.nbd_client import NbdClient
from vhdkit.errors import MissingExtraError, ReadOnlyImageError
from vhdkit.serve.mounted_files import MountedChain
from vhdkit.storage import remote_file, transport
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.remote_paths import is_remote, remote_place

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model import ModelChain
    from tests.remote.range_server import RangeServer


MIB = 1 << 20


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("fsspec", reason="needs fsspec")
    pytest.importorskip("aiohttp", reason="needs aiohttp")


@pytest.fixture
def leaf(server: RangeServer) -> str:
    return f"{server.url}/layer-2.avhd"


# Reading


def test_a_chain_reads_as_the_model_says(model: ModelChain, leaf: str) -> None:
    with vhdkit.open_chain(leaf) as chain:
        assert len(chain.layers) == 3
        assert chain.read(0, SIZE) == model.read(0, SIZE)


def test_the_verbs_that_read_work_on_it(model: ModelChain, leaf: str, folder: Path, tmp_path: Path) -> None:
    raw, new = tmp_path / "out.raw", tmp_path / "new.vhd"
    local = str(folder / "layer-2.avhd")
    assert vhdkit.hash_image(leaf)[0].digest == vhdkit.hash_image(local)[0].digest
    vhdkit.convert(leaf, raw, output_format="raw")
    assert raw.read_bytes() == model.read(0, SIZE)
    assert vhdkit.check(leaf, chain=True).exit_code == 0
    assert vhdkit.compare(leaf, local).equal
    vhdkit.merge(vhdkit.plan_merge(leaf, to=new))
    assert flat([parse(new)]).tobytes() == model.read(0, SIZE)


def test_the_command_line_takes_a_url(leaf: str, tmp_path: Path) -> None:
    assert spawn("info", leaf, cwd=tmp_path).code == 0
    shown = spawn("chain", leaf, cwd=tmp_path).out
    assert shown.splitlines()[0].endswith(leaf)
    assert spawn("merge", leaf, "--to", "new.vhd", "--progress", "none", cwd=tmp_path).code == 0
    assert vhdkit.compare(leaf, tmp_path / "new.vhd").equal


def test_files_are_told_by_their_urls(leaf: str, folder: Path, tmp_path: Path) -> None:
    (folder / "layer-0.vhd").rename(folder / "renamed.vhd")
    url = leaf.rpartition("/")[0]
    (folder / "layer-1.avhd").rename(folder / "a b.avhd")
    shown = spawn("info", f"{url}/a%20b.avhd", "--json", cwd=tmp_path)
    assert json.loads(shown.out)["filename"] == f"{url}/a%20b.avhd"
    failed = spawn("chain", f"{url}/a%20b.avhd", "--json", cwd=tmp_path)
    error = json.loads(failed.out)["error"]
    assert failed.code == 1
    assert error["filename"] == f"{url}/a%20b.avhd"
    assert {each["filename"] for each in error["candidates"]} >= {f"{url}/layer-0.vhd"}
    assert f"vhdkit: {url}/a%20b.avhd: its parent" in failed.err
    assert "//http/" not in failed.out + failed.err


def test_it_is_served_to_other_programs(model: ModelChain, leaf: str) -> None:
    requires("nbdkit")
    with vhdkit.open_chain(leaf) as chain, vhdkit.serve_nbd(chain) as served, NbdClient(served.uri) as client:
        assert client.read(0, SIZE) == model.read(0, SIZE)


def test_it_is_mounted(model: ModelChain, leaf: str) -> None:
    with vhdkit.open_chain(leaf) as chain:
        buffer = bytearray(SIZE)
        assert MountedChain(chain).read_into("/disk.raw", 0, memoryview(buffer)) == SIZE
    assert buffer == model.read(0, SIZE)


def test_names_with_spaces_and_signs_are_found(model: ModelChain, folder: Path, server: RangeServer) -> None:
    (folder / "layer-2.avhd").rename(folder / "a b+%#?.avhd")
    with vhdkit.open_chain(f"{server.url}/a%20b%2B%25%23%3F.avhd") as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)


# What it costs


def test_what_was_read_is_kept_and_is_bounded(server: RangeServer, leaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = remote_file.BlockCache(2 * remote_file.BLOCK_BYTES)
    monkeypatch.setattr(remote_file, "_cache", cache)
    with vhdkit.open_chain(leaf) as chain:
        for _ in range(3):
            chain.read(0, SIZE)
        assert cache._total <= 2 * remote_file.BLOCK_BYTES  # noqa: SLF001 - the bound is the test
    monkeypatch.setattr(remote_file, "_cache", remote_file.BlockCache(8 * MIB))
    with vhdkit.open_chain(leaf) as chain:
        chain.read(0, SIZE)
        before = len(server.requests)
        chain.read(0, SIZE)
        assert len(server.requests) == before


def test_long_ranges_are_read_whole(server: RangeServer) -> None:
    """A body comes in pieces, and one read of it gives the first of them."""
    content = os.urandom(8 * MIB)
    (server.folder / "long").write_bytes(content)
    with LocalFolder().open(f"{server.url}/long") as storage:
        buffer = bytearray(len(content))
        assert storage.read_into(0, buffer) == len(content)
        assert buffer == content


def test_a_file_that_was_never_closed_leaves_nothing_to_the_next(server: RangeServer) -> None:
    """Objects get each other's places in memory."""
    for name in "ab":
        (server.folder / name).write_bytes(name.encode() * MIB)
    buffer = bytearray(MIB)
    for _ in range(30):
        for name in "ab":
            # Not closed, and gone with the next one.
            LocalFolder().open(f"{server.url}/{name}").read_into(0, buffer)
            assert set(buffer) == {ord(name)}


# Faults


@pytest.mark.parametrize("fault", ["close", "short", "503", "429"])
def test_what_fails_for_a_while_is_asked_for_again(
    model: ModelChain, server: RangeServer, leaf: str, fault: str
) -> None:
    server.fault = lambda count, _path: fault if count < 3 else None
    with vhdkit.open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)


@pytest.mark.parametrize("fault", ["close", "short", "503", "stall"])
def test_what_fails_for_good_is_an_error(
    server: RangeServer, leaf: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(transport, "ATTEMPTS", 2)
    server.fault = lambda _number, path: fault if path == "/layer-0.vhd" else None
    # Where a parent's server fails, that is among what was tried as a parent.
    with pytest.raises((OSError, vhdkit.ParentNotFoundError), match="in vain"):
        vhdkit.open_chain(leaf)


@pytest.mark.parametrize("fault", ["302", "401", "403", "410"])
def test_what_a_server_says_of_files_that_are_not_there_is_no_failure(
    model: ModelChain, server: RangeServer, leaf: str, folder: Path, fault: str
) -> None:
    server.fault = lambda _number, path: None if (folder / path.lstrip("/")).exists() else fault
    with vhdkit.open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)


@pytest.mark.parametrize(("fault", "number"), [("302", errno.EREMOTE), ("403", errno.EACCES), ("whole", 95)])
def test_what_is_no_answer_is_not_asked_for_again(server: RangeServer, leaf: str, fault: str, number: int) -> None:
    server.fault = lambda _number, _path: fault
    with pytest.raises(OSError, match="the server") as caught:
        vhdkit.open_chain(leaf)
    assert caught.value.errno == number
    assert len(server.requests) <= 3


@pytest.mark.parametrize("has_etags", [True, False])
def test_a_file_that_changes_is_an_error_and_never_a_mixture(
    folder: Path, server: RangeServer, leaf: str, monkeypatch: pytest.MonkeyPatch, has_etags: bool
) -> None:
    monkeypatch.setattr(remote_file, "_cache", remote_file.BlockCache(0))
    server.has_etags = has_etags
    with vhdkit.open_chain(leaf) as chain:
        chain.read(0, SIZE)
        path = folder / "layer-0.vhd"
        path.write_bytes(path.read_bytes().replace(path.read_bytes()[8192:8200], b"changed!"))
        os.utime(path, (1, 1))
        with pytest.raises(OSError, match="it has changed") as caught:
            chain.read(0, SIZE)
        assert caught.value.errno == errno.ESTALE


def test_a_server_that_heeds_no_condition_is_found_out_by_its_date(
    server: RangeServer, leaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_cache", remote_file.BlockCache(0))
    server.has_etags = server.heeds_conditions = False
    with vhdkit.open_chain(leaf) as chain:
        os.utime(server.folder / "layer-0.vhd", (1, 1))
        with pytest.raises(OSError, match="it has changed") as caught:
            chain.read(0, SIZE)
        assert caught.value.errno == errno.ESTALE


def test_another_part_than_was_asked_for_is_refused(server: RangeServer, leaf: str) -> None:
    server.fault = lambda _number, _path: "shifted"
    with pytest.raises(OSError, match="another part") as caught:
        vhdkit.open_chain(leaf)
    assert caught.value.errno == errno.EIO


def test_a_file_that_is_not_there_is_not_found(server: RangeServer) -> None:
    with pytest.raises(FileNotFoundError):
        vhdkit.open_chain(f"{server.url}/nope.vhd")


@pytest.mark.usefixtures("own_transports")
def test_without_the_library_its_extra_is_named(leaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.asyn", None)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"vhdkit\[remote\]"):
        vhdkit.open_chain(leaf)


# What is refused


def test_nothing_is_written_there(leaf: str, server: RangeServer) -> None:
    before = {path: path.read_bytes() for path in server.folder.iterdir()}
    with pytest.raises(ReadOnlyImageError, match="only read"):
        vhdkit.open_chain(leaf, writable=True)
    with pytest.raises((vhdkit.VhdError, OSError)):
        vhdkit.merge(vhdkit.plan_merge(leaf))
    with pytest.raises(ReadOnlyImageError, match="only read"):
        vhdkit.create_image(f"{server.url}/new.vhd", size=MIB)
    assert {path: path.read_bytes() for path in server.folder.iterdir()} == before


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a.vhd",
        "sftp://user:secret@host/a.vhd",
        "sftp://host/a.vhd?token=secret",
        "sftp://-oProxyCommand=secret/a.vhd",
        "sftp://$(secret)@host/a.vhd",
        "sftp://host:secret/a.vhd",
        "//sftp/$(secret)@host/a.vhd",
        "//http/user:secret@host/a.vhd",
        "file:///etc/passwd",
        "http://user:secret@host/a.vhd",
        "http://host/a.vhd?token=secret",
        "http:///a.vhd",
    ],
)
def test_urls_of_other_kinds_are_refused_without_telling_what_is_secret(url: str) -> None:
    with pytest.raises(ValueError, match="://") as caught:
        vhdkit.open_chain(url)
    assert "secret" not in str(caught.value)


# Paths


@pytest.mark.parametrize(
    ("url", "rooted"),
    [
        ("http://nas/vms/a.vhd", "//http/nas/vms/a.vhd"),
        ("https://NAS:8443/a%20b.vhd", "//https/nas:8443/a b.vhd"),
        ("http://nas/vms/../a.vhd", "//http/nas/a.vhd"),
        ("http://nas/%2e%2e/%2e%2e/a.vhd", "//http/nas/a.vhd"),
        ("http://nas", "//http/nas/"),
        ("sftp://Admin@NAS:2222/a.vhd", "//sftp/Admin@nas:2222/a.vhd"),
        ("sftp://[::1]:22/vms//b%FF.vhd", "//sftp/[::1]:22/vms/b\udcff.vhd"),
        ("sftp://me@corp@nas/%2e%2e/a.vhd", "//sftp/me@corp@nas/a.vhd"),
    ],
)
def test_urls_are_paths(url: str, rooted: str) -> None:
    assert remote_place(url).rooted == rooted
    assert remote_place(rooted).rooted == rooted
    assert remote_place(remote_place(rooted).url).rooted == rooted
    assert is_remote(url)
    assert is_remote(rooted)


@pytest.mark.parametrize("path", ["a.vhd", "/http/nas/a.vhd", "//etc/passwd", "///http/nas", "C:\\a", "a:b", "//http"])
def test_paths_of_this_machine_are_no_urls(path: str) -> None:
    assert not is_remote(path)
