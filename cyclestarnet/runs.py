"""A training from its configuration to the saved model: `prepare`, train, `finish`.

The command ``cyclestarnet train`` is a thin layer over this room. What can be
wrong with the files that a configuration names is found by `prepare`, before
the first step.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import torch
import torch.distributed as dist
from astropy.table import Table

from cyclestarnet._version import __version__
from cyclestarnet.assembly import LEAST_STARS, assemble_model
from cyclestarnet.backend.checkpoint import load_state, save_state
from cyclestarnet.backend.emulator import Emulator, train_emulator
from cyclestarnet.backend.networks import NetworkSettings, TranslationNetwork
from cyclestarnet.backend.predictor import Translator
from cyclestarnet.backend.published import PAYNE_LABELS, adapt_emulator, read_payne_checkpoint, read_payne_npz
from cyclestarnet.backend.settings import TrainingSettings
from cyclestarnet.backend.sources import (
    ObservedSpectra,
    StoredSynthetic,
    StreamedSpectra,
    StreamedSynthetic,
    SyntheticSpectra,
    split_into_blocks,
)
from cyclestarnet.backend.training import Anchors, Trainer, join_processes
from cyclestarnet.config import Config, ConfigError
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import (
    CycleStarNetError,
    FileFormatError,
    GridError,
    LabelError,
    ModelFileError,
    SpectrumError,
)
from cyclestarnet.grid import WavelengthGrid, apogee_grid
from cyclestarnet.io.training_set import Selection, TrainingSet
from cyclestarnet.labels import LabelSet, kelvin_scale
from cyclestarnet.model import CalibratedModel
from cyclestarnet.spectra import to_spectrum

__all__ = ["Run", "finish", "joined_processes", "load_emulator", "prepare", "read_labels", "save_emulator"]

log = logging.getLogger(__name__)

LEAST_WATCHED = 10  # spectra that the scores of a watch need
OWN_EMULATOR = "emulator.pt"  # of a run that trains one, in its folder
GAP = 3.0  # usual steps in ln(wavelength): neighbours that are further apart lie on different chips


@dataclass(frozen=True, eq=False)
class Run:
    """A training that is ready to go.

    Attributes
    ----------
    config : `~cyclestarnet.config.Config`
    grid : `~cyclestarnet.WavelengthGrid`
    labels : `~cyclestarnet.LabelSet`
    emulator : `~cyclestarnet.backend.emulator.Emulator`
    label_pool : array, shape (n_pool, n_labels)
        Labels of the synthetic training spectra.
    observed, validation : `~cyclestarnet.io.TrainingSet`
    recipe : `~cyclestarnet.ContinuumRecipe` or None
        None: to be made of quiet pixels.
    trainer : `~cyclestarnet.backend.training.Trainer`
    """

    config: Config
    grid: WavelengthGrid
    labels: LabelSet
    emulator: Emulator
    label_pool: np.ndarray
    observed: TrainingSet
    validation: TrainingSet
    recipe: ContinuumRecipe | None
    trainer: Trainer

    def summary(self) -> str:
        """What the run will do, a line each."""
        config, trainer, sizes = self.config, self.trainer, self.trainer.network.settings
        n_parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
        what = "spectra" if config.synthetic.labels is None else "labels, rendered by the emulator"
        at = f", goes on from iteration {trainer.iteration:,}" if trainer.iteration else ""
        facts = {
            "model": f"{config.run.name}: {', '.join(self.labels)}",
            "grid": repr(self.grid),
            "observed": f"{len(trainer.observed):,} spectra, {config.observed.memory}",
            "synthetic": f"{len(trainer.synthetic):,} {what}",
            "networks": f"{n_parameters:,} parameters, latents of {sizes.shared_filters} and {sizes.split_filters} "
            f"x {sizes.latent_length}, on {trainer.device}",
            "training": f"{config.training.n_iterations:,} iterations of 2 x {config.training.batch_size} spectra{at}",
            "other than the paper's": ", ".join(self.changes()) or "nothing",
            "watch": "none"
            if config.watch is None
            else f"scores every {config.watch.every} iterations; if the run fails: {config.watch.action}",
            "folder": str(config.run.folder),
        }
        return "\n".join(
            textwrap.fill(f"{name + ':':24}{text}", 100, subsequent_indent=" " * 24, break_on_hyphens=False)
            for name, text in facts.items()
        )

    def changes(self) -> list[str]:
        """Settings of training and networks that differ from the paper's."""
        paper = asdict(TrainingSettings()) | {f.name: f.default for f in fields(NetworkSettings)}
        own = asdict(self.config.training) | self.trainer.network.settings.to_dict()
        differ = [name for name in own if own[name] != paper[name] and name not in ("seed", "n_pixels")]
        return [f"{name} = {own[name]}" for name in differ]


