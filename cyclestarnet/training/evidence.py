"""What a model makes of a set of observed spectra, in the numbers of the paper.

S1 is O'Briain et al. (2021). Its first case study fits observed spectra with the emulator alone
and with its translation, and asks what is left over, what the autoencoders lose, and whether
the latents of both domains are mixed. `collect_evidence` asks the same of any model and any
set; no label of a star need be known.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import QTable, vstack

from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.exceptions import FitWarning, SpectrumError
from cyclestarnet.io.stars import HDF5_ENDINGS, StarSource, splits_of, survey_sources
from cyclestarnet.io.training_set import TrainingSet
from cyclestarnet.labels import kelvin_scale, unit_of_label
from cyclestarnet.model import CalibratedModel
from cyclestarnet.pipeline.fit import fit_stars
from cyclestarnet.pipeline.many import NO_STARS_FAULT, failed_row
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.pipeline.translate import EncodedSpectra, encode_spectra
from cyclestarnet.progress import tqdm
from cyclestarnet.residuals import ResidualMap
from cyclestarnet.results import FitResult
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.adaptation import draw_labels
from cyclestarnet.training.alignment import classifier_accuracy, tsne

__all__ = ["Evidence", "collect_evidence"]

log = logging.getLogger(__name__)

SPACES = ("emulator", "synthetic", "observed")  # Eqs. 9, 10 and 11
BATCH = 16  # stars that are fitted side by side
LEAST_SCORED = 10  # members of either sample, for a classifier
# Stars that are shown: what they are called, temperature [K] and log g
EXAMPLES = {"K giant": (4750.0, 2.5), "M giant": (3800.0, 1.0)}
SCALE = np.array([100.0, 0.3])  # by which their neighbours are chosen
# What S1 found in its Section 4.1; its abstract calls the bias a mean residual
PUBLISHED = {
    ("reduced chi2, mean", "emulator"): 1.97,
    ("reduced chi2, mean", "observed"): 1.22,
    ("residuals, bias", "emulator"): 0.16,
    ("residuals, bias", "observed"): -0.01,
    ("residuals, beyond 3 sigma", "observed"): 3.0,
}


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a model makes of a set of observed spectra.

    Parameters
    ----------
    model : str
        Name of the model.
    spectra : str
        What the set is called.
    n_spectra : int
        How many spectra it has, of which some were drawn.
    seed : int
        Of what was drawn.
    tables : dict of `~astropy.table.QTable`
        Of the spaces ``emulator``, ``synthetic`` and ``observed``: a row per star that was drawn, in the columns of
        `~cyclestarnet.CalibratedModel.fit_many`. Stars that could not be fitted have the flag ``FAILED``.
    residuals : dict of `~cyclestarnet.residuals.ResidualMap`
        Data − model of fits in the spaces ``emulator`` and ``observed``, in σ.
    autoencoders : dict of `~cyclestarnet.residuals.ResidualMap`
        Of the domains ``synthetic`` and ``observed``: spectra less what their own encoder and decoder make of them,
        in units of the continuum. Those of observed spectra contain their noise.
    synthetic, observed : `~cyclestarnet.pipeline.EncodedSpectra`
        Spectra of labels that are drawn from the prior of the model, and those of the stars, with their latents.
    examples : dict of dict of `~cyclestarnet.FitResult`
        Fits of single stars, the nearest to a K giant and to an M giant, with and without the translation.
    derivatives : dict of `~cyclestarnet.DerivativeSpectra`
        Of the first of them, by domain.
    scores : dict of float
        How often a classifier tells the domains apart by their ``spectra`` and by their shared ``latents``, 0.5 if it
        cannot. Empty without scikit-learn, or of few stars.
    maps : dict of (array, array)
        Places of synthetic and observed stars on maps of the same; see `~cyclestarnet.training.alignment.tsne`.
    catalogue : `~astropy.table.QTable` or None
        Labels of the stars, if the set has some.
    settings : `~cyclestarnet.NetworkSettings`
        Sizes of the networks.
    provenance : dict of str
        What the model was made of.

    Examples
    --------
    ::

        evidence = collect_evidence(model, "observed.h5")
        print(evidence)
        evidence.write("report")
    """

    model: str
    spectra: str
    n_spectra: int
    seed: int
    tables: dict[str, QTable]
    residuals: dict[str, ResidualMap]
    autoencoders: dict[str, ResidualMap]
    synthetic: EncodedSpectra
    observed: EncodedSpectra
    examples: dict[str, dict[str, FitResult]]
    derivatives: dict[str, DerivativeSpectra]
    scores: dict[str, float]
    maps: dict[str, tuple[np.ndarray, np.ndarray]]
    catalogue: QTable | None
    settings: Any
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def n_fitted(self) -> int:
        """Stars that could be fitted in the observed space."""
        return int(np.isfinite(self.tables["observed"]["reduced_chi2"]).sum())

    def to_table(self) -> QTable:
        """Put the numbers of the paper beside those that were found.

        Returns
        -------
        `~astropy.table.QTable`
            A row per number: ``measure``, ``of`` (space or domain), ``paper`` and ``here``, NaN where there is none,
            and ``unit``, as text.

        Examples
        --------
        ::

            print(evidence.to_table())
        """
        rows: list[tuple[str, str, float, float, str]] = []

        def add(measure: str, of: str, here: float, unit: str = "", paper: float = np.nan) -> None:
            rows.append((measure, of, PUBLISHED.get((measure, of), paper), float(here), unit))

        for measure, average in (("mean", np.nanmean), ("median", np.nanmedian)):
            for space in self.residuals:
                add(f"reduced chi2, {measure}", space, average(self.tables[space]["reduced_chi2"]))
        statistics = {space: own.statistics for space, own in self.residuals.items()}
        for name, text in (
            ("bias", "bias"),
            ("mean", "mean"),
            ("mean_abs", "mean absolute"),
            ("half_width", "half-width"),
        ):
            for space, own in statistics.items():
                add(f"residuals, {text}", space, getattr(own, name), "sigma")
        for space, own in statistics.items():
            add("residuals, beyond 3 sigma", space, 100 * own.beyond_3, "%")
        for domain, residuals in self.autoencoders.items():
            own = residuals.statistics
            add("autoencoder, half-width", domain, 100 * own.half_width, "%", 0.4)
            add("autoencoder, absolute bias", domain, 100 * abs(own.bias), "%", 0.1)
        with np.errstate(divide="ignore"):
            noise = 100 * np.nanmedian(1 / self.tables["observed"]["snr"])
        add("noise of the spectra, median of 1/(S/N)", "observed", noise, "%")
        for name, value in self.scores.items():
            add("two-sample accuracy, 0.5 if mixed", name, value)
        table = QTable(rows=rows, names=("measure", "of", "paper", "here", "unit"))
        for name in ("paper", "here"):
            table[name].info.format = ".3g"
        return table

    def write(
        self,
        folder: str | os.PathLike[str],
        *,
        training: str | os.PathLike[str] | None = None,
        mock: str | os.PathLike[str] | None = None,
        isochrones: QTable | None = None,
    ) -> Path:
        """Write all tables and figures, and a page that shows them.

        Parameters
        ----------
        folder : path-like
            Made if it is not there. Files of these names are replaced, each at once.
        training : path-like, optional
            Folder of a training, whose progress is shown, too (S1, Figure B1).
        mock : path-like, optional
            Folder of a mock study of missing lines (S1, Table 1 and Figure 13).
        isochrones : `~astropy.table.QTable`, optional
            Drawn in the Kiel diagrams; see `~cyclestarnet.plotting.plot_kiel`.

        Returns
        -------
        `~pathlib.Path`
            The page, ``report.html``, which shows the figures by itself; ``figures`` and ``tables`` beside it have
            them as PNG and ECSV.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        OSError
            If a file cannot be written.

        Examples
        --------
        ::

            evidence.write("report", training="run")
        """
        from cyclestarnet.plotting.evidence import write_evidence

        return write_evidence(self, folder, training=training, mock=mock, isochrones=isochrones)

    def __repr__(self) -> str:
        head = f"<Evidence of {self.model} on {self.spectra}: {self.n_fitted} stars>"
        return "\n".join([head, *self.to_table().pformat(max_lines=-1, max_width=-1)])


