"""Chains in a bucket of S3, as moto has one on this machine."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

import vhdkit
from tests.serve.disks import SIZE
from vhdkit.errors import ReadOnlyImageError
from vhdkit.storage import remote_file, transport, transports
from vhdkit.storage.remote_paths import remote_place

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model import ModelChain
    from tests.remote.conftest import Bucket

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


LEAF = "s3://backups/vms/layer-2.avhd"


@pytest.mark.usefixtures("bucket")
def test_a_chain_reads_as_the_model_says(model: ModelChain) -> None:
    with vhdkit.open_chain(LEAF) as chain:
        assert len(chain.layers) == 3
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    assert vhdkit.check(LEAF, chain=True).exit_code == 0


def test_an_object_that_changes_is_an_error(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_cache", remote_file.BlockCache(0))
    with vhdkit.open_chain(LEAF) as chain:
        chain.read(0, SIZE)
        old = bucket.client.get_object(Bucket="backups", Key="vms/layer-0.vhd")["Body"].read()
        bucket.client.put_object(Bucket="backups", Key="vms/layer-0.vhd", Body=old[:-600] + b"changed!" + old[-592:])
        with pytest.raises(OSError, match="it has changed") as caught:
            chain.read(0, SIZE)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.usefixtures("bucket")
def test_what_is_not_there_is_not_found_and_nothing_is_written() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        vhdkit.open_chain("s3://backups/vms/nope.vhd")
    assert "secret" not in str(caught.value)
    with pytest.raises(ReadOnlyImageError, match="only read"):
        vhdkit.open_chain(LEAF, writable=True)


@pytest.mark.usefixtures("bucket", "own_transports")
def test_a_store_that_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(transport, "ATTEMPTS", 2)
    with pytest.raises(OSError, match="in vain"):
        vhdkit.open_chain(LEAF)


# Faults


@pytest.mark.parametrize("fault", ["close", "short", "503", "429"])
def test_what_fails_for_a_while_is_asked_for_again(model: ModelChain, bucket: Bucket, fault: str) -> None:
    bucket.server.fault = lambda count, _path: fault if count < 3 else None
    with vhdkit.open_chain(LEAF) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    assert len(bucket.server.requests) > 3 * 3


@pytest.mark.usefixtures("own_transports")
@pytest.mark.parametrize("fault", ["close", "short", "503", "stall"])
def test_what_fails_for_good_is_an_error(bucket: Bucket, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(transport, "ATTEMPTS", 2)
    bucket.server.fault = lambda _count, path: fault if path.endswith("/layer-0.vhd") else None
    with pytest.raises((OSError, vhdkit.ParentNotFoundError), match="in vain"):
        vhdkit.open_chain(LEAF)


def test_what_the_server_denies_is_not_asked_for_again(bucket: Bucket) -> None:
    bucket.server.fault = lambda _count, _path: "403"
    with pytest.raises(PermissionError, match="the server answers 403"):
        vhdkit.open_chain(LEAF)
    assert len(bucket.server.requests) == 1


def test_a_user_who_may_read_objects_and_not_list_them_reads_a_chain(
    model: ModelChain, bucket: Bucket, folder: Path
) -> None:
    """To such a user S3 says of keys that are not there that they are forbidden."""
    bucket.server.fault = lambda _count, path: None if (folder / path.rpartition("/")[2]).is_file() else "403"
    with vhdkit.open_chain(LEAF) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)


def test_a_server_that_sends_elsewhere_without_end_is_an_error(bucket: Bucket) -> None:
    bucket.server.fault = lambda _count, _path: "302"
    with pytest.raises(OSError, match="sends elsewhere") as caught:
        vhdkit.open_chain(LEAF)
    assert caught.value.errno == errno.EREMOTE


class _Body:
    """What a store sends: far more than was asked for, if it is asked for that."""

    def __init__(self) -> None:
        self.sent = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self, count: int = 1 << 30) -> bytes:
        self.sent += count
        return bytes(count)


@pytest.mark.parametrize(
    ("answered", "error"),
    [("bytes 0-511/{size}", "bytes came"), ("bytes 512-1023/{size}", "another part"), ("", "it has changed")],
)
@pytest.mark.usefixtures("bucket")
def test_no_more_is_read_than_was_asked_for_and_no_other_part(
    answered: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, body, place = transports.transport_for("s3"), _Body(), remote_place(LEAF)
    version = s3.version(place)

    async def get_object(**_wanted: str) -> dict[str, Any]:
        return {"Body": body, "ETag": version.etag, "ContentRange": answered.format(size=version.size)}

    monkeypatch.setattr(transport, "ATTEMPTS", 1)

    async def client() -> SimpleNamespace:
        return SimpleNamespace(get_object=get_object)

    monkeypatch.setattr(s3, "_system", SimpleNamespace(set_session=client))
    with pytest.raises(OSError, match=error):
        s3.ranges(place, version, [(0, 512)])
    assert body.sent <= 513
