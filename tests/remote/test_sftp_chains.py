"""Chains by SFTP, from OpenSSH's sftp-server: the same disk, with the user's own keys, and never a mixture."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import spawn
from tests.conformance.tools import requires
from tests.remote.sftp_server import LSTAT, OPEN, READ, REALPATH
from tests.serve.disks import SIZE
from tests.serve.nbd_client import NbdClient
from vhdkit.errors import MissingExtraError, ReadOnlyImageError
from vhdkit.storage import remote_file, transport, transports
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.remote_paths import remote_place
from vhdkit.storage.sftp_transport import SftpConnection

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model import ModelChain
    from tests.remote.sftp_server import SftpServer

MIB = 1 << 20


@pytest.fixture
def leaf(sftp_server: SftpServer, folder: Path) -> str:
    return f"{sftp_server.url}{folder}/layer-2.avhd"


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_cache", remote_file.BlockCache(0))


# Reading


def test_a_chain_reads_as_the_model_says(model: ModelChain, leaf: str, sftp_server: SftpServer) -> None:
    with vhdkit.open_chain(leaf) as chain:
        assert len(chain.layers) == 3
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    assert vhdkit.check(leaf, chain=True).exit_code == 0
    assert sftp_server.session_count == 1


def test_the_command_line_takes_a_url_and_leaves_nothing_to_say(leaf: str, tmp_path: Path) -> None:
    shown = spawn("chain", leaf, cwd=tmp_path)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[0].endswith(leaf)
    assert spawn("merge", leaf, "--to", "new.vhd", "--progress", "none", cwd=tmp_path).code == 0
    assert vhdkit.compare(leaf, tmp_path / "new.vhd").equal


def test_it_is_served_to_other_programs(model: ModelChain, leaf: str) -> None:
    requires("nbdkit")
    with vhdkit.open_chain(leaf) as chain, vhdkit.serve_nbd(chain) as served, NbdClient(served.uri) as client:
        assert client.read(0, SIZE) == model.read(0, SIZE)


def test_long_ranges_are_read_whole_by_many_reads(folder: Path, sftp_server: SftpServer) -> None:
    content = os.urandom(20 * MIB + 13)
    (folder / "long").write_bytes(content)
    with LocalFolder().open(f"{sftp_server.url}{folder}/long") as storage:
        buffer = bytearray(len(content))
        assert storage.read_into(0, buffer) == len(content)
        assert buffer == content


def test_threads_read_at_once(folder: Path, sftp_server: SftpServer, no_cache: None) -> None:
    del no_cache
    content = os.urandom(4 * MIB)
    (folder / "long").write_bytes(content)
    wrong: list[int] = []
    with LocalFolder().open(f"{sftp_server.url}{folder}/long") as storage:

        def read(number: int) -> None:
            for at in range(number * 1000, 4 * MIB - 50_000, 300_000):
                buffer = bytearray(50_000)
                storage.read_into(at, buffer)
                if buffer != content[at : at + 50_000]:
                    wrong.append(at)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert sftp_server.session_count == 1


@pytest.mark.parametrize("name", ["a b+%#?.avhd", "b\udcff.avhd", "\u00fc\u4e2d.avhd"])
def test_names_of_any_bytes_are_found(model: ModelChain, folder: Path, sftp_server: SftpServer, name: str) -> None:
    (folder / "layer-2.avhd").rename(folder / name)
    url = remote_place(f"//sftp/127.0.0.1:{sftp_server.port}{folder}/{name}").url
    with vhdkit.open_chain(url) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)


def test_files_are_closed_at_the_server_when_they_are_closed_here(leaf: str, sftp_server: SftpServer) -> None:
    with vhdkit.open_chain(leaf) as chain:
        chain.read(0, SIZE)
        assert +sftp_server.open_files
    transport.Transport.exists(transports.transport_for("sftp"), remote_place(leaf))  # behind the closing, in order
    assert not +sftp_server.open_files


def test_of_many_open_files_few_are_held_open_at_the_server(
    folder: Path, sftp_server: SftpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhdkit.storage.sftp_transport._MOST_IDLE", 3)
    opened = []
    for number in range(8):
        (folder / str(number)).write_bytes(bytes([number]) * 1000)
        opened.append(LocalFolder().open(f"{sftp_server.url}{folder}/{number}"))
    buffer = bytearray(1000)
    for number, storage in enumerate(opened):
        storage.read_into(0, buffer)
        assert set(buffer) == {number}
        storage.close()
    assert sftp_server.open_files.total() <= 4


# Who is asked, and as whom


def test_a_server_whose_key_is_not_known_is_refused(leaf: str, ssh_home: Path) -> None:
    (ssh_home / ".ssh" / "known_hosts").write_text("")
    with pytest.raises(PermissionError, match=r"known_hosts: .*127\.0\.0\.1"):
        vhdkit.open_chain(leaf)


def test_a_server_with_another_key_than_the_known_one_is_refused(
    leaf: str, ssh_home: Path, sftp_server: SftpServer
) -> None:
    known = ssh_home / ".ssh" / "known_hosts"
    other = (ssh_home / ".ssh" / "authorized_keys").read_text()
    known.write_text(f"[127.0.0.1]:{sftp_server.port} {other}")
    with pytest.raises(PermissionError, match="known_hosts"):
        vhdkit.open_chain(leaf)
    assert sftp_server.session_count == 0


@pytest.mark.parametrize(
    "setting",
    [
        "UserKnownHostsFile none",
        "UserKnownHostsFile /dev/null",
        "StrictHostKeyChecking no",
        "UserKnownHostsFile none\nStrictHostKeyChecking no",
    ],
)
def test_no_setting_lets_an_unknown_server_in(leaf: str, ssh_home: Path, setting: str) -> None:
    (ssh_home / ".ssh" / "known_hosts").write_text("")
    (ssh_home / ".ssh" / "config").write_text(f"{setting}\n")
    with pytest.raises(PermissionError, match="known_hosts"):
        vhdkit.open_chain(leaf)


def test_the_settings_of_ssh_say_who_is_known_under_which_name(
    model: ModelChain, folder: Path, ssh_home: Path, sftp_server: SftpServer
) -> None:
    folder_of_ssh = ssh_home / ".ssh"
    (folder_of_ssh / "known_hosts").rename(folder_of_ssh / "others")
    (folder_of_ssh / "id_ed25519").rename(folder_of_ssh / "key_of_nas")
    (folder_of_ssh / "config").write_text(
        f"Host nas\n Hostname 127.0.0.1\n Port {sftp_server.port}\n User admin\n"
        " IdentityFile ~/.ssh/key_of_nas\n UserKnownHostsFile ~/.ssh/others\n"
    )
    with vhdkit.open_chain(f"sftp://nas{folder}/layer-2.avhd") as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    assert sftp_server.users == ["admin"]


def test_the_user_is_the_one_of_the_url(leaf: str, sftp_server: SftpServer) -> None:
    vhdkit.open_chain(leaf.replace("sftp://", "sftp://backup@")).close()
    assert sftp_server.users == ["backup"]


def test_without_a_key_that_the_server_accepts_it_is_an_error_and_nothing_secret_is_told(
    leaf: str, ssh_home: Path, sftp_server: SftpServer
) -> None:
    (ssh_home / ".ssh" / "id_ed25519").rename(ssh_home / "elsewhere")
    with pytest.raises(PermissionError, match="accepts no key") as caught:
        vhdkit.open_chain(leaf)
    assert caught.value.filename == leaf
    assert sftp_server.session_count == 0


def test_settings_that_cannot_be_used_are_an_error(leaf: str, ssh_home: Path) -> None:
    (ssh_home / ".ssh" / "config").write_text("Port many\n")
    with pytest.raises(OSError, match="settings of ssh"):
        vhdkit.open_chain(leaf)


@pytest.mark.usefixtures("own_transports")
def test_without_the_library_its_extra_is_named(leaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(MissingExtraError, match=r"vhdkit\[remote\]"):
        vhdkit.open_chain(leaf)


# Faults


@pytest.mark.parametrize("fault", ["close", "short", "failure"])
@pytest.mark.parametrize("kind", [LSTAT, OPEN, READ])
def test_what_fails_for_a_while_is_asked_for_again(
    model: ModelChain, sftp_server: SftpServer, leaf: str, fault: str, kind: int
) -> None:
    seen = []

    def once(count: int, of: int, path: str) -> str | None:
        seen.append(of == kind and count == 1)
        return fault if seen[-1] and path.endswith("hd") else None

    sftp_server.fault = once
    with vhdkit.open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    assert any(seen)


@pytest.mark.parametrize("fault", ["close", "short", "failure", "stall"])
def test_what_fails_for_good_is_an_error(
    sftp_server: SftpServer, leaf: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(transport, "ATTEMPTS", 2)
    sftp_server.fault = lambda _count, kind, path: fault if kind == READ and path.endswith("layer-0.vhd") else None
    with pytest.raises((OSError, vhdkit.ParentNotFoundError), match="in vain"):
        vhdkit.open_chain(leaf)


@pytest.mark.parametrize("is_answered", [True, False])
def test_what_is_slow_has_not_stalled(monkeypatch: pytest.MonkeyPatch, *, is_answered: bool) -> None:
    """A request that takes ten times as long as a server may be silent is waited for while answers come."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.02)
    aborted: list[bool] = []
    connection = SftpConnection(SimpleNamespace(abort=lambda: aborted.append(True)), None)

    async def request() -> str:
        until = time.monotonic() + 10 * transport.STALL_SECONDS
        while time.monotonic() < until:
            connection.answers += is_answered
            await asyncio.sleep(0)
        return "done"

    if is_answered:
        assert asyncio.run(connection.answered(request())) == "done"
    else:
        with pytest.raises(transport.PassingError, match="no answer came"):
            asyncio.run(connection.answered(request()))
    assert aborted == ([] if is_answered else [True])


