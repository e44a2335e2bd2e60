#!/usr/bin/env python
"""Two libraries of real optical spectra as two domains, MILES and STELIB, judged by the stars that are in both.

    pip download --no-deps sdss-mangadap
    python recipes/two_libraries.py sdss_mangadap-4.5.0-py3-none-any.whl --work FOLDER

The wheel of the Data Analysis Pipeline of MaNGA holds both, with the published labels; nothing of it is installed. A
folder into which it was unpacked does as well. Some minutes on one core; ``docs/tables/two_libraries_*.rst`` and
``docs/_static/two_libraries_*.png`` come out.

MILES, with its labels, is the domain called synthetic: an emulator learns its spectra. STELIB is the observed domain,
and its labels stay unknown but for their distribution. Of the stars in both libraries the emulator sees none, and
networks see half of those of STELIB: the other half judges.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
import zipfile
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable
from list_tables import list_table, write_rst
from matplotlib import pyplot as plt
from scipy.ndimage import gaussian_filter1d, median_filter, percentile_filter

from cyclestarnet import (
    CalibratedModel,
    ContinuumRecipe,
    EmulatorSettings,
    LabelSet,
    TrainingSettings,
    WavelengthGrid,
    air_to_vacuum,
    train_translation,
)
from cyclestarnet.cli import main as cyclestarnet
from cyclestarnet.grid import SPEED_OF_LIGHT
from cyclestarnet.io import write_training_set
from cyclestarnet.networks import train_emulator
from cyclestarnet.spectra import Spectrum, to_pixels, to_spectrum
from cyclestarnet.training import (
    compare_labels,
    gaussian_transport,
    label_table,
    learn_label_error,
    quiet_pixels,
    save_emulator,
)

DOCS = Path(__file__).parents[1] / "docs"
LIBRARIES = "mangadap/data/spectral_templates"  # in the wheel
N_PIXELS, STEP = 1407, 1.74e-4  # a length that fits the strides; 52 km/s, 0.8 to 1 Å
GRID = WavelengthGrid(4540 * np.exp(STEP * np.arange(N_PIXELS)) * u.AA)
MARGIN = 50.0  # Å on either side of the grid that is read
LABELS = ("teff", "logg", "fe_h")
HEADER_LABELS = ("TEFF", "LOG_G", "FE_H")  # of STELIB
TYPICAL = np.array([100.0, 0.2, 0.1])  # by how much two catalogues differ about one star, and stars are alike
RANGE = (4000.0, 6800.0), -1.5  # Teff, and the least [Fe/H]
MILES_ERROR = 0.005  # a guess: see the page
NOISE_ABOVE = 0.35  # cycles per pixel of STELIB, 1 Å: its line-spread function passes 1 % there
MILES, STELIB = "C0", "C3"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    n_epochs: int = 200  # of the emulator; the best one is taken
    n_iterations: int = 600
    n_alike: int = 4  # stars of MILES that are taken for each of STELIB
    n_drawn: int = 10  # labels about each of those
    n_validation: int = 24  # stars of STELIB that tell the errors
    network: tuple = ((8, 24), (32, 48), (4, 4), 12)  # filters: domain, shared, split, shared latent
    seed: int = 0


# -- the files -----------------------------------------------------------------------
def star_name(text):
    """One spelling of a star's name: HD62301 for HD062301 and for HD 62301."""
    return re.sub(r"^([A-Z]+)0+(?=\d)", r"\1", text.upper().replace(" ", ""))


def number(text):
    """A number of a table or a header; NaN for what says that there is none."""
    try:
        return float(str(text).strip())
    except ValueError:
        return np.nan


