"""The two domains of the mock study of missing lines, and the trainings on them (S1, Section 4.2).

Synthetic spectra lose a known part of their strong features; "observed"
spectra are complete and have noise. `make_domains` makes what all trainings have in
common, `make_run` describes one of them; `cyclestarnet.lines.mock_study` trains and scores them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import astropy.units as u
import numpy as np
import torch

from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.exceptions import CycleStarNetError
from cyclestarnet.files import write_atomically, write_hdf5
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.io.training_set import Selection, TrainingSet
from cyclestarnet.labels import LabelSet
from cyclestarnet.lines.config import MockConfig
from cyclestarnet.lines.features import FeatureMask, Features, find_features, k_giant
from cyclestarnet.model import CalibratedModel
from cyclestarnet.networks.emulator import Emulator, EmulatorSettings
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.networks.published import adapt_emulator
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training.config import Config, LabelConfig, ObservedConfig, SyntheticConfig
from cyclestarnet.training.emulators import save_emulator
from cyclestarnet.training.inputs import read_labels
from cyclestarnet.training.toml import ConfigError

__all__ = ["MockDomains", "MockRun", "make_domains", "make_run", "masked_emulator", "observed_stars"]

log = logging.getLogger(__name__)

ROWS = 500  # spectra that are made at once
ROUNDING = 1e-6  # of a label's range, by which single precision may miss it
NOT_OF_SPECTRA = ("fractions", "seeds", "n_stars", "n_scored")  # settings that do not change what is made
SNR_MEDIAN, SNR_SCATTER = 120.0, 0.5  # of the log-normal distribution of signal-to-noise ratios


@dataclass(frozen=True, eq=False)
class MockDomains:
    """What all trainings of a mock study have in common, and the truth.

    Attributes
    ----------
    label_set : `~cyclestarnet.LabelSet`
        Of the emulator.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of all spectra.
    emulator : `~cyclestarnet.networks.Emulator`
        Of complete spectra.
    features : `~cyclestarnet.lines.Features`
        The strong ones, at the K giant.
    giant : array, shape (n_labels,)
        Labels of the K giant.
    pool : array, shape (n_pool, n_labels)
        Labels of synthetic spectra, none of which is among the observed ones.
    folder : path
        With ``observed.h5`` and ``labels.npz``.

    Examples
    --------
    ::

        domains = make_domains(read_mock_config("mock.toml"))
        domains.derivatives()["mg_h"]
    """

    label_set: LabelSet
    grid: WavelengthGrid
    emulator: Emulator
    features: Features
    giant: np.ndarray
    pool: np.ndarray
    folder: Path

    def derivatives(self, labels=None):
        """Derivative spectra of complete synthetic spectra at one set of labels, the truth; default: the K giant.

        Parameters
        ----------
        labels : array, shape (n_labels,), optional
            Where. Default: those of the K giant.

        Returns
        -------
        `~cyclestarnet.derivatives.DerivativeSpectra`

        Examples
        --------
        ::

            domains.derivatives(domains.pool[0])["fe_h"]
        """
        return _derivatives(self.label_set, self.grid, self.emulator, self.giant if labels is None else labels)


def masked_emulator(emulator: Emulator, pixels) -> Emulator:
    """Return an emulator that says 1, the continuum, in some pixels whatever the labels are.

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        It is not changed.
    pixels : array of bool, shape (n_pixels,)
        True where it says 1.

    Returns
    -------
    `~cyclestarnet.networks.Emulator`

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.lines.mock import masked_emulator
    >>> from cyclestarnet.networks import Emulator, EmulatorPredictor
    >>> emulator = Emulator([3500, 0], [6000, 4], n_pixels=3, hidden=(8,))
    >>> masked = masked_emulator(emulator, [False, True, False])
    >>> EmulatorPredictor(masked).flux(np.array([4500.0, 2.0]))[1]
    np.float64(1.0)
    """
    masked, pixels = copy.deepcopy(emulator), torch.as_tensor(np.array(pixels))
    with torch.no_grad():
        masked.layers[-1].weight[pixels] = 0.0
        masked.layers[-1].bias[pixels] = 1.0
    return masked


def make_domains(config: MockConfig, *, progress=True) -> MockDomains:
    """Make the spectra of a mock study, unless they are there.

    Parameters
    ----------
    config : `~cyclestarnet.lines.config.MockConfig`
        Of the study.
    progress : bool, optional
        Show bars.

    Returns
    -------
    `MockDomains`

    Raises
    ------
    ConfigError
        If the folder has spectra of other settings, or there are too few labels.

    Examples
    --------
    ::

        domains = make_domains(read_mock_config("mock.toml"))
    """
    folder, source = config.run.folder, _source(config)
    pixels = _pixels(config, source.grid)
    grid, emulator = _cut(source.grid, pixels), adapt_emulator(source.emulator, pixels=pixels)
    try:
        NetworkSettings(**(dict(config.network) | {"n_pixels": grid.n_pixels}))
    except ValueError as error:
        raise ConfigError(f"[network] {error}; choose [mock] pixels in {config.path} to suit") from error
    giant = k_giant(source.labels, source.prior)
    features = find_features(_derivatives(source.labels, grid, emulator, giant))
    if not len(features) and any(config.mock.fractions):
        raise ConfigError(
            f"[mock] pixels in {config.path}: no element has strong features there; there is nothing to mask"
        )
    made_of = _made_of(config)
    note = folder / "domains.json"
    if note.exists() and (there := json.loads(note.read_text(encoding="utf-8"))) != made_of:
        differ = ", ".join(name for name in made_of if made_of[name] != there.get(name))
        raise ConfigError(
            f"[run] folder in {config.path}: {folder} has the spectra of a study with other settings ({differ}); "
            "choose another, or delete it"
        )
    if not all((folder / name).exists() for name in ("domains.json", "labels.npz", "observed.h5")):
        _make_files(config, source, emulator, grid, progress)
        write_atomically(note, lambda path: path.write_text(json.dumps(made_of, indent=1), encoding="utf-8"))
    pool = np.load(folder / "labels.npz")["labels"]
    return MockDomains(source.labels, grid, emulator, features, giant, pool, folder)


@dataclass(frozen=True, eq=False)
class MockRun:
    """One training of a mock study.

    Attributes
    ----------
    fraction : float
        Of the strong features of each element that its synthetic spectra lack.
    seed : int
        Of the choice of features, and of the training.
    mask : `~cyclestarnet.lines.FeatureMask`
        What its synthetic spectra lack.
    training : `~cyclestarnet.training.config.Config`
        How it is trained.

    Examples
    --------
    ::

        run = make_run(config, domains, fraction=0.3, seed=0)
        run.mask
    """

    fraction: float
    seed: int
    mask: FeatureMask
    training: Config

    @property
    def folder(self):
        """Where everything about it is."""
        return self.training.run.folder


def make_run(config: MockConfig, domains: MockDomains, fraction: float, seed: int) -> MockRun:
    """Take a fraction of the features away, and describe the training that shall restore them.

    Parameters
    ----------
    config : `~cyclestarnet.lines.config.MockConfig`
        Of the study.
    domains : `MockDomains`
        Its spectra.
    fraction : float
        Of the strong features of each element to take away, 0 to 1.
    seed : int
        Of the choice of features, and of the training.

    Returns
    -------
    `MockRun`

    Raises
    ------
    ConfigError
        If the folder has a training of other settings.

    Examples
    --------
    ::

        run = make_run(config, domains, fraction=0.3, seed=0)
    """
    name = f"masked-{100 * fraction:g}-seed-{seed}"
    folder = config.run.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    mask = domains.features.choose(fraction, seed)
    if not (folder / "masked.pt").exists():
        mask.write(folder / "mask.ecsv")
        save_emulator(masked_emulator(domains.emulator, mask.pixels), domains.label_set, folder / "masked.pt")
    _require_same_training(config, folder / "training.json", seed)
    about = {
        "observed domain": "spectra of the complete emulator with noise. Not real spectra.",
        "synthetic domain": f"the emulator of {Path(config.mock.model).name} without {fraction:.0%} of the features",
    }
    training = Config(
        path=config.path,
        run=replace(config.run, folder=folder, name=name, seed=seed),
        observed=ObservedConfig(domains.folder / "observed.h5", selection=Selection(snr=None)),
        synthetic=SyntheticConfig(emulator=folder / "masked.pt", labels=domains.folder / "labels.npz"),
        labels=LabelConfig(),
        training=replace(config.training, seed=seed),
        network=config.network,
        watch=None,
        emulator=EmulatorSettings(),
        model=replace(config.model, path=None, provenance=about | config.model.provenance),
        log=config.log,
    )
    return MockRun(fraction, seed, mask, training)


def observed_stars(domains: MockDomains, n: int):
    """Return observed spectra of the training, as one spectrum with a row per star.

    Parameters
    ----------
    domains : `MockDomains`
        Of the study.
    n : int
        So many, or as many as there are.

    Returns
    -------
    `~specutils.Spectrum`
        Flux of shape (n, n_pixels), with errors.

    Examples
    --------
    ::

        stars = observed_stars(domains, 1000)
    """
    table = TrainingSet(domains.folder / "observed.h5", grid=domains.grid)
    flux, sigma, _ = table.read(0, min(n, len(table)))
    return to_spectrum(flux.astype(float), domains.grid, ivar=sigma.astype(float) ** -2)


# -- inside --------------------------------------------------------------------------------
def _made_of(config):
    """Settings that tell what spectra are made, as they come back from JSON."""
    given = {name: value for name, value in asdict(config.mock).items() if name not in NOT_OF_SPECTRA}
    files = {"model": config.path.parent / given["model"], "labels": Path(given["labels"] or "")}
    for name, path in files.items():
        if path.is_file():  # wherever it lies
            given[name] = f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return json.loads(json.dumps(given)) | {"seed": config.run.seed}


def _make_files(config, source, emulator, grid, progress):
    """Write labels of synthetic spectra, and observed spectra, each in one step."""
    given, folder = config.mock, config.run.folder
    rng = np.random.default_rng([config.run.seed, 5])
    rows, n_observed = rng.permutation(_draw_labels(config, source, rng)), given.n_observed + given.n_validation
    if len(rows) < n_observed + 2:
        raise ConfigError(
            f"[mock] n_observed and n_validation take {n_observed} labels in {config.path}, but there are {len(rows)}"
        )
    write_atomically(folder / "labels.npz", lambda path: _save(path, labels=rows[n_observed:]))
    splits = {"train": rows[: given.n_observed], "val": rows[given.n_observed : n_observed]}
    write_hdf5(
        folder / "observed.h5",
        lambda file: _write_observed(file, emulator, source.labels, grid, splits, given.snr, rng, progress),
    )


def _require_same_training(config, note, seed):
    """A run that is there must be of the same training, or its model would be taken for another."""
    now = json.loads(json.dumps(asdict(replace(config.training, seed=seed)) | {"network": dict(config.network)}))
    if note.exists() and (there := json.loads(note.read_text(encoding="utf-8"))) != now:
        differ = ", ".join(name for name in now if now[name] != there.get(name))
        raise ConfigError(
            f"{note.parent} has a training of other settings ({differ}) than {config.path}; choose another [run] "
            "folder, or delete it"
        )
    if not note.exists():
        write_atomically(note, lambda path: path.write_text(json.dumps(now, indent=1), encoding="utf-8"))


def _source(config):
    """The model that makes the spectra."""
    name = config.mock.model
    try:
        if Path(name).suffix == ".safetensors":
            return CalibratedModel.load(config.path.parent / name)
        return CalibratedModel.from_pretrained(name)
    except (CycleStarNetError, OSError, ValueError) as error:
        raise ConfigError(f"[mock] model in {config.path}: {error}") from error


def _pixels(config, grid):
    """The part of a grid that a study takes."""
    start, stop = config.mock.pixels or (0, grid.n_pixels)
    cut = [min(b, stop) - max(a, start) for a, b in grid.chips]
    if stop > grid.n_pixels or 1 in cut:
        raise ConfigError(
            f"[mock] pixels must lie within 0 to {grid.n_pixels} and leave 2 or more of a chip, but are "
            f"{[start, stop]} in {config.path}; the chips are {list(map(list, grid.chips))}"
        )
    return slice(start, stop)


def _cut(grid, pixels):
    """Part of a grid."""
    start, stop = pixels.start, pixels.stop
    chips = [(max(a, start) - start, min(b, stop) - start) for a, b in grid.chips if a < stop and b > start]
    return WavelengthGrid(grid.wavelength[pixels], tuple(chips))


def _draw_labels(config, source, rng):
    """Labels of both domains."""
    given, labels = config.mock, source.labels
    if given.labels is None:
        rows = rng.multivariate_normal(source.prior.mean, source.prior.covariance, given.n_drawn)
    else:
        rows, edge = read_labels(given.labels, labels), ROUNDING * labels.scale
        inside = ((rows >= labels.lower - edge) & (rows <= labels.upper + edge)).all(1)  # False for NaN
        if not inside.all():
            log.info("%d of %d rows of labels lie within the range", inside.sum(), len(inside))
        rows = rows[inside]
    elements = [k for k, name in enumerate(labels) if name.endswith("_h") and name != "m_h"]
    rows[:, elements] += given.element_scatter * rng.standard_normal((len(rows), len(elements)))
    # clipped, not left out: that would leave out the stars at the edges of one label for all the others
    return rows.clip(labels.lower, labels.upper)


def _derivatives(labels, grid, emulator, values):
    """Derivatives of an emulator's flux at one set of labels."""
    flux, slopes = EmulatorPredictor(emulator).jacobian(values)
    slopes = dict(zip(labels, slopes, strict=True))
    return DerivativeSpectra(grid, flux, slopes, labels.to_quantities(values))