def prepare(config: Config, *, progress=True) -> Run:
    """Open all files of a configuration, make what it asks for, and check that everything fits.

    If the configuration has no emulator, one is trained; it is kept in the
    folder of the run.

    Parameters
    ----------
    config : `~cyclestarnet.config.Config`
    progress : bool, optional
        Show bars.

    Returns
    -------
    `Run`

    Raises
    ------
    ConfigError
        If a file cannot be used, or does not fit the others or the
        configuration. The message says which part of the configuration named it.
    ValueError
        If the folder has a checkpoint of other settings.
    ImportError
        If a package is missing that the configuration needs.
    """
    if dist.is_initialized() and dist.get_rank() > 0:
        dist.barrier()  # the first process makes the emulator, if there is none, and the others read it
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    _check_device(config)
    if config.watch is not None and find_spec("sklearn") is None:
        raise ImportError('the scores of a watch need scikit-learn: pip install "cyclestarnet[training]"')
    settings, own = config.training, config.observed
    pixels = slice(*own.pixels) if own.pixels else slice(None)
    with _blamed(config, "observed"):
        n_file = TrainingSet(own.path, split=own.split).n_pixels
        grid = _grid_of(own.path, n_file, pixels)
        observed, validation = (
            TrainingSet(own.path, split=split, pixels=pixels, grid=grid) for split in (own.split, own.validation)
        )
        rows = observed.rows(own.selection)
        held_rows, least = validation.rows(own.selection), LEAST_STARS if config.watch is None else LEAST_WATCHED
        if len(held_rows) < least:
            raise SpectrumError(f"{len(held_rows)} spectra of {validation!r} pass the selection; {least} are needed")
    sizes, recipe = config.network_settings(grid.n_pixels), _recipe(config, grid)
    synthetic, emulator, labels, pool = _synthetic_domain(config, grid, n_file, pixels, progress)
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()
    source = StreamedSpectra if own.memory == "streamed" else ObservedSpectra.from_table
    anchors = None
    if own.anchors is not None:
        with _blamed(config, "observed", "anchors"):
            anchors = _anchors(own.anchors, own.split, labels, grid, n_file, pixels, settings)
    held_out = None
    if config.watch is not None:
        held_out = ObservedSpectra.from_table(validation, settings, rows=_spread(held_rows, config.watch.n_spectra))
    device = config.run.device
    trainer = Trainer(
        sizes,
        settings,
        synthetic.to(device),
        source(observed, settings, rows=rows).to(device),
        config.run.folder,
        anchors=anchors,
        device=device,
        tensorboard=config.log.tensorboard,
        watch=config.watch,
        held_out=held_out,
    )
    return Run(config, grid, labels, emulator, pool, observed, validation, recipe, trainer)


def _check_device(config: Config) -> None:
    if config.run.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"[run] device is {config.run.device!r} in {config.path}, but PyTorch finds no CUDA device")


@contextmanager
def joined_processes(config: Config):
    """Join the processes that ``torchrun`` has started, if it has.

    Parameters
    ----------
    config : `~cyclestarnet.config.Config`

    Yields
    ------
    config : `~cyclestarnet.config.Config`
        With the device of this process.
    rank : int
        0 for the process that writes files and talks.

    Raises
    ------
    ConfigError
        If the processes shall train on CUDA devices, but there is none.
    """
    _check_device(config)
    with join_processes(config.run.device) as device:
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield replace(config, run=replace(config.run, device=device)), rank


