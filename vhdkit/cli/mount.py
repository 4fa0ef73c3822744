"""The verb that makes a folder of a chain: mount."""

from __future__ import annotations

import sys
from typing import Any

import click

import vhdkit
from vhdkit.cli.opened_chain import opened_chain
from vhdkit.cli.options import accept_option, chain_options, force_share_option, image_format_option
from vhdkit.cli.output import echo, path_text


@click.command()
@click.argument("file")
@click.argument("directory", metavar="DIR")
@click.option("--writable", is_flag=True, help="Let DIR/disk.raw be written into FILE; the layers below never change.")
@image_format_option
@force_share_option
@chain_options
@accept_option
def mount(file: str, directory: str, **options: Any) -> None:
    """Mount what FILE shows through its chain on DIR, by FUSE, until it is unmounted or Ctrl-C ends it.

    DIR/disk.raw is the disk, DIR/layers/N-NAME.raw the disk as it was at each layer (0 is FILE), and DIR/info.json
    describes the layers. The files are held until the end.
    """

    def tell() -> None:
        echo(f"mounted on {path_text(directory)}; `umount {path_text(directory)}` or Ctrl-C ends it")
        sys.stdout.flush()

    with opened_chain(file, **options) as chain:
        vhdkit.mount_chain(chain, directory, mounted=tell)
