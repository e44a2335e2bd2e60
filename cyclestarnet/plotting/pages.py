"""Pages of HTML that need no other file: tables and figures of reports."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["html_table", "image", "page", "png_of"]

STYLE = """\
body { font: 16px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: left; }
td + td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
figure { margin: 1.5rem 0; }
figcaption { color: #555; font-size: 0.9rem; }"""


def page(title: str, parts: Iterable[str]) -> str:
    """Join parts to a page.

    Parameters
    ----------
    title : str
        Plain text, which is the heading, too.
    parts : iterable of str
        HTML.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> from cyclestarnet.plotting.pages import page
    >>> "<h1>A → B</h1>" in page("A → B", ["<p>Better.</p>"])
    True
    """
    title = html.escape(title)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{title}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def html_table(table: Table) -> str:
    """Write a table; numbers with four digits, and nothing for NaN.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Its text may be anything.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from cyclestarnet.plotting.pages import html_table
    >>> html_table(Table({"χ²": [1.23456]}))
    '<table><tr><th>χ²</th></tr><tr><td>1.235</td></tr></table>'
    """

    def cell(value: object) -> str:
        if isinstance(value, (float, np.floating)):
            return "" if np.isnan(value) else f"{value:.4g}".replace("-", "−")
        return html.escape(str(value))

    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in table.colnames)
    rows = ("".join(f"<td>{cell(row[name])}</td>" for name in table.colnames) for row in table)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def png_of(figure: Figure) -> bytes:
    """Draw a figure.

    Parameters
    ----------
    figure : `~matplotlib.figure.Figure`
        Not closed by this.

    Returns
    -------
    bytes
        The content of a PNG file.

    Examples
    --------
    ::

        png_of(plot_fit(result)[0].figure)
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def image(png: bytes, text: str) -> str:
    """Put a figure into a page.

    Parameters
    ----------
    png : bytes
        Of `png_of`.
    text : str
        What those read who do not see it.

    Returns
    -------
    str
        HTML, which holds the figure.

    Examples
    --------
    ::

        image(png_of(figure), "Residuals against wavelength")
    """
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
