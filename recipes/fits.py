#!/usr/bin/env python
"""How good fits are: starts, errors, split latents, priors and motion, on simulated stars that training did not see.

Each stage fits the stars that its files in ``--work/fits`` lack, star by star,
and can be killed and run again::

    python recipes/fits.py starts   --work WORK     cold starts against starts at the true labels
    python recipes/fits.py coverage --work WORK     errors of labels against their scatter
    python recipes/fits.py split_latent --work WORK     split latent of the star, of a typical star, or fitted
    python recipes/fits.py priors   --work WORK     what priors cure, and how they pull peculiar stars
    python recipes/fits.py motion   --work WORK     known velocities and broadenings
    python recipes/fits.py kiel     --work WORK     the Kiel diagram
    python recipes/fits.py tables   --work WORK     docs/tables/fits_*.rst from what there is

``WORK`` holds what the stage ``observed`` of ``four_label_giants.py`` has made.
Files know the model that they were made with, and refuse another. Set
``OPENBLAS_NUM_THREADS=1``: every process has one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from importlib import resources
from pathlib import Path

import astropy.units as u
import four_label_giants
import h5py
import numpy as np
import torch
from astropy.utils.data import get_pkg_data_filename
from list_tables import list_table, processor, write_rst
from scipy.interpolate import CubicSpline
from scipy.ndimage import binary_dilation, gaussian_filter1d

from cyclestarnet import CalibratedModel, GaussianPrior, read_apvisit
from cyclestarnet.exceptions import CycleStarNetError
from cyclestarnet.fitting.isochrones import IsochronePrior
from cyclestarnet.grid import SPEED_OF_LIGHT
from cyclestarnet.pipeline.fit import fit_stars, make_objective, prepare_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import to_spectrum

log = logging.getLogger("fits")

DOCS = Path(__file__).parents[1] / "docs"
REPORTED = four_label_giants.REPORTED
UNKNOWN = ("c_h", "n_h", "vmicro", "vbroad")  # of observed-like stars; other elements follow m_h and alpha_m

N_STARTS = 1_000  # of the test and of the validation stars each
N_TEST, N_COOL, N_TRANSLATED = 1_000, 200, 200
N_SPLIT_LATENT, N_PRIORS, N_MOTION, N_KIEL = 300, 200, 20, 200
FAR = 3.0  # σ: farther apart, two optima do not agree
WORSE = 1.0  # of log posterior
ELEMENTS, OFFSETS, N_DRAWS = ("mg_h", "al_h", "ti_h", "c_h"), (-0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4), 3
VELOCITIES, BROADENINGS = (0, -60, -10, -1, 1, 10, 60), (0, 5, 10, 20)  # km/s
ON_SEQUENCE = 0.05  # dex in log g


# -- fits, and the files that keep them -----------------------------------------
@dataclass(frozen=True, eq=False)
class Star:
    """A spectrum on the model's pixels, (n_pixels,), with what is known of its star."""

    name: str
    flux: np.ndarray
    ivar: np.ndarray
    truth: np.ndarray  # teff, logg, m_h, alpha_m
    snr: float
    start: Mapping | None = None


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, the stars to fit and the files of their rows."""

    model: CalibratedModel
    identity: str  # of the model's file
    work: Path
    n_processes: int
    limit: int | None = None  # of the stars of each sample
    header: dict = field(default_factory=dict)

    def some(self, n):
        """A number of stars, within the limit."""
        return n if self.limit is None else min(n, self.limit)

    def stars(self, split, n):
        """The first observed-like stars of a split."""
        return self.chosen(split, range(self.some(n)))

    def chosen(self, split, rows):
        """Observed-like stars of a split."""
        rows = list(rows)
        with h5py.File(self.work / "observed.h5") as file:
            truth, snr = file[f"labels {split}"][rows].astype(float), file[f"snr {split}"][rows]
            flux, sigma, good = (file[f"{key} {split}"][rows] for key in ("spectra", "spectra_err", "spectra_msk"))
        ivar = good / sigma**2
        return [Star(f"{split} {row}", flux[k], ivar[k], truth[k], snr[k]) for k, row in enumerate(rows)]

    @cached_property
    def training_labels(self):
        """(teff, logg, m_h, alpha_m) of the training stars, (n, 4)."""
        with h5py.File(self.work / "observed.h5") as file:
            return file["labels train"][:].astype(float)

    def fit(self, way, stars, **options):
        """Fit the stars that the file of a way lacks."""
        done = self.rows(way)
        missing = [star for star in stars if star.name not in done]
        if not missing:
            return
        path = self.path(way)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or not path.read_text():
            path.write_text(json.dumps(self.header | {"model": self.identity}) + "\n")
        context = multiprocessing.get_context("fork")
        with (
            path.open("a") as file,
            context.Pool(self.n_processes, _start_worker, (self.model, options)) as pool,
        ):
            for row in tqdm(pool.imap_unordered(_fit_star, missing), total=len(missing), desc=way):
                file.write(json.dumps(row) + "\n")
                file.flush()

    def rows(self, way):
        """Rows of a way by the name of their star; stars that could not be fitted are left out."""
        lines = whole_lines(self.path(way))
        if not lines:
            return {}
        begun = json.loads(lines[0])
        if begun["model"] != self.identity:
            raise ValueError(f"{self.path(way)} was made with another model; give another --work, or remove it")
        rows = [json.loads(line) for line in lines[1:]]
        failed = [row["star"] for row in rows if "error" in row]
        if failed:
            log.warning("%s: no fit of %s", way, ", ".join(failed))
        return {row["star"]: row for row in rows if "error" not in row}

    def begun(self, way):
        """Date and hardware of a way."""
        return json.loads(whole_lines(self.path(way))[0])

    def path(self, way):
        """File of a way."""
        return self.work / "fits" / f"{way}.jsonl"


def whole_lines(path):
    """Lines of a file; a last one that was written by halves is removed."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
        path.write_text("".join(lines))
    return lines