def collect_evidence(
    model: CalibratedModel,
    spectra: str | os.PathLike[str] | TrainingSet | Spectrum | Iterable[Spectrum | str | os.PathLike[str]],
    *,
    n_stars: int = 200,
    split: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Evidence:
    """Ask of a model and a set of spectra what the paper asks of its own (S1, Section 4.1).

    Stars are drawn from the set, fitted with the emulator alone and with its translation (Eqs. 9 to 11), and
    compared with synthetic spectra of the model. It takes about a second per star. A star that cannot be used is a
    row of the tables that says why.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    spectra : path-like, or all that `~cyclestarnet.CalibratedModel.fit_many` takes
        Observed spectra, best of stars that training has not seen. Also a folder of FITS files, or a text file with a
        path in each line.
    n_stars : int, optional
        Stars to draw, at most. Default: 200.
    split : str, optional
        Of an HDF5 file. Default: ``"test"`` if there is one, or else ``"val"``, or else the only one.
    seed : int, optional
        Of the stars, the synthetic labels, the classifiers and the maps. Default: 0.
    progress : bool, optional
        Show a bar over the fits. Default: True.

    Returns
    -------
    `Evidence`

    Raises
    ------
    FileNotFoundError, FileFormatError, GridError
        If the spectra are not there, damaged, or on unknown pixels.
    SpectrumError
        If none of the stars can be fitted.
    ValueError
        If ``n_stars`` is less than 1, or there are no spectra.

    References
    ----------
    .. [1] O'Briain et al. 2021, ApJ 906, 130, Section 4.1.

    Examples
    --------
    ::

        evidence = collect_evidence(CalibratedModel.from_pretrained(), "observed.h5", n_stars=100)
        print(evidence)
    """
    if n_stars < 1:
        raise ValueError(f"n_stars must be 1 or more, but is {n_stars}")
    if split is None and isinstance(spectra, str | os.PathLike) and Path(spectra).suffix.lower() in HDF5_ENDINGS:
        split = next((name for name in ("test", "val") if name in splits_of(spectra)), None)
    every = survey_sources(spectra, grid=model.grid, split=split)
    rows = np.sort(np.random.default_rng([seed, 0]).permutation(len(every))[:n_stars])
    stars = [every[row] for row in rows]
    tables, residuals = _fits(model, stars, progress)
    examples = _examples(model, stars, tables["observed"])
    labels = model.labels.to_quantities(next(iter(examples.values()))["observed"].values)
    values = draw_labels(model.prior, model.labels, max(len(stars), LEAST_SCORED), seed=seed)
    drawn = {name: value for name, value in model.labels.to_quantities(values).items() if name in model.labels}
    # as the networks see them in training: the emulator's spectra are normalised
    synthetic = model.encode(model.predict(drawn, domain="synthetic"), domain="synthetic", normalise=False)
    observed = encode_spectra(model, stars)
    scores, maps = _compared(synthetic, observed, seed)
    return Evidence(
        model.name,
        _name(spectra, split),
        len(every),
        seed,
        tables,
        residuals,
        {own.domain: _autoencoder(model, own) for own in (synthetic, observed)},
        synthetic,
        observed,
        examples,
        {domain: model.derivative_spectra(labels, domain=domain) for domain in ("synthetic", "observed")},
        scores,
        maps,
        _catalogue(spectra, split, rows),
        model.translator.network.settings,
        {str(key): str(value) for key, value in model.provenance.items()},
    )


# -- inside --------------------------------------------------------------------------------
def _fits(
    model: CalibratedModel, stars: Sequence[StarSource], progress: bool
) -> tuple[dict[str, QTable], dict[str, ResidualMap]]:
    """Tables of fits by space, and residuals in σ of those that S1 compares."""
    setups = {space: FitSetup.of(model, FitOptions(method="lm", space=space)) for space in SPACES}
    rows: dict[str, list[QTable]] = {space: [] for space in SPACES}
    left: dict[str, list[np.ndarray]] = {"emulator": [], "observed": []}
    nothing = np.full(model.grid.n_pixels, np.nan, dtype=np.float32)
    with warnings.catch_warnings(), tqdm(total=len(stars), desc="stars", disable=not progress) as bar:
        warnings.simplefilter("ignore", FitWarning)  # the flags say it
        for first in range(0, len(stars), BATCH):
            block = stars[first : first + BATCH]
            read = [_read(star) for star in block]
            good = [k for k, spectrum in enumerate(read) if not isinstance(spectrum, Exception)]
            for space, setup in setups.items():
                fitted = _fitted(model, [read[k] for k in good], setup)
                outcomes = dict(enumerate(read)) | dict(zip(good, fitted, strict=True))
                rows[space] += [_row(model, star.name, outcomes[k]) for k, star in enumerate(block)]
                if space in left:
                    left[space] += [_in_sigma(outcomes[k], nothing) for k in range(len(block))]
                if space == "observed":
                    for k, outcome in outcomes.items():
                        if isinstance(outcome, Exception):
                            log.warning("%s cannot be fitted: %s", block[k].name or f"star {first + k}", outcome)
            bar.update(len(block))
    tables = {space: vstack(own) for space, own in rows.items()}
    if not np.isfinite(tables["observed"]["reduced_chi2"]).any():
        reason = tables["observed"]["message"][0]
        raise SpectrumError(f"none of the {len(stars)} stars can be fitted; the first: {reason}")
    return tables, {space: ResidualMap(np.array(own), model.grid) for space, own in left.items()}


def _read(star: StarSource) -> Any:
    """The spectrum of a star, or why there is none."""
    try:
        return star.read()
    except Exception as error:  # a file can be damaged in ways that no list of exceptions covers
        return error.with_traceback(None)


def _fitted(model: CalibratedModel, spectra: list[Spectrum], setup: FitSetup) -> list[FitResult | Exception]:
    """Fits of some stars; one that brings a fit down is lost alone."""
    try:
        return fit_stars(model, spectra, setup) if spectra else []
    except NO_STARS_FAULT:
        raise
    except Exception as error:
        if len(spectra) == 1:
            return [error.with_traceback(None)]
    return [_fitted(model, [spectrum], setup)[0] for spectrum in spectra]


def _row(model: CalibratedModel, name: str, outcome: FitResult | Exception) -> QTable:
    """A row of the table of fits."""
    if isinstance(outcome, Exception):
        return failed_row(model.labels, name, outcome)
    row = outcome.to_table()
    row.meta.clear()  # that of single stars has no place in a table of many
    row["object"] = [str(row["object"][0]) or name]
    return row


def _in_sigma(outcome: FitResult | Exception, nothing: np.ndarray) -> np.ndarray:
    if isinstance(outcome, Exception):
        return nothing
    used: Any = outcome.spectrum
    return (outcome.residual.value / used.uncertainty.array).astype(np.float32)


def _examples(model: CalibratedModel, stars: Sequence[StarSource], table: QTable) -> dict[str, dict[str, FitResult]]:
    """Fits with and without the translation of the stars nearest to those of S1."""
    fitted = np.flatnonzero(np.isfinite(table["reduced_chi2"]))
    chosen = {"a star": int(fitted[0])}
    if {"teff", "logg"} <= set(model.labels):
        labels = np.column_stack([table["teff"].value, table["logg"].value])[fitted]
        distance = {name: (((labels - own) / SCALE) ** 2).sum(1) for name, own in EXAMPLES.items()}
        chosen = {name: int(fitted[own.argmin()]) for name, own in distance.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return {
            name: {space: model.fit(stars[row].read(), space=space, method="lm") for space in ("emulator", "observed")}
            for name, row in chosen.items()
            if row not in list(chosen.values())[: list(chosen).index(name)]  # one star may be the nearest to both
        }


def _autoencoder(model: CalibratedModel, encoded: EncodedSpectra) -> ResidualMap:
    """Spectra less what their own domain's autoencoder makes of them."""
    translator, good = model.translator, encoded.good
    reconstruct = translator.reconstruct_obs if encoded.domain == "observed" else translator.reconstruct_synth
    flux = encoded.flux[good]
    residual = np.where(encoded.used[good], flux - reconstruct(flux), np.nan)
    return ResidualMap(residual.astype(np.float32), model.grid, in_sigma=False)


def _compared(
    synthetic: EncodedSpectra, observed: EncodedSpectra, seed: int
) -> tuple[dict[str, float], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Accuracies of classifiers, and maps, of spectra and of shared latents."""
    good = observed.good
    if good.sum() < LEAST_SCORED:
        log.warning("domains are not compared, which needs %d stars or more", LEAST_SCORED)
        return {}, {}
    if find_spec("sklearn") is None:
        log.warning('domains are not compared, which needs scikit-learn: pip install "cyclestarnet[training]"')
        return {}, {}
    pairs = {
        "spectra": (synthetic.flux, observed.flux[good]),
        "latents": (synthetic.shared_latent, observed.shared_latent[good]),
    }
    scores = {name: classifier_accuracy(*pair, seed=seed)[0] for name, pair in pairs.items()}
    return scores, {name: tsne(*pair, seed=seed) for name, pair in pairs.items()}


def _name(spectra: Any, split: str | None) -> str:
    if isinstance(spectra, TrainingSet):
        return f"{spectra.path.name}, {spectra.split}"
    if isinstance(spectra, str | os.PathLike):
        name = Path(spectra).name or str(spectra)
        return name if split is None else f"{name}, {split}"
    return "spectra in memory"


def _catalogue(spectra: Any, split: str | None, rows: np.ndarray) -> QTable | None:
    """Labels of some rows of a training file, if it has named ones."""
    if isinstance(spectra, str | os.PathLike) and Path(spectra).suffix.lower() in HDF5_ENDINGS:
        spectra = TrainingSet(spectra, split=split or splits_of(spectra)[0])
    if not isinstance(spectra, TrainingSet) or spectra.labels is None or spectra.label_names is None:
        return None
    names, values = spectra.label_names, spectra.labels.astype(float)
    values = (values * kelvin_scale(names, values))[rows]
    return QTable({name: column * unit_of_label(name) for name, column in zip(names, values.T, strict=True)})