def finish(run: Run, *, progress=True) -> Path:
    """Assemble the model of a run, learn its errors from validation spectra, and save it.

    Parameters
    ----------
    run : `Run`
        Trained.
    progress : bool, optional
        Show a bar over the fits.

    Returns
    -------
    path
        The file of the model.
    """
    config = run.config
    settings, selection = config.training, config.observed.selection
    network, shift, iteration = _chosen_weights(run)
    pool = run.label_pool
    if shift is not None:
        unit = run.trainer.synthetic.label_std.cpu()  # in which labels are trained: 1 for one that is constant
        pool = np.clip(pool + (shift * unit).double().numpy(), run.labels.lower, run.labels.upper)
    model = assemble_model(
        config.run.name,
        labels=run.labels,
        grid=run.grid,
        emulator=run.emulator,
        translator=Translator(network, settings.flux_mean, settings.flux_std),
        label_pool=pool,
        observed=_spectra(run.observed, selection, config.model.n_cloud, run.grid),
        validation=_spectra(run.validation, selection, config.model.n_validation, run.grid),
        limits={"sigma_floor": settings.sigma_floor, "sigma_max": settings.sigma_max},
        recipe=run.recipe,
        provenance=_provenance(run, iteration),
        progress=progress,
    )
    model.save(config.model_path, half=config.model.half)
    return config.model_path


def _chosen_weights(run: Run):
    """Network, shift of the label prior (or None) and iteration that the model shall have."""
    trainer, best = run.trainer, run.config.run.folder / "best.pt"
    if trainer.watch is None or run.config.model.weights == "last" or not best.exists():
        shift = trainer.parts.prior_shift
        return trainer.averaged_network(), None if shift is None else shift.detach().cpu(), trainer.iteration
    state = load_state(best)
    network = TranslationNetwork(trainer.network.settings)
    network.load_state_dict(state["average"])
    return network.eval().requires_grad_(False), state["parts"].get("prior_shift"), state["iteration"]


def _provenance(run: Run, iteration: int) -> dict[str, str]:
    """What goes on the model card."""
    config, trainer, settings = run.config, run.trainer, run.config.training
    given, emulator = config.synthetic, "that of the synthetic domain"
    if given.emulator is None:
        error = load_state(config.run.folder / OWN_EMULATOR)["error"]
        emulator = f"trained on the synthetic domain, mean absolute error {error:.5f} on spectra held out"
    elif given.path is not None:
        emulator = given.emulator.name
    return {
        "version": __version__,
        "synthetic domain": f"{(given.path or given.emulator).name}, {len(run.label_pool)} rows of labels",
        "emulator": emulator,
        "observed domain": f"{config.observed.path.name}, {len(trainer.observed)} spectra",
        "training": f"{iteration} iterations of 2 x {settings.batch_size} spectra, seed {settings.seed}",
        "other than the paper's": ", ".join(run.changes()) or "nothing",
    } | dict(config.model.provenance)


# -- the observed domain -----------------------------------------------------------------
def _grid_of(path: Path, n_file: int, pixels: slice) -> WavelengthGrid:
    """Pixels of a training file: as it says, or APOGEE's; chips end where wavelengths leap."""
    with h5py.File(path, "r") as file:
        wavelength = file["wavelength"][()] if "wavelength" in file else None
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
    wavelength = np.asarray(wavelength, dtype=float)[pixels]
    steps = np.diff(np.log(wavelength))
    ends = [0, *(np.flatnonzero(steps > GAP * np.median(steps)) + 1).tolist(), len(wavelength)]
    return WavelengthGrid(wavelength * u.AA, tuple(pairwise(ends)))


