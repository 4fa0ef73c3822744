"""How a fleet scales: the real schedule on a simulated clock, drawn into docs/how-to/fleet-scale.svg.

    python -m benchmarks.fleet_scale

prints the table behind the figure. What merges take was recorded; see tests/fleet/simulated_fleet.py.
"""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks import plot
from tests.fleet.simulated_fleet import Weather, make_fleet, simulate

CHAINS = 100_000
HOSTS = (1, 2, 5, 10, 20, 50, 100, 200)
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "fleet-scale.svg"


def main() -> None:
    points = []
    for hosts in HOSTS:
        dice = random.Random(hosts)
        done = simulate(make_fleet(CHAINS, hosts, dice), Weather(), dice)
        point = {"hosts": hosts, "makespan": done.makespan, "bound": done.bound, "ratio": done.makespan / done.bound}
        points.append(point)
        print(f"{hosts:4} hosts: {done.makespan:9.1f} s, bound {done.bound:9.1f} s, ratio {point['ratio']:.3f}")
    FIGURE.write_text(plot.drawn_fleet(points, CHAINS))


if __name__ == "__main__":
    main()
