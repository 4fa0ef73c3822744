"""The verb that lets other programs read a chain, or write into its leaf: serve."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from vhdkit.cli.opened_chain import opened_chain
from vhdkit.cli.options import accept_option, chain_options, force_share_option, image_format_option
from vhdkit.cli.output import echo
from vhdkit.cli.signals import signals_handled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from vhdkit.serve.address import Endpoint
    from vhdkit.serve.nbd_server import NbdServer

# What a word of COMMAND has where the server's address goes, and the variable that has it as well.
PLACE = "{}"
VARIABLE = "VHDKIT_URI"
# How long COMMAND gets to end by itself once it was asked to.
_END_SECONDS = 10
_SIGNALLED = 128


@click.command()
@click.argument("file")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option("--socket", "socket_path", metavar="PATH", help="Listen on this socket, which is made, and then removed.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Listen on this port of the loopback; NBD's is 10809.")
@click.option(
    "--bind",
    metavar="ADDR",
    help="With --port: listen on this address of the machine; every host that reaches it may connect.",
)
@click.option("--writable", is_flag=True, help="Let clients write into FILE; the layers below never change.")
@image_format_option
@force_share_option
@chain_options
@accept_option
def serve(
    file: str,
    command: tuple[str, ...],
    *,
    socket_path: str | None,
    port: int | None,
    bind: str | None,
    writable: bool,
    **options: Any,
) -> int:
    """Serve what FILE shows through its chain as a network block device (NBD), by nbdkit.

    With COMMAND it is served while that runs, and {} in its words stands for the server's URI, as does $VHDKIT_URI:
    `serve leaf.avhd -- qemu-img convert -f raw -O qcow2 {} out.qcow2`. The exit code is that of COMMAND. Without it the
    URI is printed, and the server ends with Ctrl-C. Unless --socket or --port says otherwise it listens on a socket
    that only this user can reach. The files are held until it ends.
    """
    from vhdkit.serve.nbd_server import serve_nbd

    endpoint = _endpoint(socket_path, port, bind)
    with opened_chain(file, writable=writable, **options) as chain:
        # Before nbdkit begins: a signal that comes then is not lost.
        with _events() as events, serve_nbd(chain, endpoint) as server:
            _watch(events, server.wait, _SERVER_ENDED)
            if endpoint is not None and bind is not None:
                _warn_of_reach(endpoint, writable=writable)
            if command:
                code = _run_command(command, server, events)
            else:
                echo(server.uri)
                sys.stdout.flush()
                code = _wait_for_end(server, events)
        if writable:
            chain.sync()
    return code


def _endpoint(socket_path: str | None, port: int | None, bind: str | None) -> Endpoint | None:
    from vhdkit.serve.address import LOOPBACK, NBD_PORT, TcpPort, UnixSocket
    from vhdkit.storage.local_folder import LocalFolder

    if socket_path is not None:
        if port is not None or bind is not None:
            raise click.UsageError("--socket excludes --port and --bind")
        return UnixSocket(path=LocalFolder().real(socket_path))
    if port is None and bind is None:
        return None
    return TcpPort(port=port or NBD_PORT, address=bind or LOOPBACK)


def _warn_of_reach(endpoint: Endpoint, *, writable: bool) -> None:
    from vhdkit.serve.address import TcpPort

    if isinstance(endpoint, TcpPort) and not endpoint.is_loopback:
        deed = "read and write" if writable else "read"
        echo(f"warning: every host that reaches {endpoint.address}:{endpoint.port} can {deed} the disk", err=True)


# What happens while a disk is served: one of these, or a signal's number.
_SERVER_ENDED = "server"
_COMMAND_ENDED = "command"


@contextmanager
def _events() -> Iterator[SimpleQueue[str | int]]:
    """Lend a queue that gets the signals which ask this process to end."""
    events: SimpleQueue[str | int] = SimpleQueue()

    def take_note(number: int, _frame: FrameType | None) -> None:
        events.put(number)

    with signals_handled(take_note):
        yield events


def _watch(events: SimpleQueue[str | int], wait: Any, event: str) -> None:
    """Put an event into the queue when a process has ended."""

    def watch() -> None:
        wait()
        events.put(event)

    threading.Thread(target=watch, name=f"vhdkit-wait-for-{event}", daemon=True).start()


def _wait_for_end(server: NbdServer, events: SimpleQueue[str | int]) -> int:
    """Return when a signal asks for the end, which is what a server ends with when all is well."""
    if events.get() == _SERVER_ENDED:
        raise server.failure()
    return 0


def _run_command(command: tuple[str, ...], server: NbdServer, events: SimpleQueue[str | int]) -> int:
    """Run COMMAND, and return its exit code.

    A Ctrl-C at the terminal reaches COMMAND as well, which may go on, as a shell does: a second one ends it. What else
    asks this process to end is passed on.
    """
    import subprocess

    from vhdkit.storage.process import end_process, environment_with

    words = [word.replace(PLACE, server.uri) for word in command]
    process = subprocess.Popen(words, env=environment_with(**{VARIABLE: server.uri}))  # noqa: S603 - as asked for
    _watch(events, process.wait, _COMMAND_ENDED)
    interrupts = 0
    try:
        while (event := events.get()) != _COMMAND_ENDED:
            interrupts += event == signal.SIGINT
            if event == signal.SIGINT and interrupts == 1:
                continue
            end_process(process, _END_SECONDS)
            if event == _SERVER_ENDED:
                failure = server.failure()
                failure.add_note(f"It was serving the disk to: {shlex.join(words)}")
                raise failure
    finally:
        end_process(process, _END_SECONDS)
    return process.returncode if process.returncode >= 0 else _SIGNALLED - process.returncode