def read_miles_labels(text):
    """Number, name and labels of the stars of MILES (``paramsMILES_v9.1.txt``).

    Columns begin at fixed places, but for those behind the spectral type. Lines without a number of four digits are
    left out: the header, and one star of version 9.1, of which the last digit is missing.
    """
    rows = []
    for line in text.splitlines():
        if re.fullmatch(r"\d{4}", line[22:28].strip()):
            labels = [number(word) for word in (*line[48:].split(), "--", "--", "--")[:3]]
            rows.append((int(line[22:28]), star_name(line[:22]), *labels))
    return _table(rows, ("number", "star", *LABELS))


def _table(rows, names):
    table = QTable(rows=rows, names=names)
    table["teff"].unit = u.K
    return table


def read_spectrum(path, error=None):
    """Flux of a library around the grid, on vacuum wavelengths; None if there is none.

    Both libraries are on linear axes in air. ``error`` is relative to the flux around a pixel; None: noise that the
    highest frequencies of the spectrum tell. Pixels without a positive flux are masked: STELIB has 0 where it has no
    data.
    """
    with fits.open(BytesIO(path.read_bytes())) as hdus:
        header, flux = hdus[0].header, np.array(hdus[0].data, dtype=float)
    air = header["CRVAL1"] + header["CDELT1"] * (np.arange(len(flux)) + 1 - header.get("CRPIX1", 1))
    near = (air > GRID.wavelength.value[0] - MARGIN) & (air < GRID.wavelength.value[-1] + MARGIN)
    air, flux = air[near], flux[near]
    mask = ~(flux > 0)  # NaN, too
    if mask.all():
        return None
    flux = np.where(mask, np.median(flux[~mask]), flux)
    level = median_filter(flux, 101, mode="nearest")
    sigma = level * (noise_of(flux[~mask] / level[~mask]) if error is None else error)
    return Spectrum(
        flux=flux * u.Unit("erg / (s cm2 AA)"),
        spectral_axis=air_to_vacuum(air * u.AA),
        uncertainty=StdDevUncertainty(sigma * u.Unit("erg / (s cm2 AA)")),
        mask=mask,
    )


def noise_of(flux):
    """White noise of a normalised spectrum: what its highest frequencies hold, which no line-spread function passes."""
    window = np.hanning(len(flux))
    power = np.abs(np.fft.rfft(window * (flux - flux.mean()))) ** 2 / np.sum(window**2)
    return np.sqrt(power[np.fft.rfftfreq(len(flux)) > NOISE_ABOVE].mean())


@dataclass(frozen=True, eq=False)
class Library:
    """Spectra, and a table with the columns ``star``, ``teff``, ``logg`` and ``fe_h``."""

    spectra: list
    table: QTable

    def __len__(self):
        return len(self.spectra)

    def __getitem__(self, rows):
        rows = np.arange(len(self))[rows]
        return Library([self.spectra[row] for row in rows], self.table[rows])

    @property
    def labels(self):
        """Of all stars, (n, 3)."""
        return np.column_stack([np.asarray(self.table[name].value) for name in LABELS])


def read_miles(folder):
    """Stars of MILES of the kind that this is about."""
    folder = folder / "miles"
    table = read_miles_labels((folder / "paramsMILES_v9.1.txt").read_text(encoding="ascii", errors="replace"))
    table = table[[of_the_kind(row) for row in table]]
    found = {path.name: path for path in folder.iterdir()}
    paths = [found.get(f"MILES_res2.50_star_m{row['number']:04d}V.fits") for row in table]
    spectra = [None if path is None else read_spectrum(path, MILES_ERROR) for path in paths]
    return _known(spectra, table)


def read_stelib(folder):
    """Stars of STELIB of that kind, by the labels of their headers."""
    spectra, rows = [], []
    for path in sorted((folder / "stelib").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".fits"):
            header = fits.Header.fromstring(path.read_bytes()[:28800].decode("ascii", errors="replace"))
            row = (star_name(str(header.get("STARIDEN", ""))), *(number(header.get(key)) for key in HEADER_LABELS))
            if of_the_kind(dict(zip(("star", *LABELS), row, strict=True))):
                spectra.append(read_spectrum(path))
                rows.append(row)
    return _known(spectra, _table(rows, ("star", *LABELS)))


