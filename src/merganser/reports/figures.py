"""Figures of a study and of differences between models: for papers, cards and reports.

Each function makes a :class:`matplotlib.figure.Figure` of its own, without pyplot and its global list
of figures; :func:`save` writes one. Colours are those of Okabe and Ito 2008, which
people with any colour vision tell apart.
"""

from merganser.reports.figure_style import COLOURS as COLOURS
from merganser.reports.figure_style import inline as inline
from merganser.reports.figure_style import save as save
from merganser.reports.front_figures import front as front
from merganser.reports.front_figures import panels as panels
from merganser.reports.layer_figures import layers as layers
from merganser.reports.line_figures import curves as curves
from merganser.reports.line_figures import effective as effective
