"""Figures of studies and of differences between models, for papers, cards and reports.

Each function returns a new :class:`matplotlib.figure.Figure`, without pyplot and its global list of
figures; :func:`save` writes one. The colours, of Okabe and Ito 2008, can be distinguished with any
colour vision.
"""

from merganser.reports.figure_style import COLOURS as COLOURS
from merganser.reports.figure_style import as_svg as as_svg
from merganser.reports.figure_style import inline as inline
from merganser.reports.figure_style import save as save
from merganser.reports.front_figures import front as front
from merganser.reports.front_figures import panels as panels
from merganser.reports.layer_figures import layers as layers
from merganser.reports.line_figures import curves as curves
from merganser.reports.line_figures import effective as effective
