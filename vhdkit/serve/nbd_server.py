"""Serve a chain as a network block device, by nbdkit.

    with vhdkit.open_chain("leaf.avhd") as chain, serve_nbd(chain) as server:
        subprocess.run(["nbdinfo", server.uri])

nbdkit talks to the clients and reads the layers' files, which it inherits with their locks; this process says where in
them the disk's bytes are (see `nbdkit_plugin` and `resolver`). Each ends when the other does.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.errors import ServeError
from vhdkit.serve import nbdkit_plugin
from vhdkit.serve.address import UnixSocket
from vhdkit.serve.resolver import ChainResolver
from vhdkit.storage import paths
from vhdkit.storage.descriptors import descriptor_of
from vhdkit.storage.private_folder import private_folder, remove_socket
from vhdkit.storage.process import end_process, environment_without_modules, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.chain.chain import Chain
    from vhdkit.serve.address import Endpoint

NBDKIT = "nbdkit"
# Requests of the plugin that are answered at a time; reads of payload are not among them.
_CHANNELS = 4
# nbdkit loads its Python in 50 ms.
_BEGIN_SECONDS = 30
# nbdkit waits for the clients that are connected. What they wrote is in the leaf, whatever becomes of nbdkit.
_END_SECONDS = 1
_MESSAGE_SECONDS = 10
_LAST_LINES = 3


class NbdServer:
    """A disk that is being served; `uri` is what clients connect to."""

    def __init__(self, process: subprocess.Popen[str], uri: str) -> None:
        self.uri = uri
        # Removed when it ends; a name that another program has taken must stay.
        self.socket_path = ""
        self._process = process
        self._messages: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=self._read_messages, name="vhdkit-nbdkit-messages", daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        """Return the address, and whether it answers."""
        return f"<NbdServer {self.uri!r}: {'running' if self.is_running else 'ended'}>"

    def _read_messages(self) -> None:
        if self._process.stderr is not None:
            with self._process.stderr as stream:
                self._messages.extend(line.rstrip() for line in stream)

    @property
    def is_running(self) -> bool:
        """Whether clients can connect."""
        return self._process.poll() is None

    def wait(self, timeout: float | None = None) -> None:
        """Return when the server has ended, or after that many seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def failure(self) -> ServeError:
        """Return why a server has ended that should not have, in nbdkit's own words."""
        self.wait(_MESSAGE_SECONDS)
        self._reader.join(_MESSAGE_SECONDS)
        said = "; ".join(line.removeprefix("nbdkit: ").strip() for line in self._messages)
        status = self._process.returncode
        text = f"nbdkit was ended by signal {-status}" if status < 0 else f"nbdkit has ended with status {status}"
        if "cannot open plugin" in said:
            return ServeError(f"{text}: it lacks its Python plugin; Debian has it as nbdkit-plugin-python ({said})")
        return ServeError(f"{text}: {said}" if said else text)

    def end(self) -> None:
        """Disconnect the clients, and return when the server has ended."""
        end_process(self._process, _END_SECONDS)
        self._reader.join(_MESSAGE_SECONDS)
        if self.socket_path:
            remove_socket(self.socket_path)


@contextmanager
@checked
def serve_nbd(chain: Chain, endpoint: Endpoint | None = None) -> Iterator[NbdServer]:
    """Serve a chain as long as the block lasts; on a socket that only this user can reach unless an endpoint is named.

    Clients can write if the chain can be written. What they write is in the leaf; a flush of theirs makes it durable.
    A chain that can be written is of no other use meanwhile.

    Raises:
        ServeError: nbdkit or its Python plugin is not installed, or nbdkit could not begin, as where the socket exists
            or the port is taken.

    """
    program = find_program(NBDKIT)
    if program is None:
        raise ServeError(f"{NBDKIT} is not installed; Debian and Ubuntu have it as nbdkit and nbdkit-plugin-python")
    with ExitStack() as ending:
        folder = ""
        if endpoint is None:
            folder = ending.enter_context(private_folder())
            endpoint = UnixSocket(path=paths.join(folder, "nbd.sock"))
        lifeline, theirs = socket.socketpair()
        ending.callback(lifeline.close)
        channels = [socket.socketpair() for _ in range(_CHANNELS)]
        resolver = ChainResolver(chain)
        threads = [threading.Thread(target=resolver.answer_all, args=(mine,), daemon=True) for mine, _ in channels]
        for thread in threads:
            thread.start()
            ending.callback(thread.join)
        for mine, _ in channels:
            ending.callback(_shut, mine)
        others = [theirs, *(other for _, other in channels)]
        try:
            process = _started(program, chain, endpoint, others, folder)
        finally:
            for each in others:
                each.close()
        server = NbdServer(process, endpoint.uri)
        ending.callback(server.end)
        lifeline.settimeout(_BEGIN_SECONDS)
        if not _is_ready(lifeline):
            raise server.failure()
        if isinstance(endpoint, UnixSocket):
            server.socket_path = endpoint.path
        yield server


def _started(
    program: str, chain: Chain, endpoint: Endpoint, sockets: list[socket.socket], folder: str
) -> subprocess.Popen[str]:
    files = [descriptor_of(layer.storage) for layer in chain.layers]
    lifeline, *channels = (each.fileno() for each in sockets)
    is_writable = chain.leaf.storage.writable
    return subprocess.Popen(  # noqa: S603 - nbdkit, and a plugin of our own
        [
            program,
            "-f",
            *endpoint.arguments,
            *(() if is_writable else ("-r",)),
            "python",
            nbdkit_plugin.__file__,
            f"size={chain.size}",
            f"writable={int(is_writable)}",
            f"files={','.join(str(-1 if each is None else each) for each in files)}",
            f"channels={','.join(map(str, channels))}",
            f"lifeline={lifeline}",
            f"socket_path={endpoint.path if isinstance(endpoint, UnixSocket) else ''}",
            f"private_folder={folder}",
        ],
        env=environment_without_modules(),
        pass_fds=[lifeline, *channels, *(each for each in files if each is not None)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # A Ctrl-C at the terminal is for this process, which then ends the server in its turn.
        start_new_session=True,
    )


def _is_ready(lifeline: socket.socket) -> bool:
    """Whether the plugin says that clients can connect; otherwise nbdkit has ended."""
    try:
        return lifeline.recv(1) == nbdkit_plugin.READY
    except OSError:
        return False


def _shut(channel: socket.socket) -> None:
    """Have the thread that answers on a channel take note of its end."""
    with suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)