def _write_observed(file, emulator, labels, grid, splits, snr_range, rng, progress):
    """Complete spectra with noise, in the layout of `cyclestarnet.io`."""
    predictor, n = EmulatorPredictor(emulator), grid.n_pixels
    with tqdm(total=sum(map(len, splits.values())), desc="observed spectra", disable=not progress) as bar:
        file["wavelength"] = grid.wavelength.to_value(u.AA)
        file.attrs["label_names"] = list(labels)
        for split, rows in splits.items():
            snr = np.exp(rng.normal(np.log(SNR_MEDIAN), SNR_SCATTER, len(rows))).clip(*snr_range)
            file[f"labels {split}"], file[f"snr {split}"] = rows, snr
            flux, sigma = (
                file.create_dataset(f"{kind} {split}", (len(rows), n), "f4") for kind in ("spectra", "spectra_err")
            )
            file.create_dataset(f"spectra_msk {split}", data=np.ones((len(rows), n), "u1"), compression=1)
            for start in range(0, len(rows), ROWS):
                part = slice(start, start + ROWS)
                error = np.repeat(1 / snr[part, None], n, axis=1)
                sigma[part] = error
                flux[part] = predictor.flux(rows[part]) + error * rng.standard_normal(error.shape)
                file.flush()  # raises if the disk is full
                bar.update(len(error))


def _save(path, **arrays):
    with path.open("wb") as file:  # with a name alone, NumPy would add a suffix to it
        np.savez(file, **arrays)
