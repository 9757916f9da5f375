"""How pictures of the wafer look. Colours: Okabe and Ito's, told apart by colour-blind eyes (jfly.uni-koeln.de)."""

from typing import Any

INK, FAINT, GRID, IDLE = "#333333", "#EFEFEF", "#E4E4E4", "#D3D9DE"
BLUE, ORANGE, SKY, GREEN = "#0072B2", "#D55E00", "#56B4E9", "#009E73"
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", SKY, "#7A6A00", "#666666")
HEAT = "viridis"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#BBBBBB",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
