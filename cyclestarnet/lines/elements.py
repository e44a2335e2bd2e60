"""Elements, by the names of labels (``"mg_h"``) and by their symbols (``"Mg"``)."""

from __future__ import annotations

from collections.abc import Iterable

from cyclestarnet.exceptions import LabelError

__all__ = ["CNO", "elements_of", "label_of", "symbol_of"]

CNO = ("C", "N", "O")  # whose molecules overlap everywhere, so that a line may be of any of them


def elements_of(names: Iterable[str]) -> list[str]:
    """Choose the labels that are abundances of single elements.

    Parameters
    ----------
    names : iterable of str
        Names of labels, such as a `~cyclestarnet.LabelSet`.

    Returns
    -------
    list of str
        Those that end in ``_h``, except for ``"m_h"``, in their order.

    Raises
    ------
    LabelError
        If there is none.

    Examples
    --------
    >>> from cyclestarnet.lines import elements_of
    >>> elements_of(["teff", "logg", "m_h", "c_h", "mg_h"])
    ['c_h', 'mg_h']
    """
    names = list(names)
    elements = [name for name in names if name.endswith("_h") and name != "m_h"]
    if not elements:
        raise LabelError(f"no element among the labels {', '.join(names)}: their names are such as 'mg_h'")
    return elements


def symbol_of(label: str) -> str:
    """Symbol of the element whose abundance a label is.

    Parameters
    ----------
    label : str
        One of `elements_of`.

    Returns
    -------
    str
        As astronomers write it.

    Examples
    --------
    >>> from cyclestarnet.lines.elements import symbol_of
    >>> symbol_of("mg_h")
    'Mg'
    """
    return label.removesuffix("_h").capitalize()


def label_of(symbol: str) -> str:
    """Name of the label that is the abundance of an element.

    Parameters
    ----------
    symbol : str
        Of the element, such as ``"Mg"``.

    Returns
    -------
    str
        Whether or not any model has that label.

    Examples
    --------
    >>> from cyclestarnet.lines.elements import label_of
    >>> label_of("Mg")
    'mg_h'
    """
    return f"{symbol.lower()}_h"
