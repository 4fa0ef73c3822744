"""A chain, and each kind of server that it can be read from."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.remote.range_server import RangeServer
from tests.remote.s3_server import REGION, S3Server
from tests.serve.disks import model_of_three_layers, on_disk  # noqa: F401 - the first is a fixture
from vhdkit.storage import transport, transports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.model import ModelChain
    from tests.remote.sftp_server import SftpServer


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait long before it tries again."""
    monkeypatch.setattr(transport, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def own_transports() -> Iterator[None]:
    """Let the test make its own connections: those of S3 take a second or two, which other tests share."""
    transports.forget_transports()
    yield
    transports.forget_transports()


@pytest.fixture
def folder(model: ModelChain, tmp_path: Path) -> Path:
    """The folder with the chain's files, whose leaf is `layer-2.avhd`."""
    return on_disk(model, tmp_path / "chain").parent


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    """The folder, by HTTP."""
    with RangeServer(folder) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.stopping.set()
        found.shutdown()
        thread.join()


class Bucket(NamedTuple):
    """A bucket that is called `backups`."""

    server: S3Server
    client: Any

    def upload(self, folder: Path, prefix: str = "vms/") -> None:
        """Make an object of each file."""
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{prefix}{path.relative_to(folder)}"
                self.client.put_object(Bucket="backups", Key=key, Body=path.read_bytes())
        self.server.forget()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Moto's server, which takes two seconds to begin."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    transports.forget_transports()
    with S3Server() as found:
        yield found
    transports.forget_transports()


@pytest.fixture
def empty_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket, which the environment has the address and the key of."""
    s3_server.forget()
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    client = pytest.importorskip("boto3").client("s3")
    client.create_bucket(Bucket="backups")
    for each in client.list_objects_v2(Bucket="backups").get("Contents", ()):
        client.delete_object(Bucket="backups", Key=each["Key"])
    return Bucket(s3_server, client)


@pytest.fixture
def bucket(empty_bucket: Bucket, folder: Path) -> Bucket:
    """The bucket with the chain's files, whose leaf is `vms/layer-2.avhd`."""
    empty_bucket.upload(folder)
    return empty_bucket


@pytest.fixture
def ssh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a key, which is in `authorized_keys`; no host is known there."""
    asyncssh = pytest.importorskip("asyncssh", reason="needs asyncssh")
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(home / ".ssh" / "id_ed25519")
    (home / ".ssh" / "id_ed25519").chmod(0o600)
    key.write_public_key(home / ".ssh" / "authorized_keys")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def sftp_server(ssh_home: Path) -> Iterator[SftpServer]:
    """A server whose key is known, and which has no client left in the end."""
    from tests.remote.sftp_server import SftpServer  # noqa: PLC0415 - asyncssh may be missing

    with SftpServer(ssh_home / ".ssh" / "authorized_keys") as found:
        (ssh_home / ".ssh" / "known_hosts").write_text(found.known_hosts_line)
        yield found
        transports.forget_transports("sftp")
