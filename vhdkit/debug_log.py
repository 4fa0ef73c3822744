"""What programs that use logging hear of searches, recoveries and waits: loggers `vhdkit.ROOM`, at debug level."""

from __future__ import annotations

import sys


def debug(room: str, message: str, *arguments: object) -> None:
    """Log under `vhdkit.ROOM`, if this process uses logging at all.

    No handler listens where the module was never imported; a short command need not pay the 2 to 12 ms of importing it.
    """
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(f"vhdkit.{room}").debug(message, *arguments)