def _spread(rows, number: int):
    """At most ``number`` of rows, evenly over them: files may be sorted."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int))]


def _spectra(table: TrainingSet, selection: Selection, number: int, grid: WavelengthGrid):
    """Some of the good spectra of a set, as a spectrum with a row per star."""
    rows = _spread(table.rows(selection), number)
    parts = []
    for block in split_into_blocks(rows, table):
        parts.append([array[block - block[0]] for array in table.read(int(block[0]), int(block[-1]) + 1)])
    flux, sigma, mask = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    good = ~mask & np.isfinite(flux) & np.isfinite(sigma) & (sigma > 0)
    ivar = np.where(good, np.where(good, sigma, 1.0).astype(float) ** -2, 0.0)
    return to_spectrum(np.where(good, flux, 1.0), grid, ivar=ivar)


def _anchors(path, split, labels, grid, n_file, pixels, settings) -> Anchors:
    """Observed spectra of known labels."""
    table = TrainingSet(path, split=split, pixels=_cut(path, split, "observed", grid, n_file, pixels), grid=grid)
    if table.labels is None:
        raise FileFormatError(f"{path} has no dataset 'labels {split}'")
    if table.label_names not in (None, labels.names):
        raise LabelError(f"the labels of {path} are {table.label_names}, but must be {labels.names}")
    labels.check_range(table.labels)
    return Anchors(ObservedSpectra.from_table(table, settings), torch.as_tensor(table.labels))


# -- the synthetic domain ----------------------------------------------------------------
def _synthetic_domain(config: Config, grid: WavelengthGrid, n_file: int, pixels: slice, progress: bool):
    """Source of synthetic spectra, emulator, label set and label pool."""
    given, settings, table = config.synthetic, config.training, None
    if given.path is not None:
        with _blamed(config, "synthetic", "path"):
            cut = _cut(given.path, given.split, "synthetic", grid, n_file, pixels)
            table = TrainingSet(given.path, split=given.split, domain="synthetic", pixels=cut, grid=grid)
    if given.emulator is not None:
        with _blamed(config, "synthetic", "emulator"):
            emulator, known = load_emulator(given.emulator, grid=grid)
            if emulator.n_pixels == n_file != grid.n_pixels:
                emulator = adapt_emulator(emulator, pixels=pixels)
            if emulator.n_pixels != grid.n_pixels:
                raise GridError(f"the emulator has {emulator.n_pixels} pixels, but the grid has {grid.n_pixels}")
        with _blamed(config, "labels"):
            labels, emulator = _labels_of_emulator(config, emulator, known, table)
    else:
        with _blamed(config, "labels"):
            labels, values = _labels_of_file(config, table)
        emulator = _trained_emulator(config, table, labels, values, progress)
    if given.labels is not None:
        with _blamed(config, "synthetic", "labels"):
            pool = _pool(given.labels, labels, given.n_drawn, config.run.seed)
        return SyntheticSpectra(emulator, pool, settings), emulator, labels, pool
    with _blamed(config, "synthetic", "path"):
        values = _values(table, labels.names)
        inside = _inside(values, labels)
    source = StreamedSynthetic if given.memory == "streamed" else StoredSynthetic.from_table
    return source(table, settings, rows=np.flatnonzero(inside)), emulator, labels, values[inside]


def _cut(path, split, domain, grid: WavelengthGrid, n_file: int, pixels: slice) -> slice:
    """The part of a file's pixels that is on the grid: all, or the same as of the observed file."""
    n = TrainingSet(path, split=split, domain=domain).n_pixels
    return pixels if n == n_file and n != grid.n_pixels else slice(None)


def _names(config: Config, n_labels: int, *candidates):
    """Names of labels: those of the configuration, or of the first that knows them."""
    for names in (config.labels.names, *candidates, PAYNE_LABELS if n_labels == len(PAYNE_LABELS) else None):
        if names is not None:
            if len(names) != n_labels:
                raise LabelError(f"names must be {n_labels}, but are {len(names)}: {', '.join(names)}")
            return tuple(names)
    raise LabelError(f"names of the {n_labels} labels must be given: no file has them")


def _labels_of_emulator(config: Config, emulator: Emulator, known: LabelSet | None, table: TrainingSet | None):
    """Label set of an emulator, and the emulator with ``teff`` in K."""
    names = _names(config, emulator.n_labels, known.names if known else None, table.label_names if table else None)
    if known and names != known.names:
        raise LabelError(f"names are {', '.join(names)}, but those of the emulator are {', '.join(known.names)}")
    emulator = adapt_emulator(emulator, label_scale=kelvin_scale(names, emulator.upper.numpy()))
    lower = known.lower if known else emulator.lower.double().numpy()
    upper = known.upper if known else emulator.upper.double().numpy()
    return _label_set(config, names, lower, upper, known.combinations if known else {}), emulator


def _labels_of_file(config: Config, table: TrainingSet):
    """Label set of a file of synthetic spectra, and its labels, ``teff`` in K."""
    values = _values(table)
    names = _names(config, values.shape[1], table.label_names)
    values = _values(table, names)
    return _label_set(config, names, np.nanmin(values, axis=0), np.nanmax(values, axis=0), {}), values


def _values(table: TrainingSet, names=None):
    """Labels of a file, float64: as they are there, or in the order of ``names`` and with ``teff`` in K."""
    values, own = table.labels, table.label_names
    if values is None:
        raise FileFormatError(f"{table.path} has no dataset 'labels {table.split}', which a synthetic domain needs")
    values = values.astype(float)
    if names is None:
        return values
    if len(names) != values.shape[1] or (own is not None and sorted(own) != sorted(names)):
        held = f"{values.shape[1]} labels" if own is None else f"the labels {', '.join(own)}"
        raise LabelError(f"{table.path} has {held}, but must have {', '.join(names)}")
    if own is not None:
        values = values[:, [own.index(name) for name in names]]
    return values * kelvin_scale(names, values)


