"""Whether the errors of labels are right: simulation-based calibration of a model's posteriors.

Stars are drawn from the model's own prior within its label range, their
spectra are the model's, with noise of a given S/N and as much of the model's
own scatter as fits allow for, and they are fitted or sampled. If posteriors
are right, the rank of the truth among their draws is uniform
(`cyclestarnet.training.ranks`). Whether real stars are like the model is
another matter: stars of known labels tell (`~cyclestarnet.training.evaluation.compare_labels`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty

from cyclestarnet.exceptions import CycleStarNetError, FitWarning, LabelError
from cyclestarnet.io.stars import star_sources
from cyclestarnet.journal import Journal
from cyclestarnet.model import CalibratedModel
from cyclestarnet.model_file import digest_of
from cyclestarnet.pipeline.fit import fit_stars
from cyclestarnet.pipeline.options import FitOptions, check_choice
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.ranks import JOINT, N_RANKS, Ranks, rank_in_gaussian, rank_in_samples, rank_of_distance

__all__ = ["calibration_ranks", "draw_labels", "simulate_star"]

log = logging.getLogger(__name__)

DOMAINS = {"observed": "observed", "emulator": "synthetic"}  # of the spectra, by the space of the fits
BATCH = 16  # stars that are fitted side by side
LENGTH = 10  # autocorrelation times of a chain, at least: 199 draws are needed that know little of each other
DRAWS = 100  # of the prior at a time, and how often it is tried


@dataclass(frozen=True)
class _Settings:
    """What a file of ranks is begun with, except for its model; ``free`` are the labels in its order."""

    method: str
    space: str
    free: tuple[str, ...]
    snr: tuple[float, float]
    split_latent: str
    max_steps: int
    seed: int

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("laplace", "chains"))
        check_choice("space", self.space, DOMAINS)
        FitOptions(space=self.space, split_latent=self.split_latent)  # checks it
        if not self.free:
            raise ValueError("free must name one label or more")
        if not 0 < self.snr[0] <= self.snr[1] < np.inf:
            raise ValueError(f"snr must be (low, high), positive and rising, but is {self.snr}")
        if self.max_steps < 1 or self.seed < 0:
            raise ValueError(
                f"max_steps must be 1 or more and seed 0 or more, but are {self.max_steps} and {self.seed}"
            )


@dataclass(frozen=True, eq=False)
class _Star:
    """A star whose labels are known; all that is random about it comes from its own generator."""

    number: int
    truth: Mapping[str, u.Quantity]
    snr: float
    spectrum: Spectrum
    rng: np.random.Generator


# -- stars ------------------------------------------------------------------------
def draw_labels(model: CalibratedModel, rng: np.random.Generator) -> dict[str, u.Quantity]:
    """Draw the labels of one star from a model's prior, inside its label range.

    That is the distribution which posteriors of fits start from.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    rng : `numpy.random.Generator`
        Is advanced.

    Returns
    -------
    dict of str to `~astropy.units.Quantity`
        Labels and their combinations.

    Raises
    ------
    LabelError
        If fewer than one in 10,000 draws lies inside the range.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.training.calibration import draw_labels
    >>> labels = draw_labels(CalibratedModel.from_pretrained(), np.random.default_rng(0))
    >>> len(labels), labels["teff"].unit
    (22, Unit("K"))
    """
    labels = model.labels
    for _ in range(DRAWS):
        draws = rng.multivariate_normal(np.asarray(model.prior.mean), np.asarray(model.prior.covariance), size=DRAWS)
        inside = ((draws >= labels.lower) & (draws <= labels.upper)).all(axis=1)
        if inside.any():
            return labels.to_quantities(draws[inside][0])
    raise LabelError(
        f"fewer than one in {DRAWS**2:,} draws of the model's prior lies inside its label range, {labels!r}; "
        "give the model a prior that does"
    )


def simulate_star(
    model: CalibratedModel,
    labels: Mapping[str, u.Quantity],
    snr: float,
    rng: np.random.Generator,
    *,
    space: str = "observed",
    like: Spectrum | None = None,
    name: str = "",
) -> Spectrum:
    """Make the spectrum of a star as a model takes them to be: with noise, and with the model's own scatter.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    labels : mapping of str to `~astropy.units.Quantity`
        All labels, within the training range.
    snr : float
        Signal-to-noise ratio of every pixel, in units of the continuum.
    rng : `numpy.random.Generator`
        Is advanced.
    space : {"observed", "emulator"}, optional
        Of the fits that the spectrum is made for. Default: ``"observed"``.
    like : `~specutils.Spectrum`, optional
        Observed spectrum whose split latent is used. Default: a typical one.
    name : str, optional
        Of the star. Default: none.

    Returns
    -------
    `~specutils.Spectrum`
        Normalised flux, shape (n_pixels,). The uncertainties are those of the noise alone: of the
        scatter, ``model.noise.scatter`` times its inflation, fits know themselves.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.training.calibration import draw_labels, simulate_star
    >>> model, rng = CalibratedModel.from_pretrained(), np.random.default_rng(0)
    >>> star = simulate_star(model, draw_labels(model, rng), 100.0, rng)
    >>> star.shape, star.uncertainty.array[0]
    ((7167,), np.float64(0.01))
    """
    check_choice("space", space, DOMAINS)
    clean = model.predict(labels, domain=DOMAINS[space], like=like)
    scatter = np.sqrt(model.noise.total_variance(np.zeros(model.grid.n_pixels), space))
    flux = rng.normal(clean.flux.value, np.hypot(scatter, 1 / snr))
    return Spectrum(
        flux=flux * clean.flux.unit,
        spectral_axis=clean.spectral_axis,
        uncertainty=StdDevUncertainty(np.full(flux.shape, 1 / snr)),
        meta={"object": name},
    )


# -- ranks ---------------------------------------------------------------------------
def calibration_ranks(
    model: CalibratedModel,
    n_stars: int,
    *,
    method: str = "laplace",
    space: str = "observed",
    free: Sequence[str] | None = None,
    snr: tuple[float, float] = (40.0, 180.0),
    like: Spectrum | None = None,
    split_latent: str = "own",
    max_steps: int = 10_000,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Ranks:
    """Rank the true labels of simulated stars in their posteriors: are a model's errors what they should be?

    Of the statistical errors, that is: ``model.noise.label_error``, the error of a translation that
    is wrong, is left out, because stars that the model made have none, and so is the error of a continuum
    that follows the noise: the flux of these stars is normalised as it is made, and taken as it is.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        It makes the stars, and fits them with its own prior.
    n_stars : int
        200 tell whether errors are off by a tenth.
    method : {"laplace", "chains"}, optional
        Gaussian errors of fits, as ``fit_many`` gives them (default), or samples of emcee, in chains of
        10 autocorrelation times, as long as ranks need them.
    space : {"observed", "emulator"}, optional
        Of the fits. The emulator's is quicker; its stars are the emulator's, too.
    free : sequence of str, optional
        Labels that are fitted or sampled; others are held at their true values. Default: all.
    snr : (float, float), optional
        Range of the signal-to-noise ratios per pixel; their logarithms are uniform in it.
        Default: 40 to 180. Fits take no spectrum for better than ``1 / model.noise.sigma_floor``.
    like : `~specutils.Spectrum`, optional
        Observed spectrum whose split latent all stars have. Default: a typical one.
    split_latent : {"own", "typical", "fitted"}, optional
        Which the fits use, see `~cyclestarnet.FitOptions`. Default: ``"own"``, read from each spectrum, noise
        and all; ``"typical"`` is the truth, unless ``like`` is given.
    max_steps : int, optional
        Of a chain. Default: 10,000.
    seed : int, optional
        A star depends on it and on its own number alone. Default: 0.
    path : path-like, optional
        File to which stars are added one by one (JSON lines): the same call after a kill goes on
        where it was, and one with more stars adds those. Default: ranks are only returned.
    progress : bool, optional
        Show a bar. Default: True.

    Returns
    -------
    `~cyclestarnet.training.ranks.Ranks`
        Of free labels, of combinations in which they are, and, of samples, of all free labels together (``"joint"``;
        `~cyclestarnet.training.ranks.rank_of_distance`).

    Raises
    ------
    FileExistsError
        If the file was begun with other settings or another model, or is none of ranks.
    LabelError
        If a label is unknown.
    ValueError
        If a setting has an unknown or impossible value.
    ImportError
        If emcee is wanted and not installed.

    See Also
    --------
    cyclestarnet.training.ranks.rank_table : statistics of ranks.
    cyclestarnet.plotting.plot_ranks : figure of ranks.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.training import calibration_ranks, rank_table
    >>> model = CalibratedModel.from_pretrained()
    >>> ranks = calibration_ranks(model, 8, space="emulator", progress=False)
    >>> ranks.n_stars, "teff" in ranks.by_label
    (8, True)

    With enough stars, and a file::

        print(rank_table(calibration_ranks(model, 500, path="ranks.jsonl")))
    """
    chosen = set(model.labels if free is None else free)
    for name in chosen:
        model.labels.index(name)  # raises if there is none
    ordered = tuple(name for name in model.labels if name in chosen)
    settings = _Settings(method, space, ordered, (float(snr[0]), float(snr[1])), split_latent, max_steps, seed)
    if n_stars < 1:
        raise ValueError(f"n_stars must be 1 or more, but is {n_stars}")
    if settings.snr[1] * model.noise.sigma_floor > 1 + 1e-9:
        raise ValueError(
            f"snr must end at {1 / model.noise.sigma_floor:g} or below, but at {settings.snr[1]:g}: fits take no "
            "spectrum for better, and ranks could not be uniform"
        )
    model = replace(model, noise=replace(model.noise, label_error=None, label_error_trend=None))
    rows: dict[int, list] = {}  # S/N, whether the posterior is known, and ranks by label
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FitWarning)  # the rows say it
        journal = None
        if path is not None:
            journal = stack.enter_context(Journal(Path(path), _run(model, settings, like)))
            rows = {star: row for stars, block in journal.recorded() for star, row in zip(stars, block, strict=True)}
        missing = [star for star in range(n_stars) if star not in rows]
        bar = stack.enter_context(
            tqdm(total=n_stars, initial=n_stars - len(missing), desc="simulated stars", disable=not progress)
        )
        find = _laplace if method == "laplace" else _chains
        for first in range(0, len(missing), BATCH):
            stars = [_star(model, number, settings, like) for number in missing[first : first + BATCH]]
            for star, (success, ranks) in zip(stars, find(model, stars, settings), strict=True):
                rows[star.number] = [star.snr, success, ranks]
                if journal is not None:
                    journal.append([star.number], [rows[star.number]])
                bar.update()
    return _gathered([rows[star] for star in range(n_stars)])


def _run(model: CalibratedModel, settings: _Settings, like: Spectrum | None) -> dict[str, object]:
    """What a file of ranks is begun with."""
    identity = None if like is None else next(iter(star_sources(like))).identity
    length = {"length": _length(settings)} if settings.method == "chains" else {}
    return (
        {"ranks of": model.name, "weights": digest_of(model), "like": identity, "normalise": False}
        | length
        | asdict(settings)
    )


def _star(model: CalibratedModel, number: int, settings: _Settings, like: Spectrum | None) -> _Star:
    """Star of a number, whatever others there are."""
    rng = np.random.default_rng([settings.seed, number])
    truth = draw_labels(model, rng)
    snr = float(np.exp(rng.uniform(*np.log(settings.snr))))
    spectrum = simulate_star(model, truth, snr, rng, space=settings.space, like=like, name=f"star {number}")
    return _Star(number, truth, snr, spectrum, rng)


def _laplace(
    model: CalibratedModel, stars: Sequence[_Star], settings: _Settings
) -> Iterator[tuple[bool, dict[str, int]]]:
    """Whether fits converged, and ranks of the truth by label, of each star."""
    common = FitOptions(space=settings.space, normalise=False, split_latent=settings.split_latent)
    if len(settings.free) == len(model.labels):
        results = iter(fit_stars(model, [star.spectrum for star in stars], FitSetup.of(model, common)))
    else:
        setups = (FitSetup.of(model, replace(common, fixed=_held(star, settings, model))) for star in stars)
        results = (fit_stars(model, [star.spectrum], setup)[0] for star, setup in zip(stars, setups, strict=True))
    for star, result in zip(stars, results, strict=True):
        if isinstance(result, Exception):
            log.warning("left out simulated star %d: %s", star.number, result)
            yield False, {}
        else:
            errors = {name: error.value for name, error in result.uncertainties.items() if error > 0}
            ranks = {
                name: rank_in_gaussian(star.truth[name].value, result.labels[name].value, error)
                for name, error in errors.items()
            }
            yield bool(result.success), ranks


def _chains(
    model: CalibratedModel, stars: Sequence[_Star], settings: _Settings
) -> Iterator[tuple[bool, dict[str, int]]]:
    """The same of emcee's samples; converged are chains of as many autocorrelation times as ranks need."""
    for star in stars:
        try:
            posterior = model.sample(
                star.spectrum,
                space=settings.space,
                fixed=_held(star, settings, model),
                normalise=False,
                split_latent=settings.split_latent,
                max_steps=settings.max_steps,
                length=_length(settings),
                seed=int(star.rng.integers(2**32)),
                progress=False,
            )
        except CycleStarNetError as error:
            log.warning("left out simulated star %d: %s", star.number, error)
            yield False, {}
            continue
        names = [name for name in star.truth if name in posterior.samples.colnames]
        if len(posterior) < N_RANKS - 1:
            yield False, {}
        else:
            ranks = {n: rank_in_samples(star.truth[n].value, posterior.samples[n].value, star.rng) for n in names}
            joint = np.transpose([posterior.samples[name].value for name in posterior.free])
            ranks[JOINT] = rank_of_distance([star.truth[name].value for name in posterior.free], joint, star.rng)
            yield bool(posterior.converged), ranks


def _length(settings: _Settings) -> int:
    """Autocorrelation times of a chain: few labels have few walkers, which must walk farther for as many draws."""
    return max(LENGTH, ceil(2 * N_RANKS / (2 * (len(settings.free) + 1))))


def _held(star: _Star, settings: _Settings, model: CalibratedModel) -> dict[str, u.Quantity]:
    """Labels that are not free, at the truth."""
    return {name: star.truth[name] for name in model.labels if name not in settings.free}


def _gathered(rows: Sequence[list]) -> Ranks:
    """Ranks by label of the stars whose posteriors are known."""
    good = [ranks for _, success, ranks in rows if success]
    names = dict.fromkeys(name for ranks in good for name in ranks)
    return Ranks(
        {name: np.array([ranks[name] for ranks in good if name in ranks]) for name in names},
        n_stars=len(rows),
        failed=tuple(star for star, (_, success, _) in enumerate(rows) if not success),
    )
