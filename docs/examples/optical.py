"""A second pair of domains from end to end: made-up optical spectra, from lines to fitted labels.

Run ``python docs/examples/optical.py --work FOLDER`` to make the figures and the
table of the page "A second pair of domains"; ``--small`` does the same with as
little as possible, to see that everything runs.

The lines are invented, but their strengths follow the textbook: excitation and
ionisation equilibrium, saturation, damping wings that grow with gravity.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable
from matplotlib import pyplot as plt

from cyclestarnet import CalibratedModel, ContinuumRecipe, LabelSet, WavelengthGrid
from cyclestarnet.cli import main as cyclestarnet
from cyclestarnet.grid import SPEED_OF_LIGHT
from cyclestarnet.io import write_training_set
from cyclestarnet.networks import EmulatorSettings, train_emulator
from cyclestarnet.spectra import Spectrum, to_pixels
from cyclestarnet.training import gaussian_transport, quiet_pixels, read_labels, save_emulator

LABELS = LabelSet(("teff", "logg", "fe_h", "mg_h"), (4000, 1.0, -1.2, -1.2), (5600, 4.0, 0.5, 0.7))
N_PIXELS = 1407  # a length that the strides of the network in optical.toml fit
PIXEL, FINE = 7.38, 5  # km/s, and steps of the synthesis in each
MARGIN = 20  # pixels that are synthesised at each end, for the line-spread function
GRID = WavelengthGrid(5110 * np.exp(np.arange(N_PIXELS) * PIXEL / SPEED_OF_LIGHT) * u.AA)
RESOLUTION = 20_000  # of the synthetic spectra
SYNTHETIC, OBSERVED = "#0072B2", "#D55E00"


# -- the stars -------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Lines:
    """Absorption lines: an entry each.

    ``strength`` is the logarithm of the opacity at the line's centre over that of the
    continuum, in a star of 4750 K, log g = 2.5 and solar composition.
    """

    wavelength: np.ndarray  # Angstrom, vacuum
    strength: np.ndarray
    energy: np.ndarray  # eV: ionisation less excitation of neutral atoms, minus the excitation of ions
    ionised: np.ndarray
    magnesium: np.ndarray  # all others are of iron and its like
    damping: np.ndarray

    def __len__(self):
        return len(self.wavelength)


def made_up_lines(seed=1, n=70):
    """The Mg b triplet where it is, and random lines of other metals."""
    rng = np.random.default_rng(seed)
    ionised = rng.random(n) < 0.2
    excitation = np.where(ionised, rng.uniform(2.5, 3.5, n), rng.uniform(0.0, 4.5, n))
    return Lines(
        wavelength=np.r_[5168.76, 5174.13, 5185.05, np.sort(rng.uniform(5111, 5289, n))],
        strength=np.r_[1.7, 1.9, 2.1, rng.uniform(-1.3, 1.0, n)],
        energy=np.r_[[7.65 - 2.71] * 3, np.where(ionised, 0.0, 7.6) - excitation],
        ionised=np.r_[[False] * 3, ionised],
        magnesium=np.arange(n + 3) < 3,
        damping=np.r_[[0.08] * 3, rng.uniform(0.01, 0.03, n)],
    )


def errors_of_the_synthetic(lines, seed=2):
    """What a line list may have wrong: 10 lines are missing, 10 have other strengths, 5 lie elsewhere."""
    rng = np.random.default_rng(seed)
    wavelength, strength = lines.wavelength.copy(), lines.strength.copy()
    others = rng.permutation(np.arange(3, len(lines)))
    missing, wrong, shifted = np.split(others[:25], [10, 20])
    strength[missing] = -9.0
    strength[wrong] += rng.choice([-0.4, 0.4], 10)
    wavelength[shifted] += rng.choice([-0.12, 0.12], 5)
    return replace(lines, wavelength=wavelength, strength=strength)


def synthesise(lines, labels, resolution, block=256):
    """Flux over continuum on the pixels of `GRID`.

    Parameters
    ----------
    lines : `Lines`
    labels : array, shape (n, 4)
    resolution : float or array, shape (n,)
        λ/FWHM of the line-spread function, a Gaussian.

    Returns
    -------
    array, shape (n, n_pixels)
    """
    resolution = np.broadcast_to(resolution, len(labels))
    n_fine = FINE * (N_PIXELS + 2 * MARGIN)
    velocity = PIXEL * ((np.arange(n_fine) + 0.5) / FINE - 0.5 - MARGIN)  # of a step, from the first pixel
    centre = SPEED_OF_LIGHT * np.log(lines.wavelength / GRID.wavelength.value[0])
    v = (velocity - centre[:, None]) / 2.5  # in Doppler widths of 2.5 km/s: thermal motion and microturbulence
    core, wing = np.exp(-(v**2)), 1 / (np.sqrt(np.pi) * (v**2 + 1.6))  # of a Voigt profile
    teff, logg, fe_h, mg_h = labels.T[:, :, None]
    theta = 5040 / teff - 5040 / 4750
    # Saha and Boltzmann against the H- opacity (0.75 eV); lines of ions weaken with the pressure
    strength = lines.strength + theta * (lines.energy - 0.75) - lines.ionised * (logg - 2.5) / 3
    strength = 10 ** (strength + np.where(lines.magnesium, mg_h, fe_h))
    damping = lines.damping * 10 ** (0.6 * (logg - 2.5))
    frequency = np.fft.rfftfreq(n_fine, PIXEL / FINE)
    flux = np.empty((len(labels), N_PIXELS))
    for first in range(0, len(labels), block):
        rows = slice(first, first + block)
        opacity = strength[rows] @ core + (strength * damping)[rows] @ wing
        depth = 1 / (1 / opacity + 1 / 0.85)  # Minnaert's formula; no line is deeper than 85 %
        width = SPEED_OF_LIGHT / resolution[rows, None] / 2.3548
        smooth = np.fft.irfft(np.fft.rfft(depth) * np.exp(-2 * (np.pi * width * frequency) ** 2), n_fine)
        flux[rows] = 1 - smooth.reshape(len(smooth), -1, FINE).mean(2)[:, MARGIN:-MARGIN]
    return flux


def draw_labels(n, rng):
    """Red giants: they are cooler the larger they are, and magnesium is enhanced in the metal-poor."""
    logg = rng.uniform(1.3, 3.6, n)
    fe_h = rng.triangular(-1.0, 0.0, 0.3, n)
    teff = 4800 + 330 * (logg - 2.5) - 200 * fe_h + rng.normal(0, 70, n)
    mg_h = fe_h + np.where(rng.random(n) < 0.3, 0.25, 0.02) * (fe_h < -0.1) + rng.normal(0, 0.06, n)
    return np.stack([teff, logg, fe_h, mg_h], axis=1).clip(LABELS.lower, LABELS.upper)


def observe(labels, lines, rng):
    """Counts and errors of stars: wider line-spread functions, wiggles of the throughput, noise, bad pixels."""
    n = len(labels)
    flux = synthesise(lines, labels, rng.normal(17_500, 700, n))
    x = np.linspace(0, 1, N_PIXELS)
    for _ in range(2):
        period, phase = rng.uniform(0.15, 0.5, (n, 1)), rng.uniform(0, 2 * np.pi, (n, 1))
        flux *= 1 + rng.normal(0, 0.01, (n, 1)) * np.sin(2 * np.pi * x / period + phase)
    blaze = 1 - rng.uniform(0.5, 1.5, (n, 1)) * (x - 0.5) ** 2
    counts = 1e4 * rng.uniform(0.5, 2, (n, 1)) * blaze
    sigma = np.exp(rng.uniform(np.log(1 / 150), np.log(1 / 50), (n, 1))) * np.ones(N_PIXELS)
    flux = rng.normal(flux, sigma)
    bad = rng.random(flux.shape) < 0.005
    flux[bad] += rng.exponential(0.5, bad.sum())  # cosmic rays
    return [
        Spectrum(
            flux=c * f * u.ct,
            spectral_axis=GRID.wavelength,
            uncertainty=StdDevUncertainty(c * s * u.ct),
            mask=m,
        )
        for c, f, s, m in zip(counts, flux, sigma, bad, strict=True)
    ]


# -- the files of the training -----------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """How much of everything."""

    n_grid: int = 3000  # synthetic spectra that the emulator learns from
    n_epochs: int = 300
    n_pool: int = 5000
    n_observed: int = 2000
    n_validation: int = 200
    n_test: int = 100
    n_iterations: int = 4000
    n_fits: int = 40  # of validation stars, which tell the model's errors


PAGE = Size()
SMALL = Size(n_grid=300, n_epochs=40, n_pool=300, n_observed=60, n_validation=10, n_test=3, n_iterations=50, n_fits=3)


def write_files(folder, size, seed=0):
    """Write emulator, label pool, continuum pixels and observed spectra: what optical.toml names."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    true_lines = made_up_lines()
    listed_lines = errors_of_the_synthetic(true_lines)

    pool = draw_labels(size.n_pool, rng)  # the label prior: red giants, as the stars are
    QTable(dict(zip(LABELS, pool.T, strict=True))).write(folder / "pool.ecsv", overwrite=True)

    typical = synthesise(listed_lines, pool[:300], RESOLUTION)
    recipe = ContinuumRecipe(GRID, quiet_pixels(typical, GRID))
    QTable({"pixel": np.flatnonzero(recipe.pixels)}).write(folder / "continuum.ecsv", overwrite=True)

    labels = rng.uniform(LABELS.lower, LABELS.upper, (size.n_grid, 4))
    flux = synthesise(listed_lines, labels, RESOLUTION)
    flux /= recipe(flux, np.ones_like(flux))  # the same continuum as that of the observed spectra
    settings = EmulatorSettings(
        hidden=(64, 64), n_components=40, learning_rate=5e-3, n_epochs=size.n_epochs, patience=size.n_epochs
    )
    emulator, history = train_emulator(
        labels, flux, lower=LABELS.lower, upper=LABELS.upper, settings=settings, progress=False
    )
    save_emulator(emulator, LABELS, folder / "emulator.pt")

    for split, n in (("train", size.n_observed), ("val", size.n_validation)):
        stars = observe(draw_labels(n, rng), true_lines, rng)
        write_training_set(
            folder / "observed.h5", stars, grid=GRID, split=split, recipe=recipe, overwrite=True, progress=False
        )
    return min(row["validation"] for row in history)


