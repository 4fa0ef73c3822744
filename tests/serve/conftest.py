from __future__ import annotations

import socket

import pytest

from tests.serve.disks import leaf_on_disk, model_of_three_layers  # noqa: F401 - fixtures


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