_worker = None


def _start_worker(model, options):
    global _worker
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _worker = model, options


def _fit_star(star):
    model, options = _worker
    setup = FitSetup.of(model, FitOptions(start=star.start, **options))
    begin = time.process_time()
    spectrum = to_spectrum(star.flux, model.grid, ivar=star.ivar)
    (result,) = fit_stars(model, [spectrum], setup)
    seconds = time.process_time() - begin
    if isinstance(result, Exception):
        return {"star": star.name, "error": str(result)}
    n = len(model.labels)
    pull = result.residual.value / result.spectrum.uncertainty.array
    low, middle, high = np.percentile(pull[np.isfinite(pull)], [16, 50, 84])
    errors = result.uncertainties
    row = {
        "star": star.name,
        "truth": np.asarray(star.truth).tolist(),
        "snr": float(star.snr),
        "values": result.values[:n].tolist(),
        "covariance": result.covariance[:n, :n].tolist(),
        "motion": {name: [result.labels[name].value, errors[name].value] for name in setup.options.motion},
        "success": result.success,
        "flags": result.flags.names,
        "at_bound": result.meta["at_bound"],
        "chi2": result.reduced_chi2,
        "chi2_total": result.reduced_chi2_total,
        "residual": [middle, (high - low) / 2],
        "seconds": seconds,
    }
    if setup.options.space == "observed" and setup.options.split_latent == "own":
        stars, _ = prepare_stars(model, [spectrum], setup)
        objective = make_objective(model, stars, setup)
        row["log_posterior"] = float(objective.log_posterior(setup.parameters.values(result.values))[0])
    return row


def columns(rows, names=None):
    """Arrays with a row per star: truth, snr, values, covariance, chi2, ..., of named stars or all."""
    rows = list(rows.values()) if names is None else [rows[name] for name in names]
    keys = ("truth", "snr", "values", "covariance", "success", "chi2", "chi2_total", "residual", "seconds")
    out = {key: np.array([row[key] for row in rows]) for key in keys}
    out["flagged"] = np.array([bool(row["flags"]) for row in rows])
    out["bound"] = np.array(["AT_BOUND" in row["flags"] for row in rows])
    return out


# -- labels -----------------------------------------------------------------------
def four_of(labels):
    """Matrix (4, n_labels) from labels to (teff, logg, m_h, alpha_m)."""
    names, every = [*labels.names, *labels.combinations], np.vstack([np.eye(len(labels)), labels.combination_matrix])
    return every[[names.index(name) for name in REPORTED]]


def tied_labels(labels, prior, four):
    """Labels (n, n_labels) of stars of which four are known.

    Elements follow m_h and alpha_m. Carbon, nitrogen, micro-turbulence and
    broadening are the prior's conditional mean, given the four.
    """
    to_four = four_of(labels)
    cross = prior.covariance @ to_four.T
    expected = prior.mean + (four - to_four @ prior.mean) @ np.linalg.solve(to_four @ cross, cross.T)
    tied = four @ four_label_giants.tied_design(labels)[:4]
    return np.where(np.isin(labels.names, UNKNOWN), expected, tied).clip(labels.lower, labels.upper)