def write_config(folder, size):
    """Copy optical.toml, with the numbers of ``size``."""
    text = (Path(__file__).parent / "optical.toml").read_text()
    for key, value in (("n_iterations", size.n_iterations), ("n_validation", size.n_fits)):
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
    path = Path(folder) / "optical.toml"
    path.write_text(text)
    return path


# -- what came out -------------------------------------------------------------------------
def evaluate(model, pool, size, seed=1):
    """Fit stars that nothing has seen; truth, and labels and χ² by Eq. 9 and Eq. 11."""
    rng = np.random.default_rng(seed)
    truth = draw_labels(size.n_test, rng)
    stars = observe(truth, made_up_lines(), rng)
    found = {"truth": truth}
    for space in ("emulator", "observed"):
        table = model.fit_many(stars, space=space, progress=False)
        found[space] = np.stack([table[name].value for name in LABELS], axis=1)
        found[f"{space}_error"] = np.stack([table[f"{name}_err"].value for name in LABELS], axis=1)
        found[f"{space}_chi2"] = np.asarray(table["reduced_chi2"])
    half = size.n_test // 2
    if half > 10:  # half of the stars tell the transport, which the other half judges
        found["transport"] = np.full(truth.shape, np.nan)
        for learn, judge in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
            found["transport"][judge] = gaussian_transport(found["emulator"][learn], pool)(found["emulator"][judge])
    found["true_lines"], found["noise"] = with_true_lines(model.recipe, stars, truth)
    return stars, found


