from __future__ import annotations

from tests.serve.disks import model_of_three_layers  # noqa: F401 - a fixture
