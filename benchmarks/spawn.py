"""Run one command and print what it took, as JSON: `python -I -S benchmarks/spawn.py COMMAND ...`.

A child's peak memory counts that of the process it was forked from, so the one that forks must be small: this one
imports next to nothing, and peaks below its own 10 MiB cannot be told.
"""

import json
import os
import sys
import time


def main() -> None:
    """Time from the start to the end of the whole process; figures of its children are added by the kernel."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begun = time.perf_counter()
    process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    seconds = time.perf_counter() - begun
    counters = {}
    try:
        with open(f"/proc/{process}/io") as file:
            counters = {key: int(value) for key, value in (line.split(": ") for line in file)}
    except OSError:  # not on Linux, or not ours to look at
        pass
    _, status, usage = os.wait4(process, 0)
    print(
        json.dumps(
            {
                "status": os.waitstatus_to_exitcode(status),
                "seconds": seconds,
                "user": usage.ru_utime,
                "system": usage.ru_stime,
                "peak": usage.ru_maxrss * 1024,
                "reads": counters.get("syscr", 0),
                "writes": counters.get("syscw", 0),
                "bytes-read": counters.get("rchar", 0),
                "bytes-written": counters.get("wchar", 0),
            }
        )
    )


if __name__ == "__main__":
    main()