def with_true_lines(recipe, stars, truth):
    """What Eq. 9 would give if no line were wrong, and the errors that noise alone leaves; linear, without prior.

    The lines and the mean resolution are those of the observed domain, but of
    the wiggles and the star's own resolution such a fit knows nothing.
    """
    pixels = [to_pixels(star, GRID, recipe=recipe) for star in stars]
    flux, ivar = (np.array([getattr(row, name) for row in pixels]) for name in ("flux", "ivar"))

    def model(labels):
        flux = synthesise(made_up_lines(), labels, 17_500)
        return flux / recipe(flux, np.ones_like(flux))

    steps = np.diag([20, 0.05, 0.02, 0.02])
    slopes = np.stack([(model(truth + step) - model(truth - step)) / (2 * step.max()) for step in steps], axis=2)
    normal = np.einsum("npi,np,npk->nik", slopes, ivar, slopes)
    right = np.einsum("npi,np->ni", slopes, ivar * (flux - model(truth)))
    covariance = np.linalg.inv(normal)
    return truth + np.einsum("nik,nk->ni", covariance, right), np.sqrt(np.einsum("nii->ni", covariance))


def write_table(found, path):
    """Offset and scatter of the labels, as a table for the page."""
    names = {
        "emulator": "Eq. 9",
        "transport": "Eq. 9 + transport",
        "observed": "Eq. 11",
        "true_lines": "Eq. 9, if all lines were right",
    }
    rows = [("fit", "χ²/dof", "Teff [K]", "log g", "[Fe/H]", "[Mg/H]", "68 % coverage")]
    for space, name in names.items():
        difference = found[space] - found["truth"]
        low, middle, high = np.percentile(difference, [15.87, 50, 84.13], axis=0)
        cells = [f"{m:+.3f} / {w:.3f}" for m, w in zip(middle, (high - low) / 2, strict=True)]
        cells[0] = f"{middle[0]:+.0f} / {(high - low)[0] / 2:.0f}"
        chi2 = coverage = ""
        if f"{space}_chi2" in found:
            chi2 = f"{np.median(found[f'{space}_chi2']):.2f}"
            within = (np.abs(difference) < found[f"{space}_error"]).mean(0)
            coverage = " ".join(f"{fraction:.2f}" for fraction in within)
        rows.append((name, chi2, *cells, coverage))
    least = np.median(found["noise"], axis=0)
    rows.append(("noise alone", "1", f"– / {least[0]:.0f}", *(f"– / {width:.3f}" for width in least[1:]), "0.68"))
    title = f"{len(found['truth'])} stars that nothing has seen; labels: median offset / half 16-84 % range"
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'*' if k == 0 else ' '} - {cell}" for k, cell in enumerate(row)]
    Path(path).write_text("\n".join(lines) + "\n")