def known_labels(labels):
    """Names of labels and combinations that observed-like stars have a value of, and the matrix (m, n_labels) to it."""
    singles = [name for name in labels.names if name not in UNKNOWN]
    names, to_four = [*singles, "m_h", "alpha_m"], four_of(labels)
    return names, np.vstack([np.eye(len(labels))[[labels.index(name) for name in singles]], to_four[2:]])


def differences(labels, found, matrix):
    """Differences (n, m) of combinations of labels from those of the true tied labels, and their errors (n, m)."""
    tied = found["truth"] @ four_label_giants.tied_design(labels)[:4]
    errors = np.sqrt(np.einsum("ki,nij,kj->nk", matrix, found["covariance"], matrix).clip(0))
    return (found["values"] - tied) @ matrix.T, errors


# -- statistics ---------------------------------------------------------------------
def half_range(values):
    """Half the 16-84 % range along the first axis."""
    low, high = np.percentile(values, [16, 84], axis=0)
    return (high - low) / 2


def coverage_figures(offset, error):
    """Figures of offsets (n,) from the truth with errors (n,): 68 % and 95 % coverage, widths of the pulls, ..."""
    pull = offset / error
    return {
        "n": len(offset),
        "bias": float(np.median(offset)),
        "scatter": float(half_range(offset)),
        "error": float(np.median(error)),
        "cover_68": float((np.abs(pull) < 1).mean()),
        "cover_95": float((np.abs(pull) < 1.96).mean()),
        "width": float(half_range(pull)),
        "deviation": float(pull.std()),
    }


def distances(move, covariance, four):
    """How far (n,) moves of labels (n, n_labels) are in σ: Mahalanobis of the four, and the largest of any label."""
    moved = move @ four.T
    inverse = np.linalg.inv(four @ covariance @ four.T)
    joint = np.sqrt(np.einsum("ni,nij,nj->n", moved, inverse, moved))
    return joint, (np.abs(move) / np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))).max(1)


# -- changed spectra -------------------------------------------------------------------
def changed(star, grid, name, change):
    """A star whose chips a function has changed; its name is added.

    ``change`` takes flux, error and badness of a chip, each (n,), and the
    logarithm of the wavelength. Bad pixels hold what lies between good ones.
    """
    flux, ivar = np.ones(grid.n_pixels), np.zeros(grid.n_pixels)
    for start, stop in grid.chips:
        part, place = slice(start, stop), np.arange(stop - start)
        good = star.ivar[part] > 0
        known = place[good]
        values, errors = star.flux[part][good].astype(float), star.ivar[part][good].astype(float) ** -0.5
        bad = binary_dilation(~good).astype(float)  # neighbours feel what was put between
        flux[part], error, bad = change(
            np.interp(place, known, values), np.interp(place, known, errors), bad, np.log(grid.wavelength.value[part])
        )
        ivar[part] = np.where(bad > 0, 0.0, error**-2.0)
    return replace(star, name=f"{star.name} {name}", flux=flux, ivar=ivar)


def moved(star, grid, velocity):
    """A star with a Doppler shift in km/s, by cubic splines; pixels that come from beyond a chip are bad."""
    step = np.log1p(velocity / SPEED_OF_LIGHT)

    def change(flux, error, bad, log_wavelength):
        at = log_wavelength - step
        outside = (at < log_wavelength[0]) | (at > log_wavelength[-1])
        new = CubicSpline(log_wavelength, flux)(np.clip(at, log_wavelength[0], log_wavelength[-1]))
        return new, np.interp(at, log_wavelength, error), np.interp(at, log_wavelength, bad) + outside

    return changed(star, grid, f"{velocity:+d}", change)


def broadened(star, grid, sigma, rng):
    """A star with extra Gaussian broadening in km/s, and noise as quoted: what broadening took is added."""

    def change(flux, error, bad, log_wavelength):
        width = sigma / (SPEED_OF_LIGHT * np.diff(log_wavelength).mean())
        if width == 0:
            return flux, error, bad
        kernel = gaussian_filter1d(np.eye(1, 401, 200)[0], width)
        lost = 1 - (kernel**2).sum()  # of the variance of white noise
        new = gaussian_filter1d(flux, width, mode="nearest") + np.sqrt(lost) * error * rng.standard_normal(len(flux))
        guessed = gaussian_filter1d(bad, width, mode="constant", cval=1.0)  # the part that comes from bad pixels
        return new, error, guessed > 0.1

    return changed(star, grid, f"{sigma:d}", change)