def _known(spectra, table):
    """A library of the stars that have a spectrum."""
    rows = [row for row, spectrum in enumerate(spectra) if spectrum is not None]
    return Library([spectra[row] for row in rows], table[rows])


def of_the_kind(row):
    """Whether a star is of spectral types F to K, not very metal-poor, and has all labels."""
    teff, logg, fe_h = (float(getattr(row[name], "value", row[name])) for name in LABELS)
    (low, high), least = RANGE
    return low < teff < high and fe_h > least and np.isfinite(logg)


def read_libraries(source):
    """Both libraries, of the wheel or of a folder into which it was unpacked: stars F to K, complete spectra."""
    source = Path(source)
    folder = (zipfile.Path(source) if source.is_file() else source) / LIBRARIES
    if not (folder / "miles").is_dir():
        raise SystemExit(f"{source} has no {LIBRARIES}/miles; give the wheel of sdss-mangadap, or its folder")
    libraries = read_miles(folder), read_stelib(folder)
    return tuple(library[[complete(spectrum) for spectrum in library.spectra]] for library in libraries)


def complete(spectrum):
    """Whether a spectrum has every pixel of the grid, also if it is moved by 150 km/s."""
    axis, first, last = spectrum.spectral_axis.value, *GRID.wavelength.value[[0, -1]]
    near = (axis > first * 0.9995) & (axis < last * 1.0005)
    return bool(axis[0] < first * 0.9995 and axis[-1] > last * 1.0005 and not spectrum.mask[near].any())


# -- from files to domains -----------------------------------------------------------
def on_grid(library, recipe=None):
    """Flux and errors on the pixels of the grid, (n, 1407); without a recipe over their medians."""
    pixels = []
    for spectrum in library.spectra:
        if recipe is None:
            level = np.median(spectrum.flux[~spectrum.mask])
            spectrum = Spectrum(
                flux=(spectrum.flux / level).to(u.one),
                spectral_axis=spectrum.spectral_axis,
                uncertainty=StdDevUncertainty((spectrum.uncertainty.quantity / level).to(u.one)),
                mask=spectrum.mask,
            )
        pixels.append(to_pixels(spectrum, GRID, recipe=recipe))
    return np.array([star.flux for star in pixels]), np.array([star.sigma for star in pixels])


def continuum_recipe(library):
    """Through pixels that are the quietest in a library, once an upper envelope has been taken out.

    There is no true continuum at this resolution: the recipe makes spectra comparable, no more.
    """
    flux, _ = on_grid(library)
    return ContinuumRecipe(GRID, quiet_pixels(flux / percentile_filter(flux, 95, size=(1, 101)), GRID))


def velocity(flux, template, reach=5):
    """Of a spectrum against a template, km/s: where their correlation is largest."""
    lags = np.arange(-reach, reach + 1)
    inner = slice(2 * reach, -2 * reach)
    value = [np.corrcoef(np.roll(template, lag)[inner], flux[inner])[0, 1] for lag in lags]
    best = int(np.clip(np.argmax(value), 1, len(lags) - 2))
    curve = np.polyfit(lags[best - 1 : best + 2], value[best - 1 : best + 2], 2)
    return -curve[1] / (2 * curve[0]) * STEP * SPEED_OF_LIGHT


def moved(spectrum, speed):
    """The same at rest, if it has a velocity in km/s."""
    return Spectrum(
        flux=spectrum.flux,
        spectral_axis=u.Quantity(spectrum.spectral_axis) / (1 + speed / SPEED_OF_LIGHT),
        uncertainty=spectrum.uncertainty,
        mask=spectrum.mask,
    )


def at_rest(library, recipe, template):
    """A library whose stars have the velocity of the template, and the velocities that they had."""
    speeds = np.array([velocity(flux, template) for flux in on_grid(library, recipe)[0]])
    return replace(library, spectra=[moved(*pair) for pair in zip(library.spectra, speeds, strict=True)]), speeds