def plot_domains(path):
    """One star in both domains."""
    star = np.array([[4700.0, 2.4, -0.1, 0.0]])
    lines = made_up_lines()
    listed = errors_of_the_synthetic(lines)
    figure, axes = plt.subplots(2, 1, figsize=(10, 5), sharey=True, layout="constrained")
    x = GRID.wavelength.value
    for axis, (low, high) in zip(axes, ((5160, 5210), (5210, 5260)), strict=True):
        show = (x > low) & (x < high)
        axis.plot(x[show], synthesise(lines, star, 17_500)[0, show], color=OBSERVED, lw=1.2, label="observed domain")
        axis.plot(x[show], synthesise(listed, star, RESOLUTION)[0, show], color=SYNTHETIC, lw=1, label="synthetic")
        changed = (lines.strength != listed.strength) | (lines.wavelength != listed.wavelength)
        for line in lines.wavelength[changed & (lines.wavelength > low) & (lines.wavelength < high)]:
            axis.axvline(line, 0.95, 1, color="0.4", lw=1)
        axis.set(xlim=(low, high), ylabel="flux / continuum")
    axes[0].legend(frameon=False, ncols=2, loc="lower right")
    axes[1].set_xlabel("vacuum wavelength [Å]")
    figure.savefig(path, dpi=90)