# -- stages ------------------------------------------------------------------------------
def starts(bench):
    """Whether cold starts find the optimum that starts at the true labels find."""
    stars = bench.stars("test", N_STARTS) + bench.stars("val", N_STARTS)
    bench.fit("observed", stars)
    labels = bench.model.labels
    tied = tied_labels(labels, bench.model.prior, np.array([star.truth for star in stars]))
    given = [{name: q for name, q in labels.to_quantities(row).items() if name in labels} for row in tied]
    bench.fit("from_truth", [replace(star, start=start) for star, start in zip(stars, given, strict=True)])


def coverage(bench):
    """Whether errors are as large as the offsets from the truth."""
    test = bench.stars("test", N_TEST)
    bench.fit("observed", test + bench.stars("cool", N_COOL))
    bench.fit("emulator", test, space="emulator")
    bench.fit("synthetic", test[:N_TRANSLATED], space="synthetic")


def split_latent(bench):
    """The same stars with three choices of the split latent."""
    stars = bench.stars("test", N_SPLIT_LATENT)
    bench.fit("observed", stars)
    bench.fit("typical", stars, split_latent="typical")
    try:
        setup = FitSetup.of(bench.model, FitOptions(split_latent="fitted"))
        (probe,) = fit_stars(bench.model, [to_spectrum(stars[0].flux, bench.model.grid, ivar=stars[0].ivar)], setup)
        if isinstance(probe, Exception):
            raise probe
    except (CycleStarNetError, ValueError) as error:
        log.warning('split_latent="fitted" is left out: %s', error)
    else:
        bench.fit("fitted", stars, split_latent="fitted")


def priors(bench):
    """Priors of ordinary stars, of peculiar ones, and of stars on a sequence."""
    model, stars = bench.model, bench.stars("test", N_PRIORS)
    bench.fit("observed", stars)
    bench.fit("wider_prior", stars, prior=GaussianPrior(model.prior.mean, 9 * model.prior.covariance))
    bench.fit("no_prior", stars, prior=None)
    peculiar = peculiar_stars(bench)
    bench.fit("peculiar", peculiar)
    bench.fit("peculiar_no_prior", peculiar, prior=None)
    with h5py.File(bench.work / "observed.h5") as file:
        truth = file["labels test"][:N_TEST].astype(float)
    on = np.flatnonzero(np.abs(truth[:, 1] - sequence(truth[:, 0], truth[:, 2])) < ON_SEQUENCE)
    on = bench.chosen("test", on[: bench.some(len(on))])
    bench.fit("observed", on)
    bench.fit("sequence", on, prior=["training", sequence_prior(model.labels)])
    plot_peculiar(bench)


def peculiar_stars(bench):
    """What the model predicts for the K giant with one abundance changed, with noise of S/N 100."""
    model, snr = bench.model, 100.0
    giant = read_apvisit(get_pkg_data_filename("data/apVisit-r13-9518-57729-104.fits", package="cyclestarnet"))
    (fit,) = fit_stars(model, [giant], FitSetup.of(model, FitOptions()))
    base, stars = {name: fit.labels[name] for name in model.labels}, []
    for name in ELEMENTS:
        for offset in OFFSETS:
            labels = base | {name: base[name] + offset * u.dex}
            flux = model.predict(labels, like=giant).flux.value
            truth = four_of(model.labels) @ model.labels.to_array(labels)
            for draw in range(bench.some(N_DRAWS)):
                noisy = np.random.default_rng(draw).normal(flux, 1 / snr)  # the same for all, so that offsets compare
                ivar = np.full(flux.shape, snr**2)
                stars.append(Star(f"{name} {offset:+.1f} {draw}", noisy, ivar, truth, snr))
    return stars


def sequence(teff, m_h):
    """log g of a toy giant branch: a plane through the middle of the training stars."""
    return 2.28 + 0.84 * (teff - 4500) / 500 + 0.54 * m_h


def sequence_prior(labels):
    """The toy giant branch as a prior."""
    teff, m_h = (a.ravel() for a in np.meshgrid(np.arange(3700, 5200, 25), np.arange(-1.2, 0.5, 0.05)))
    points = {"teff": teff * u.K, "logg": sequence(teff, m_h), "m_h": m_h}
    return IsochronePrior(points, {"teff": 30 * u.K, "logg": ON_SEQUENCE, "m_h": 0.05}, labels)