def alike(library, others, n):
    """Rows of the stars of a library nearest in labels to those of another, n for each; some repeatedly."""
    offset = (library.labels[None] - others.labels[:, None]) / TYPICAL
    return np.argsort((offset**2).sum(2), axis=1)[:, :n].ravel()


def partners(library, others):
    """Rows of the first and the second library that are of the same star."""
    place = {star: row for row, star in enumerate(library.table["star"])}
    pairs = [(place[star], row) for row, star in enumerate(others.table["star"]) if star in place]
    unique = {star: pair for pair in pairs for star in [others.table["star"][pair[1]]]}  # some were observed twice
    return np.array(sorted(unique.values())).reshape(-1, 2)


def stack(library, recipe):
    """One Spectrum with a row per star, normalised."""
    flux, sigma = on_grid(library, recipe)
    return to_spectrum(flux, GRID, ivar=sigma**-2)


# -- trainings -------------------------------------------------------------------------
CONFIG = """\
[run]
folder = "run"
name = "two-libraries"
threads = 1
seed = {seed}

[observed]
path = "observed.h5"

[synthetic]
emulator = "../emulator.pt"
labels = "pool.ecsv"

[training]
n_iterations = {n_iterations}
learning_rate = 1.5e-3
critic_learning_rate = 6e-4
schedule = "cosine"
warm_start = {warm_start}
weight_latent = 10
weight_labels = 5
gradient_clip = 300
average_decay = 0.99
flux_mean = {mean:.4f}
flux_std = {std:.4f}

[network]
domain = {domain}
shared = {shared}
split = {split}
shared_filters = {latent}
split_filters = 1
critic_spectrum = [[8, 7, 4], [16, 7, 4], [32, 7, 4], [48, 7, 4]]
critic_latent = [[16, 1, 1], [32, 1, 1]]

[model]
translation = "residual"
continuum = "continuum.ecsv"
n_validation = {n_validation}
n_zero_points = 0

[model.provenance]
"synthetic domain" = "an emulator of MILES: real spectra with published labels"
"observed domain" = "STELIB: real spectra"
"""


def networks(size, split_filters):
    """Sizes of the networks, as keywords of NetworkSettings."""
    domain, shared, split, latent = size.network
    return {
        "domain": [[filters, 7, 4] for filters in domain],
        "shared": [[filters, 7, 2] for filters in shared],
        "split": [[filters, 7, 2] for filters in split],
        "critic_spectrum": [[8, 7, 4], [16, 7, 4], [32, 7, 4]],
        "critic_latent": [[16, 1, 1], [32, 1, 1]],
        "shared_filters": latent,
        "split_filters": split_filters,
    }


def emulate(labels, flux, size, path=None):
    """Train an emulator of a library, and keep it in a file, if one is named."""
    range_of_labels = LabelSet(LABELS, labels.min(0), labels.max(0))
    settings = EmulatorSettings(
        hidden=(32, 32), n_components=15, batch_size=32, learning_rate=5e-3,
        n_epochs=size.n_epochs, patience=size.n_epochs, validation_fraction=0.1, seed=size.seed,
    )  # fmt: skip
    emulator, history = train_emulator(
        labels, flux, lower=range_of_labels.lower, upper=range_of_labels.upper, settings=settings, progress=False
    )
    best = min(history, key=lambda row: row["validation"])
    log.info(
        "emulator: %.4f on spectra held out, best of %d epochs: %d", best["validation"], size.n_epochs, best["epoch"]
    )
    if path is not None:
        save_emulator(emulator, range_of_labels, path)
    return emulator


