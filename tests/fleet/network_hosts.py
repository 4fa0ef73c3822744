"""Two hosts and a file server as network namespaces of this machine, joined by cables that can be pulled.

Each host has its own disk, and sees one folder of the server at the same path, through sshfs. Takes root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.cli.running import environment
from tests.fleet.cluster_processes import make_certificate
from tests.jobs.making import until

if TYPE_CHECKING:
    from pathlib import Path

HOSTS = ("hv01", "hv02")
SFTP_PORT, SCHEDULER_PORT = 2022, 8786
# Serves each connection by OpenSSH's own sftp-server, as sshd would, but without encryption.
SERVER = """
import socketserver, subprocess
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        subprocess.run(["/usr/lib/openssh/sftp-server"], stdin=self.request, stdout=self.request)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
Server(("0.0.0.0", PORT), Handler).serve_forever()
"""


@dataclass(slots=True)
class NetworkHosts:
    """The machines; `disk` is where a host's own files lie, `shared` what both see, `exported` that on the server."""

    folder: Path
    tls: list[str] = field(default_factory=list)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def shared(self) -> Path:
        """The shared folder as the hosts see it."""
        return self.folder / "nas"

    @property
    def exported(self) -> Path:
        """The shared folder on the server."""
        return self.folder / "exported"

    @property
    def address(self) -> str:
        """The scheduler, as its own host sees it."""
        return f"tls://127.0.0.1:{SCHEDULER_PORT}"

    def disk(self, host: str) -> Path:
        """Return where a host's own files lie."""
        return self.folder / host

    def state(self, host: str) -> str:
        """Return where a host keeps its list of jobs."""
        return str(self.folder / f"{host}.state")

    def build(self) -> None:
        """Make the namespaces, the cables and the folders, and start what serves."""
        self.tls = make_certificate(self.folder)
        for path in (self.shared, self.exported, *map(self.disk, HOSTS)):
            path.mkdir()
        _ip("netns", "add", self._space("server"))
        self._inside("server", "ip", "link", "set", "lo", "up")
        for number, host in enumerate(HOSTS, 1):
            space, near, far = self._space(host), self._cable(host), f"{self._cable(host)}h"
            _ip("netns", "add", space)
            _ip(
                "link", "add", near, "netns", self._space("server"), "type", "veth", "peer", "name", far, "netns", space
            )
            self._inside("server", "ip", "addr", "add", f"10.77.{number}.1/24", "dev", near)
            self._inside(host, "ip", "addr", "add", f"10.77.{number}.2/24", "dev", far)
            for where, device in (("server", near), (host, far), (host, "lo")):
                self._inside(where, "ip", "link", "set", device, "up")
        self._start("sftp", "server", [sys.executable, "-c", SERVER.replace("PORT", str(SFTP_PORT))])
        self.start_scheduler()

    def start_scheduler(self) -> None:
        """Start the scheduler."""
        words = ["-m", "distributed.cli.dask_scheduler", "--protocol", "tls", "--no-dashboard"]
        tls = [word.replace("--tls-ca", "--tls-ca-file") for word in self.tls]
        self._start("scheduler", "server", [sys.executable, *words, "--port", str(SCHEDULER_PORT), *tls])

    def start_worker(self, host: str) -> None:
        """Start a host's worker, which sees its own disk and the shared folder."""
        number = HOSTS.index(host) + 1
        mount = f"sshfs -o directport={SFTP_PORT} 10.77.{number}.1:{self.exported} {self.shared} 2>/dev/null"
        allowed = f"--allow {self.disk(host)} --allow {self.shared}"
        worker = f"{sys.executable} -m vhdkit fleet worker tls://10.77.{number}.1:{SCHEDULER_PORT} {allowed}"
        script = f"until {mount}; do sleep 0.2; done; exec {worker} --host {host} {' '.join(self.tls)}"
        self._start(host, host, ["unshare", "--mount", "sh", "-c", script], VHDKIT_STATE=self.state(host))
        until(lambda: "working for" in (self.folder / f"{host}.log").read_text())

    def merge(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a merge of all chains, at the server; its report goes to report.json."""
        patterns = [f"{host}:{self.disk(host)}/**/*.avhd" for host in HOSTS]
        words = [*patterns, f"{self.shared}/**/*.avhd", "--scheduler", self.address, *self.tls, *options]
        report = str(self.folder / "report.json")
        return self._start(
            "client", "server", [sys.executable, "-m", "vhdkit", "fleet", "merge", *words, "--report", report]
        )

    def pull_cable(self, host: str) -> None:
        """Cut a host off."""
        self._inside("server", "ip", "link", "set", self._cable(host), "down")

    def plug_in(self, host: str) -> None:
        """Join a host again."""
        self._inside("server", "ip", "link", "set", self._cable(host), "up")

    def close(self) -> None:
        """Stop all that runs, and remove the namespaces."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        for name in ("server", *HOSTS):
            # What serves a mount goes on by itself.
            left = subprocess.run(
                ["ip", "netns", "pids", self._space(name)], capture_output=True, text=True, check=False
            )
            for pid in map(int, left.stdout.split()):
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", self._space(name)], check=False, capture_output=True)

    def _space(self, name: str) -> str:
        return f"vk{os.getpid()}{name}"

    def _cable(self, host: str) -> str:
        return f"vk{os.getpid() % 10**6}{host[-1]}"

    def _inside(self, host: str, *command: str) -> None:
        _ip("netns", "exec", self._space(host), *command)

    def _start(self, name: str, host: str, command: list[str], **extra: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            started = subprocess.Popen(
                ["ip", "netns", "exec", self._space(host), *command], env=environment(**extra), stdout=log, stderr=log
            )
        self.processes[name] = started
        return started


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
