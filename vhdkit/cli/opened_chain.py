"""Opening the chain of a verb that reads all of a disk, or writes into its leaf."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

import vhdkit
from vhdkit.cli.options import chain_arguments
from vhdkit.cli.output import warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.chain.chain import Chain


@contextmanager
def opened_chain(
    file: str, *, image_format: str | None, force_share: bool, writable: bool = False, **options: Any
) -> Iterator[Chain]:
    """Lend a chain that can be read everywhere, its findings shown as warnings."""
    from vhdkit.chain.open_view import open_view
    from vhdkit.options import ParentPolicy
    from vhdkit.storage.local_folder import LocalFolder

    if writable and (force_share or image_format == "raw"):
        raise click.UsageError("--writable takes a VHD that is not in use elsewhere, without -f raw and --force-share")
    if writable:
        opened = vhdkit.open_chain(file, writable=True, **chain_arguments(**options))
    else:
        policy = ParentPolicy.of(**chain_arguments(**options))
        opened = open_view(file, image_format, policy, LocalFolder(), lock=not force_share)
    with opened as chain:
        warn(chain.findings)
        chain.check_readable()
        yield chain
