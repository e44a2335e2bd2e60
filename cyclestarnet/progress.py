"""Progress bars of all rooms, quiet also in a notebook that has no widgets."""

from __future__ import annotations

import warnings

from tqdm.std import TqdmWarning

with warnings.catch_warnings():
    # Without ipywidgets a notebook gets the bars of a terminal. They do all that is needed: no reason to warn.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
