"""How failures and findings read to a person at a shell: with the commands and options that mend them."""

from __future__ import annotations

from vhdkit.command_hints import command_words
from vhdkit.findings import hints_as


def as_typed(shown: object) -> str:
    """Return an error, a finding or a hint as the command line prints it."""
    with hints_as(command_words()):
        return str(shown)