def train_model(folder, pool, observed, recipe, size):
    """Write the files of a training, and run it: STELIB is observed, and labels of MILES are the prior."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.repeat(pool, size.n_drawn, axis=0)
    drawn += np.random.default_rng(size.seed).normal(0, TYPICAL, drawn.shape)
    QTable(dict(zip(LABELS, drawn.T, strict=True)), units={"teff": u.K}).write(folder / "pool.ecsv", overwrite=True)
    QTable({"pixel": np.flatnonzero(recipe.pixels)}).write(folder / "continuum.ecsv", overwrite=True)
    held_out = np.arange(len(observed)) % max(len(observed) // size.n_validation, 2) == 0
    for split, rows in (("train", ~held_out), ("val", held_out)):
        write_training_set(
            folder / "observed.h5", observed[rows].spectra, grid=GRID, split=split, recipe=recipe, overwrite=True,
            progress=False,
        )  # fmt: skip
    flux, _ = on_grid(observed, recipe)
    sizes = networks(size, 1)
    text = CONFIG.format(
        n_iterations=size.n_iterations, warm_start=size.n_iterations // 5, mean=flux.mean(), std=flux.std(),
        n_validation=held_out.sum(), seed=size.seed, latent=sizes["shared_filters"],
        **{name: sizes[name] for name in ("domain", "shared", "split")},
    )  # fmt: skip
    (folder / "two_libraries.toml").write_text(text, encoding="utf-8")
    if cyclestarnet(["train", str(folder / "two_libraries.toml")]):
        raise SystemExit("the training failed")
    return CalibratedModel.load(folder / "run" / "two-libraries.safetensors")


def train_both_ways(folder, first, second, recipe, size):
    """The translation between both libraries without any label."""
    flux = [on_grid(library, recipe) for library in (first, second)]
    settings = TrainingSettings(
        n_iterations=size.n_iterations, learning_rate=1.5e-3, critic_learning_rate=6e-4, schedule="cosine",
        warm_start=size.n_iterations // 5, weight_synth=9.0, weight_latent=30.0, average_decay=0.99,
        flux_mean=float(flux[1][0].mean()), flux_std=float(flux[1][0].std()), seed=size.seed,
    )  # fmt: skip
    return train_translation(
        *flux[0], *flux[1], wavelength=GRID, recipe=recipe, domains=("MILES", "STELIB"), name="two-libraries",
        settings=settings, network=networks(size, 1), folder=folder, held_out=0.2, seed=size.seed, progress=False,
    )  # fmt: skip


# -- what came out ----------------------------------------------------------------------
def broadening(flux, target):
    """Width σ, in pixels, of the Gaussian that makes spectra most like others of the same stars."""
    widths = np.arange(0, 2.01, 0.05)
    return widths[np.argmin([np.mean((convolved(flux, width) - target) ** 2) for width in widths])]


def convolved(flux, width):
    return gaussian_filter1d(flux, width, axis=-1, mode="nearest") if width else flux


def judge_labels(model, coarse, pool, tests):
    """Fit stars of known labels in all ways; `LabelOffsets` by what was done."""
    seen, unseen = tests["seen"], tests["unseen"]

    def found(model, spectra, known, space):
        return compare_labels(model, spectra, known, space=space, progress=False)

    coarse = replace(model, emulator=coarse)
    known = learn_label_error(model, seen["STELIB"], seen["truth"], progress=False)
    result = {
        "MILES, Eq. 9": found(model, unseen["MILES"], unseen["truth"], "emulator"),
        "Eq. 9": found(model, unseen["STELIB"], unseen["truth"], "emulator"),
        "Eq. 9, convolved": found(coarse, unseen["STELIB"], unseen["truth"], "emulator"),
        "Eq. 11": found(model, unseen["STELIB"], unseen["truth"], "observed"),
        "Eq. 11, label errors": found(known, unseen["STELIB"], unseen["truth"], "observed"),
        "Eq. 11, seen": found(model, seen["STELIB"], seen["truth"], "observed"),
    }
    population = found(model, tests["population"], tests["population labels"], "emulator").labels
    transport = gaussian_transport(population, pool)
    bare = result["Eq. 9"]
    moved_labels = transport(bare.labels)
    result["Eq. 9 + transport"] = replace(bare, offset=bare.offset + moved_labels - bare.labels, labels=moved_labels)
    return result


def judge_spectra(translation, tests, width):
    """How near spectra of a library come to those of the other of the same stars: a row for each of both directions."""
    first, second = ((np.array(stars.flux.value), np.array(stars.uncertainty.array)) for stars in tests)

    def translated(function, stars):
        made = [function(to_spectrum(flux, GRID, ivar=sigma**-2.0)) for flux, sigma in zip(*stars, strict=True)]
        return np.array([star.flux.value for star in made]), np.array([star.uncertainty.array for star in made])

    for name, stars, other, function, known in (
        ("MILES → STELIB", first, second, translation.to_second, width),
        ("STELIB → MILES", second, first, translation.to_first, None),
    ):
        flux, sigma = translated(function, stars)
        smooth = None if known is None else convolved(stars[0], known)
        yield (
            name,
            {
                "before": each_rms(stars[0] - other[0]),
                "convolved": np.full(len(flux), np.nan) if smooth is None else each_rms(smooth - other[0]),
                "translated": each_rms(flux - other[0]),
                "noise": np.sqrt(np.mean(stars[1] ** 2 + other[1] ** 2, axis=1)),
                "pull": each_rms((flux - other[0]) / np.hypot(sigma, other[1])),
                "flux": flux,
            },
        )


def each_rms(values):
    return np.sqrt(np.mean(values**2, axis=1))


# -- tables and figures -------------------------------------------------------------------
def label_rows(title, offsets):
    """One row of the table: offsets / scatter by label, coverage, χ²."""
    table = label_table(offsets)
    cells = []
    for row in table:
        form = "{:+.0f} / {:.0f}" if row["label"] == "teff" else "{:+.3f} / {:.3f}"
        cells.append(form.format(row["bias"], row["scatter"]))
    return title, table.meta["stars"], f"{table.meta['reduced_chi2']:.2f}", *cells, covered(table)


def covered(table):
    return " ".join(f"{fraction:.2f}" for fraction in table["cover_68"])


TITLES = {
    "MILES, Eq. 9": "MILES: Eq. 9",
    "Eq. 9": "STELIB: Eq. 9",
    "Eq. 9, convolved": "STELIB: Eq. 9, emulator of convolved spectra",
    "Eq. 9 + transport": "STELIB: Eq. 9 + transport",
    "Eq. 11": "STELIB: Eq. 11",
    "Eq. 11, label errors": "STELIB: Eq. 11, with errors that the other half tells",
    "Eq. 11, seen": "STELIB: Eq. 11, the other half of the stars",
}


def write_tables(catalogues, labels, spectra, folder):
    """``two_libraries_labels.rst`` and ``two_libraries_spectra.rst``."""
    low, middle, high = np.percentile(catalogues, [16, 50, 84], axis=0)
    wide = (high - low) / 2
    cells = [
        f"{middle[0]:+.0f} / {wide[0]:.0f}",
        *(f"{m:+.3f} / {w:.3f}" for m, w in zip(middle[1:], wide[1:], strict=True)),
    ]
    rows = [("spectra, and fit", "stars", "χ²/dof", "Teff [K]", "log g", "[Fe/H]", "68 % coverage")]
    rows.append(("none: labels in STELIB's headers", len(catalogues), "", *cells, ""))
    rows += [label_rows(TITLES[key], labels[key]) for key in TITLES]
    title = "Labels less those published with MILES: median / half 16-84 % range"
    write_rst(folder / "two_libraries_labels.rst", list_table(title, rows, widths="30 8 10 16 16 16 18"))
    rows = [("", "stars", "as it is", "convolved", "translated", "errors", "pulls")]
    for name, found in spectra.items():
        middle = [np.median(found[key]) for key in ("before", "convolved", "translated", "noise")]
        cells = ("" if np.isnan(value) else f"{value:.4f}" for value in middle)
        rows.append((name, len(found["before"]), *cells, f"{np.median(found['pull']):.2f}"))
    title = "Root mean square distance from the other library's spectrum of the same star, median of the stars"
    write_rst(folder / "two_libraries_spectra.rst", list_table(title, rows))


def plot_labels(labels, path):
    """Labels of stars that no network has seen, against those published."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), height_ratios=[2, 1], sharex="col", layout="constrained")
    ways = {"Eq. 9": MILES, "Eq. 11": STELIB}
    for k, name in enumerate(("Teff [K]", "log g", "[Fe/H]")):
        axes[1, k].axhline(0, color="0.4", lw=0.8)
        for way, colour in ways.items():
            found = labels[way]
            known = found.labels[:, k] - found.offset[:, k]
            limits = known.min(), known.max()
            axes[0, k].plot(limits, limits, color="0.4", lw=0.8)
            axes[0, k].plot(known, found.labels[:, k], ".", color=colour, ms=5, label=way)
            axes[1, k].plot(known, found.offset[:, k], ".", color=colour, ms=5)
        axes[0, k].set_title(name, fontsize=10)
        axes[1, k].set_xlabel("published with MILES")
    axes[0, 0].set_ylabel("fit of STELIB")
    axes[1, 0].set_ylabel("fit − published")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=90)


