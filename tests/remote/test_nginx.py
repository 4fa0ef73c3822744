"""The same chains from nginx, as people run it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.conformance.tools import requires
from tests.serve.disks import SIZE
from vhdkit.storage import remote_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.model import ModelChain

CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; etag {etag};
  client_body_temp_path {folder}/t; proxy_temp_path {folder}/t; fastcgi_temp_path {folder}/t;
  uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("fsspec", reason="needs fsspec")
    pytest.importorskip("aiohttp", reason="needs aiohttp")


@pytest.fixture(params=["on", "off"], ids=["etag", "date"])
def leaf(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[str]:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if program is None:
        requires("nginx")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    own = tmp_path / "nginx"
    own.mkdir()
    # Its workers are of this user, whose folders they can read.
    text = CONFIGURATION.format(folder=own, root=folder, port=port, etag=request.param)
    (own / "conf").write_text(text)
    with subprocess.Popen([str(program), "-c", own / "conf", "-e", own / "error.log"]) as process:
        try:
            until = time.monotonic() + 30
            while not _listens(port):
                assert process.poll() is None, (own / "error.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}/layer-2.avhd"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_chain_reads_as_the_model_says(model: ModelChain, leaf: str) -> None:
    with vhdkit.open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == model.read(0, SIZE)
    assert vhdkit.check(leaf, chain=True).exit_code == 0


def test_a_file_that_changes_is_an_error(leaf: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_cache", remote_file.BlockCache(0))
    with vhdkit.open_chain(leaf) as chain:
        chain.read(0, SIZE)
        # nginx knows versions by the second, and by the size.
        os.utime(folder / "layer-0.vhd", (time.time() + 5, time.time() + 5))
        with pytest.raises(OSError, match="it has changed") as caught:
            chain.read(0, SIZE)
    assert caught.value.errno == errno.ESTALE


def test_what_is_not_there_is_not_found(leaf: str) -> None:
    with pytest.raises(FileNotFoundError):
        vhdkit.open_chain(leaf.replace("layer-2", "nope"))
