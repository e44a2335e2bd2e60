"""What the files of a configuration hold, made into what a training takes: `~cyclestarnet.training.domains.Domains`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import astropy.units as u
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import ArrayLike

from cyclestarnet.blanks import floats_of, place_of
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import CycleStarNetError, FileFormatError, GridError, LabelError, SpectrumError
from cyclestarnet.grid import WavelengthGrid, apogee_grid
from cyclestarnet.io.training_set import TrainingSet
from cyclestarnet.labels import LabelSet, kelvin_scale, unit_of_label
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.published import PAYNE_LABELS, adapt_emulator
from cyclestarnet.reading.archives import read_npz
from cyclestarnet.reading.hdf5 import dataset_of, open_hdf5
from cyclestarnet.reading.tables import read_table
from cyclestarnet.training.assembly import LEAST_STARS
from cyclestarnet.training.config import AnyPlan, Config
from cyclestarnet.training.datasets import ObservedSpectra, StoredSynthetic, SyntheticSource, SyntheticSpectra
from cyclestarnet.training.domains import Domains, KnownStars, Stars, grid_with_chips
from cyclestarnet.training.emulators import load_emulator, trained_emulator
from cyclestarnet.training.evaluation import LEAST_KNOWN
from cyclestarnet.training.loop import LEAST_HELD_OUT
from cyclestarnet.training.normalisation import check_observed
from cyclestarnet.training.streams import StreamedSpectra, StreamedSynthetic
from cyclestarnet.training.toml import ConfigError
from cyclestarnet.training.trainer import Anchors

log = logging.getLogger(__name__)

TEST_SPLIT = "test"  # of stars of known labels, by which a model is judged

__all__ = ["blamed", "grid_of_file", "read_domains", "read_labels", "read_recipe"]


class _Continuum(Protocol):
    @property
    def continuum(self) -> str | Path | None: ...

    @property
    def degree(self) -> int: ...


class _Readable(Protocol):
    """A configuration that was read from a file."""

    @property
    def path(self) -> Path: ...

    @property
    def model(self) -> _Continuum: ...


def read_domains(config: Config, *, progress: bool = True) -> Domains:
    """Open all files of a configuration, check that they fit each other, and make its emulator if it has none.

    Parameters
    ----------
    config : `~cyclestarnet.training.config.Config`
        The configuration, as `~cyclestarnet.training.config.read_config` gives it.
    progress : bool, optional
        Show a bar while an emulator is trained. Default: True.

    Returns
    -------
    `~cyclestarnet.training.domains.Domains`

    Raises
    ------
    ConfigError
        If a file cannot be used, or does not fit the others or the
        configuration. The message says which part of the configuration named it.

    Examples
    --------
    ::

        domains = read_domains(read_config("mine.toml"))
        print(domains.grid, len(domains.observed))
    """
    own, settings = config.observed, config.training
    pixels = slice(*own.pixels) if own.pixels else slice(None)
    with blamed(config, "observed"):
        n_file = TrainingSet(own.path, split=own.split).n_pixels
        grid = grid_of_file(own.path, n_file, pixels)
        stars, held_out = (
            Stars(table, table.rows(own.selection))
            for table in (
                TrainingSet(own.path, split=split, pixels=pixels, grid=grid) for split in (own.split, own.validation)
            )
        )
        least = least_held_out(config)
        if len(held_out.rows) < least:
            raise SpectrumError(
                f"{len(held_out.rows)} spectra of {held_out.table!r} pass the selection; {least} are needed"
            )
    config.network_settings(grid.n_pixels)  # what does not fit shall be known before hours of work on the emulator
    recipe = read_recipe(config, grid)
    with blamed(config, "observed", "path"):
        check_observed(stars.table, settings, recipe=recipe)
    source = StreamedSpectra if own.memory == "streamed" else ObservedSpectra.from_table
    observed = source(stars.table, settings, rows=stars.rows)
    synthetic, emulator, labels, pool, about = _synthetic_domain(config, grid, n_file, pixels, progress)
    anchors = None
    if own.anchors is not None:
        with blamed(config, "observed", "anchors"):
            anchors = _anchors(own.anchors, config, labels, grid, n_file, pixels)
    known: dict[str, KnownStars] = {}
    if own.known is not None:
        with blamed(config, "observed", "known"):
            known = _known_stars(own.known, config, labels, grid, n_file, pixels)
    if config.model.n_twin and own.validation in known:
        raise ConfigError(
            f"[model] n_twin: the split {own.validation!r} of {own.known} tells the errors of labels already; leave "
            f"one of both out in {config.path}"
        )
    provenance = {
        "synthetic domain": f"{config.synthetic.file.name}, {len(pool)} rows of labels",
        "emulator": about,
        "observed domain": f"{own.path.name}, {len(observed)} spectra",
    }
    if own.known is not None and own.validation in known:
        teachers = len(known[own.validation].stars.rows)
        provenance["label errors"] = f"learnt from {teachers} stars of known labels, {own.known.name}"
    return Domains(
        grid, labels, emulator, pool, synthetic, observed, stars, held_out, recipe, anchors, provenance,
        known=known.get(own.validation), test=known.get(TEST_SPLIT),
    )  # fmt: skip


def least_held_out(plan: AnyPlan) -> int:
    """Fewest observed spectra that must be held out: what the model's errors, and the scores of a watch, need.

    Parameters
    ----------
    plan : `~cyclestarnet.training.config.AnyPlan`
        How a training shall go.

    Returns
    -------
    int

    Examples
    --------
    ::

        assert len(held_out.rows) >= least_held_out(plan)
    """
    return LEAST_STARS if plan.watch is None else LEAST_HELD_OUT


def emulator_error(error: float) -> str:
    """What a model card says of an emulator that the run has trained itself.

    Parameters
    ----------
    error : float
        Its mean absolute error in normalised flux.

    Returns
    -------
    str

    Examples
    --------
    >>> from cyclestarnet.training.inputs import emulator_error
    >>> emulator_error(0.00123)
    'trained on the synthetic domain, mean absolute error 0.00123 on spectra held out'
    """
    return f"trained on the synthetic domain, mean absolute error {error:.5f} on spectra held out"


def grid_of_file(path: Path, n_file: int, pixels: slice) -> WavelengthGrid:
    """Pixels of a training file: as it says, or APOGEE's; chips end where wavelengths leap.

    Parameters
    ----------
    path : path
        The file.
    n_file : int
        Pixels of its spectra.
    pixels : slice
        Those that are used.

    Returns
    -------
    `~cyclestarnet.WavelengthGrid`

    Raises
    ------
    GridError
        If the file does not tell its wavelengths, and they are not APOGEE's.

    Examples
    --------
    ::

        grid = grid_of_file("observed.h5", 7214, slice(0, 7167))
    """
    with open_hdf5(path) as file:
        wavelength = dataset_of(file, "wavelength")[()] if "wavelength" in file else None
    if wavelength is None:
        try:
            if n_file < 7167:
                raise GridError("fewer pixels than APOGEE's")
            wavelength = apogee_grid(n_file).wavelength.value
        except GridError:
            raise GridError(
                f"{path} has no dataset 'wavelength' and its {n_file} pixels are not those of APOGEE; "
                "add their vacuum wavelengths in Angstrom"
            ) from None
        log.warning("%s has no dataset 'wavelength': its %d pixels are taken for APOGEE's", path, n_file)
    return grid_with_chips(np.asarray(wavelength, dtype=float)[pixels] * u.AA)


def _anchors(path: Path, config: Config, labels: LabelSet, grid: WavelengthGrid, n_file: int, pixels: slice) -> Anchors:
    """Observed spectra of known labels."""
    split = config.observed.split
    table = TrainingSet(path, split=split, pixels=_cut(path, split, "observed", grid, n_file, pixels), grid=grid)
    values = table.labels
    if values is None:
        raise FileFormatError(f"{path} has no dataset 'labels {split}'")
    if table.label_names not in (None, labels.names):
        raise LabelError(f"the labels of {path} are {table.label_names}, but must be {labels.names}")
    labels.check_range(values)
    return Anchors(ObservedSpectra.from_table(table, config.training), torch.as_tensor(values))


def _known_stars(
    path: Path, config: Config, labels: LabelSet, grid: WavelengthGrid, n_file: int, pixels: slice
) -> dict[str, KnownStars]:
    """Stars of known labels, by the split of the file."""
    with open_hdf5(path) as file:
        splits = [split for split in (config.observed.validation, TEST_SPLIT) if f"spectra {split}" in file]
    if not splits:
        raise FileFormatError(
            f"{path} has neither a split {config.observed.validation!r} to learn from nor {TEST_SPLIT!r}"
        )
    return {split: _known_split(path, split, config, labels, grid, n_file, pixels) for split in splits}


def _known_split(
    path: Path, split: str, config: Config, labels: LabelSet, grid: WavelengthGrid, n_file: int, pixels: slice
) -> KnownStars:
    table = TrainingSet(path, split=split, pixels=_cut(path, split, "observed", grid, n_file, pixels), grid=grid)
    values, names = table.labels, table.label_names
    if values is None or names is None:
        raise FileFormatError(f"{path} must have a dataset 'labels {split}' and the attribute label_names")
    strange = [name for name in names if name not in (*labels.names, *labels.combinations)]
    if strange:
        raise LabelError(f"{path} knows {', '.join(strange)}, which the model does not have")
    rows, least = table.rows(config.observed.selection), LEAST_KNOWN if split == config.observed.validation else 1
    if len(rows) < least:
        raise SpectrumError(f"{len(rows)} spectra of {table!r} pass the selection; {least} are needed")
    if split == config.observed.validation and not set(names) & set(labels.names):
        raise LabelError(f"{path} must know some of the labels {', '.join(labels.names)}, but knows {', '.join(names)}")
    return KnownStars(Stars(table, rows), {n: v * unit_of_label(n) for n, v in zip(names, values[rows].T, strict=True)})


def _synthetic_domain(
    config: Config, grid: WavelengthGrid, n_file: int, pixels: slice, progress: bool
) -> tuple[SyntheticSource, Emulator, LabelSet, np.ndarray, str]:
    """Source of synthetic spectra, emulator, label set, label pool, and what the model card says of the emulator."""
    given, settings, table = config.synthetic, config.training, None
    if given.path is not None:
        with blamed(config, "synthetic", "path"):
            cut = _cut(given.path, given.split, "synthetic", grid, n_file, pixels)
            table = TrainingSet(given.path, split=given.split, domain="synthetic", pixels=cut, grid=grid)
    if given.emulator is not None:
        with blamed(config, "synthetic", "emulator"):
            emulator, known = load_emulator(given.emulator, grid=grid)
            if emulator.n_pixels == n_file != grid.n_pixels:
                emulator = adapt_emulator(emulator, pixels=pixels)
            if emulator.n_pixels != grid.n_pixels:
                raise GridError(f"the emulator has {emulator.n_pixels} pixels, but the grid has {grid.n_pixels}")
        with blamed(config, "labels"):
            labels, emulator = _labels_of_emulator(config, emulator, known, table)
        about = "that of the synthetic domain" if given.path is None else given.emulator.name
    else:
        assert table is not None  # one of both is there, or the configuration was refused
        with blamed(config, "labels"):
            labels, values = _labels_of_file(config, table)
        with blamed(config, "emulator"):
            emulator, error = _emulator_of_file(config, table, values, labels, progress)
        about = emulator_error(error)
    if given.labels is not None:
        with blamed(config, "synthetic", "labels"):
            pool = _pool(given.labels, labels, given.n_drawn, config.run.seed)
        return SyntheticSpectra(emulator, pool, settings, label_names=labels.names), emulator, labels, pool, about
    assert table is not None  # labels are there without it, or the configuration was refused
    with blamed(config, "synthetic", "path"):
        values = _values(table, labels.names)
        inside = _inside(values, labels)
    source = StreamedSynthetic if given.memory == "streamed" else StoredSynthetic.from_table
    return source(table, settings, rows=np.flatnonzero(inside)), emulator, labels, values[inside], about


def _emulator_of_file(
    config: Config, table: TrainingSet, values: np.ndarray, labels: LabelSet, progress: bool
) -> tuple[Emulator, float]:
    """The emulator that the run trains on spectra of a file, and its error."""
    given = config.synthetic
    source = {"file": table.path.name, "split": given.split, "pixels": [table.pixels.start, table.pixels.stop]}
    return trained_emulator(
        table, values, labels, config.run.folder,
        settings=config.emulator, n_spectra=given.n_emulator, source=source, progress=progress,
    )  # fmt: skip


def _cut(path: Path, split: str, domain: str, grid: WavelengthGrid, n_file: int, pixels: slice) -> slice:
    """The part of a file's pixels that is on the grid: all, or the same as of the observed file."""
    n = TrainingSet(path, split=split, domain=domain).n_pixels
    return pixels if n == n_file and n != grid.n_pixels else slice(None)