def plot_star(name, star, first, second, made, path):
    """One star in both libraries, and what is left on average of all, (n, 1407)."""
    figure, axes = plt.subplots(3, 1, figsize=(10, 7), layout="constrained")
    x = GRID.wavelength.value
    window = (5080, 5420)
    show = (x > window[0]) & (x < window[1])
    axes[0].plot(x[show], second[star, show], color="0.3", lw=2.5, alpha=0.5, label="STELIB")
    for flux, colour, label in ((first, MILES, "MILES"), (made, STELIB, "MILES, translated")):
        axes[0].plot(x[show], flux[star, show], color=colour, lw=1, label=label)
        axes[1].plot(x[show], (flux - second)[star, show], color=colour, lw=0.8, label=f"{label} − STELIB")
        axes[2].plot(x, (flux - second).mean(0), color=colour, lw=0.7)
    axes[0].set(ylabel="normalised flux", xlim=window)
    axes[0].set_title(name, loc="left", fontsize=10)
    axes[1].set(ylabel="difference, this star", xlim=window, ylim=(-0.11, 0.11))
    axes[2].set(ylabel=f"mean of {len(made)} stars", xlim=x[[0, -1]], xlabel="vacuum wavelength [Å]")
    axes[2].set_ylim(-0.055, 0.055)
    for axis in axes[1:]:
        axis.axhline(0, color="0.6", lw=0.6)
    for axis in axes[:2]:
        axis.legend(frameon=False, ncols=3, loc="lower right", fontsize=9)
    figure.savefig(path, dpi=90)