def _label_set(config: Config, names, lower, upper, combinations) -> LabelSet:
    own = config.labels
    return LabelSet(
        names,
        lower if own.lower is None else own.lower,
        upper if own.upper is None else own.upper,
        own.combinations or combinations,
    )


def _inside(values, labels: LabelSet):
    """Which rows of labels are finite and within the range."""
    inside = ((values >= labels.lower) & (values <= labels.upper)).all(1)
    if not inside.any():
        with np.errstate(all="ignore"):
            found = [f"{n} {a:g} to {b:g}" for n, a, b in zip(labels, values.min(0), values.max(0), strict=True)]
        raise LabelError(f"no row lies within the range of the labels; they are {', '.join(found)}")
    if not inside.all():
        log.info("%d of %d rows of labels lie within the range", inside.sum(), len(inside))
    return inside


def _pool(given, labels: LabelSet, n_drawn: int, seed: int):
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


def read_labels(path, labels: LabelSet):
    """Read rows of labels from a file.

    Parameters
    ----------
    path : path-like
        A table with a column per label (``.ecsv``, ``.fits``, ``.csv``, ...;
        columns without unit are in that of the label), ``.npz`` with an array
        per label or one array (n, n_labels) named ``labels`` or ``pool``, or
        HDF5 with a dataset ``labels train``.
    labels : `~cyclestarnet.LabelSet`

    Returns
    -------
    array, shape (n, n_labels), float64
        In the order and units of ``labels``.

    Raises
    ------
    LabelError
        If a label is missing, or there is another number of them.
    FileFormatError
        If the file cannot be read.
    """
    path = Path(path)
    if path.suffix in (".h5", ".hdf5"):
        table = TrainingSet(path, domain="synthetic")
        if table.labels is None:
            raise FileFormatError(f"{path} has no dataset 'labels train'")
        if table.label_names is not None:
            return _columns(dict(zip(table.label_names, table.labels.T, strict=True)), labels, path)
        whole = table.labels
    else:
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as file:
                    columns = {name: file[name] for name in file.files}
            else:
                table = Table.read(path)
                columns = {name: table[name] for name in table.colnames}
        except Exception as error:  # each reader raises a class of its own
            raise FileFormatError(f"{path} cannot be read as a table of labels: {error}") from error
        whole = columns.get("labels", columns.get("pool")) if path.suffix == ".npz" else None
        if whole is None:
            return _columns(columns, labels, path)
    if np.ndim(whole) != 2 or np.shape(whole)[1] != len(labels):
        raise LabelError(f"the labels of {path} must have the shape (n, {len(labels)}), but have {np.shape(whole)}")
    return np.asarray(whole, dtype=float) * kelvin_scale(labels.names, whole)


def _columns(columns, labels: LabelSet, path):
    missing = [name for name in labels if name not in columns]
    if missing:
        raise LabelError(f"{path} lacks the labels {', '.join(missing)}; it has {', '.join(columns)}")
    values = [
        labels.value(name, columns[name]) if getattr(columns[name], "unit", None) is not None else columns[name]
        for name in labels
    ]
    values = np.stack([np.asarray(column, dtype=float) for column in values], axis=1)
    return values * kelvin_scale(labels.names, values)


# -- emulators ---------------------------------------------------------------------------
def _trained_emulator(config: Config, table: TrainingSet, labels: LabelSet, values, progress: bool) -> Emulator:
    """The emulator of the run: the one in its folder, or one trained on spectra of the file."""
    path, given = config.run.folder / OWN_EMULATOR, config.synthetic
    made_of = {
        "file": given.path.name,
        "split": given.split,
        "n_spectra": table.n_spectra,
        "pixels": [table.pixels.start, table.pixels.stop],
        "n_emulator": given.n_emulator,
        "labels": labels.to_dict(),
        "settings": asdict(config.emulator),
    }
    if path.exists():
        if load_state(path).get("made_of") != made_of:
            raise ConfigError(
                f"[emulator] {path} was made with other settings or of other spectra than {config.path} says; "
                "delete it, or use another folder"
            )
        return load_emulator(path)[0]
    rows = np.flatnonzero(np.isfinite(values).all(1))
    order = np.random.default_rng([config.emulator.seed, 2]).permutation(len(rows))
    rows = np.sort(rows[order[: given.n_emulator]])
    flux = np.empty((len(rows), table.n_pixels), dtype=np.float32)
    for start in range(0, table.n_spectra, table.block_rows):
        part = slice(*np.searchsorted(rows, [start, start + table.block_rows]))
        if part.start < part.stop:
            flux[part] = table.read(start, min(start + table.block_rows, table.n_spectra))[0][rows[part] - start]
    fine = np.isfinite(flux).all(1)
    emulator, history = train_emulator(
        values[rows[fine]],
        flux[fine],
        lower=labels.lower,
        upper=labels.upper,
        settings=config.emulator,
        progress=progress,
    )
    best = min(row["validation"] for row in history)
    log.info("emulator: mean absolute error %.5f on spectra held out", best)
    save_emulator(emulator, labels, path, made_of=made_of, error=best)
    return emulator