def _names(config: Config, n_labels: int, *candidates: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of labels: those of the configuration, or of the first that knows them."""
    for names in (config.labels.names, *candidates, PAYNE_LABELS if n_labels == len(PAYNE_LABELS) else None):
        if names is not None:
            if len(names) != n_labels:
                raise LabelError(f"names must be {n_labels}, but are {len(names)}: {', '.join(names)}")
            return tuple(names)
    raise LabelError(f"names of the {n_labels} labels must be given: no file has them")


def _labels_of_emulator(
    config: Config, emulator: Emulator, known: LabelSet | None, table: TrainingSet | None
) -> tuple[LabelSet, Emulator]:
    """Label set of an emulator, and the emulator with ``teff`` in K."""
    names = _names(config, emulator.n_labels, known.names if known else None, table.label_names if table else None)
    if known and names != known.names:
        raise LabelError(f"names are {', '.join(names)}, but those of the emulator are {', '.join(known.names)}")
    emulator = adapt_emulator(emulator, label_scale=kelvin_scale(names, emulator.upper.numpy()))
    lower = known.lower if known else emulator.lower.double().numpy()
    upper = known.upper if known else emulator.upper.double().numpy()
    return _label_set(config, names, lower, upper, known.combinations if known else {}), emulator


def _labels_of_file(config: Config, table: TrainingSet) -> tuple[LabelSet, np.ndarray]:
    """Label set of a file of synthetic spectra, and its labels, ``teff`` in K."""
    values = _values(table)
    names = _names(config, values.shape[1], table.label_names)
    values = _values(table, names)
    return _label_set(config, names, np.nanmin(values, axis=0), np.nanmax(values, axis=0), {}), values


def _values(table: TrainingSet, names: tuple[str, ...] | None = None) -> np.ndarray:
    """Labels of a file, float64: as they are there, or in the order of ``names`` and with ``teff`` in K."""
    given, own = table.labels, table.label_names
    if given is None:
        raise FileFormatError(f"{table.path} has no dataset 'labels {table.split}', which a synthetic domain needs")
    values = given.astype(float)
    if names is None:
        return values
    if len(names) != values.shape[1] or (own is not None and sorted(own) != sorted(names)):
        held = f"{values.shape[1]} labels" if own is None else f"the labels {', '.join(own)}"
        raise LabelError(f"{table.path} has {held}, but must have {', '.join(names)}")
    if own is not None:
        values = values[:, [own.index(name) for name in names]]
    return values * kelvin_scale(names, values)


def _label_set(
    config: Config,
    names: tuple[str, ...],
    lower: np.ndarray,
    upper: np.ndarray,
    combinations: Mapping[str, Mapping[str, float]],
) -> LabelSet:
    own = config.labels
    return LabelSet(
        names,
        lower if own.lower is None else np.array(own.lower),
        upper if own.upper is None else np.array(own.upper),
        own.combinations or combinations,
    )


def _inside(values: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Which rows of labels are finite and within the range."""
    inside = np.all((values >= labels.lower) & (values <= labels.upper), axis=1)
    if not inside.any():
        with np.errstate(all="ignore"):
            low, high = np.fmin.reduce(values), np.fmax.reduce(values)
            found = [f"{n} {a:g} to {b:g}" for n, a, b in zip(labels, low, high, strict=True)]
        raise LabelError(f"no row lies within the range of the labels; they are {', '.join(found)}")
    if not inside.all():
        log.info("%d of %d rows of labels lie within the range", inside.sum(), len(inside))
    return inside


def _pool(given: Path | Mapping[str, tuple[float, float]], labels: LabelSet, n_drawn: int, seed: int) -> np.ndarray:
    """Labels from a file, or drawn from ranges."""
    if not isinstance(given, Mapping):
        values = read_labels(given, labels)
        return values[_inside(values, labels)]
    lower, upper = labels.lower.copy(), labels.upper.copy()
    for name, (low, high) in given.items():
        k = labels.index(name)
        lower[k], upper[k] = low, high
    labels.check_range(np.array([lower, upper]))
    return np.random.default_rng([seed, 1]).uniform(lower, upper, (n_drawn, len(labels)))


def read_labels(path: str | os.PathLike, labels: LabelSet) -> np.ndarray:
    """Read rows of labels from a file.

    Parameters
    ----------
    path : path-like
        A table with a column per label (``.ecsv``, ``.fits``, ``.csv``, ...;
        columns without unit are in that of the label), ``.npz`` with an array
        per label or one array (n, n_labels) named ``labels`` or ``pool``, or
        HDF5 with a dataset ``labels train``. A ``teff`` in units of 1000 K becomes one in K.
    labels : `~cyclestarnet.LabelSet`
        The labels to look for. Other columns are left alone.

    Returns
    -------
    array, shape (n, n_labels), float64
        In the order and units of ``labels``; NaN where a cell is blank, masked or null.

    Raises
    ------
    LabelError
        If a label is missing or holds no numbers, or there is another number of them.
    FileFormatError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from astropy.table import Table
    >>> from cyclestarnet import LabelSet
    >>> from cyclestarnet.training.inputs import read_labels
    >>> path = tempfile.mkdtemp() + "/labels.csv"
    >>> Table({"star": ["a", "b"], "logg": [2.0, 1.0], "teff": [4.5, 4.2]}).write(path)
    >>> read_labels(path, LabelSet(["teff", "logg"], [3500, 0], [6000, 4]))
    array([[4.5e+03, 2.0e+00],
           [4.2e+03, 1.0e+00]])
    """
    path = Path(path)
    given = _columns_of_hdf5(path) if path.suffix in (".h5", ".hdf5") else _columns_of_table(path)
    if isinstance(given, dict):
        return _columns(given, labels, path)
    if given.ndim != 2 or given.shape[1] != len(labels):
        raise LabelError(f"the labels of {path} must have the shape (n, {len(labels)}), but have {given.shape}")
    values = floats_of(given)
    return values * kelvin_scale(labels.names, values)


def _columns_of_hdf5(path: Path) -> dict[str, ArrayLike] | np.ndarray:
    """Labels of a training set: by name if the file tells their names."""
    table = TrainingSet(path, domain="synthetic")
    values = table.labels
    if values is None:
        raise FileFormatError(f"{path} has no dataset 'labels train'")
    return values if table.label_names is None else dict(zip(table.label_names, values.T, strict=True))


def _columns_of_table(path: Path) -> dict[str, ArrayLike] | np.ndarray:
    """Columns of a table by name, or the one array of a ``.npz`` that holds all labels."""
    try:
        if path.suffix == ".npz":
            columns: dict[str, Any] = dict(read_npz(path))
            return columns.get("labels", columns.get("pool", columns))
        table = read_table(path, cls=Table)
        return {name: table[name] for name in table.colnames}
    except (FileFormatError, FileNotFoundError):
        raise
    except Exception as error:  # zipfile and numpy raise a class of their own for each kind of damage
        raise FileFormatError(f"{path} cannot be read as a table of labels: {error}") from error


def _columns(columns: Mapping[str, ArrayLike], labels: LabelSet, path: Path) -> np.ndarray:
    missing = [name for name in labels if name not in columns]
    if missing:
        raise LabelError(f"{path} lacks the labels {', '.join(missing)}; it has {', '.join(columns)}")
    values = np.stack([_column(labels, name, columns[name], path) for name in labels], axis=1)
    return values * kelvin_scale(labels.names, values)


def _column(labels: LabelSet, name: str, column: ArrayLike, path: Path) -> np.ndarray:
    """Values of a label in its unit, NaN where the table has none."""
    try:
        values = floats_of(column)
    except (TypeError, ValueError) as error:
        raise LabelError(f"label '{name}' of {path} holds no numbers: {error}") from error
    unit = getattr(column, "unit", None)
    if unit is not None:
        known = np.isfinite(values)
        values[known] = labels.value(name, values[known] * unit)
    return values


def read_recipe(config: _Readable, grid: WavelengthGrid) -> ContinuumRecipe | None:
    """Read the continuum recipe that a configuration names.

    Parameters
    ----------
    config : `~cyclestarnet.training.config.Config` or `~cyclestarnet.training.translation_config.TranslationConfig`
        Its ``model`` has ``continuum`` and ``degree``.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the spectra.

    Returns
    -------
    `~cyclestarnet.ContinuumRecipe` or None
        None if it names none.

    Raises
    ------
    ConfigError
        If the table of continuum pixels cannot be used.

    Examples
    --------
    ::

        recipe = read_recipe(read_config("mine.toml"), grid)
    """
    given = config.model.continuum
    if given is None:
        return None
    with blamed(config, "model", "continuum"):
        if given == "apogee":
            with resources.as_file(resources.files("cyclestarnet.data") / "apogee_continuum_pixels.ecsv") as path:
                table = Table.read(path)
        else:
            table = read_table(given, cls=Table)
        if "wavelength" in table.colnames:
            return ContinuumRecipe.from_wavelengths(grid, table["wavelength"], config.model.degree)
        if "pixel" not in table.colnames:
            raise FileFormatError(f"{given} must have a column 'wavelength' or 'pixel', but has {table.colnames}")
        pixels = np.zeros(grid.n_pixels, dtype=bool)
        number = floats_of(table["pixel"])
        if not np.isfinite(number).all():
            raise FileFormatError(f"{given} has a pixel without a number{place_of(~np.isfinite(number))}")
        pixels[number.astype(int)] = True
        return ContinuumRecipe(grid, pixels, config.model.degree)


@contextmanager
def blamed(config: _Readable, table: str, key: str = "") -> Iterator[None]:
    """Say with an error of a file which part of the configuration named it.

    Parameters
    ----------
    config : `~cyclestarnet.training.config.Config` or `~cyclestarnet.training.translation_config.TranslationConfig`
        The configuration.
    table : str
        Its table.
    key : str, optional
        The key in it. Default: the table as a whole.

    Raises
    ------
    ConfigError
        In place of other errors within the block.

    Examples
    --------
    ::

        with blamed(config, "observed", "path"):
            table = TrainingSet(config.observed.path)
    """
    try:
        yield
    except ConfigError:
        raise
    except (CycleStarNetError, IndexError, OSError, ValueError) as error:
        where = f"[{table}] {key}".strip()
        raise ConfigError(f"{where} in {config.path}: {error}") from error
