from __future__ import annotations

from tests.jobs.conftest import state, vms

__all__ = ["state", "vms"]
