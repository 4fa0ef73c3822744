"""What is said of files: how bad it is, which rule it breaks, what was tried as a parent, and what mends it.

A hint is data: an advice and its arguments. Python reads it as arguments and calls, a person at the command line as
options and commands; the program says so where it begins, with `hints_as`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, unique
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Argument: TypeAlias = "str | bool | tuple[str, ...]"


class Rule(StrEnum):
    """The base of the formats' enums of corruption: one member per rule that a file can break."""

    @property
    def windows_code(self) -> int | None:
        """The code that Windows has for it; None if it has none."""
        return None

    @property
    def is_fault(self) -> bool:
        """Whether a file that breaks it is damaged; else it is one of which nothing can be said."""
        return True


class Level(StrEnum):
    """How bad a finding is: an error makes reading on a guess, a warning does not, information is neither."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a file that breaks a rule or is odd; `offset` is where in the file, if it is in one place."""

    corruption: Rule
    path: str
    message: str
    level: Level = Level.WARNING
    offset: int | None = None
    hint: Hint | None = None

    @property
    def text(self) -> str:
        """The message, and what mends it."""
        return with_hint(self.message, self.hint)

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that might have been the parent, where its name came from, and why it was not taken."""

    path: str
    origin: str
    reason: str
    hint: Hint | None = None

    def __str__(self) -> str:
        return printable(f"{self.path} ({self.origin}): {with_hint(self.reason, self.hint)}")


def printable(text: str) -> str:
    """Return text with control characters escaped: names inside an image are untrusted."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


# What mends it


@unique
class Advice(Enum):
    """What mends a failure: an argument to give, or a call to make. The value is how Python writes it.

    `{rest}` are the arguments of a hint that the text does not name, as keywords.
    """

    # Arguments of the call that failed
    NEW_FILE = "to="
    KEEP_SOURCES = "keep_sources=True"
    KEEP_UNDO_FILE = "keep_file=True"
    UNDO_IMAGE = "undo="
    RELINK_SIBLINGS = "undo= and relink_siblings=True"
    RESUME = "resume=True"
    ACCEPT_ENDED = "accept_ended=True"
    ACCEPT_OTHER_ID = "accept_id_mismatch=True"
    IGNORE_OTHER_ID = "ignore_id_mismatch=True"
    PARENT = "parent="
    THIS_PARENT = "parent={path!r}"
    SEARCH = "search="
    SEARCH_OR_PARENT = "search= or parent="
    SEARCH_THERE = "search=[{folder!r}]"
    PARENT_MAP = "parent_map={{'FOLDER': 'LOCAL_FOLDER'}}"
    LAYER_FOLDER = "directory="
    STATE_FOLDER = "state_to="
    YIELD_MERGES = "yield_merges=True"
    PARALLEL = "parallel="
    WAIT_IN_LINE = "wait_in_line=True"
    PARTITION = "partition="
    # Images and chains
    MOVE_FILE = "mv {path!r} {new_path!r}"
    CHECK = "check({path!r})"
    CHECK_CHAIN = "check({path!r}, chain=True{rest})"
    HASH = "hash_image({path!r}{rest})"
    REPAIR_FOOTERS = "repair_footers({path!r})"
    ACCEPT_HEADER = "rebase({path!r}, PARENT, accept_header_checksum=True)"
    MAKE_VHD = "qemu-img convert -f raw -O vpc -o force_size=on {path!r} {new_path!r}"
    CREATE_CHILD = "create_image(NEWFILE, parent={path!r})"
    CONVERT = "convert({path!r}, {new_path!r}{rest})"
    CONVERT_EACH = "convert(FILE, NEWFILE)"
    COMPARE_PARENT = "plan_rebase({path!r}, {parent!r}{rest})"
    # Merges
    MERGE = "merge(plan_merge({path!r}{rest}))"
    ENSURE_MERGED = "ensure_merged({path!r}{rest})"
    ROLL_BACK = "rollback({path!r}{rest})"
    DROP_UNDO = "drop_undo({path!r}{rest})"
    LIST_JOBS = "jobs()"
    RESUME_JOB = "resume_job({job!r})"
    CANCEL_JOB = "cancel_job({job!r})"
    REMOVE_JOB = "remove_job({job!r})"
    SET_END_COMMAND = "set_end_command({name!r}, WORDS)"
    CIM_JOBS = "vhdkit.job.cim.properties(job, now, server)"
    # Snapshots
    ADOPT = "Machine.adopt({paths!r}{rest})"
    ADOPT_DISKS = "Machine.adopt(DISKS)"
    APPLY = "Machine({path!r}).apply({name!r})"
    APPLY_ANY = "Machine({path!r}).apply(NAME)"
    DELETE = "Machine({path!r}).delete({name!r})"
    DELETE_ANY = "Machine({path!r}).delete(NAME)"
    SETTLE = "Machine({path!r}).settle()"
    ACCEPT_CHANGED = "Machine({path!r}).check(accept=True)"
    EXPORT = "Machine({path!r}).export(NEWFILE)"
    RUN_MACHINE = "Machine.running()"

    def hint(self, text: str = "{}", **arguments: Argument) -> Hint:
        """Return it with its arguments, and the words around it: in `text` it stands for the braces."""
        return Hint(advice=self, text=text, arguments=tuple(arguments.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What mends a failure or a finding, with its arguments; as text it is the words of this process, see `hints_as`.

    `other` is another way, or another step.
    """

    advice: Advice
    text: str = "{}"
    arguments: tuple[tuple[str, Argument], ...] = ()
    other: Hint | None = None

    def __str__(self) -> str:
        parts = [self.text.replace("{}", _words[-1](self), 1), *([str(self.other)] if self.other is not None else [])]
        return "; ".join(parts)

    def then(self, other: Hint) -> Hint:
        """Return it with another behind it."""
        return replace(self, other=other if self.other is None else self.other.then(other))

    def __iter__(self) -> Iterator[Hint]:
        """Yield it and all others."""
        at: Hint | None = self
        while at is not None:
            yield at
            at = at.other


def python_words(hint: Hint) -> str:
    """Return what a hint advises as arguments and calls.

    >>> python_words(Advice.MERGE.hint(path="a.avhd", into="b.vhd"))
    "merge(plan_merge('a.avhd', into='b.vhd'))"
    """
    template, given = hint.advice.value, dict(hint.arguments)
    rest = "".join(f", {name}={value!r}" for name, value in given.items() if f"{{{name}!r}}" not in template)
    return template.format(**given, rest=rest)


# The last is in use. It belongs to the process: a text may be made by any thread of it.
_words: list[Callable[[Hint], str]] = [python_words]


@contextmanager
def hints_as(words: Callable[[Hint], str]) -> Iterator[None]:
    """Let hints read otherwise in this process, as where its user types commands rather than Python."""
    _words.append(words)
    try:
        yield
    finally:
        _words.remove(words)


def words_of_hints() -> Callable[[Hint], str]:
    """Return what writes hints in this process now, for another process that shall write them alike."""
    return _words[-1]


def with_hint(text: str, hint: Hint | None) -> str:
    """Return a message with what mends it behind it."""
    first, newline, others = text.partition("\n")
    return text if hint is None else f"{first}; {hint}{newline}{others}"
