"""What must hold when a call fails: at each call of an act, on every disk that a cut may leave then, and afterwards.

1 what is raised is an OSError or one of vhdkit's errors, and says how things stand; without space, what is missing;
2 the machine reads what it read before, and so does whatever a power cut leaves right then;
3 the same command, the fault gone, ends as if nothing had happened, and so does a cut of that second run: what a
  failed sync has lost is in the machine's memory only.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import vhdkit
from tests.crash.acts import drop, merged, run, take_back, uncut
from tests.crash.failing import CHANGING, LOOKING, FailingFolder, Fault
from tests.crash.laws import Rules, Tally, is_done, reads
from tests.crash.undoing import is_restored
from tests.crash.walking import How, walk_log
from tests.crashfs import CrashFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.crash.programs import CrashProgram
    from vhdkit.storage.protocols import Folder

    Act = Callable[[CrashProgram, Folder], None]

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_TAKES_SPACE = frozenset({"write", "copy", "reserve", "truncate", "sync", "create", "publish"})


def faults() -> Iterator[Fault]:
    """Yield every kind of fault, at the first call."""
    yield Fault(at=0)
    yield Fault(at=0, error=errno.EIO)
    yield Fault(at=0, error=errno.EINTR, kinds=CHANGING | LOOKING - {"open"})
    yield Fault(at=0, error=errno.EIO, kinds=CHANGING, partly=True)
    yield Fault(at=0, error=errno.EIO, kinds=CHANGING, lasting=True)
    for error in sorted(NO_SPACE):
        yield Fault(at=0, error=error, kinds=_TAKES_SPACE, partly=True)
        yield Fault(at=0, error=error, kinds=_TAKES_SPACE, lasting=True)


def calls(act: Act, program: CrashProgram, start: Callable[[], CrashFolder], fault: Fault) -> int:
    """Return how many calls a fault may hit."""
    folder = FailingFolder(start(), Fault(at=-1, kinds=fault.kinds))
    act(program, folder)
    return folder.calls


def fresh(program: CrashProgram) -> CrashFolder:
    """Return the disk before the merge."""
    return CrashFolder(program.files)


def failed(act: Act, program: CrashProgram, inner: CrashFolder, fault: Fault) -> Iterator[str]:
    """Act with a fault, and yield what is wrong with how that ends."""
    folder = FailingFolder(inner, fault)
    try:
        act(program, folder)
    except (OSError, vhdkit.VhdError) as error:
        if not inner.log or folder.struck is None:
            return
        if fault.error in NO_SPACE and act is run and not isinstance(error, vhdkit.NotEnoughSpaceError):
            yield f"{folder.struck}: no space is to be said with NotEnoughSpaceError: {type(error).__name__}: {error}"
        if isinstance(error, vhdkit.NotEnoughSpaceError):
            if error.needed <= error.available:
                yield f"{folder.struck}: {error.needed} bytes needed, {error.available} there: none is missing"
        elif isinstance(error, OSError) and not getattr(error, "__notes__", None):
            yield f"{folder.struck}: it does not say how things stand: {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        yield f"{folder.struck}: {type(error).__name__}: {error}"


def broken_by(program: CrashProgram, fault: Fault, tally: Tally, share: float = 0.0) -> Iterator[str]:
    """Yield what does not hold of a merge with a fault; of the cuts of both runs a `share` is looked at."""
    inner = fresh(program)
    tally.faults += 1
    yield from failed(run, program, inner, fault)
    yield from (f"at once: {text}" for text in reads(program, inner))
    right_then = walk_log(program, inner, How(enough=2, only_last=True))
    before = len(inner.log)
    try:
        run(program, inner)
    except Exception as error:  # noqa: BLE001
        yield f"the same command: {type(error).__name__}: {error}"
        return
    yield from (f"the same command: {text}" for text in is_done(program, inner, uncut(program).contents(), Rules()))
    later = walk_log(program, inner, How(enough=2, share=share, first=before))
    for found in (right_then, later):
        found.programs = 0
        yield from found.findings
        found.findings.clear()
        tally.add(found)


def broken_undoing_by(act: Act, program: CrashProgram, fault: Fault, tally: Tally) -> Iterator[str]:
    """Yield what does not hold of a roll-back, or of dropping, with a fault."""
    inner = merged(program)
    tally.faults += 1
    yield from failed(act, program, inner, fault)
    yield from (f"at once: {text}" for text in reads(program, inner))
    try:
        act(program, inner)
    except Exception as error:  # noqa: BLE001
        yield f"the same command: {type(error).__name__}: {error}"
        return
    if act is take_back:
        yield from (f"the same command: {text}" for text in is_restored(program, inner))
        return
    expected = merged(program)
    drop(program, expected)
    if inner.contents().keys() != expected.contents().keys():
        yield "the same command: other files"
    yield from reads(program, inner)
