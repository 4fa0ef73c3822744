"""The same chains from OpenSSH's sshd, as people run it, with the keys where people have them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.conformance.tools import requires, run
from tests.remote.sftp_server import sftp_server_program
from tests.serve.disks import SIZE
from vhdkit.storage import transports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.model import ModelChain

# Where a server of the superuser's puts what deals with clients before they log in.
PRIVATE = "/run/sshd"
CONFIGURATION = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {authorized_keys}
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp {sftp_server}
"""


@pytest.fixture
def sshd(ssh_home: Path, tmp_path: Path) -> Iterator[int]:
    """Run a server whose key is known, and return its port."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if program is None:
        requires("sshd")
    if os.getuid() == 0 and not os.path.isdir(PRIVATE):
        pytest.skip(f"needs {PRIVATE}")
    own = tmp_path / "sshd"
    own.mkdir()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", own / "host_key")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    keys = ssh_home / ".ssh" / "authorized_keys"
    text = CONFIGURATION.format(port=port, folder=own, authorized_keys=keys, sftp_server=sftp_server_program())
    (own / "conf").write_text(text)
    public = (own / "host_key.pub").read_text()
    (ssh_home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    with subprocess.Popen([str(program), "-D", "-f", own / "conf", "-E", own / "log"]) as process:
        try:
            until = time.monotonic() + 30
            while not _listens(port):
                assert process.poll() is None, (own / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
            yield port
            transports.forget_transports("sftp")
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_chain_reads_as_the_model_says(model: ModelChain, folder: Path, sshd: int) -> None:
    leaf = f"sftp://127.0.0.1:{sshd}{folder}/layer-2.avhd"
    with vhdkit.open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    assert vhdkit.check(leaf, chain=True).exit_code == 0


def test_known_hosts_may_be_hashed_and_the_key_with_the_agent(
    model: ModelChain, folder: Path, sshd: int, ssh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ssh-keygen", "-q", "-H", "-f", ssh_home / ".ssh" / "known_hosts")
    assert "127.0.0.1" not in (ssh_home / ".ssh" / "known_hosts").read_text()
    # A path of a socket has to be short.
    address = f"/tmp/vhdkit-{os.getpid()}.agent"  # noqa: S108
    monkeypatch.setenv("SSH_AUTH_SOCK", address)
    with subprocess.Popen(["ssh-agent", "-D", "-a", address], stdout=subprocess.DEVNULL) as agent:
        try:
            until = time.monotonic() + 30
            while not os.path.exists(address):
                assert time.monotonic() < until
                time.sleep(0.02)
            run("ssh-add", "-q", ssh_home / ".ssh" / "id_ed25519")
            (ssh_home / ".ssh" / "id_ed25519").unlink()
            with vhdkit.open_chain(f"sftp://127.0.0.1:{sshd}{folder}/layer-2.avhd") as chain:
                assert chain.read(0, SIZE) == model.read(0, SIZE)
        finally:
            agent.terminate()