def motion(bench):
    """Shifts and broadenings that were put into spectra by other means than those of the fit."""
    stars, grid = bench.stars("test", N_MOTION), bench.model.grid

    shifted = [moved(star, grid, velocity) for velocity in VELOCITIES for star in stars]
    bench.fit("velocity", shifted, motion=("velocity",))
    rng = np.random.default_rng(0)
    broad = [broadened(star, grid, sigma, rng) for sigma in BROADENINGS for star in stars]
    for split_latent in ("own", "typical"):
        bench.fit(f"broadening_{split_latent}", broad, motion=("velocity", "broadening"), split_latent=split_latent)


def kiel(bench):
    """Kiel diagrams of fits and of the truth."""
    bench.fit("observed", bench.stars("test", N_KIEL))
    plot_kiel(bench)


STAGES = (starts, coverage, split_latent, priors, motion, kiel)


# -- figures -------------------------------------------------------------------------------
def pyplot():
    """matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def plot_kiel(bench):
    """Write docs/_static/kiel.png."""
    plt = pyplot()
    rows = bench.rows("observed")
    found = columns(rows, [name for name in (f"test {k}" for k in range(bench.some(N_KIEL))) if name in rows])
    four = four_of(bench.model.labels)
    values = found["values"] @ four.T
    errors = np.sqrt(np.einsum("ki,nij,kj->nk", four, found["covariance"], four))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharex=True, sharey=True, layout="constrained")
    low, high = np.percentile(found["chi2"], [2, 98])
    shown = np.argsort(values[:, 1])[:: max(len(values) // 12, 1)]
    axes[1].errorbar(
        *values[shown, :2].T, xerr=errors[shown, 0], yerr=errors[shown, 1], fmt="none", color="0.45", lw=1, zorder=1
    )
    for axis, labels, title in zip(axes, (found["truth"], values), ("true labels", "fitted, cold start"), strict=True):
        points = axis.scatter(
            *labels[:, :2].T, c=found["chi2"], cmap="cividis", vmin=low, vmax=high, s=22, edgecolor="k", lw=0.3,
            zorder=2,
        )  # fmt: skip
        axis.set_title(f"{title}, {len(labels)} stars", loc="left", fontsize=11)
        axis.set_xlabel("Teff [K]")
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
    axes[0].set_ylabel("log g")
    axes[0].invert_xaxis()
    axes[0].invert_yaxis()
    figure.colorbar(points, ax=axes, label="χ² / dof of the fit", extend="both")
    figure.savefig(DOCS / "_static" / "kiel.png", dpi=100)
    plt.close(figure)


def peculiar_offsets(bench, way, name):
    """Fitted minus ordinary abundance (n_offsets, n_draws) and its errors, and the share of flagged fits."""
    labels, rows = bench.model.labels, bench.rows(way)
    k, draws = labels.index(name), range(bench.some(N_DRAWS))
    part = [[rows[f"{name} {offset:+.1f} {draw}"] for draw in draws] for offset in OFFSETS]
    ordinary = np.mean([row["values"][k] for row in part[OFFSETS.index(0.0)]])
    values = np.array([[row["values"][k] for row in group] for group in part]) - ordinary
    errors = np.sqrt([[row["covariance"][k][k] for row in group] for group in part])
    return values, errors, np.mean([bool(row["flags"]) for group in part for row in group])


PECULIAR = {"peculiar": "training prior", "peculiar_no_prior": "no prior"}


def plot_peculiar(bench):
    """Write docs/_static/peculiar.png."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.7), sharex=True, sharey=True, layout="constrained")
    for name, axis in zip(ELEMENTS, axes, strict=True):
        axis.axline((0, 0), slope=1, color="0.75", lw=1, zorder=0)
        for (way, text), colour, mark, aside in zip(
            PECULIAR.items(), ("#0072B2", "#D55E00"), "os", (-0.008, 0.008), strict=True
        ):
            values, errors, _ = peculiar_offsets(bench, way, name)
            place = np.array(OFFSETS) + aside
            axis.errorbar(place, values.mean(1), errors.mean(1), fmt=mark, color=colour, ms=5, capsize=2, label=text)
        axis.set_title(pretty(name), loc="left", fontsize=11)
        axis.set_xlabel("true offset [dex]")
    axes[0].set_ylabel("fitted offset [dex]")
    axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(DOCS / "_static" / "peculiar.png", dpi=100)
    plt.close(figure)


