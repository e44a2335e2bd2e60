"""From a trained model to one that is finished on a user's own spectra: `adapt`, the third door of `training.runs`.

The model is the beginning: its networks are the first weights, its emulator makes
the synthetic spectra, of labels drawn from its label prior. Grid, continuum recipe,
form of the translation and noise model stay. What is new are the observed spectra,
the critics, and the errors that held-out spectra tell.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from cyclestarnet.exceptions import GridError, ModelFileError, SpectrumError
from cyclestarnet.files import locked
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import WavelengthGrid, apogee_grid
from cyclestarnet.io.training_set import TrainingSet
from cyclestarnet.labels import LabelSet
from cyclestarnet.model import CalibratedModel
from cyclestarnet.model_file import digest_of
from cyclestarnet.networks.emulator import EmulatorSettings
from cyclestarnet.spectra import SAME_WAVELENGTH, Spectrum
from cyclestarnet.training.arrays import (
    digest,
    held_out_rows,
    observed_table,
    require_same_spectra,
    table_digest,
)
from cyclestarnet.training.before_after import AdaptationReport, compare_models
from cyclestarnet.training.config import LogConfig, ModelConfig, Plan, RunConfig
from cyclestarnet.training.datasets import ObservedSource, ObservedSpectra, SyntheticSpectra
from cyclestarnet.training.domains import Domains, Stars
from cyclestarnet.training.loop import LEAST_HELD_OUT
from cyclestarnet.training.normalisation import check_observed
from cyclestarnet.training.runs import check_machine, finish, kept_folder, ready
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.training.tables import SpectrumTable
from cyclestarnet.training.watch import WatchSettings

__all__ = ["adapt", "adaptation_settings", "draw_labels"]

log = logging.getLogger(__name__)

LEAST_SPECTRA = 50  # fewer tell neither what an instrument does nor how large the model's errors are
MOST_HELD_OUT = 500
N_POOL = 20_000  # labels that synthetic spectra are made of
RESIDENT = 2**31  # bytes of spectra that are held in memory; larger files are streamed
FROM_MODEL = ("flux_mean", "flux_std", "sigma_floor", "sigma_max", "fill")
# What needs something that an adaptation does not have, or would undo its beginning.
IMPOSSIBLE = {
    "warm_start": "would copy the synthetic branch over the observed one, with which an adaptation begins",
    "weight_anchors": "needs stars of known labels, which an adaptation does not take",
    "prior_rate": "moves the label prior, which stays that of the model",
}


def adaptation_settings(model: CalibratedModel, **changes: Any) -> TrainingSettings:
    """Return the settings of an adaptation: its own pace, and the model's scaling of the flux and errors.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model to begin with.
    **changes
        Any `~cyclestarnet.TrainingSettings` that shall have other values.

    Returns
    -------
    `~cyclestarnet.TrainingSettings`

    Raises
    ------
    ValueError
        If a change is impossible.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.training import adaptation_settings
    >>> settings = adaptation_settings(CalibratedModel.from_pretrained(), n_iterations=500)
    >>> settings.n_iterations, settings.adversarial_ramp, round(settings.flux_std, 4)
    (500, 50, 0.0518)
    """
    n_iterations = changes.get("n_iterations", 2_000)
    own = {
        "n_iterations": n_iterations,
        "learning_rate": 3e-4,
        "critic_learning_rate": 4e-4,
        "schedule": "cosine",
        "warmup": min(100, n_iterations // 10),
        "adversarial_ramp": n_iterations // 10,  # critics begin anew: they must not mislead before they have learnt
        "weight_latent": 2.0,
        "gradient_clip": 300.0,
        "average_decay": 0.995,
    }
    return TrainingSettings(**(own | _scaling(model) | changes))


def _scaling(model: CalibratedModel) -> dict[str, Any]:
    """Settings that must be the model's, or its networks would see other spectra than they have learnt."""
    parts = (model.translator, model.translator, model.noise, model.noise, model.noise)
    return {name: getattr(part, name) for name, part in zip(FROM_MODEL, parts, strict=True)}


