"""What a model makes of a set of observed spectra, in the numbers of the paper.

S1 is O'Briain et al. (2021). Its first case study fits observed spectra with the emulator alone
and with its translation, and asks what is left over, what the autoencoders lose, and whether
the latents of both domains are mixed. `collect_evidence` asks the same of any model and any
set; no label of a star need be known. Memory holds the tables of the fits, and of residuals only their densities.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import QTable

from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.exceptions import FitWarning
from cyclestarnet.files import as_json
from cyclestarnet.io.preparation import StarCuts, prepare_training_set
from cyclestarnet.io.stars import HDF5_ENDINGS, StarSource, splits_of, survey_sources
from cyclestarnet.io.training_set import TrainingSet
from cyclestarnet.journal import run_folder
from cyclestarnet.labels import kelvin_scale, unit_of_label
from cyclestarnet.masks import MASKED, SpectroscopicMask
from cyclestarnet.model import CalibratedModel
from cyclestarnet.model_file import digest_of
from cyclestarnet.pipeline.journal import write_results
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.translate import EncodedSpectra, encode_spectra
from cyclestarnet.residuals import ResidualDensity
from cyclestarnet.results import FitResult
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.adaptation import draw_labels
from cyclestarnet.training.alignment import classifier_accuracy, tsne
from cyclestarnet.training.fitted_sets import (
    FITS_FILES,
    RESIDUALS_FILE,
    FittedSet,
    LeftOver,
    fits_path,
    state_of_stars,
)
from cyclestarnet.training.masks import mask_of_stars

__all__ = ["Evidence", "collect_evidence"]

log = logging.getLogger(__name__)

SPACES = ("emulator", "synthetic", "observed")  # Eqs. 9, 10 and 11
COMPARED = ("emulator", "observed")  # whose residuals S1 compares
OUTSIDE = ", outside the mask"  # after a space: fits to all pixels, at those that are not masked
MASK_STARS = 500  # that a mask is made of, at most
LEAST_SCORED, MOST_SCORED = 10, 1000  # members of either sample, for classifiers and maps
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
        `~cyclestarnet.CalibratedModel.fit_many`. Stars that could not be fitted have the flag ``FAILED``. With a
        mask, those of fits that leave out its pixels follow: ``emulator, masked`` and so on.
    residuals : dict of `~cyclestarnet.residuals.ResidualDensity`
        Data − model of fits in the spaces ``emulator`` and ``observed``, in σ; with a mask also of
        ``emulator, masked`` and ``observed, masked``, at the other pixels.
    autoencoders : dict of `~cyclestarnet.residuals.ResidualDensity`
        Of the domains ``synthetic`` and ``observed``: spectra less what their own encoder and decoder make of them,
        in units of the continuum. Those of observed spectra contain their noise.
    synthetic, observed : `~cyclestarnet.pipeline.EncodedSpectra`
        Spectra of labels that are drawn from the prior of the model, and those of the stars, 1000 of each at most, with
        their latents.
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
    mask : `~cyclestarnet.SpectroscopicMask` or None
        That of the fits with a mask.

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
    residuals: dict[str, ResidualDensity]
    autoencoders: dict[str, ResidualDensity]
    synthetic: EncodedSpectra
    observed: EncodedSpectra
    examples: dict[str, dict[str, FitResult]]
    derivatives: dict[str, DerivativeSpectra]
    scores: dict[str, float]
    maps: dict[str, tuple[np.ndarray, np.ndarray]]
    catalogue: QTable | None
    settings: Any
    provenance: dict[str, str] = field(default_factory=dict)
    mask: SpectroscopicMask | None = None

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
        densities = dict(self.residuals)
        if self.mask is not None:
            outside = ~self.mask.pixels(next(iter(densities.values())).grid)
            densities |= {f"{space}{OUTSIDE}": densities[space].within(outside) for space in COMPARED}
            add("pixels in the mask", "all", 100 * (1 - outside.mean()), "%")
        statistics = {space: own.statistics for space, own in densities.items()}
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
            them as PNG and ECSV, and the fits as FITS.

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

        for name, table in self.tables.items():  # of many stars ECSV takes minutes to read
            write_results(table, fits_path(Path(folder), name))
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
    cuts: StarCuts | None = None,
    catalogue: str | os.PathLike[str] | None = None,
    mask: bool | SpectroscopicMask | str | os.PathLike[str] = False,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> Evidence:
    """Ask of a model and a set of spectra what the paper asks of its own (S1, Section 4.1).

    Stars are drawn from the set, fitted with the emulator alone and with its translation (Eqs. 9 to 11), and
    compared with synthetic spectra of the model. It takes about half a second per star, and twice that with a mask. A
    star that cannot be used is a row of the tables that says why.

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
    cuts : `~cyclestarnet.io.StarCuts`, optional
        Which stars to take, such as ``StarCuts()``, the paper's cuts (Section 4.1.1). Of an HDF5 file those on the
        signal-to-noise ratio and χ² are made. Of files a training set with splits is made first, in ``set`` of the
        folder, by `~cyclestarnet.io.prepare_training_set`. Default: all stars.
    catalogue : path-like, optional
        With what cuts of files need; see `~cyclestarnet.io.prepare_training_set`.
    mask : bool, `~cyclestarnet.SpectroscopicMask`, or path-like, optional
        Fit with and without this mask, or one from this file. True: one that is made by
        `~cyclestarnet.training.masks.find_mask` of 500 stars at most: those of the split ``"val"`` of the set if
        others are fitted, or else the same. Default: no mask.
    seed : int, optional
        Of the stars, the splits, the synthetic labels, the classifiers and the maps. Default: 0.
    folder : path-like, optional
        Where the fits go as they come, ``tables``, and what is counted of their residuals: the same call after a kill
        goes on where it was, and one after the end takes what is there. Default: a kill costs everything.
    overwrite : bool, optional
        Begin anew if the folder has another run. Default: False.
    workers : int, optional
        Processes of this machine that work side by side. A script that wants several must call this under
        ``if __name__ == "__main__":``. Default: 1, this one.
    progress : bool, optional
        Show bars. Default: True.

    Returns
    -------
    `Evidence`

    Raises
    ------
    FileExistsError
        If the folder has another run: of another model, other stars or settings.
    FileNotFoundError, FileFormatError, GridError
        If the spectra are not there, damaged, or on unknown pixels.
    SpectrumError
        If none of the stars passes the cuts, or can be fitted.
    ValueError
        If ``n_stars`` is less than 1, there are no spectra, or there is a catalogue without cuts of files, or such cuts
        without a folder.

    References
    ----------
    .. [1] O'Briain et al. 2021, ApJ 906, 130, Section 4.1.

    Examples
    --------
    ::

        evidence = collect_evidence(CalibratedModel.from_pretrained(), "observed.h5", n_stars=100)
        print(evidence)

    Of many stars, with and without a mask, in four processes::

        collect_evidence(model, "observed.h5", n_stars=100_000, mask=True, folder="report", workers=4)
    """
    if n_stars < 1:
        raise ValueError(f"n_stars must be 1 or more, but is {n_stars}")
    if catalogue is not None and (cuts is None or _is_set(spectra)):
        raise ValueError("a catalogue has no effect: it is for cuts of files; leave it out, or make cuts")
    place = None if folder is None else Path(folder)
    spectra = spectra if isinstance(spectra, str | os.PathLike | TrainingSet | Spectrum) else list(spectra)
    if cuts is not None and not _is_set(spectra):
        spectra = _prepared(model, spectra, cuts, catalogue, seed, place, overwrite, workers, progress)
    if split is None and isinstance(spectra, str | os.PathLike) and _is_set(spectra):
        split = next((name for name in ("test", "val") if name in splits_of(spectra)), None)
    every, numbers = _stars(model, spectra, split, cuts)
    drawn = _draw(len(every), n_stars, seed)
    stars, rows = [every[k] for k in drawn], numbers[drawn]
    about = {
        "task": "report", "model": model.name, "weights": digest_of(model), "set": _name(spectra, split),
        "n_stars": len(stars), "spectra": state_of_stars(stars), "seed": seed,
    }  # fmt: skip
    if isinstance(mask, bool):
        others = _stars_of_mask(model, spectra, split, cuts, seed) if mask else []
        about["mask"] = state_of_stars(others or stars) if mask else "none"
        with _folder(place, about, overwrite):
            made = None
            if mask:
                inside = None if place is None else place / "mask"
                some = others or [stars[k] for k in _draw(len(stars), MASK_STARS, seed)]
                made = mask_of_stars(model, some, folder=inside, workers=workers, overwrite=True, progress=progress)
            fitted = FittedSet(model, stars, place, workers, progress)
            return _collected(fitted, made, spectra, split, rows, len(every), seed)
    given = mask if isinstance(mask, SpectroscopicMask) else SpectroscopicMask.read(mask)
    about["mask"] = hashlib.sha256(as_json(given.windows).encode()).hexdigest()[:16]
    with _folder(place, about, overwrite):
        fitted = FittedSet(model, stars, place, workers, progress)
        return _collected(fitted, given, spectra, split, rows, len(every), seed)


# -- which stars ---------------------------------------------------------------------------
def _is_set(spectra: Any) -> bool:
    """Whether this is an HDF5 file of spectra."""
    if isinstance(spectra, str | os.PathLike):
        return Path(spectra).suffix.lower() in HDF5_ENDINGS
    return isinstance(spectra, TrainingSet)


def _stars(
    model: CalibratedModel, spectra: Any, split: str | None, cuts: StarCuts | None
) -> tuple[list[StarSource], np.ndarray]:
    """Stars of a set that pass its cuts, and their numbers in it."""
    every = survey_sources(spectra, grid=model.grid, split=split)
    if cuts is None or not _is_set(spectra):
        return every, np.arange(len(every))
    numbers = _opened(spectra, split).rows(cuts)
    return [every[k] for k in numbers], numbers


def _opened(spectra: Any, split: str | None) -> TrainingSet:
    if isinstance(spectra, TrainingSet):
        return spectra
    return TrainingSet(spectra, split=split or splits_of(spectra)[0])


def _draw(n: int, n_wanted: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng([seed, 0]).permutation(n)[:n_wanted])


def _stars_of_mask(
    model: CalibratedModel, spectra: Any, split: str | None, cuts: StarCuts | None, seed: int
) -> list[StarSource]:
    """Stars for a mask that are not fitted with it; none if there are no others."""
    path = spectra.path if isinstance(spectra, TrainingSet) else spectra
    used = spectra.split if isinstance(spectra, TrainingSet) else split
    if not _is_set(spectra) or used in ("val", None) or "val" not in splits_of(path):
        log.warning("the mask is made of the stars that are fitted with it: the set has no others in a split val")
        return []
    if isinstance(spectra, TrainingSet):
        spectra = TrainingSet(path, split="val", pixels=spectra.pixels)
    every, _ = _stars(model, spectra, "val", cuts)
    return [every[k] for k in _draw(len(every), MASK_STARS, seed)]


def _prepared(
    model: CalibratedModel,
    spectra: Any,
    cuts: StarCuts,
    catalogue: str | os.PathLike[str] | None,
    seed: int,
    place: Path | None,
    overwrite: bool,
    workers: int,
    progress: bool,
) -> Path:
    """A set with splits of the spectra of files that pass the cuts."""
    if place is None:
        raise ValueError("cuts of files need a folder, for the set that is made of them; give one, or an HDF5 file")
    files = [] if catalogue is None else [os.fspath(catalogue)]
    pixels = hashlib.sha256(b"".join(np.asarray(own).tobytes() for own in (
        model.grid.wavelength.value, model.grid.chips, model.recipe.pixels, model.recipe.degree
    )))  # fmt: skip
    about = {
        "task": "prepare", "spectra": state_of_stars(survey_sources(spectra)), "cuts": as_json(vars(cuts)),
        "catalogue": state_of_stars(survey_sources(files)) if files else "none", "seed": seed,
        "pixels": pixels.hexdigest()[:16],
    }  # fmt: skip
    path = place / "set" / "observed.h5"
    with run_folder(path.parent, about, ["observed.*"], overwrite=overwrite):
        if not path.exists() or path.with_name(f"{path.name}.partial").exists():
            prepare_training_set(
                path, spectra, grid=model.grid, recipe=model.recipe, catalogue=catalogue, cuts=cuts, seed=seed,
                workers=workers, progress=progress,
            )  # fmt: skip
    return path


# -- inside --------------------------------------------------------------------------------
@contextmanager
def _folder(place: Path | None, about: Mapping[str, Any], overwrite: bool) -> Iterator[None]:
    """The folder of a report, if there is one."""
    if place is None:
        yield
        return
    with run_folder(place, about, [FITS_FILES, RESIDUALS_FILE], overwrite=overwrite):
        yield


def _collected(
    fitted: FittedSet,
    mask: SpectroscopicMask | None,
    spectra: Any,
    split: str | None,
    rows: np.ndarray,
    n: int,
    seed: int,
) -> Evidence:
    """Evidence of stars that were drawn."""
    model, stars = fitted.model, fitted.stars
    ways = {space: FitOptions(space=space) for space in SPACES}
    wanted = {space: LeftOver(space) for space in COMPARED} | {"autoencoder": LeftOver(None, in_sigma=False)}
    if mask is not None:
        ways |= {f"{space}{MASKED}": FitOptions(space=space, ignore=mask) for space in SPACES}
        hidden = mask.pixels(model.grid)
        wanted |= {f"{space}{MASKED}": LeftOver(f"{space}{MASKED}", hidden=hidden) for space in COMPARED}
    tables = {name: fitted.table(name, options) for name, options in ways.items()}
    residuals = fitted.left_over({name: (ways[name].space, tables[name]) for name in wanted if name in ways}, wanted)
    examples = _examples(model, stars, tables["observed"])
    labels = model.labels.to_quantities(next(iter(examples.values()))["observed"].values)
    shown = [stars[k] for k in _draw(len(stars), MOST_SCORED, seed)]
    values = draw_labels(model.prior, model.labels, max(len(shown), LEAST_SCORED), seed=seed)
    drawn = {name: value for name, value in model.labels.to_quantities(values).items() if name in model.labels}
    # as the networks see them in training: the emulator's spectra are normalised
    synthetic = model.encode(model.predict(drawn, domain="synthetic"), domain="synthetic", normalise=False)
    observed = encode_spectra(model, shown)
    scores, maps = _compared(synthetic, observed, seed)
    autoencoders = {"synthetic": _autoencoder(model, synthetic), "observed": residuals.pop("autoencoder")}
    return Evidence(
        model.name,
        _name(spectra, split),
        n,
        seed,
        tables,
        residuals,
        autoencoders,
        synthetic,
        observed,
        examples,
        {domain: model.derivative_spectra(labels, domain=domain) for domain in ("synthetic", "observed")},
        scores,
        maps,
        _catalogue(spectra, split, rows),
        model.translator.network.settings,
        {str(key): str(value) for key, value in model.provenance.items()},
        mask,
    )


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


def _autoencoder(model: CalibratedModel, encoded: EncodedSpectra) -> ResidualDensity:
    """Synthetic spectra less what their own domain's autoencoder makes of them."""
    density = ResidualDensity(model.grid, in_sigma=False)
    for flux, used in zip(encoded.flux[encoded.good], encoded.used[encoded.good], strict=True):
        density.add(np.where(used, flux - model.translator.reconstruct_synth(flux[None]), np.nan))
    return density


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
    if not _is_set(spectra):
        return None
    spectra = _opened(spectra, split)
    if spectra.labels is None or spectra.label_names is None:
        return None
    names, values = spectra.label_names, spectra.labels.astype(float)
    values = (values * kelvin_scale(names, values))[rows]
    return QTable({name: column * unit_of_label(name) for name, column in zip(names, values.T, strict=True)})
