"""Chains in a bucket of S3, as moto has one on this machine."""

from __future__ import annotations

import errno
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

import vhdkit
from tests.serve.disks import SIZE, on_disk
from vhdkit.errors import ReadOnlyImageError
from vhdkit.storage import http_transport, remote_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.model import ModelChain

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="needs s3fs")
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, model: ModelChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(http_transport, "FIRST_PAUSE_SECONDS", 0.001)
    http_transport.forget_transports()
    client = pytest.importorskip("boto3").client("s3")
    client.create_bucket(Bucket="backups")
    for path in on_disk(model, tmp_path / "chain").parent.iterdir():
        client.put_object(Bucket="backups", Key=f"vms/{path.name}", Body=path.read_bytes())
    yield client
    http_transport.forget_transports()


LEAF = "s3://backups/vms/layer-2.avhd"


@pytest.mark.usefixtures("bucket")
def test_a_chain_reads_as_the_model_says(model: ModelChain) -> None:
    with vhdkit.open_chain(LEAF) as chain:
        assert len(chain.layers) == 3
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    assert vhdkit.check(LEAF, chain=True).exit_code == 0


def test_an_object_that_changes_is_an_error(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_cache", remote_file.BlockCache(0))
    with vhdkit.open_chain(LEAF) as chain:
        chain.read(0, SIZE)
        old = bucket.get_object(Bucket="backups", Key="vms/layer-0.vhd")["Body"].read()
        bucket.put_object(Bucket="backups", Key="vms/layer-0.vhd", Body=old[:-600] + b"changed!" + old[-592:])
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


def test_a_store_that_cannot_be_reached_is_an_error(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del bucket
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(http_transport, "ATTEMPTS", 2)
    http_transport.forget_transports()
    with pytest.raises(OSError, match="in vain"):
        vhdkit.open_chain(LEAF)


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
    transport, body = http_transport.transport_for("s3"), _Body()
    version = transport.version(LEAF)

    async def get_object(**_wanted: str) -> dict[str, Any]:
        return {"Body": body, "ETag": version.etag, "ContentRange": answered.format(size=version.size)}

    monkeypatch.setattr(http_transport, "ATTEMPTS", 1)

    async def client() -> SimpleNamespace:
        return SimpleNamespace(get_object=get_object)

    monkeypatch.setattr(transport, "_system", SimpleNamespace(set_session=client, loop=transport._system.loop))  # noqa: SLF001
    with pytest.raises(OSError, match=error):
        transport.ranges(LEAF, version, [(0, 512)])
    assert body.sent <= 513