def plot_star(model, star, path):
    """Data, and best fits before and after the training."""
    figure, axes = plt.subplots(3, 1, figsize=(10, 6), sharex=True, height_ratios=[2, 1, 1], layout="constrained")
    x = GRID.wavelength.value
    show = (x > 5160) & (x < 5230)
    for space, color, axis, name in (
        ("emulator", SYNTHETIC, axes[1], "Eq. 9"),
        ("observed", OBSERVED, axes[2], "Eq. 11"),
    ):
        result = model.fit(star, space=space)
        if space == "emulator":
            data = np.where(result.spectrum.mask, np.nan, result.spectrum.flux.value)
            axes[0].plot(x[show], data[show], color="0.35", lw=2, alpha=0.5, label="data")
        axes[0].plot(x[show], result.model_spectrum.flux.value[show], color=color, lw=1, label=f"fit, {name}")
        sigma = np.where(result.spectrum.mask, np.nan, result.spectrum.uncertainty.array)
        axis.fill_between(x[show], -sigma[show], sigma[show], color="0.85", lw=0)
        axis.plot(x[show], result.residual.value[show], color=color, lw=0.8)
        axis.set(ylim=(-0.15, 0.15), ylabel=f"data − fit\n({name})")
    axes[0].set(ylabel="normalised flux", xlim=(5160, 5230))
    axes[0].legend(frameon=False, ncols=3, loc="lower right")
    axes[2].set_xlabel("vacuum wavelength [Å]")
    figure.savefig(path, dpi=90)


def plot_labels(found, path):
    """Labels against the truth."""
    figure, axes = plt.subplots(2, 4, figsize=(11, 4.6), height_ratios=[2, 1], sharex="col", layout="constrained")
    units = ("[K]", "", "", "")
    for k, (name, unit) in enumerate(zip(LABELS, units, strict=True)):
        truth = found["truth"][:, k]
        for space, color, label in (("emulator", SYNTHETIC, "Eq. 9"), ("observed", OBSERVED, "Eq. 11")):
            axes[0, k].plot(truth, found[space][:, k], ".", color=color, ms=4, label=label)
            axes[1, k].plot(truth, found[space][:, k] - truth, ".", color=color, ms=4)
        limits = truth.min(), truth.max()
        axes[0, k].plot(limits, limits, color="0.4", lw=0.8)
        axes[1, k].axhline(0, color="0.4", lw=0.8)
        axes[0, k].set_title(f"{name} {unit}", fontsize=10)
        axes[1, k].set_xlabel("truth")
        axes[1, k].locator_params(axis="x", nbins=4)
    axes[0, 0].set_ylabel("fit")
    axes[1, 0].set_ylabel("fit − truth")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=90)


def main(argv=None):
    """Do everything, and write figures and table of the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for files, training and model")
    parser.add_argument("--small", action="store_true", help="as little as possible, and no figures of the page")
    options = parser.parse_args(argv)
    size, docs = (SMALL, None) if options.small else (PAGE, Path(__file__).parents[1])
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"emulator: mean absolute error {write_files(options.work, size):.5f}")
    status = cyclestarnet(["train", str(write_config(options.work, size))])
    if status:
        return status
    model = CalibratedModel.load(options.work / "run" / "optical.safetensors")
    pool = read_labels(options.work / "pool.ecsv", LABELS)
    stars, found = evaluate(model, pool, size)
    np.savez(options.work / "found.npz", **found)
    for space in ("emulator", "observed"):
        print(space, np.median(found[space] - found["truth"], axis=0), np.median(found[f"{space}_chi2"]))
    print(f"{time.process_time():.0f} s of CPU time")
    if docs is not None:
        write_table(found, docs / "tables" / "optical.rst")
        plot_domains(docs / "_static" / "optical_domains.png")
        plot_star(model, stars[0], docs / "_static" / "optical_star.png")
        plot_labels(found, docs / "_static" / "optical_labels.png")
        shutil.copy(options.work / "run" / "progress.png", docs / "_static" / "optical_training.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