# -- tables -----------------------------------------------------------------------------------
PRETTY = {"teff": "Teff [K]", "logg": "log g", "m_h": "[M/H]", "alpha_m": "[α/M]"}


def pretty(name):
    """How a label is written."""
    return PRETTY.get(name) or f"[{name.removesuffix('_h').capitalize()}/H]"


def pair(name, bias, scatter):
    """Bias / scatter of a label."""
    return f"{bias:+.0f} / {scatter:.0f}" if name == "teff" else f"{bias:+.3f} / {scatter:.3f}"


def table_starts(bench):
    """Cold starts against starts at the truth."""
    cold, warm = bench.rows("observed"), bench.rows("from_truth")
    names = [name for name in warm if name in cold]
    if not names:
        return
    a, b, four = columns(cold, names), columns(warm, names), four_of(bench.model.labels)
    gain = np.array([cold[name]["log_posterior"] - warm[name]["log_posterior"] for name in names])
    hidden = bench.model.noise.label_error
    kinds = {"reported": b["covariance"]}
    if hidden is not None:
        kinds["statistical alone"] = b["covariance"] - hidden
    lines = []
    for kind, covariance in kinds.items():
        joint, largest = distances(a["values"] - b["values"], covariance, four)
        same = (joint < FAR) & (largest < FAR) & (gain > -WORSE)
        lines.append(
            (kind, *(f"{share:.2%}" for share in ((joint < FAR).mean(), (largest < FAR).mean(), same.mean())),
             f"{a['flagged'][~same].sum()} of {(~same).sum()}", f"{np.median(joint):.2f}")
        )  # fmt: skip
    header = ("errors", "four labels within 3 σ", "all labels within 3 σ", "both, and log posterior",
              "of the rest, flagged", "median distance of the four [σ]")  # fmt: skip
    note = (
        f"Log posterior of the cold start lower by more than {WORSE:g}: {(gain < -WORSE).mean():.2%}, higher: "
        f"{(gain > WORSE).mean():.2%}. Converged: {a['success'].mean():.2%} and {b['success'].mean():.2%}. Seconds of "
        f"one core per star, median: {np.median(a['seconds']):.2f} cold, {np.median(b['seconds']):.2f} from the truth."
    )
    title = f"Cold starts against starts at the true labels, {len(names)} stars"
    write_table(bench, "starts", "from_truth", header, lines, title, note)


def table_coverage(bench):
    """Coverage by label, and by kind of star."""
    labels = bench.model.labels
    rows = bench.rows("observed")
    test = {name: row for name, row in rows.items() if name.startswith("test ")}
    if not test:
        return
    found, (names, matrix) = columns(test), known_labels(labels)
    offset, error = differences(labels, found, matrix)
    lines = []
    for k, name in enumerate(names):
        f = coverage_figures(offset[:, k], error[:, k])
        shown = f"{f['error']:.0f}" if name == "teff" else f"{f['error']:.3f}"
        lines.append((pretty(name), pair(name, f["bias"], f["scatter"]), shown, f"{f['cover_68']:.3f}",
                      f"{f['cover_95']:.3f}", f"{f['width']:.2f}", f"{f['deviation']:.2f}"))  # fmt: skip
    n, spread = len(test), np.sqrt(0.68 * 0.32 / len(test))
    header = ("label", "bias / scatter", "median error", "68 %", "95 %", "width of pulls", "their standard deviation")
    title = f"Offsets from the truth and errors by label, {n} test stars, Eq. 11 (chance: ±{spread:.3f} in 68 %)"
    write_table(bench, "coverage_labels", "observed", header, lines, title)

    lines, four = [], four_of(labels)
    for text, part in coverage_parts(bench, rows, test).items():
        if part:
            offset, error = differences(labels, columns(part), four)
            figures = [coverage_figures(offset[:, k], error[:, k]) for k in range(4)]
            cells = [pair(name, f["bias"], f["scatter"]) for name, f in zip(REPORTED, figures, strict=True)]
            shares = [" ".join(f"{f[key]:.2f}" for f in figures) for key in ("cover_68", "cover_95", "width")]
            lines.append((text, len(part), *cells, *shares))
    header = ("stars", "number", *(PRETTY[name] for name in REPORTED), "68 % coverage of the four", "95 %",
              "width of pulls")  # fmt: skip
    title = "Median offset / half 16-84 % range, coverage and width of the normalised offsets"
    write_table(bench, "coverage_stars", "observed", header, lines, title)


