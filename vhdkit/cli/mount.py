"""The verb that makes a folder of a chain: mount."""

from __future__ import annotations

import sys
from typing import Any

import click

import vhdkit
from vhdkit.cli.options import accept_option, chain_arguments, chain_options, force_share_option
from vhdkit.cli.output import echo, path_text, warn


@click.command()
@click.argument("file")
@click.argument("directory", metavar="DIR")
@click.option("--writable", is_flag=True, help="Let DIR/disk.raw be written into FILE; the layers below never change.")
@click.option("-f", "image_format", type=click.Choice(["vhd", "raw"]), help="Format; raw if nothing says VHD.")
@force_share_option
@chain_options
@accept_option
def mount(
    file: str, directory: str, *, writable: bool, image_format: str | None, force_share: bool, **options: Any
) -> None:
    """Mount what FILE shows through its chain on DIR, by FUSE, until it is unmounted or Ctrl-C ends it.

    DIR/disk.raw is the disk, DIR/layers/N-NAME.raw the disk as it was at each layer (0 is FILE), and DIR/info.json
    describes the layers. The files are held until the end.
    """
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

    def tell() -> None:
        echo(f"mounted on {path_text(directory)}; `umount {path_text(directory)}` or Ctrl-C ends it")
        sys.stdout.flush()

    with opened as chain:
        warn(chain.findings)
        chain.check_readable()
        vhdkit.mount_chain(chain, directory, mounted=tell)
