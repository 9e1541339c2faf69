"""How figures look in benchmarks and notebooks: one colour per rung, and a common style."""

from __future__ import annotations

from typing import Any

COLOURS = {"01": "#D55E00", "02": "#E69F00", "03": "#CC79A7", "04": "#0072B2", "05": "#009E73"}
"""Okabe and Ito's palette, for colour-blind readers too. A rung has the same colour in every figure."""

NAMES = {
    "01": "01 blocking",
    "02": "02 streaming",
    "03": "03 batching",
    "04": "04 continuous",
    "05": "05 own process",
}
MARKERS = {"01": "s", "02": "^", "03": "D", "04": "o", "05": "v"}
SKY = "#56B4E9"  # from the same palette, for servers that are not rungs
INK, PAPER, GRID = "#24292f", "#ffffff", "#d8dee4"
GREY, PALE, SMALL_PRINT = "#8c959f", "#e4e7eb", "#59636e"

STYLE: Any = {
    # A white background is readable on light and on dark pages.
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "legend.frameon": False,
    "svg.hashsalt": "serving-ladder",
    "svg.fonttype": "path",
}