def coverage_parts(bench, rows, test):
    """Rows by kind of star; edges are beyond the outer tenths of the training stars."""
    parts = {"all": test}
    for low, high in ((30, 60), (60, 120), (120, np.inf)):
        text = f"S/N {low} to {high}" if np.isfinite(high) else f"S/N above {low}"
        parts[text] = {name: row for name, row in test.items() if low <= row["snr"] < high}
    low, high = np.percentile(bench.training_labels, [10, 90], axis=0)
    for k, name in enumerate(REPORTED[:3]):
        form = "{:.0f} K" if name == "teff" else "{:.2f}"
        label = PRETTY[name].split(" [K]")[0]
        parts[f"{label} < {form.format(low[k])}"] = {n: r for n, r in test.items() if r["truth"][k] < low[k]}
        parts[f"{label} > {form.format(high[k])}"] = {n: r for n, r in test.items() if r["truth"][k] > high[k]}
    parts[f"cool stars, Teff < {four_label_giants.COOL_LIMIT:.0f} K"] = {
        n: r for n, r in rows.items() if n.startswith("cool ")
    }
    parts["without flags"] = {name: row for name, row in test.items() if not row["flags"]}
    return parts | {"Eq. 10": bench.rows("synthetic"), "Eq. 9": bench.rows("emulator")}


def compared(bench, ways, extra=None):
    """Table lines of ways to fit the same stars."""
    found = {text: bench.rows(way) for text, way in ways.items()}
    found = {text: rows for text, rows in found.items() if rows}
    names = [name for name in next(iter(found.values()), ()) if all(name in rows for rows in found.values())]
    if len(found) < 2 or not names:
        return [], 0
    lines, labels = [], bench.model.labels
    for text, rows in found.items():
        part = columns(rows, names)
        offset, error = differences(labels, part, four_of(labels))
        figures = [coverage_figures(offset[:, k], error[:, k]) for k in range(4)]
        cells = [pair(name, f["bias"], f["scatter"]) for name, f in zip(REPORTED, figures, strict=True)]
        cover = " ".join(f"{f['cover_68']:.2f}" for f in figures)
        lines.append((text, f"{np.median(part['chi2']):.2f}", f"{np.median(part['residual'][:, 1]):.2f}", *cells, cover,
                      *(extra(part) if extra else ())))  # fmt: skip
    return lines, len(names)


COMPARED = ("χ²/dof", "residual [σ]", *(PRETTY[name] for name in REPORTED), "68 % coverage of the four")


def table_split_latent(bench):
    """Choices of the split latent."""
    lines, n = compared(
        bench,
        {"own": "observed", "typical": "typical", "fitted": "fitted"},
        lambda part: (f"{np.median(part['seconds']):.2f}",),
    )
    header, title = ("split_latent", *COMPARED, "seconds"), f"Choices of the split latent, the same {n} stars"
    write_table(bench, "split_latent", "typical", header, lines, title)


def table_priors(bench):
    """Priors of ordinary, of peculiar, and of stars on a sequence."""
    labels = bench.model.labels

    def more(part):
        single = np.eye(len(labels))[[labels.index(name) for name in ("mg_h", "v_h")]]
        offset, _ = differences(labels, part, single)
        scatter = " / ".join(f"{value:.3f}" for value in half_range(offset))
        return (
            scatter,
            f"{part['bound'].mean():.0%}",
            f"{part['success'].mean():.1%}",
            f"{np.median(part['seconds']):.2f}",
        )

    ways = {"training": "observed", "training, three times as wide": "wider_prior", "none": "no_prior"}
    lines, n = compared(bench, ways, more)
    header = ("prior", *COMPARED, "scatter of [Mg/H] / [V/H]", "at a bound", "converged", "seconds")
    write_table(bench, "priors", "no_prior", header, lines, f"Priors, the same {n} stars")

    lines = []
    if all(bench.rows(way) for way in PECULIAR):
        for name in ELEMENTS:
            for way, text in PECULIAR.items():
                values, errors, flagged = peculiar_offsets(bench, way, name)
                slope = np.polyfit(OFFSETS, values.mean(1), 1)[0]
                at = [f"{values.mean(1)[OFFSETS.index(offset)]:+.2f}" for offset in (-0.4, -0.2, 0.2, 0.4)]
                lines.append((pretty(name), text, f"{slope:.2f}", *at, f"{np.median(errors):.3f}", f"{flagged:.0%}"))
    header = ("abundance", "fit", "slope", "−0.4", "−0.2", "+0.2", "+0.4", "median error", "flagged")
    title = f"Fitted offset of stars with one abundance changed, S/N 100, mean of {bench.some(N_DRAWS)} draws of noise"
    write_table(bench, "peculiar", "peculiar", header, lines, title)

    lines, n = compared(bench, {"training": "observed", "training × sequence": "sequence"})
    title = f"Stars within {ON_SEQUENCE} dex of a toy giant branch, {n} stars"
    write_table(bench, "sequence", "sequence", ("prior", *COMPARED), lines, title)