# -- all of it ------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Stars:
    """Both libraries, at rest, and which stars they have in common; ``alone`` are those of MILES that STELIB lacks."""

    miles: Library
    stelib: Library
    alone: Library
    pairs: np.ndarray
    recipe: ContinuumRecipe


def read_stars(source, seed=0):
    """Read both libraries, and bring STELIB to rest; each seed but 0 puts the stars in common in another order."""
    miles, stelib = read_libraries(source)
    pairs = partners(miles, stelib)
    if seed:
        pairs = np.random.default_rng(seed).permutation(pairs)
    alone = miles[np.setdiff1d(np.arange(len(miles)), pairs[:, 0])]
    recipe = continuum_recipe(alone)
    stelib, speeds = at_rest(stelib, recipe, on_grid(alone, recipe)[0].mean(0))
    print(f"{len(alone)} + {len(pairs)} stars of MILES, {len(stelib)} of STELIB, {len(pairs)} in both")
    print(f"velocities of STELIB: {np.mean(speeds):.0f} ± {np.std(speeds):.0f} km/s")
    return Stars(miles, stelib, alone, pairs, recipe)


def split(stars):
    """Every second star in common is in no training; pairs of rows of the seen and of the unseen."""
    return stars.pairs[1::2], stars.pairs[0::2]


