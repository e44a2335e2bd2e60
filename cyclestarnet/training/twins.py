"""A second training, of stars that a model makes: it tells the errors of labels that spectra do not show.

Networks that learn from unpaired spectra may end with labels that are wrong in a way that leaves no residual. By how
much, the stars of the training do not tell, since nobody knows their labels. But a trained model makes stars like them,
of labels that it chooses. The same training, begun anew on those, is a twin of the first: it goes wrong in its own way,
and by how much is known. That is a parametric bootstrap (Efron 1979, Annals of Statistics 7, 1) of a whole training.

It tells too little: stars of a model have the part of the gap between the domains that the model has learnt, and what
it has not learnt, no twin can miss. By how much too little, a twin of the twin tells: the errors that it tells of the
twin stand beside those that the twin has. So one bootstrap is calibrated by another (Hall 1986, Annals of Statistics
14, 1431; Beran 1987, Biometrika 74, 457).
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from astropy.nddata import StdDevUncertainty

from cyclestarnet.blanks import bools_of, floats_of
from cyclestarnet.exceptions import FitWarning, SpectrumError
from cyclestarnet.labels import unit_of_label
from cyclestarnet.model import CalibratedModel
from cyclestarnet.networks.predictor import ObservedPredictor
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline.fit import fit_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum, row_of
from cyclestarnet.training.assembly import filled_flux
from cyclestarnet.training.config import Plan
from cyclestarnet.training.datasets import ObservedSpectra
from cyclestarnet.training.domains import Domains, KnownStars, Stars
from cyclestarnet.training.evaluation import LabelOffsets
from cyclestarnet.training.tables import Block

__all__ = ["Donors", "SimulatedStars", "find_donors", "shortfall", "twin_domains", "twin_plan"]

log = logging.getLogger(__name__)

N_DONORS = 1200  # observed stars that lend what labels do not make
MOST_STARS = 20_000  # that a twin is trained on: they are in memory
N_KNOWN = 500  # by which it is judged
LEAST_DONORS = 3
BATCH = 16  # stars that are fitted side by side
NAME = "twin"
WITHIN = 0.6827  # of a Gaussian, one σ


@dataclass(frozen=True, eq=False)
class Donors:
    """What observed stars have that labels do not make: split latents, noise, bad pixels, and what a model misses.

    Parameters
    ----------
    split_latent : array, shape (n, filters, positions), or None
        Of each star; None if the model has none.
    residual : array, shape (n, n_pixels)
        Data − model of its fit, 0 at bad pixels.
    sigma : array, shape (n, n_pixels)
        Quoted errors.
    mask : array of bool, shape (n, n_pixels)
        True = bad pixel.

    Examples
    --------
    ::

        donors = find_donors(model, spectra)
        donors.residual.std()
    """

    split_latent: np.ndarray | None
    residual: np.ndarray
    sigma: np.ndarray
    mask: np.ndarray


def find_donors(model: CalibratedModel, spectra: Spectrum, *, progress: bool = True) -> Donors:
    """Fit observed stars, and keep all but their labels.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    spectra : `~specutils.Spectrum`, a row per star
        Observed spectra, normalised, on the pixels of the model, with an uncertainty.
    progress : bool, optional
        Show a bar. Default: True.

    Returns
    -------
    `Donors`
        Of the stars that can be fitted; the others are logged.

    Raises
    ------
    SpectrumError
        If fewer than 3 can.

    Examples
    --------
    ::

        donors = find_donors(model, spectra)
        len(donors.residual)
    """
    n, setup = spectra.flux.shape[0], FitSetup.of(model, FitOptions())
    residuals, rows = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # strange stars are stars of the survey, too
        for first in tqdm(range(0, n, BATCH), desc="stars for a twin", disable=not progress):
            block = range(first, min(first + BATCH, n))
            for row, result in zip(
                block, fit_stars(model, [row_of(spectra, row) for row in block], setup), strict=True
            ):
                if isinstance(result, Exception):
                    log.warning("left out star %d: %s", row, result)
                    continue
                residuals.append(np.nan_to_num(result.residual.value))
                rows.append(row)
    if len(rows) < LEAST_DONORS:
        raise SpectrumError(
            f"a twin is made of {LEAST_DONORS} or more observed stars, but only {len(rows)} of {n} can be fitted"
        )
    sigma = floats_of(spectra.uncertainty.represent_as(StdDevUncertainty).array)[rows]
    bad = ~(np.isfinite(sigma) & (sigma > 0))
    if spectra.mask is not None:
        bad |= bools_of(spectra.mask)[rows]
    split_latent = model.translator.encode_obs(filled_flux(spectra, model.noise)[rows])[1]
    residual = np.where(bad, 0.0, residuals).astype(np.float32)
    return Donors(split_latent, residual, np.where(bad, 1.0, sigma).astype(np.float32), bad)


@dataclass(frozen=True, eq=False)
class SimulatedStars:
    """Stars that a model makes, as a `~cyclestarnet.training.tables.SpectrumTable`: each is made when it is read.

    The translated spectrum of some labels and of the split latent of an observed star, and what the fit of that left
    over: its noise, and how it differs from all that the model can make.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    known : array, shape (n_stars, n_labels)
        Labels of the stars, in the units of the model.
    donors : `Donors`
        Observed stars.
    lent_by : array of int, shape (n_stars,)
        Which of them lends to which star.

    Examples
    --------
    ::

        stars = SimulatedStars(model, labels, donors, rng.integers(len(donors.residual), size=len(labels)))
        flux, sigma, mask = stars.read(0, 10)
    """

    model: CalibratedModel
    known: np.ndarray
    donors: Donors
    lent_by: np.ndarray
    block_rows: int = 128
    labels: None = None  # those are of synthetic spectra

    @property
    def n_spectra(self) -> int:
        """Number of stars."""
        return len(self.known)

    @property
    def n_pixels(self) -> int:
        """Pixels of each."""
        return self.model.grid.n_pixels

    def read(self, start: int, stop: int) -> Block:
        """Make neighbouring rows.

        Parameters
        ----------
        start, stop : int
            Half-open range of rows.

        Returns
        -------
        flux, sigma : array, shape (stop - start, n_pixels), float32
            Normalised flux, 1 at bad pixels, and its error.
        mask : array of bool, of the same shape
            True = bad pixel.

        Examples
        --------
        ::

            flux, sigma, mask = stars.read(0, stars.block_rows)
        """
        lent_by, donors = self.lent_by[start:stop], self.donors
        stars = None if donors.split_latent is None else lent_by
        mask = donors.mask[lent_by]
        flux = np.where(mask, 1.0, self._predictor.flux(self.known[start:stop], stars) + donors.residual[lent_by])
        return flux.astype(np.float32), donors.sigma[lent_by], mask

    @cached_property
    def _predictor(self) -> ObservedPredictor:
        return ObservedPredictor(self.model.emulator, self.model.translator, self.donors.split_latent, together=6)


def twin_plan(plan: Plan, n_iterations: int) -> Plan:
    """Plan the training of a twin: that of the first but for its seed, its iterations, and that it has no twin itself.

    Parameters
    ----------
    plan : `~cyclestarnet.training.config.Plan`
        Of the first.
    n_iterations : int
        Of the twin.

    Returns
    -------
    `~cyclestarnet.training.config.Plan`
        In the folder ``twin`` of the first.

    Examples
    --------
    ::

        twin_plan(plan, 7_000).training.seed
    """
    seed = plan.training.seed + 1
    return Plan(
        run=replace(plan.run, folder=plan.run.folder / NAME, name=f"{plan.run.name}-{NAME}", seed=plan.run.seed + 1),
        training=replace(plan.training, n_iterations=n_iterations, seed=seed, weight_anchors=0.0),
        network=plan.network,
        watch=plan.watch,
        emulator=plan.emulator,
        model=replace(plan.model, path=None, n_twin=0),
        log=plan.log,
    )


def twin_domains(model: CalibratedModel, domains: Domains, plan: Plan, *, progress: bool = True) -> Domains:
    """Make the spectra for the training of a twin.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The first.
    domains : `~cyclestarnet.training.domains.Domains`
        That it was trained on. As many stars are made as were observed, or 20,000; their labels are drawn from
        ``label_pool``, and 1,200 of the observed stars lend the rest.
    plan : `~cyclestarnet.training.config.Plan`
        How the twin is trained; its seed draws labels and stars.
    progress : bool, optional
        Show bars. Default: True.

    Returns
    -------
    `~cyclestarnet.training.domains.Domains`
        Observed spectra are simulated ones, and 500 more are ``known``. The synthetic domain is the same.

    Raises
    ------
    SpectrumError
        If hardly any observed star can be fitted.

    Examples
    --------
    ::

        domains = twin_domains(model, run.domains, twin_plan(run.config, 7_000))
    """
    donors = find_donors(model, domains.stars.spectra(N_DONORS, domains.grid), progress=progress)
    sizes = np.cumsum([min(len(domains.stars.rows), MOST_STARS), len(domains.held_out.rows), N_KNOWN])
    rng, pool = np.random.default_rng([plan.run.seed, 5]), domains.label_pool
    known = pool[rng.choice(len(pool), sizes[-1], replace=len(pool) < sizes[-1])]
    table = SimulatedStars(model, known, donors, rng.integers(len(donors.residual), size=sizes[-1]))
    stars, held_out, judges = (Stars(table, rows) for rows in np.split(np.arange(sizes[-1]), sizes[:-1]))
    truth = {
        name: values * unit_of_label(name)
        for name, values in zip(domains.labels, known[judges.rows].T, strict=True)
    }  # fmt: skip
    return replace(
        domains,
        observed=ObservedSpectra.from_table(table, plan.training, rows=stars.rows),
        stars=stars, held_out=held_out, anchors=None, known=KnownStars(judges, truth), test=None,
    )  # fmt: skip


def shortfall(offsets: LabelOffsets, noise: NoiseModel) -> float:
    """By what factor errors of labels must grow, those that fits quote and hidden ones together.

    Parameters
    ----------
    offsets : `~cyclestarnet.training.evaluation.LabelOffsets`
        Of all labels of stars that are known, with the errors that fits quote alone.
    noise : `~cyclestarnet.NoiseModel`
        Of whose hidden errors it is asked.

    Returns
    -------
    float
        That many errors hold 68.3 % of the offsets, of all labels alike. Below 1 they are too large.

    Examples
    --------
    Errors of 1, of which half the variance is hidden, where the offsets scatter by 1.5:

    >>> import numpy as np
    >>> from cyclestarnet import NoiseModel
    >>> from cyclestarnet.training.evaluation import LabelOffsets
    >>> from cyclestarnet.training.twins import shortfall
    >>> n, every = 20_000, np.ones(20_000, dtype=bool)
    >>> offset = 1.5 * np.random.default_rng(0).normal(size=(n, 1))
    >>> offsets = LabelOffsets(("fe_h",), offset, np.full((n, 1, 1), 0.5), 1.0 * every, every, ~every, labels=offset)
    >>> round(shortfall(offsets, NoiseModel(label_error=np.array([[0.5]]))), 1)
    1.5
    """
    assert offsets.labels is not None  # `compare_labels` keeps them
    hidden = np.array([noise.hidden_covariance(labels) for labels in offsets.labels])
    errors = np.sqrt(np.diagonal(offsets.covariance + hidden, axis1=1, axis2=2))
    return float(np.quantile(np.abs(offsets.offset) / errors, WITHIN))