def table_motion(bench):
    """Velocities and broadenings."""

    def found(rows, name, change):
        """Recovered values, errors, and offsets in Teff of the stars with a change, by the name of the star."""
        part = {key.rsplit(" ", 1)[0]: row for key, row in rows.items() if key.rsplit(" ", 1)[1] == change}
        return {star: (*row["motion"][name], row["values"][0] - row["truth"][0]) for star, row in part.items()}

    rows, lines = bench.rows("velocity"), []
    own = found(rows, "velocity", "+0")
    for velocity in sorted(VELOCITIES):
        part = {star: v for star, v in found(rows, "velocity", f"{velocity:+d}").items() if star in own}
        if part:
            value, error, teff = np.array(list(part.values())).T
            moved_by = value - np.array([own[star][0] for star in part])
            relative = pair("velocity", np.median(moved_by) - velocity, half_range(moved_by))
            lines.append((f"{velocity:+d}", len(part), f"{np.median(value):+.2f}", f"{half_range(value):.2f}",
                          f"{np.median(error):.2f}", relative,
                          pair("teff", np.median(teff), half_range(teff))))  # fmt: skip
    header = ("given [km/s]", "stars", "found, median", "scatter", "median error",
              "found − own at rest − given: median / scatter", "Teff [K]")  # fmt: skip
    write_table(bench, "velocity", "velocity", header, lines, "Velocities put into spectra by cubic splines")

    lines = []
    for split_latent in ("own", "typical"):
        rows = bench.rows(f"broadening_{split_latent}")
        for broadening in BROADENINGS:
            part = found(rows, "broadening", f"{broadening:d}")
            if part:
                value, error, teff = np.array(list(part.values())).T
                lines.append((f"{broadening:d}", split_latent, len(part), f"{np.median(value):.2f}",
                              f"{half_range(value):.2f}", f"{np.median(error):.2f}",
                              pair("teff", np.median(teff), half_range(teff))))  # fmt: skip
    header = ("given [km/s]", "split_latent", "stars", "found, median", "scatter", "median error", "Teff [K]")
    write_table(bench, "broadening", "broadening_own", header, lines, "Gaussian broadening (σ) put into spectra")


TABLES = (table_starts, table_coverage, table_split_latent, table_priors, table_motion)


def write_table(bench, name, way, header, lines, title, note=""):
    """Write one list-table, if there is something in it."""
    if not lines:
        return
    begun = bench.begun(way)
    table = list_table(f"{title}; {begun['date']}, {begun['hardware']}", (header, *lines))
    write_rst(DOCS / "tables" / f"fits_{name}.rst", table, *([f"{note}\n"] if note else []))


# -- running --------------------------------------------------------------------------------------
def load_model(name):
    """A model of a file or an embedded one, and the digest of its file."""
    if Path(name).is_file():
        return CalibratedModel.load(name), hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
    model = CalibratedModel.from_pretrained(name)
    data = (resources.files("cyclestarnet.data") / f"{name}.safetensors").read_bytes()
    return model, hashlib.sha256(data).hexdigest()[:16]


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=[*(stage.__name__ for stage in STAGES), "tables"])
    parser.add_argument("--work", type=Path, required=True, help="folder of four_label_giants.py")
    parser.add_argument("--model", default="apogee-giants", help="file of a model, or name of an embedded one")
    parser.add_argument("--n", type=int, help="no more stars than this of each sample")
    parser.add_argument("--threads", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, identity = load_model(options.model)
    header = {"date": date.today().isoformat(), "hardware": f"{processor()}, one thread per star"}
    bench = Bench(model, identity, options.work, options.threads, options.n, header)
    stages = {stage.__name__: stage for stage in STAGES}
    for name in options.stages:
        if name == "tables":
            for table in TABLES:
                table(bench)
        else:
            begin = time.perf_counter()
            stages[name](bench)
            log.info("%s: %.0f s", name, time.perf_counter() - begin)


if __name__ == "__main__":
    main()
