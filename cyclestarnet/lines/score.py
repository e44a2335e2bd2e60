"""How a catalogue of missing lines does against a known mask.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cyclestarnet.derivatives import DerivativeSpectra, require_one_star
from cyclestarnet.exceptions import GridError
from cyclestarnet.lines.attribution import CORE
from cyclestarnet.lines.elements import CNO, elements_of, label_of
from cyclestarnet.lines.features import FeatureMask
from cyclestarnet.lines.missing import MissingLines

__all__ = ["Score", "score_missing_lines"]


@dataclass(frozen=True, eq=False)
class Score:
    """How a catalogue does against a known mask.

    Parameters
    ----------
    fdr, precision, recall : array, shape (n_lines,)
        As the lines are taken one by one, the most significant first.
        Precision is the share of lines whose peak is a masked pixel or its
        neighbour, recall the share of masked features in which there is the peak of a line.
    chance : float
        Precision of lines at random: the share of masked pixels and their neighbours.
    element_accuracy : float
        Of masked features other than of C, N and O in which there is a line: how often the
        likeliest element of the line nearest to its peak is that of the feature.
    set_accuracy : float
        Of masked features of C, N and O: how often its element is one of that line's ``elements``.
    set_size : float
        Mean number of elements in these sets.
    n_element, n_set : int
        Features that the two rest on.
    steepest_accuracy : float
        Of lines at masked pixels: how often the likeliest element is the one that truly has the
        steepest derivative there, whatever the features say; NaN if the truth was not given.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.lines import Score
    >>> rates = np.array([0.01, 0.02, 0.2])
    >>> score = Score(rates, np.array([1, 1, 0.7]), np.array([0.3, 0.6, 0.6]), 0.1, 0.9, 0.8, 2.0, 10, 5)
    >>> precision, recall = score.at(fdr=0.05)
    >>> precision, recall
    (1.0, 0.6)
    """

    fdr: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    chance: float
    element_accuracy: float
    set_accuracy: float
    set_size: float
    n_element: int
    n_set: int
    steepest_accuracy: float = np.nan

    def at(self, fdr: float) -> tuple[float, float]:
        """Precision and recall of the lines up to a false-discovery rate.

        Parameters
        ----------
        fdr : float
            The largest rate, 0 to 1.

        Returns
        -------
        precision, recall : float
            Of the loosest threshold within the rate; NaN and 0 if there is no such line.

        Examples
        --------
        What a catalogue keeps of the missing lines at the usual rate::

            precision, recall = score_missing_lines(lines, mask).at(fdr=0.05)
        """
        n = int((self.fdr <= fdr).sum())
        return (float(self.precision[n - 1]), float(self.recall[n - 1])) if n else (np.nan, 0.0)


def score_missing_lines(
    lines: MissingLines,
    mask: FeatureMask,
    *,
    truth: DerivativeSpectra | None = None,
    tolerance: int = 1,
    fdr: float = 0.05,
) -> Score:
    """Score a catalogue against the mask that the synthetic domain had.

    Parameters
    ----------
    lines : `MissingLines`
        With all lines, ``fdr=1``, for the whole curve of precision and recall.
    mask : `FeatureMask`
        What synthetic spectra lacked, on the same pixels.
    truth : `~cyclestarnet.derivatives.DerivativeSpectra`, optional
        Derivatives of one star with nothing masked. Default: None, and ``steepest_accuracy`` is NaN.
    tolerance : int, optional
        Pixels by which a line may miss. Default: 1.
    fdr : float, optional
        Elements are scored for lines up to this rate; precision and recall are of all.

    Returns
    -------
    `Score`
        NaN where there is nothing to score.

    Raises
    ------
    GridError
        If the mask has other pixels than the lines.
    ValueError
        If the truth is of several stars.

    Examples
    --------
    Of a model whose synthetic spectra lacked a known part of their features (S1, Section 4.2)::

        mask = FeatureMask.read("mask.ecsv")
        score = score_missing_lines(find_missing_lines(model, fdr=1), mask)
        plot_precision_recall(score)
    """
    if len(mask.pixels) != lines.grid.n_pixels:
        raise GridError(f"the mask is of {len(mask.pixels)} pixels, but the lines of {lines.grid.n_pixels}")
    if truth is not None:
        require_one_star(truth, "the truth must be that of")
    table = lines.table[np.argsort(-lines.table["significance"], kind="stable")]
    peaks = np.asarray(table["peak"], dtype=int)
    masked = np.convolve(mask.pixels, np.ones(2 * tolerance + 1), mode="same") > 0
    true, believed = masked[peaks], np.asarray(table["fdr"]) <= fdr
    first = np.full(len(mask.masked), len(table))  # rank of the first line in each feature
    single, sets, sizes, steepest = [], [], [], []
    for k, feature in enumerate(mask.masked):
        inside = (peaks >= feature.start - tolerance) & (peaks < feature.stop + tolerance)
        first[k] = np.argmax(inside) if inside.any() else len(table)
        known = np.flatnonzero(inside & believed)
        if len(known):
            row = table[known[np.argmin(np.abs(peaks[known] - feature.peak))]]
            if feature.element in CNO:
                sets.append(feature.element in row["elements"].split())
                sizes.append(len(row["elements"].split()))
            else:
                single.append(row["element"] == feature.element)
    if truth is not None:
        for row in table[true & believed]:
            core = slice(max(row["peak"] - CORE, 0), row["peak"] + CORE + 1)
            slopes = {name: truth[name].value[core].mean() for name in elements_of(truth.names)}
            steepest.append(label_of(row["element"]) == min(slopes, key=slopes.get))
    count = np.arange(1, len(table) + 1)
    recall = np.searchsorted(np.sort(first), count - 1, side="right") / max(len(first), 1)
    means = [float(np.mean(values)) if values else np.nan for values in (single, sets, sizes, steepest)]
    curves = np.asarray(table["fdr"]), np.cumsum(true) / count, recall
    return Score(*curves, float(masked.mean()), *means[:3], len(single), len(sets), means[3])
