"""Texts and figures as LaTeX."""

from __future__ import annotations

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "…": r"\dots{}",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "∞": r"$\infty$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "±": r"$\pm$",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def escape(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


PREAMBLE = r"""% What the tables need: \input this file before \begin{document}. siunitx 3 or newer.
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{siunitx}
\usepackage{url}
\sisetup{reset-text-series = false, text-series-to-math = true}
"""

MAIN = r"""% All of this folder in one document: pdflatex, bibtex, pdflatex, pdflatex.
\documentclass[twocolumn]{article}
\usepackage[margin=2cm]{geometry}
\input{preamble}
\begin{document}
\section{Methods}
\input{methods}
\section{Results}
BODY
\bibliographystyle{plain}
{\raggedright\bibliography{references}}
\end{document}
"""


def figure(file: str, caption: str, label: str) -> str:
    """Return a LaTeX figure environment for a file, at the width of a column."""
    return (
        "\\begin{figure}[t]\n\\centering\n"
        f"\\includegraphics[width=\\columnwidth]{{{file}}}\n"
        f"\\caption{{{caption}}}\n\\label{{{label}}}\n\\end{{figure}}\n"
    )
