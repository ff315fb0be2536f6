"""Checks of pictures: what is written beside lines, and what is asked of every figure."""

import numpy as np
from matplotlib.colors import to_rgb


def labels_of(axes):
    """The labels beside lines, in the order of their height, as one line of text each."""
    texts = sorted((text for text in axes.texts if text.get_text()), key=lambda text: text.get_window_extent().y0)
    return [" ".join(text.get_text().split()) for text in texts]


def title_of(figure):
    return " ".join(figure.get_suptitle().split())


def caption_of(figure):
    return " ".join(figure.get_supxlabel().split())


def contrast(colour):
    """WCAG 2's contrast of a colour with white: 1 to 21."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


def check(figure):
    """What is asked of every picture."""
    assert figure.get_suptitle() and figure.get_supxlabel()
    for text in (figure.get_suptitle(), figure.get_supxlabel()):
        lines = text.split("\n")
        assert len(lines) == 1 or len(lines[-1].split()) > 1, f"an orphan word: {text}"
    texts = [figure._suptitle, figure._supxlabel]
    for axes in figure.axes:
        written = [text for text in axes.texts if text.get_text()]
        texts += [*written, axes.title, axes.xaxis.label, axes.yaxis.label]
        paths = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
        for text in written:
            box = text.get_window_extent()
            inside = axes.bbox.overlaps(box)
            assert not inside or not any(path.intersects_bbox(box, filled=False) for path in paths), text
        for line in axes.lines:
            assert contrast(line.get_color()) >= 3 and line.get_alpha() in (None, 1)
        for legend in filter(None, [axes.get_legend()]):
            assert not legend.get_window_extent().overlaps(axes.bbox)
    boxes = [(text, text.get_window_extent()) for text in texts if text.get_text()]
    for i, (text, box) in enumerate(boxes):
        assert contrast(text.get_color()) >= 4.5
        assert figure.bbox.x0 <= box.x0 + 1 and box.x1 - 1 <= figure.bbox.x1, f"cut off: {text}"
        for other, its in boxes[:i]:
            assert not box.overlaps(its), f"{text.get_text()!r} lies on {other.get_text()!r}"
