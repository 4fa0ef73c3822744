from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash.acts import remembering

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def _remembering() -> Iterator[None]:
    with remembering():
        yield