def test_what_the_server_denies_is_not_asked_for_again(sftp_server: SftpServer, leaf: str) -> None:
    sftp_server.fault = lambda _count, kind, _path: "denied" if kind == OPEN else None
    with pytest.raises(PermissionError):
        vhdkit.open_chain(leaf)
    assert [kind for kind, _ in sftp_server.requests] == [REALPATH, LSTAT, OPEN]


def test_nobody_there_is_an_error(leaf: str, sftp_server: SftpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ATTEMPTS", 2)
    with pytest.raises(OSError, match="in vain"):
        vhdkit.open_chain(leaf.replace(str(sftp_server.port), "9"))


def test_what_is_not_there_is_not_found(leaf: str) -> None:
    with pytest.raises(FileNotFoundError):
        vhdkit.open_chain(leaf + "x")


def test_what_is_no_file_is_never_opened_at_the_server(folder: Path, sftp_server: SftpServer) -> None:
    os.mkfifo(folder / "pipe.vhd")
    for path in (folder / "pipe.vhd", folder):
        with pytest.raises(OSError, match="not a regular file"):
            vhdkit.open_chain(f"{sftp_server.url}{path}")
    assert OPEN not in {kind for kind, _ in sftp_server.requests}


# Changes


@pytest.mark.parametrize("is_written_in_place", [True, False])
def test_a_file_that_changes_is_an_error_and_never_a_mixture(
    model: ModelChain, folder: Path, leaf: str, no_cache: None, *, is_written_in_place: bool
) -> None:
    del no_cache
    path = folder / "layer-0.vhd"
    changed = path.read_bytes().replace(path.read_bytes()[8192:8200], b"changed!")
    with vhdkit.open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)
        if is_written_in_place:
            path.write_bytes(changed)
            os.utime(path, (1, 1))
            with pytest.raises(OSError, match="it has changed") as caught:
                chain.read(0, SIZE)
            assert caught.value.errno == errno.ESTALE
        else:
            # The file that is open is another one than that which has its name now.
            (folder / "new").write_bytes(changed)
            (folder / "new").replace(path)
            assert chain.read(0, SIZE) == model.read(0, SIZE)


def test_a_file_that_was_replaced_while_the_connection_was_lost_is_an_error(
    folder: Path, leaf: str, sftp_server: SftpServer, no_cache: None
) -> None:
    del no_cache
    path = folder / "layer-0.vhd"
    with vhdkit.open_chain(leaf) as chain:
        (folder / "new").write_bytes(path.read_bytes())
        os.utime(folder / "new", (1, 1))
        (folder / "new").replace(path)
        lost = threading.Event()

        def once(_count: int, kind: int, _path: str) -> str | None:
            if kind != READ or lost.is_set():
                return None
            lost.set()
            return "close"

        sftp_server.fault = once
        with pytest.raises(OSError, match="it has changed"):
            chain.read(0, SIZE)
    assert sftp_server.session_count == 2


def test_nothing_is_written_there(leaf: str, folder: Path, sftp_server: SftpServer) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ReadOnlyImageError, match="only read"):
        vhdkit.open_chain(leaf, writable=True)
    with pytest.raises(ReadOnlyImageError, match="only read"):
        vhdkit.create_image(f"{sftp_server.url}{folder}/new.vhd", size=MIB)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
