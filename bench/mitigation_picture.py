"""The picture of `bench.mitigation`: for each pattern a bar a policy, as a multiple of the ideal. Pure."""

from __future__ import annotations

from statistics import median
from typing import Any

BAR, GAP, LEFT, WIDTH = 14, 22, 260, 520
SCALE_MAX = 4.0
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")


def picture(runs: list[dict[str, Any]]) -> str:
    """An SVG document."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        of = groups.setdefault((run["pattern"], run["strategy"]), {})
        of.setdefault(run["policy"], []).append(run["ratio_to_ideal"])
    policies = sorted({run["policy"] for run in runs})
    parts, y = [], 40
    for (pattern, strategy), found in sorted(groups.items()):
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{pattern}, {strategy}</text>')
        for policy in sorted(found):
            y += BAR + 3
            ratio = median(found[policy])
            width = WIDTH * min(ratio, SCALE_MAX) / SCALE_MAX
            colour = COLOURS[policies.index(policy) % len(COLOURS)]
            parts.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{policy}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y - BAR + 3}" width="{width:.0f}" height="{BAR}" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + width + 6:.0f}" y="{y}">{ratio:.2f}</text>')
        y += GAP
    one = LEFT + WIDTH / SCALE_MAX
    line = f'<line x1="{one:.0f}" y1="24" x2="{one:.0f}" y2="{y}" stroke="#888" stroke-dasharray="3"/>'
    head = f'<text x="{LEFT}" y="18">time as a multiple of the ideal that knows the pattern</text>'
    size = f'width="{LEFT + WIDTH + 60}" height="{y + 10}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{head}{line}{"".join(parts)}</svg>\n'
