"""Model cards: what a model was made of and for, in words and numbers, before it is trusted with a star."""

from __future__ import annotations

import hashlib
import html
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from cyclestarnet.datasets import SUFFIX, pretrained_file
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.model_file import digest_of, load_parts

__all__ = ["ModelCard", "model_card"]


@dataclass(frozen=True, eq=False, repr=False)
class ModelCard:
    """What a model is.

    Parameters
    ----------
    name : str
        Of the model.
    source : str
        Where it is: its name among those that ship with the package, its path, or its address.
    sha256 : str
        Of its file, in 64 hexadecimal digits: with it after the address, ``#sha256=…``, nothing else is taken for it.
    n_bytes : int
        Size of its file.
    weights : str
        Digest of all that fits depend on, as results and tables of fits have it in their ``meta``.
    labels : `~cyclestarnet.LabelSet`
        Labels with their ranges.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels.
    facts : dict of str
        What it was made of, by whom, and its measured figures.

    Examples
    --------
    >>> from cyclestarnet import model_card
    >>> card = model_card("apogee-giants")
    >>> card.facts["validity"]
    'red giants, Teff 3650-5100 K, logg 0.7-3.4, [M/H] -1.5 to +0.35, S/N 30-500'
    """

    name: str
    source: str
    sha256: str
    n_bytes: int
    weights: str
    labels: LabelSet
    grid: WavelengthGrid
    facts: dict[str, str]

    @property
    def version(self) -> str:
        """Version of the package that made it; empty if it is not known."""
        return self.facts.get("version", "")

    def _rows(self) -> dict[str, str]:
        own = {
            "source": self.source,
            "sha256": self.sha256,
            "size": f"{self.n_bytes / 1e6:.1f} MB",
            "weights": self.weights,
            "grid": repr(self.grid)[1:-1],
        }
        return own | self.facts

    def __repr__(self) -> str:
        table = self.labels.to_table().pformat(max_lines=-1, max_width=-1)
        return "\n".join(
            [f"<ModelCard {self.name}>", *table, *(f"{key}: {text}" for key, text in self._rows().items())]
        )

    def _repr_html_(self) -> str:
        rows = ([html.escape(text) for text in row] for row in self._rows().items())
        facts = "".join(f"<tr><td>{key}</td><td>{text}</td></tr>" for key, text in rows)
        return f"<p><b>ModelCard</b> {html.escape(self.name)}</p>{self.labels._repr_html_()}<table>{facts}</table>"


def model_card(name: str | Path) -> ModelCard:
    """Read the card of a model.

    Parameters
    ----------
    name : str or path-like
        One of `~cyclestarnet.list_models`, the path of a file, or its address, as
        `~cyclestarnet.CalibratedModel.from_pretrained` takes it.

    Returns
    -------
    `ModelCard`

    Raises
    ------
    ValueError
        If no model has this name.
    FileNotFoundError
        If there is no such file.
    OSError
        If it cannot be fetched.
    ModelFileError
        If the file is damaged, foreign, or another one than its address says.

    Examples
    --------
    >>> from cyclestarnet import model_card
    >>> print(model_card("apogee-dwarfs"))
    <ModelCard apogee-dwarfs>
    ...
    """
    is_file = "://" not in str(name) and Path(name).suffix == SUFFIX
    with nullcontext(Path(name)) if is_file else pretrained_file(str(name)) as path:
        parts, content = load_parts(path), Path(path).read_bytes()
    return ModelCard(
        parts.name,
        str(name).partition("#")[0],
        hashlib.sha256(content).hexdigest(),
        len(content),
        digest_of(parts),
        parts.labels,
        parts.grid,
        {str(key): str(value) for key, value in parts.provenance.items()},
    )
