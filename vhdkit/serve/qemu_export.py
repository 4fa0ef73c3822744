"""Write what a chain shows in a format of another maker: qemu-img does it, which reads the chain from a server here."""

from __future__ import annotations

import re
import select
import subprocess
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

from vhdkit.arguments import checked
from vhdkit.chain.chain import open_chain_with
from vhdkit.disk.file_name import FileFormat, new_image_file
from vhdkit.errors import Cancelled, ServeError
from vhdkit.options import ParentPolicy
from vhdkit.progress import Reporter
from vhdkit.serve.nbd_server import serve_nbd
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.process import find_program
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vhdkit.options import QemuFormat
    from vhdkit.progress import Cancel, Progress
    from vhdkit.units import StrPath

QEMU_IMG: Final = "qemu-img"
FORMATS: Final = (FileFormat.QCOW2, FileFormat.VMDK, FileFormat.VDI)
# What `qemu-img convert -p` prints, again and again on one line.
_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")
# Being asked to stop is noticed this soon.
_LOOK_SECONDS = 0.2


@checked
def export_disk(
    source: StrPath,
    destination: StrPath,
    *,
    output_format: QemuFormat = "qcow2",
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_id_mismatch: bool = False,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    lock: bool = True,
) -> int:
    """Write what `source` shows through its chain to a new file: "qcow2", "vmdk" or "vdi"; return the file's size.

    The arguments are those of `convert`. The new file gets its name when it is whole and durable.

    Raises:
        ValueError: another format is asked for.
        FileNameError: the destination's suffix is that of another format.
        FileExistsError: the destination exists; it is never replaced.
        Cancelled: it was stopped. The new file is gone again.
        ServeError: nbdkit or qemu-img is not installed, or has failed. The new file is gone again.
        VhdError, OSError: from the chain or the new file, which then is gone again.

    """
    if output_format not in FORMATS:
        raise ValueError(f"the format is {output_format!r}: expected qcow2, vmdk or vdi")
    program = find_program(QEMU_IMG)
    if program is None:
        raise ServeError(f"{QEMU_IMG} is not installed; Debian and Ubuntu have it in qemu-utils")
    folder, path = LocalFolder(), as_text(destination)
    policy = ParentPolicy.of(search, parent_map, parent, accept_id_mismatch=accept_id_mismatch)
    with open_chain_with(as_text(source), policy, folder, lock=lock) as chain:
        chain.check_readable()
        reporter = Reporter(chain.size, 0, progress, cancel, cancelled=Cancelled("the conversion was cancelled"))
        with new_image_file(folder, path, FileFormat(output_format)) as storage, serve_nbd(chain) as server:
            words = [program, "convert", "-p", "-f", "raw", "-O", output_format, server.uri, storage.path]
            with _running(words) as process:
                _follow(process, reporter)
            reporter.reach(chain.size)
            return storage.size()


@contextmanager
def _running(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, which is killed if the block raises, and must succeed if not."""
    with subprocess.Popen(  # noqa: S603 - qemu-img
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A Ctrl-C at the terminal is for this process.
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _follow(process: subprocess.Popen[bytes], reporter: Reporter) -> None:
    """Report how far qemu-img is until it has ended.

    Raises:
        Cancelled: it should stop.
        ServeError: it has failed; with what it says.

    """
    said = b""
    reporter.reach(0)
    while process.stdout is not None:
        new = _next_words(process.stdout)
        if new == b"":
            break
        said = (said + (new or b""))[-4096:]
        found = _PERCENT.findall(said)
        reporter.reach(min(reporter.total, int(float(found[-1]) / 100 * reporter.total)) if found else 0)
    status = process.wait()
    if status:
        lines = _PERCENT.sub(b"", said).decode("utf-8", "replace").replace("\r", "\n").split("\n")
        words = "; ".join(line.strip() for line in lines if line.strip()).removeprefix(f"{QEMU_IMG}: ")
        raise ServeError(f"{QEMU_IMG} has ended with status {status}: {words}")


def _next_words(stream: IO[bytes]) -> bytes | None:
    """Return what a program prints next, b"" if it prints no more, and None if that takes a while."""
    ready, _, _ = select.select([stream], [], [], _LOOK_SECONDS)
    return stream.read1(4096) if ready else None  # type: ignore[attr-defined] # it is buffered
