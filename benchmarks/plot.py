"""The plot of the race as SVG, written by hand: time against payload, and time against virtual size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH, _HEIGHT, _TOP, _LEFT, _BETWEEN = 380, 250, 56, 60, 130
_COLOURS = {"vhdkit": "#0b6e4f", "cp": "#8a8a8a", "qemu": "#c8553d", "dissect": "#3d6ec8"}
_NAMES = {"vhdkit": "vhdkit", "cp": "cp, sync", "qemu": "qemu-img commit"}
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class _Line:
    label: str
    colour: str
    dashed: bool
    points: Sequence[tuple[float, float]]


def drawn(series: dict[str, Any]) -> str:
    """Return the plot of merges, both axes logarithmic, of the series that are there."""
    payload = [line for name in ("W1", "W2") for line in _lines(series, name, "payload", dashed=name == "W2")]
    size = _lines(series, "W4", "size", dashed=False)
    return _framed(
        _panel(_LEFT, "Time against payload", "GiB of payload (W1 full blocks, W2 dashed: scattered)", payload),
        _panel(_LEFT + _WIDTH + _BETWEEN, "Time against virtual size", "GiB of disk, 3,000 blocks written (W4)", size),
    )


def drawn_disks(series: dict[str, Any]) -> str:
    """Return the plot of what whole disks take: reads against depth, and conversion against payload."""
    reads, convert = series.get("depth", {}).get("points", []), series.get("convert", {}).get("points", [])
    depth = [
        _Line(
            label, _COLOURS[who], dashed=False, points=[(each["layers"], each["seconds"][who]["median"]) for each in on]
        )
        for who, label in (("vhdkit", "vhdkit"), ("dissect", "dissect, one layer"))
        if (on := [each for each in reads if who in each["seconds"]])
    ]
    payload = [
        _Line(
            label,
            _COLOURS[who],
            dashed=False,
            points=[(each["held"] / _GIB, each["seconds"][who]["median"]) for each in on],
        )
        for who, label in (("vhdkit", "vhdkit"), ("qemu", "qemu-img convert, sync"))
        if (on := [each for each in convert if who in each["seconds"]])
    ]
    return _framed(
        _panel(_LEFT, "Reads against depth", "layers of the chain, 100,000 reads of 4 KiB", depth),
        _panel(
            _LEFT + _WIDTH + _BETWEEN, "convert -O raw against payload", "GiB held by a disk of twice the size", payload
        ),
    )


def drawn_fleet(points: Sequence[dict[str, float]], chains: int) -> str:
    """Return the plot of simulated fleets: how long they take, and what none could beat, against the hosts."""
    lines = [
        _Line(label, colour, dashed, [(each["hosts"], each[name]) for each in points])
        for name, label, colour, dashed in (
            ("makespan", "simulated", _COLOURS["vhdkit"], False),
            ("bound", "lower bound", _COLOURS["cp"], True),
        )
    ]
    ratio = [
        _Line("ratio", _COLOURS["vhdkit"], dashed=False, points=[(each["hosts"], each["ratio"]) for each in points])
    ]
    return _framed(
        _panel(_LEFT, f"{chains:,} merges", "hosts, simulated clock, recorded costs", lines),
        _panel(_LEFT + _WIDTH + _BETWEEN, "Time by its lower bound", "hosts", ratio, unit="ratio"),
    )


def _framed(*panels: str) -> str:
    width, height = _LEFT + 2 * _WIDTH + 2 * _BETWEEN, _TOP + _HEIGHT + 64
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#333">\n<rect width="{width}" height="{height}" fill="#fff" rx="6"/>\n'
        + "".join(panels)
        + "</svg>\n"
    )


def _lines(series: dict[str, Any], name: str, axis: str, *, dashed: bool) -> list[_Line]:
    points = series.get(name, {}).get("points", [])
    lines = []
    for who, colour in _COLOURS.items():
        at = [(point[axis] / _GIB, point["seconds"][who]["median"]) for point in points if who in point["seconds"]]
        if at and not (who == "cp" and name != "W1"):
            label = _NAMES[who] + (f", {name}" if axis == "payload" else "")
            lines.append(_Line(label, colour, dashed, at))
    return lines


def _ticks(low: float, high: float) -> list[float]:
    """Return powers of ten with 2 and 5 between them, or of ten alone over more than two decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) <= 2 else (1,)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


def _panel(left: int, title: str, below: str, lines: list[_Line], unit: str = "seconds") -> str:
    parts = [f'<text x="{left}" y="{_TOP - 28}" font-size="15" font-weight="600">{escape(title)}</text>\n']
    parts.append(f'<text x="{left}" y="{_TOP - 10}" fill="#777">{unit}</text>\n')
    parts.append(f'<text x="{left}" y="{_TOP + _HEIGHT + 42}" fill="#777">{escape(below)}</text>\n')
    if not lines:
        return "".join(parts)
    across = [x for line in lines for x, _ in line.points]
    up = [y for line in lines for _, y in line.points]
    x_low, x_high = min(across) / 1.15, max(across) * 1.15
    y_low, y_high = min(up) / 1.3, max(up) * 1.3

    def x_at(value: float) -> float:
        return left + _WIDTH * math.log(value / x_low) / math.log(x_high / x_low)

    def y_at(value: float) -> float:
        return _TOP + _HEIGHT * (1 - math.log(value / y_low) / math.log(y_high / y_low))

    for value in _ticks(y_low, y_high):
        y = y_at(value)
        parts.append(f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#e4e4e4"/>\n')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#777">{value:g}</text>\n')
    for value in _ticks(x_low, x_high):
        x, y = x_at(value), _TOP + _HEIGHT
        parts.append(f'<path d="M{x:.1f} {y}v5" stroke="#999"/>\n')
        parts.append(f'<text x="{x:.1f}" y="{y + 19}" text-anchor="middle" fill="#777">{value:g}</text>\n')
    parts.append(f'<path d="M{left} {_TOP + _HEIGHT}h{_WIDTH}" stroke="#999"/>\n')
    labels = _spread([y_at(line.points[-1][1]) for line in lines])
    for line, label_y in zip(lines, labels, strict=True):
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>\n')
        for x, y in line.points:
            parts.append(f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{line.colour}"/>\n')
        x = x_at(line.points[-1][0]) + 8
        parts.append(f'<text x="{x:.1f}" y="{label_y + 4:.1f}" fill="{line.colour}">{escape(line.label)}</text>\n')
    return "".join(parts)


def _spread(places: list[float], apart: float = 14.0) -> list[float]:
    """Return places for labels near those of the lines' ends, none upon another."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found, last = [0.0] * len(places), -math.inf
    for index in order:
        last = found[index] = max(places[index], last + apart)
    return found