def save_emulator(emulator: Emulator, labels: LabelSet, path, **notes) -> None:
    """Write an emulator and its labels to a file, atomically.

    Parameters
    ----------
    emulator : `~cyclestarnet.backend.emulator.Emulator`
    labels : `~cyclestarnet.LabelSet`
    path : path-like
        Ending in ``.pt``.
    **notes
        Plain values that are kept with it.
    """
    shape = {"hidden": list(emulator.hidden), "activation": emulator.activation}
    save_state({"emulator": emulator.state_dict(), "labels": labels.to_dict(), **shape, **notes}, path)


def load_emulator(path, *, grid: WavelengthGrid | None = None):
    """Read an emulator from any of the files that hold one.

    Parameters
    ----------
    path : path-like
        ``.pt`` of `save_emulator`, ``.safetensors`` of a model, ``.npz`` of
        The Payne, or ``PAYNE.pth.tar``.
    grid : `~cyclestarnet.WavelengthGrid`, optional
        What the pixels must be, as far as the file knows.

    Returns
    -------
    emulator : `~cyclestarnet.backend.emulator.Emulator`
    labels : `~cyclestarnet.LabelSet` or None
        None for files that do not name their labels.

    Raises
    ------
    ModelFileError
        If the file is damaged or holds no emulator.
    GridError
        If it is for other wavelengths.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return read_payne_npz(path), None
    if path.suffix in (".tar", ".pth"):
        return read_payne_checkpoint(path), None
    if path.suffix == ".safetensors":
        model = CalibratedModel.load(path)
        if grid is not None and not _same(model.grid, grid):
            raise GridError(f"the emulator of {path} is for {model.grid!r}, but the spectra are on {grid!r}")
        return model.emulator, model.labels
    state = load_state(path)
    try:
        labels, weights = LabelSet(**state["labels"]), state["emulator"]
        layers = [weight for name, weight in weights.items() if name.endswith(".weight")]
        hidden = [len(weight) for weight in layers[:-1]]
        emulator = Emulator(labels.lower, labels.upper, len(layers[-1]), hidden, state.get("activation", "silu"))
        emulator.load_state_dict(weights)
    except (KeyError, TypeError, IndexError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path} holds no emulator: {error}") from error
    return emulator.eval().requires_grad_(False), labels


def _same(grid: WavelengthGrid, other: WavelengthGrid) -> bool:
    return grid.n_pixels == other.n_pixels and np.allclose(grid.wavelength, other.wavelength, rtol=1e-6, atol=0)


def _recipe(config: Config, grid: WavelengthGrid) -> ContinuumRecipe | None:
    """The recipe that the configuration names."""
    given = config.model.continuum
    if given is None:
        return None
    with _blamed(config, "model", "continuum"):
        if given == "apogee":
            with resources.as_file(resources.files("cyclestarnet.data") / "apogee_continuum_pixels.ecsv") as path:
                table = Table.read(path)
        else:
            table = Table.read(given)
        if "wavelength" in table.colnames:
            return ContinuumRecipe.from_wavelengths(grid, table["wavelength"], config.model.degree)
        if "pixel" not in table.colnames:
            raise FileFormatError(f"{given} must have a column 'wavelength' or 'pixel', but has {table.colnames}")
        pixels = np.zeros(grid.n_pixels, dtype=bool)
        pixels[np.asarray(table["pixel"])] = True
        return ContinuumRecipe(grid, pixels, config.model.degree)


@contextmanager
def _blamed(config: Config, table: str, key: str = ""):
    """Say with an error of a file which part of the configuration named it."""
    try:
        yield
    except ConfigError:
        raise
    except (CycleStarNetError, IndexError, OSError) as error:
        where = f"[{table}] {key}".strip()
        raise ConfigError(f"{where} in {config.path}: {error}") from error
