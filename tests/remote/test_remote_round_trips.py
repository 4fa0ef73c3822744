"""What opening and mapping a chain takes, by each protocol: the round trips, counted at the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.remote.round_trips import HttpTrips, SftpTrips
from vhdkit.storage.transports import transport_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.remote.conftest import Bucket
    from tests.remote.range_server import RangeServer
    from tests.remote.round_trips import RoundTrips
    from tests.remote.sftp_server import SftpServer

MIB = 1 << 20
MOST_TRIPS = 12


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """The folder of a chain of two with a disk of 2 GiB, which has data in a few blocks."""
    folder = tmp_path / "large"
    folder.mkdir()
    base, leaf = folder / "base.vhd", folder / "leaf.avhd"
    vhdkit.create_image(base, size=2 << 30, block_size=MIB // 2)
    with vhdkit.open_chain(base, writable=True) as chain:
        for at in range(0, 2 << 30, 64 * MIB):
            chain.write(at, b"x" * 4096)
    vhdkit.create_image(leaf, parent=base)
    with vhdkit.open_chain(leaf, writable=True) as chain:
        for at in range(0, 2 << 30, 512 * MIB):
            chain.write(at + MIB, b"y" * 4096)
    return folder


def extents_of(leaf: Path | str) -> list[tuple[object, ...]]:
    with vhdkit.open_chain(leaf) as chain:
        return [tuple(each) for extents in chain.extents() for each in extents]


def assert_few(trips: RoundTrips, path: str) -> None:
    assert not trips.is_broken, "requests that should be made together are made one after the other"
    for layer in ("base.vhd", "leaf.avhd"):
        assert 2 <= trips.of_layer(f"{path}/{layer}") <= MOST_TRIPS, trips.of


def test_by_http(large: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = extents_of(large / "leaf.avhd")
    server.folder = large
    trips = HttpTrips(monkeypatch)
    server.before_answer = trips.arrive
    assert extents_of(f"{server.url}/leaf.avhd") == expected
    assert_few(trips, "")
    assert server.bytes_sent["/base.vhd"] + server.bytes_sent["/leaf.avhd"] < 2 * MIB


def test_by_s3(large: Path, empty_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = extents_of(large / "leaf.avhd")
    empty_bucket.upload(large)
    trips = HttpTrips(monkeypatch)
    empty_bucket.server.before_answer = trips.arrive
    assert extents_of("s3://backups/vms/leaf.avhd") == expected
    assert_few(trips, "/backups/vms")


def test_by_sftp(large: Path, sftp_server: SftpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = extents_of(large / "leaf.avhd")
    trips = SftpTrips(monkeypatch, transport_for("sftp").loop)
    sftp_server.on_request, sftp_server.before_answer = trips.arrive, trips.hold
    assert extents_of(f"{sftp_server.url}{large}/leaf.avhd") == expected
    assert_few(trips, str(large))


def test_requests_that_are_not_made_together_are_found(
    large: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is one that can fail: a client that makes requests one by one is stuck, and gets an error."""
    monkeypatch.setattr("tests.remote.round_trips.PATIENCE_SECONDS", 0.2)
    server.folder = large
    trips = HttpTrips(monkeypatch)
    server.before_answer = trips.arrive
    # One permit, whatever the client asks for.
    monkeypatch.setattr(asyncio, "Semaphore", lambda _permits: asyncio.Lock())
    extents_of(f"{server.url}/leaf.avhd")
    assert trips.is_broken
