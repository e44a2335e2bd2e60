"""Many stars at once: maps of both domains, and their labels.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cyclestarnet.plotting.axes import DOMAIN_STYLES, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_embeddings"]


def plot_embeddings(
    maps: Mapping[str, tuple[ArrayLike, ArrayLike]], *, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Plot maps of synthetic and observed stars side by side (S1, Figure 10).

    Where the domains are translated well, their spectra lie apart, and their shared latents are mixed.

    Parameters
    ----------
    maps : mapping of str to (array, array), shapes (n_synth, 2) and (n_obs, 2)
        Places of the stars of both domains, by the title of the panel; see `~cyclestarnet.training.alignment.tsne`.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        One per map. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        One per map. Axes of such maps have no meaning, and no numbers.

    Raises
    ------
    ValueError
        If there is no map, places are not (n, 2), or there are not as many axes as maps.

    Examples
    --------
    Of a model, with spectra of its emulator and of observed stars::

        synthetic = model.encode(model.predict(labels, domain="synthetic"), domain="synthetic")
        observed = model.encode(stars)
        plot_embeddings({
            "spectra": tsne(synthetic.flux, observed.flux, seed=0),
            "shared latents": tsne(synthetic.shared_latent, observed.shared_latent, seed=0),
        })
    """
    if not maps:
        raise ValueError("there are no maps to plot")
    shapes = {name: [np.shape(places) for places in pair] for name, pair in maps.items()}
    wrong = {name: own for name, own in shapes.items() if any(len(shape) != 2 or shape[1] != 2 for shape in own)}
    if wrong:
        raise ValueError(f"places must have the shape (n, 2), but have {wrong}")
    if axes is None:
        axes = new_axes(1, len(maps), figsize=(4.6 * len(maps), 4.6))
    axes = list(np.ravel(axes))
    if len(axes) != len(maps):
        raise ValueError(f"axes must be one per map, {len(maps)}, but are {len(axes)}")
    for ax, (title, pair) in zip(axes, maps.items(), strict=True):
        # Together in a random order: which domain lies on top must not depend on which is drawn last.
        places = np.concatenate([np.asarray(part, dtype=float) for part in pair])
        colors = np.repeat([color for _, color in DOMAIN_STYLES.values()], [len(part) for part in pair])
        order = np.random.default_rng(0).permutation(len(places))
        ax.scatter(*places[order].T, c=colors[order], s=12, alpha=0.7, lw=0)
        for name, color in DOMAIN_STYLES.values():
            ax.plot([], [], "o", color=color, ms=4, label=name)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10, loc="left")
    axes[-1].legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return axes
