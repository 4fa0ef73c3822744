from __future__ import annotations

import os

from tests.serve.disks import leaf_on_disk, model_of_three_layers  # noqa: F401 - fixtures

# A container may have no FUSE at all: then there is nothing that these tests could be about.
collect_ignore = [] if os.access("/dev/fuse", os.R_OK | os.W_OK) else ["test_mount.py"]
