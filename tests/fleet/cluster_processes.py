"""A cluster of real processes on this machine: a scheduler and workers, with TLS and certificates of their own."""

from __future__ import annotations

import datetime as dt
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.cli.running import environment, program
from tests.jobs.making import until

if TYPE_CHECKING:
    from pathlib import Path


def make_certificate(folder: Path) -> list[str]:
    """Make a certificate that is its own authority; return the options that name it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the cluster of a test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return [
        "--tls-ca",
        str(folder / "cert.pem"),
        "--tls-cert",
        str(folder / "cert.pem"),
        "--tls-key",
        str(folder / "key.pem"),
    ]


def free_port() -> int:
    """Return a port of the loopback that no server listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class ClusterProcesses:
    """A scheduler and its workers; their output goes to files in `folder`, their jobs into the list in `state`."""

    folder: Path
    tls: list[str]
    state: Path
    port: int = field(default_factory=free_port)
    scheduler: subprocess.Popen[bytes] | None = None
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The address of the scheduler."""
        return f"tls://127.0.0.1:{self.port}"

    @property
    def options(self) -> list[str]:
        """The options of a client."""
        return ["--scheduler", self.address, *self.tls]

    def start_scheduler(self) -> None:
        """Start the scheduler, and wait until it answers."""
        words = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--protocol", "tls", "--no-dashboard"]
        tls = [word.replace("--tls-ca", "--tls-ca-file") for word in self.tls]
        self.scheduler = self._started("scheduler", [sys.executable, *words, "--port", str(self.port), *tls])
        until(self._answers)

    def start_worker(self, host: str, folder: Path) -> None:
        """Start the worker of a host, and wait until the scheduler has it."""
        self.stop(self.workers.get(host))
        self.workers[host] = self._started(
            host, program("fleet", "worker", self.address, "--allow", str(folder), "--host", host, *self.tls)
        )
        until(lambda: "working for" in (self.folder / f"{host}.log").read_text())

    def close(self) -> None:
        """Stop all that runs."""
        for process in (*self.workers.values(), self.scheduler):
            self.stop(process)

    @staticmethod
    def stop(process: subprocess.Popen[bytes] | None) -> None:
        """Stop a process, if there is one that has not ended."""
        if process is not None:
            process.terminate()
            process.wait(60)

    def _started(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env=environment(VHDKIT_STATE=str(self.state)), stdout=log, stderr=log)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
