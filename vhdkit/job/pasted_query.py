"""A query pasted whole, as it is typed on a Hyper-V host: what of it chooses jobs.

    select * from Msvm_ConcreteJob where CONDITION
    Get-WmiObject -Namespace root\\virtualization Msvm_ConcreteJob | where { CONDITION }
    Get-CimInstance -Namespace root\\virtualization\\v2 -Query "select * from Msvm_ConcreteJob where CONDITION"
    { CONDITION }, or CONDITION alone

What Windows Management Instrumentation can do and a filter of merges cannot is refused by name, and never passed over.
"""

from __future__ import annotations

import re

from vhdkit.job.wql_tokens import FilterError

# The classes that a merge is an instance of.
_CLASSES = ("Msvm_ConcreteJob", "Msvm_StorageJob", "CIM_ConcreteJob", "CIM_Job")
_ALL = f"SELECT * FROM {_CLASSES[0]}"  # noqa: S608 - no database reads it
_NAMESPACE = re.compile(r"(?:\\\\[.\w-]+\\)?root[\\/]virtualization(?:[\\/]v2)?", re.IGNORECASE)
_SELECT = re.compile(r"\s*select\b(?P<what>.*?)\bfrom\s+(?P<of>[^\s;]+)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"\s*(?P<verb>associators|references|select)\b", re.IGNORECASE)
_CMDLET = re.compile(r"\s*(?P<name>Get-WmiObject|gwmi|Get-CimInstance|gcim)\b", re.IGNORECASE)
_WORD = re.compile(r"""\s*(?:'(?P<single>(?:[^']|'')*)'|"(?P<double>(?:[^"]|"")*)"|(?P<bare>[^\s|'"]+))""")
_WHERE = re.compile(r"\s*\|\s*(?:where-object|where|\?)\s*(?:-filterscript\s*)?(?=\{)", re.IGNORECASE)


def conditions_of(query: str) -> tuple[str, ...]:
    """Return the conditions that a query has, all of which hold for what it asks for; none if it asks for all jobs.

    Each stands where it does in the query, behind blanks, so that what is said of a character's place is so there.

    Raises:
        FilterError: it asks for what is not here, or is cut short.

    """
    if _CMDLET.match(query):
        return _of_pipeline(query)
    if _QUERY.match(query):
        return _of_select(query, 0)
    return (_without_braces(query, 0),) if query.lstrip().startswith("{") else (query,)


def _of_select(query: str, start: int) -> tuple[str, ...]:
    """Return the condition of a query in WQL that begins at a place."""
    asked = _QUERY.match(query, start)
    if asked is not None and asked["verb"].lower() != "select":
        raise FilterError(f"{asked['verb'].upper()} OF is not known here; {_ALL} is")
    match = _SELECT.match(query, start)
    if match is None:
        raise FilterError(f"the query has no FROM; {_ALL} asks for jobs")
    if match["what"].strip() != "*":
        raise FilterError(f"SELECT {match['what'].strip()} is not known here; SELECT * shows every property")
    _check_class(match["of"])
    rest = match["rest"].rstrip().removesuffix(";")
    word = rest.split(maxsplit=1)[0] if rest.strip() else ""
    if not word:
        return ()
    if word.lower() != "where":
        raise FilterError(f"{word} is not known here behind FROM {match['of']}; WHERE is")
    begin = match.start("rest") + rest.lower().index("where") + len("where")
    return (" " * begin + query[begin : match.start("rest") + len(rest)],)


def _of_pipeline(query: str) -> tuple[str, ...]:
    r"""Return the conditions of `Get-WmiObject ... | where { ... }`."""
    cmdlet = query.split(maxsplit=1)[0]
    arguments, end = _arguments_of(query)
    if not {"-class", "-classname", "-query"} & {option for option, _, _ in arguments}:
        raise FilterError(f"{cmdlet} names no class; {_CLASSES[0]} has the jobs")
    conditions: tuple[str, ...] = ()
    for option, start, stop in arguments:
        match option:
            case "-class" | "-classname":
                _check_class(query[start:stop])
            case "-namespace":
                _check_namespace(query[start:stop])
            case "-query":
                conditions += _of_select(query[:stop], start)
            case "-filter":
                conditions += (" " * start + query[start:stop],)
            case other:
                raise FilterError(f"{other} of {cmdlet} is not known here")
    return conditions + _of_where(query, end)


def _arguments_of(query: str) -> tuple[list[tuple[str, int, int]], int]:
    """Return a cmdlet's options with where their values begin and end, and where all of them end."""
    cmdlet = _CMDLET.match(query)
    at = cmdlet.end() if cmdlet is not None else 0
    found: list[tuple[str, int, int]] = []
    option = ""
    while (word := _WORD.match(query, at)) is not None:
        at, kind = word.end(), word.lastgroup or ""
        if not option and kind == "bare" and word[kind].startswith("-"):
            option = word[kind].lower()
        else:
            # What has no option before it is the class.
            found.append((option or "-class", word.start(kind), word.end(kind)))
            option = ""
    if option:
        raise FilterError(f"{option} has no value")
    return found, at


def _of_where(query: str, at: int) -> tuple[str, ...]:
    """Return the condition of `| where { ... }` at a place, which may be the end."""
    if not query[at:].strip():
        return ()
    where = _WHERE.match(query, at)
    if where is None:
        raise FilterError(f"{query[at:].strip()!r} is not known here; | where {{ ... }} is")
    return (_without_braces(query, where.end()),)


def _without_braces(query: str, start: int) -> str:
    """Return what is between the brace at a place and the one that ends the query."""
    begin = query.index("{", start) + 1
    end = query.rindex("}") if "}" in query else -1
    if end < begin:
        raise FilterError("the filter has a { without }")
    if behind := query[end + 1 :].strip():
        raise FilterError(f"{behind!r} is not known here behind {{ ... }}")
    return " " * begin + query[begin:end]


def _check_class(name: str) -> None:
    if name.lower() not in {each.lower() for each in _CLASSES}:
        raise FilterError(f"there is no class {name} here; {_CLASSES[0]} has the jobs")


def _check_namespace(name: str) -> None:
    if not _NAMESPACE.fullmatch(name):
        raise FilterError(rf"there is no namespace {name} here; root\virtualization has the jobs")
