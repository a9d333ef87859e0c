"""Figures: rows in, pictures out.

curves.py                                    the figures of a run: which files there are
page.py, quantities.py, signs.py             what a file shows: panels, quantities, marks of cases without a value
layout.py, panel.py, notes.py                from a page to a figure: from the top down, one panel, words around it
shapes.py, roofline.py                       the figures of a list of shapes; rooflines
canvas.py, looks.py, legend.py, axes.py, text.py    what all figures share, those of other packages too
"""

from attnbench.plots.curves import plot_run
from attnbench.plots.roofline import plot_roofline
from attnbench.plots.shapes import plot_shapes

__all__ = ["plot_roofline", "plot_run", "plot_shapes"]
