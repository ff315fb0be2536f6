"""Labels beside lines: what a legend says, where the eye is, and never on a curve.

A line that reaches the right edge has its label there, outside the axes; one that ends before, at a free place beside
it; a vertical line, above it. Labels do not overlap.
"""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

WIDTH = 28  # characters of a label's line
EDGE = 0.04  # of the axes' width: what ends there reaches the right edge
AROUND = [(1, 1), (1, -1), (-1, -1), (-1, 1), (0, 1), (0, -1)]  # directions from a point to its label


def label_lines(figure: Figure) -> None:
    """Writes the label of each line in all axes that have no legend."""
    lay_out(figure)  # so that pixels can be measured
    for axes in figure.axes:
        lines = [line for line in axes.get_legend_handles_labels()[0] if len(_points(axes, line))]
        if axes.get_legend() is None and lines:
            _label(axes, lines)


def lay_out(figure: Figure) -> None:
    """Places the axes of a figure. Drawing does it, too, but takes several times as long."""
    engine = figure.get_layout_engine()
    assert engine is not None  # `new_figure` sets it
    engine.execute(figure)


def _label(axes: Any, lines: Sequence[Any]) -> None:
    at_edge, taken = [], []
    for line in lines:
        points = _points(axes, line)
        if len(points) == 2 and points[0, 0] == points[1, 0]:
            x = axes.transAxes.inverted().transform(points[0])[0]
            taken.append(_text(axes, line, x, 1.01, "center", "bottom"))
        elif points[-1, 0] > axes.bbox.x1 - EDGE * axes.bbox.width or not _beside(axes, line, points, taken):
            at_edge.append((line, points[-1]))
    at_edge.sort(key=lambda pair: pair[1][1])
    texts = [_text(axes, line, 1.03, 0.5, "left", "center") for line, _ in at_edge]
    heights = [text.get_window_extent().height + 2 for text in texts]
    centres = spread([end[1] for _, end in at_edge], heights, axes.bbox.y0 - 6, axes.bbox.y1 + 6)
    for text, (line, end), centre in zip(texts, at_edge, centres, strict=True):
        y = axes.transAxes.inverted().transform((0, centre))[1]
        text.set_y(y)
        arrow = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        end = axes.transAxes.inverted().transform(end)
        axes.annotate("", end, (1.025, y), axes.transAxes, axes.transAxes, arrow, annotation_clip=False)


def _points(axes: Any, line: Any) -> np.ndarray:
    """A line's points inside the axes, in pixels [N, 2]."""
    points = line.get_transform().transform(np.asarray(line.get_xydata(), float).reshape(-1, 2))
    box = axes.bbox.expanded(1.001, 1.001)
    return points[((points >= box.min) & (points <= box.max)).all(1)]  # none that is not finite


def _text(axes: Any, line: Any, x: float, y: float, ha: str, va: str) -> Any:
    label = balanced(line.get_label(), WIDTH)
    darker = 0.75 * np.array(to_rgb(line.get_color()))
    how: dict[str, Any] = {"color": darker, "fontsize": "small", "linespacing": 1.1, "transform": axes.transAxes}
    return axes.text(x, y, label, ha=ha, va=va, **how)


def _beside(axes: Any, line: Any, points: np.ndarray, taken: list[Any]) -> bool:
    """Writes the label near the line's end, where it touches no line and none of the labels `taken`, if it can."""
    text = _text(axes, line, 0, 0, "left", "bottom")
    width, height = text.get_window_extent().size
    paths = [other.get_transform().transform_path(other.get_path()) for other in axes.lines]
    boxes = [other.get_window_extent() for other in taken]
    for point in points[:: -max(1, len(points) // 20)]:
        for right, up in AROUND:
            x = point[0] + (right - 1) * width / 2 + 8 * right
            y = point[1] + (up - 1) * height / 2 + 6 * up
            box = Bbox.from_bounds(x - 3, y - 2, width + 6, height + 4)
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            free = not any(box.overlaps(other) for other in boxes)
            if inside and free and not any(path.intersects_bbox(box, filled=False) for path in paths):
                text.set_position(axes.transAxes.inverted().transform((x, y)))
                taken.append(text)
                return True
    text.remove()
    return False


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> np.ndarray:
    """Centres of boxes with these heights, in order, without overlap, inside [low, high], near the wanted centres.

    The sum of the squared distances to them is the least: isotonic regression.

    >>> spread([5, 50, 51, 52], [10, 10, 10, 10], 0, 100)
    array([ 5., 41., 51., 61.])
    """
    offsets = np.cumsum(heights) - np.array(heights) / 2  # of boxes that are stacked from 0
    blocks: list[list[float]] = []
    for start in np.array(wanted) - offsets:
        blocks.append([start])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    starts = [float(np.mean(block)) for block in blocks for _ in block]
    return np.clip(starts, low, max(low, high - sum(heights))) + offsets


def balanced(text: str, width: int) -> str:
    """Text in as few lines as `width` characters allow, of similar length. Its last two words stay together.

    >>> print(balanced("A norm of the gradient is above the limit. So it was clipped.", 40))
    A norm of the gradient is above
    the limit. So it was clipped.
    """
    text = re.sub(r"(?<=\d) (?=%)|(?<=[×±=]) | (?=[×±=])", "\N{NO-BREAK SPACE}", text)
    if text.count(" ") > 2:
        text = "\N{NO-BREAK SPACE}".join(text.rsplit(" ", 1))
    whole = {"break_on_hyphens": False, "break_long_words": False}
    ways = [textwrap.wrap(text, w, **whole) for w in range(width, width // 3, -1)]  # type: ignore[arg-type]
    lines = min(ways, key=lambda way: (len(way), max(map(len, way), default=0)))
    return "\n".join(lines)
