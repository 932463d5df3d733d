"""Pictures for docs/: small SVG files that read well on a light page and on a dark one."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

DOCS = Path(__file__).resolve().parents[1] / "docs"
INK = "#7d8590"  # contrast above 4 against white and against near-black
COLOURS = ("#3b82f6", "#f97316", "#10a37f", "#d946ef")
STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller, searchable
    "svg.hashsalt": "bucle",  # the same figures give the same file
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor"), INK
    ),
}


def panels(count: int, xlabel: str, ylabel: str, titles: list[str]) -> tuple[Any, list[Any]]:
    """A figure with `count` panels side by side, each with its title and its labelled axes."""
    with pyplot.rc_context(STYLE):
        figure, row = pyplot.subplots(1, count, figsize=(3.4 * count, 2.9), squeeze=False, layout="constrained")
    for axes, title in zip(row[0], titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    return figure, list(row[0])


def save(figure: Any, name: str) -> Path:
    """docs/NAME.svg, without a background of its own and without a date."""
    path = DOCS / f"{name}.svg"
    with pyplot.rc_context(STYLE):
        for axes in figure.axes:
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    return path