def adapt(
    model: CalibratedModel,
    observed: ArrayLike | Spectrum | str | os.PathLike[str],
    errors: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    name: str | None = None,
    settings: TrainingSettings | None = None,
    watch: WatchSettings | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[CalibratedModel, AdaptationReport]:
    """Finish the training of a model on your own observed spectra, of which no label is known.

    The networks begin with the weights of the model and learn from your
    spectra what your instrument and your stars have of their own; synthetic
    spectra are made by the model's emulator, of labels drawn from its label
    prior. Held-out spectra tell the errors of the new model, and how much
    better than the old one it fits. With the networks of the packaged model
    this takes a quarter of an hour on two cores.

    Zero points of labels follow the label prior: your stars must be of the
    kind that the model was made for.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model to begin with. It is not changed.
    observed : path-like, or array, Quantity or `~specutils.Spectrum`, shape (n, n_pixels)
        50 or more observed spectra, at rest, on the pixels of ``model.grid``;
        the model's recipe normalises them. A path is that of an HDF5 file,
        as ``cyclestarnet prepare`` or `~cyclestarnet.io.write_training_set`
        makes it with that recipe; its split ``val`` is held out, if it has one.
    errors : array or Quantity, shape (n, n_pixels), optional
        Standard deviation of ``observed``. Needed of arrays without an uncertainty.
    mask : array of bool, shape (n, n_pixels) or (n_pixels,), optional
        True = ignore the pixel. Default: none but those that ``observed`` has itself.
    name : str, optional
        Name of the new model. Default: that of ``model``, and ``-adapted``.
    settings : `~cyclestarnet.TrainingSettings`, optional
        Every number of the training. Default: ``adaptation_settings(model, seed=seed)``.
    watch : `~cyclestarnet.WatchSettings`, optional
        Score the run on the held-out spectra, and give the model the weights
        of the best score. Default: nobody watches, and the model has the last weights.
    held_out : float, optional
        Fraction of the spectra that the networks do not see, 500 at most. Default: 0.2.
    seed : int, optional
        Of the choice of those spectra, of the labels of the synthetic ones,
        and of the training unless ``settings`` are given. Default: 0.
    folder : path-like, optional
        For checkpoints, logs, the model (``NAME.safetensors``) and the report
        (``NAME.html``). The same call on the same folder goes on where an
        interrupted one was. Default: a temporary folder, which is deleted in
        the end; if the training is interrupted or fails, it stays, and the
        exception says where it is.
    device : str, optional
        ``"cpu"`` (default), ``"cuda"`` or ``"cuda:N"``: where the networks are trained.
    progress : bool, optional
        Show bars. Default: True.

    Returns
    -------
    model : `~cyclestarnet.CalibratedModel`
        Whose ``provenance`` says from which model it was made, and on what.
    report : `~cyclestarnet.training.before_after.AdaptationReport`
        What the held-out stars look like before and after.

    Raises
    ------
    SpectrumError
        If spectra have impossible shapes or units, a file was not normalised by the model's recipe,
        without errors, or too few.
    GridError
        If they are not on the pixels of the model.
    ModelFileError
        If ``model`` is no model with a translation.
    FileNotFoundError, FileFormatError
        If there is no such file, or it is damaged or lacks something.
    ValueError
        If the settings do not suit the model, or the folder has a training of
        other settings, of another model or on other spectra.
    FloatingPointError
        If a loss is not finite, and no watch rolls the run back.
    FileExistsError
        If another process trains in the folder.
    TrainingError
        If the watch stops the run.
    ImportError
        If a watch is asked for, and scikit-learn is not installed.

    See Also
    --------
    train : from your own synthetic spectra, without a model to begin with.

    Examples
    --------
    ::

        from cyclestarnet import CalibratedModel, adapt
        from cyclestarnet.io import write_training_set

        model = CalibratedModel.from_pretrained()
        write_training_set("mine.h5", paths, grid=model.grid, recipe=model.recipe)
        adapted, report = adapt(model, "mine.h5", folder="mine")
        print(report)
        result = adapted.fit(star)
    """
    base = _checked_model(model)
    training = adaptation_settings(base, seed=seed) if settings is None else settings
    _check_settings(base, training)
    given = _given(base, observed, errors, mask, held_out, seed)
    check_observed(given.stars.table, training, recipe=base.recipe if base.normalises else None)
    with kept_folder(folder) as path, locked(path, "trains in"):
        plan = Plan(
            run=RunConfig(folder=path, name=f"{base.name}-adapted" if name is None else name, seed=seed, device=device),
            training=training,
            network=base.translator.network.settings.to_dict(),
            watch=watch,
            emulator=EmulatorSettings(),
            model=ModelConfig(translation=base.translation),  # type: ignore[arg-type]
            log=LogConfig(),
        )
        check_machine(plan)
        identity = digest_of(base)
        require_same_spectra(
            path, {"model": identity, "observed": given.digest, "held out": digest(given.held_out.rows)}
        )
        domains = _domains(base, given, training, seed, identity)
        run = ready(plan, domains, base)
        log.info("%s", run.summary())
        run.train(progress=progress)
        adapted = CalibratedModel.load(finish(run, progress=progress))
        report = compare_models(
            base, adapted, domains.held_out, synthetic=domains.synthetic, n_trained=len(domains.observed),
            n_stars=plan.model.n_validation, seed=seed, progress=progress,
        )  # fmt: skip
        if folder is not None:  # a temporary one goes away with all that is in it
            report.write(plan.model_path.with_suffix(".html"))
    return adapted, report


# -- what is given ---------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Given:
    """Observed spectra to train on and held-out ones, what a model card calls them, and their digest."""

    stars: Stars
    held_out: Stars
    about: str
    digest: str


def _checked_model(model: CalibratedModel) -> CalibratedModel:
    if not isinstance(model, CalibratedModel) or getattr(model, "translator", None) is None:
        raise ModelFileError(
            "model must be a CalibratedModel with a translation between its domains, such as "
            f"CalibratedModel.from_pretrained(), but is {model!r:.80}"
        )
    return model.to("cpu")


def _check_settings(model: CalibratedModel, settings: TrainingSettings) -> None:
    for name, value in _scaling(model).items():
        if getattr(settings, name) != value:
            raise ValueError(
                f"{name} of settings is {getattr(settings, name)}, but the networks of the model have learnt with "
                f"{value}; begin with adaptation_settings(model, ...)"
            )
    for name, why in IMPOSSIBLE.items():
        if getattr(settings, name):
            raise ValueError(f"{name} is {getattr(settings, name)}, but {why}; leave it at 0")


def _given(
    model: CalibratedModel,
    observed: ArrayLike | Spectrum | str | os.PathLike[str],
    errors: ArrayLike | None,
    mask: ArrayLike | None,
    held_out: float,
    seed: int,
) -> _Given:
    table: SpectrumTable
    validation: SpectrumTable | None = None
    if isinstance(observed, (str, os.PathLike)):
        if errors is not None or mask is not None:
            raise SpectrumError(f"errors and masks are those of the file {observed}; leave errors and mask out")
        path = Path(observed)
        table, validation = _tables_of_file(path, model.grid)
        about = path.name
        with path.open("rb") as file:
            identity = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        try:
            recipe = model.recipe if model.normalises else None
            table = observed_table(observed, errors, grid=model.grid, mask=mask, recipe=recipe)
        except GridError as error:
            raise GridError(f"{error}. {_way_out(model.grid)}") from None
        about = "arrays"
        identity = table_digest(table)
    n = table.n_spectra + (0 if validation is None else validation.n_spectra)
    if n < LEAST_SPECTRA:
        raise SpectrumError(f"an adaptation needs {LEAST_SPECTRA} or more spectra, but there are {n}")
    if validation is None:
        if held_out > 0:
            held_out = min(held_out, MOST_HELD_OUT / n)
        held = Stars(table, held_out_rows(n, held_out, seed))
        stars = Stars(table, np.setdiff1d(np.arange(n), held.rows))
    else:
        stars, held = Stars(table, np.arange(table.n_spectra)), Stars(validation, np.arange(validation.n_spectra))
        held = Stars(validation, held.spread(MOST_HELD_OUT))
    if len(held.rows) < LEAST_HELD_OUT or len(stars.rows) < LEAST_SPECTRA - LEAST_HELD_OUT:
        raise SpectrumError(
            f"{len(stars.rows)} spectra are to be trained on and {len(held.rows)} are held out, but "
            f"{LEAST_SPECTRA - LEAST_HELD_OUT} and {LEAST_HELD_OUT} are needed at least; change held_out"
            + ("" if validation is None else ", or move spectra from one split of the file to the other")
        )
    return _Given(stars, held, about, identity)


def _tables_of_file(path: Path, grid: WavelengthGrid) -> tuple[TrainingSet, TrainingSet | None]:
    """Splits of a file to train on and to hold out, on the pixels of the model; None: it has no split to hold out."""
    whole = TrainingSet(path)
    with h5py.File(path, "r") as file:
        wavelength = file["wavelength"][()] if "wavelength" in file else None
        splits = ["train", *(["val"] if "spectra val" in file else [])]
    if wavelength is None and whole.n_pixels != grid.n_pixels:
        try:
            wavelength = apogee_grid(whole.n_pixels).wavelength.value
        except GridError:
            wavelength = np.zeros(0)
    pixels = slice(None)
    if wavelength is not None:
        first = int(np.searchsorted(wavelength, grid.wavelength.value[0] * (1 - SAME_WAVELENGTH)))
        pixels = slice(first, first + grid.n_pixels)
        if len(wavelength[pixels]) != grid.n_pixels or not np.allclose(
            wavelength[pixels], grid.wavelength.value, rtol=SAME_WAVELENGTH, atol=0
        ):
            raise GridError(f"the {whole.n_pixels} pixels of {path} are not those of the model. {_way_out(grid)}")
    tables = [TrainingSet(path, split=split, pixels=pixels) for split in splits]
    return tables[0], tables[1] if len(tables) > 1 else None


def _way_out(grid: WavelengthGrid) -> str:
    return (
        f"The model has {grid!r}; cyclestarnet.io.write_training_set(FILE, spectra, grid=model.grid, "
        "recipe=model.recipe) puts spectra on it"
    )


# -- both domains ------------------------------------------------------------------------------
def _domains(model: CalibratedModel, given: _Given, settings: TrainingSettings, seed: int, identity: str) -> Domains:
    table, rows = given.stars.table, given.stars.rows
    large = 8 * len(rows) * table.n_pixels > RESIDENT
    source = StreamedSpectra if large and isinstance(table, TrainingSet) else ObservedSpectra.from_table
    observed: ObservedSource = source(table, settings, rows=rows)
    if (n := len(observed) + len(given.held_out.rows)) < LEAST_SPECTRA:
        raise SpectrumError(f"an adaptation needs {LEAST_SPECTRA} or more spectra with good pixels, but there are {n}")
    pool = draw_labels(model.prior, model.labels, N_POOL, seed=seed)
    return Domains(
        model.grid,
        model.labels,
        model.emulator,
        pool,
        SyntheticSpectra(model.emulator, pool, settings, label_names=model.labels.names),
        observed,
        given.stars,
        given.held_out,
        model.recipe if model.normalises else None,
        provenance={
            "adapted from": f"{model.name}, digest {identity}",
            "synthetic domain": f"emulator of {model.name}, {N_POOL} rows of labels drawn from its prior",
            "observed domain": f"{given.about}, {len(observed)} spectra; {len(given.held_out.rows)} held out",
        }
        | {f"{model.name}, {key}": value for key, value in model.provenance.items()},
    )


def draw_labels(prior: GaussianPrior, labels: LabelSet, number: int, *, seed: int) -> np.ndarray:
    """Draw labels from a Gaussian prior, within the range of the labels.

    Parameters
    ----------
    prior : `~cyclestarnet.GaussianPrior`
        In the order and units of ``labels``.
    labels : `~cyclestarnet.LabelSet`
        Their range.
    number : int
        How many rows.
    seed : int
        The same seed draws the same rows.

    Returns
    -------
    array, shape (number, n_labels)

    Examples
    --------
    >>> from cyclestarnet import GaussianPrior, LabelSet
    >>> from cyclestarnet.training.adaptation import draw_labels
    >>> labels = LabelSet(["teff", "logg"], [4000, 0], [5000, 4])
    >>> drawn = draw_labels(GaussianPrior([4000, 2], [[90_000, 0], [0, 1]]), labels, 5_000, seed=0)
    >>> drawn.min() >= 0, (drawn[:, 0] < 4000).any(), drawn[:, 0].mean().round(-1)  # a half Gaussian of 300 K
    (np.True_, np.False_, np.float64(4240.0))
    """
    rng = np.random.default_rng([seed, 4])

    def draw() -> np.ndarray:
        return rng.multivariate_normal(prior.mean, prior.covariance, number)

    def inside(rows: np.ndarray) -> np.ndarray:
        return np.all((rows >= labels.lower) & (rows <= labels.upper), axis=1)

    drawn = draw()
    outside = np.flatnonzero(~inside(drawn))
    if len(outside) > 0.99 * number:  # a wide prior on many labels: of each in turn, given the others
        return _conditional_draws(prior, labels, np.clip(drawn, labels.lower, labels.upper), rng)
    while len(outside):
        fresh = draw()
        fresh = fresh[inside(fresh)][: len(outside)]
        drawn[outside[: len(fresh)]] = fresh
        outside = outside[len(fresh) :]
    return drawn


def _conditional_draws(
    prior: GaussianPrior, labels: LabelSet, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Gibbs sampling of the truncated Gaussian, many chains side by side."""
    width = 1 / np.sqrt(np.diag(prior.precision))
    for _ in range(30):
        for k in range(len(labels)):
            offset = rows - prior.mean
            mean = rows[:, k] - (offset @ prior.precision[k]) * width[k] ** 2
            low, high = (ndtr((edge[k] - mean) / width[k]) for edge in (labels.lower, labels.upper))
            rows[:, k] = mean + width[k] * ndtri(low + (high - low) * rng.random(len(rows)))
            rows[:, k] = np.clip(rows[:, k], labels.lower[k], labels.upper[k])
    return rows
