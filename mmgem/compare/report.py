"""A comparison as a table in Markdown, and as a plot (SVG, drawn here: no library is needed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_FIGURES = (
    *("i2t R@1", "i2t R@10", "t2i R@1", "t2i R@10", "i2t reranked R@1", "t2i reranked R@1"),
    *("CIDEr", "BLEU@4", "zero-shot", "region R@1", "region R@10"),
)
_COSTS = (
    ("trained", "trains, M", 1e6, 2),
    ("tokens", "caption tokens seen, M", 1e6, 2),
    ("pairs_per_second", "pairs/s", 1, 1),
    ("peak_memory_gb", "peak memory, GB", 1, 2),
)
_PLOTTED = ("i2t R@1", "t2i R@1", "CIDEr", "zero-shot", "region R@1")
_COLOUR, _TEXT, _LINE = "#0b6a57", "#1e1d1a", "#69655c"


def markdown(rows: Sequence[Mapping[str, Any]], about: str) -> str:
    """The table: a system a row, "± " its standard error, "–" what it has not. ``rows``: ``name``,
    ``scores`` (pairs by name) and ``training`` (numbers by name)."""
    figures = [name for name in _FIGURES if any(name in row["scores"] for row in rows)]
    heads = ["system", *figures, *(label for _, label, _, _ in _COSTS)]
    lines = [about, "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [str(row["name"])]
        for name in figures:
            value = row["scores"].get(name)
            cells.append("–" if value is None else f"{value[0]:.1f} ± {value[1]:.1f}")
        for name, _, unit, digits in _COSTS:
            number = row["training"].get(name)
            cells.append("–" if number is None else f"{number / unit:.{digits}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Bars with whiskers of one standard error, a panel a figure; a system without it has no bar."""
    panels = [name for name in _PLOTTED if any(name in row["scores"] for row in rows)]
    left, bar, gap, width = 170, 18, 6, 190
    height = 70 + len(rows) * (bar + gap)
    total = left + max(1, len(panels)) * (width + 30)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" '
        f'viewBox="0 0 {total} {height}" font-family="sans-serif" font-size="12" fill="{_TEXT}">',
        f'<rect width="{total}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    for n, row in enumerate(rows):
        y = 60 + n * (bar + gap) + bar - 5
        parts.append(f'<text x="{left - 10}" y="{y}" text-anchor="end">{escape(str(row["name"]))}</text>')
    for p, name in enumerate(panels):
        x = left + p * (width + 30)
        values = [row["scores"].get(name) for row in rows]
        most = max((value[0] + value[1] for value in values if value), default=0.0) or 1.0
        parts.append(f'<text x="{x}" y="48">{escape(name)}</text>')
        for n, value in enumerate(values):
            if value is None:
                continue
            y, scale = 60 + n * (bar + gap), (width - 40) / most
            end, error = x + value[0] * scale, value[1] * scale
            parts += [
                f'<rect x="{x}" y="{y}" width="{end - x:.1f}" height="{bar}" fill="{_COLOUR}"/>',
                f'<path d="M{end - error:.1f} {y + bar / 2}h{2 * error:.1f}" stroke="{_LINE}" '
                'stroke-width="2"/>',
                f'<text x="{end + error + 4:.1f}" y="{y + bar - 5}">{value[0]:.1f}</text>',
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"