def known_stars(stars, pairs):
    """Normalised spectra of stars in common, from both libraries, and their labels published with MILES."""
    miles = stars.miles[pairs[:, 0]]
    return {
        "MILES": stack(miles, stars.recipe),
        "STELIB": stack(stars.stelib[pairs[:, 1]], stars.recipe),
        "truth": {name: miles.table[name] for name in LABELS},
    }


def observed_and_kin(stars, size):
    """Stars of STELIB to train on, and those of MILES that are like them."""
    _, unseen = split(stars)
    observed = stars.stelib[np.setdiff1d(np.arange(len(stars.stelib)), unseen[:, 1])]
    return observed, stars.alone[alike(stars.alone, observed, size.n_alike)]


def study_labels(folder, stars, size):
    """Train a model, and fit stars of known labels; `LabelOffsets` by what was done."""
    folder.mkdir(parents=True, exist_ok=True)
    observed, kin = observed_and_kin(stars, size)
    seen, unseen = (known_stars(stars, pairs) for pairs in split(stars))
    labels, own = stars.alone.labels, on_grid(stars.alone, stars.recipe)[0]
    width = broadening(seen["MILES"].flux.value, seen["STELIB"].flux.value)
    print(f"{len(observed)} stars of STELIB, {len(kin)} like them, broadening {width:.2f} pixels")
    coarse = emulate(labels, convolved(own, width), size)
    emulate(labels, own, size, folder / "emulator.pt")
    model = train_model(folder / "model", kin.labels, observed, stars.recipe, size)
    population = observed[::2]
    tests = {"seen": seen, "unseen": unseen, "population": stack(population, stars.recipe)}
    tests["population labels"] = {name: population.table[name] for name in LABELS}  # not used but for its names
    return judge_labels(model, coarse, kin.labels, tests)


def study_spectra(folder, stars, size):
    """Train a translation both ways, and translate stars that are known in both libraries."""
    observed, kin = observed_and_kin(stars, size)
    seen, unseen = (known_stars(stars, pairs) for pairs in split(stars))
    width = broadening(seen["MILES"].flux.value, seen["STELIB"].flux.value)
    translation = train_both_ways(folder / "translation", kin, observed, stars.recipe, size)
    return dict(judge_spectra(translation, (unseen["MILES"], unseen["STELIB"]), width))


def report(stars, labels, spectra, docs):
    """Write the tables and figures of the page."""
    _, unseen = split(stars)
    miles, stelib = stars.miles[unseen[:, 0]], stars.stelib[unseen[:, 1]]
    write_tables(stelib.labels - miles.labels, labels, spectra, docs / "tables")
    plot_labels(labels, docs / "_static" / "two_libraries_labels.png")
    forth = spectra["MILES → STELIB"]
    star = np.argsort(forth["translated"])[len(miles) // 2]
    fluxes = [on_grid(library, stars.recipe)[0] for library in (miles, stelib)] + [forth["flux"]]
    plot_star(miles.table["star"][star], star, *fluxes, docs / "_static" / "two_libraries_star.png")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the wheel of sdss-mangadap, or a folder with its files")
    parser.add_argument("--work", type=Path, required=True, help="keeps the trainings")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where tables and figures go (default: docs)")
    parser.add_argument("--seed", type=int, default=0, help="of trainings, and of which stars judge (default: 0)")
    options = parser.parse_args(argv)
    plt.switch_backend("Agg")
    stars, size = read_stars(options.source, options.seed), Size(seed=options.seed)
    labels, spectra = study_labels(options.work, stars, size), study_spectra(options.work, stars, size)
    report(stars, labels, spectra, options.docs)
    print(f"{time.process_time():.0f} s of CPU time")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
