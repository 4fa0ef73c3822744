"""What becomes of a rule that a file breaks: a reader refuses the file, a check notes it and goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from vhdkit.corruption import as_finding
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.findings import Finding, Level

if TYPE_CHECKING:
    from vhdkit.vhdx.corruption import VhdxCorruption


class Judge:
    """Notes what is wrong with one file; unless it keeps going, what must not be read is raised."""

    def __init__(self, path: str, *, keep_going: bool = False) -> None:
        self.path = path
        self.keep_going = keep_going
        self.findings: list[Finding] = []

    def note(
        self, corruption: VhdxCorruption, message: str, offset: int | None = None, level: Level = Level.WARNING
    ) -> None:
        """Note what does not keep the file from being read."""
        self.findings.append(
            Finding(corruption=corruption, path=self.path, message=message, level=level, offset=offset)
        )

    def refuse(self, corruption: VhdxCorruption, detail: str, offset: int | None = None) -> None:
        """Refuse the file, or note why it must be refused.

        Raises:
            CorruptImageError: the rule, unless it keeps going.

        """
        self.refuse_for(CorruptImageError(corruption, detail, path=self.path, offset=offset))

    def refuse_for(self, error: CorruptImageError) -> None:
        """Refuse the file for an error that says where it is, or note it."""
        if not self.keep_going:
            raise error
        self.findings.append(as_finding(error, self.path))

    def refuse_unknown(self, corruption: VhdxCorruption, message: str, offset: int | None = None) -> None:
        """Refuse a file that is valid and says what is not known here, or note that.

        Raises:
            UnsupportedImageError: unless it keeps going.

        """
        if not self.keep_going:
            raise UnsupportedImageError(message, path=self.path)
        self.note(corruption, message, offset, Level.ERROR)

    def give_up_unknown(self, corruption: VhdxCorruption, message: str) -> NoReturn:
        """Refuse a file with something unknown, of which therefore no more can be known.

        Raises:
            UnsupportedImageError: always; if it keeps going, the rule was noted.

        """
        self.refuse_unknown(corruption, message)
        raise UnsupportedImageError(message, path=self.path)

    def give_up(self, corruption: VhdxCorruption, detail: str, offset: int | None = None) -> NoReturn:
        """Refuse a file of which no more can be known.

        Raises:
            CorruptImageError: always.

        """
        raise CorruptImageError(corruption, detail, path=self.path, offset=offset)
