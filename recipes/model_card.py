#!/usr/bin/env python
"""Measure a model of giants on stars of known labels and on real stars: the tables of its card.

::

    python recipes/model_card.py INPUTS WORK --model MODEL

``INPUTS`` and ``WORK`` are those of ``apogee_giants_data.py``; the stars of the split "test" in ``WORK/known.h5``
have labels from rows of the catalogues that no other set draws from. Writes ``docs/tables/card_*.rst``.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from datetime import date
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import torch
from apogee_domains import import_generator
from astropy.nddata import StdDevUncertainty
from list_tables import list_table, processor, write_rst
from scipy.optimize import least_squares

from cyclestarnet import CalibratedModel
from cyclestarnet.io import read
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.evaluation import offset_figures

log = logging.getLogger("model_card")

TABLES = Path(__file__).parents[1] / "docs" / "tables"
ALPHA = ("o_h", "mg_h", "si_h", "s_h", "ca_h", "ti_h")
FOUR = ("teff", "logg", "m_h", "alpha_m")
NOT_ELEMENTS = ("teff", "logg", "fe_h", "vmicro", "vbroad")
GIANT = np.array([[4600.0, 2.4, -0.1, 0.05]])  # teff, logg, m_h, alpha_m: where derivatives are compared
PRETTY = {"teff": "Teff [K]", "logg": "log g", "vmicro": "vmicro [km/s]", "vbroad": "vbroad [km/s]"}
HEADS = PRETTY | {"fe_h": "[Fe/H]", "mg_h": "[Mg/H]", "m_h": "[M/H]", "alpha_m": "[α/M]"}
FITS = {
    "Eq. 9": {"space": "emulator"},
    "Eq. 9, no prior": {"space": "emulator", "prior": None},
    "Eq. 10": {"space": "synthetic"},
    "Eq. 11": {},
    "Eq. 11, no prior": {"prior": None},
    "Eq. 11 as printed": {"prior": None, "model_scatter": False},
}
REAL = {
    "2M00242666+5341178, visit": "apVisit-r13-9518-57729-104.fits",
    "2M00005143+5615568": "apStar-r6-2M00005143+5615568.fits",
    "its visit 55874": "apVisit-r6-5094-55874-088.fits",
    "its visit 56643": "apVisit-r6-5094-56643-088.fits",
    "its visit 56651": "apVisit-r6-5094-56651-082.fits",
    "2M17335483-2753043, M giant": "apStar-dr17-2M17335483-2753043.fits",
    "2M19485057+5005279, K dwarf": "apStar-dr17-2M19485057+5005279.fits",
}


# -- the stars ---------------------------------------------------------------------
class TestStars:
    """Observed-like stars of known labels, of the split "test" of a file."""

    def __init__(self, path, grid, n):
        with h5py.File(path) as file:
            self.flux, self.sigma, good = (
                file[f"{key} test"][:n].astype(float) for key in ("spectra", "spectra_err", "spectra_msk")
            )
            self.known = tuple(str(name) for name in file.attrs["label_names"])
            self.labels = file["labels test"][:n].astype(float)
        self.good = good > 0
        self.stars = [
            Spectrum(flux=f * u.one, spectral_axis=grid.wavelength, uncertainty=StdDevUncertainty(s), mask=~g)
            for f, s, g in zip(self.flux, self.sigma, self.good, strict=True)
        ]


class Truth(TestStars):
    """Giants, their labels, and what is usual at their four labels."""

    card, names = "card", FOUR

    def __init__(self, inputs, work, model, n):
        super().__init__(work / "known.h5", model.grid, n)
        self.generator = import_generator(inputs)
        self.elements = self.generator.Elements()
        self.labels = self.labels[:, [self.known.index(name) for name in model.labels]]
        self.known = (*FOUR, *model.labels)
        column = self.labels[:, [model.labels.index(name) for name in ("teff", "logg", "fe_h")]]
        alpha = self.labels[:, [model.labels.index(name) for name in ALPHA]].mean(1)
        self.four = np.column_stack([column, alpha - column[:, 2]])
        self.usual = self.elements.usual(self.four)

    def of(self, model, name):
        """True values of a label or combination."""
        return self.four[:, FOUR.index(name)] if name in FOUR[2:] else self.labels[:, model.labels.index(name)]


def fit(model, truth, part, workers, **options):
    """Table of fits of some stars, and CPU seconds per star."""
    begin = time.perf_counter()
    table = model.fit_many(truth.stars[part], workers=workers, progress=False, **options)
    return table, (time.perf_counter() - begin) * workers / len(table)


def about_run(workers):
    """When and on what tables are made."""
    return f"{date.today().isoformat()}, processes: {workers}, {processor()}, torch {torch.__version__}"


def values(column):
    """Values of a column of a table, without its unit."""
    return np.asarray(getattr(column, "value", column), dtype=float)


def figures(model, truth, table, name, rows=slice(None)):
    """What is found of a label: offsets, errors, coverage."""
    offset = values(table[name])[rows] - truth.of(model, name)[: len(table)][rows]
    return offset_figures(offset, values(table[f"{name}_err"])[rows])


# -- tables -------------------------------------------------------------------------
def pair(name, found):
    """Bias / scatter of a label."""
    return (
        f"{found['bias']:+.0f} / {found['scatter']:.0f}"
        if name == "teff"
        else f"{found['bias']:+.3f} / {found['scatter']:.3f}"
    )


def write_fits(model, truth, found, about):
    """The ways to fit, on the same stars."""
    rows = [("fit", "stars", "χ²/dof", *(HEADS[n] for n in truth.names), "68 % coverage", "flagged", "s per star")]
    for name, (table, seconds) in found.items():
        four = [figures(model, truth, table, label) for label in truth.names]
        cells = [pair(label, f) for label, f in zip(truth.names, four, strict=True)]
        cover = " ".join(f"{f['cover_68']:.2f}" for f in four)
        flagged = f"{np.mean(values(table['flags']) > 0):.0%}"
        rows.append(
            (
                name,
                len(table),
                f"{np.nanmedian(values(table['reduced_chi2'])):.2f}",
                *cells,
                cover,
                flagged,
                f"{seconds:.2f}",
            )
        )
    title = f"Held-out stars: median offset / half 16-84 % range, and coverage of the four; {about}"
    write_rst(TABLES / f"{truth.card}_fits.rst", list_table(title, rows))


def derivatives(model, truth):
    """Correlation and slope of derivatives at a giant against the simulation's, {label: (observed, emulator)}."""
    labels, n = truth.elements.usual(GIANT), model.grid.n_pixels
    at = model.labels.to_quantities(labels[0].clip(model.labels.lower, model.labels.upper))
    ours, plain = (model.derivative_spectra(at, domain=domain) for domain in ("observed", "synthetic"))
    response = truth.elements.response
    base = truth.generator.CannonModel()(GIANT)[0, :n] / response(labels)[0, :n]
    found = {}
    for k, name in enumerate(model.labels):
        if name not in NOT_ELEMENTS:
            step = 0.05 * (np.arange(labels.shape[1]) == k)
            true = base * (response(labels + step) - response(labels - step))[0, :n] / 0.1
            slopes = ours[name].value, plain[name].value
            found[name] = [(np.corrcoef(s, true)[0, 1], (s @ true) / (true @ true)) for s in slopes]
    return found


def write_labels(model, truth, table, about):
    """Each label: offsets, errors, how much of a star's own abundance is found, and derivatives."""
    slopes = derivatives(model, truth)
    dominated = [set(text.split(",")) for text in table["prior_dominated"]]
    header = ("label", "bias / scatter", "median error", "68 %", "95 %", "own scatter", "recovered slope, r",
              "mostly the prior", "derivatives: r, slope", "of the emulator")  # fmt: skip
    rows = [header]
    for k, name in enumerate((*model.labels, "m_h", "alpha_m")):
        f = figures(model, truth, table, name)
        error = f"{f['error']:.0f}" if name == "teff" else f"{f['error']:.3f}"
        own = recovered = share = ours = plain = ""
        if name in slopes:
            deviation = (truth.labels - truth.usual)[:, k]
            got = values(table[name]) - truth.usual[:, k]
            fine = np.isfinite(got)
            slope, r = np.polyfit(deviation[fine], got[fine], 1)[0], np.corrcoef(deviation[fine], got[fine])[0, 1]
            low, high = np.percentile(deviation, [16, 84])
            own, recovered = f"{(high - low) / 2:.3f}", f"{slope:.2f}, {r:.2f}"
            ours, plain = (f"{r:.2f}, {s:.2f}" for r, s in slopes[name])
        if name in model.labels:
            share = f"{np.mean([name in names for names in dominated]):.0%}"
        rows.append((PRETTY.get(name, name), pair(name, f), error, f"{f['cover_68']:.2f}", f"{f['cover_95']:.2f}", own,
                     recovered, share, ours, plain))  # fmt: skip
    title = f"Labels of {len(table)} held-out stars (Eq. 11), and derivatives at a giant of 4600 K; {about}"
    write_rst(TABLES / "card_labels.rst", list_table(title, rows))


def write_edges(model, truth, table, about):
    """Coverage in the outer tenths of three labels, and the least of all tenths."""
    rows = [("stars", *(HEADS[n] for n in truth.names), "68 % coverage of the four", "least of all labels")]
    for sorting in truth.names[:3]:
        label = HEADS[sorting].removesuffix(" [K]")
        order = np.argsort(truth.of(model, sorting)[: len(table)])
        for text, part in (("lowest", order[: len(order) // 10]), ("highest", order[-(len(order) // 10) :])):
            found = {name: figures(model, truth, table, name, part) for name in truth.known}
            least = min(found, key=lambda name: found[name]["cover_68"])
            rows.append((f"{text} tenth of {label}", *(pair(name, found[name]) for name in truth.names),
                         " ".join(f"{found[name]['cover_68']:.2f}" for name in truth.names),
                         f"{found[least]['cover_68']:.2f} ({least})"))  # fmt: skip
    write_rst(TABLES / f"{truth.card}_edges.rst", list_table(f"Held-out stars at the edges (Eq. 11); {about}", rows))


def write_networks(model, truth, labels):
    """How well the autoencoders reproduce spectra; the synthetic ones are of ``labels`` (n, 20)."""
    pull = ((truth.flux - model.translator.reconstruct_obs(np.where(truth.good, truth.flux, 1.0)))
            / np.maximum(truth.sigma, model.noise.sigma_floor))[truth.good]  # fmt: skip
    synthetic = EmulatorPredictor(model.emulator).flux(labels.clip(model.labels.lower, model.labels.upper))
    error = model.translator.reconstruct_synth(synthetic) - synthetic
    low, high = np.percentile(error, [16, 84])
    width = np.diff(np.percentile(pull, [16, 84]))[0] / 2
    write_rst(
        TABLES / f"{truth.card}_networks.rst",
        f"Autoencoder of the observed domain: mean χ² {(pull**2).mean():.2f}, half-width {width:.2f} σ; of the "
        f"synthetic domain: bias {np.median(error):.3%}, scatter {(high - low) / 2:.3%} of the continuum.\n",
    )


# -- real stars -----------------------------------------------------------------------
def cannon_fit(truth, model, result):
    """Labels that the Cannon model of real giants gives the same normalised spectrum, same recipe on both sides."""
    cannon, n = truth.generator.CannonModel(), model.grid.n_pixels
    flux, sigma = result.spectrum.flux.value, result.spectrum.uncertainty.array
    good = ~result.spectrum.mask
    weight = np.where(good, 1 / np.hypot(np.where(good, sigma, 1.0), cannon.scatter[:n]), 0.0)
    ivar = np.where(good, 1 / np.where(good, sigma, 1.0) ** 2, 0.0)
    coefficients = cannon.coefficients[:, :n].astype(float)  # finite differences of single precision are noise
    steps = np.array([100.0, 0.3, 0.1, 0.1])

    def residual(x):
        spectrum = cannon.design(cannon.baseline + x * steps)[0] @ coefficients
        return (spectrum / model.recipe(spectrum, ivar) - flux) * weight

    return cannon.baseline + least_squares(residual, np.zeros(4)).x * steps


def label_cells(result, names):
    """Labels of a fit with their errors."""
    cells = []
    for name in names:
        digits = 0 if name == "teff" else 2
        cells.append(f"{result.labels[name].value:.{digits}f} ± {result.uncertainties[name].value:.{digits}f}")
    return cells


def rows_of_star(star, spectrum, fits, names):
    """Rows of the table of real stars: fits {text: (model, options)} of a spectrum; the last result."""
    rows, result = [], None
    for text, (model, options) in fits.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = model.fit(spectrum, **options)
        chi2 = f"{result.reduced_chi2:.2f}"
        rows.append((star, text, *label_cells(result, names), chi2, ", ".join(result.flags.names)))
    return rows, result


def write_real(model, truth, inputs, about):
    """Real stars in two spaces, beside the Cannon's labels."""
    rows = [("star", "fit", *(HEADS[n] for n in FOUR), "χ²/dof", "flags")]
    fits = {"Eq. 9": (model, {"space": "emulator"}), "Eq. 11": (model, {})}
    for star, name in REAL.items():
        found, result = rows_of_star(star, read(inputs / "data" / "apogee" / "real" / name), fits, FOUR)
        teff, *rest = cannon_fit(truth, model, result)
        rows += [*found, (star, "Cannon", f"{teff:.0f}", *(f"{value:.2f}" for value in rest), "", "")]
    title = f"Real stars; Cannon: a data-driven model of real giants, fitted to the same pixels; {about}"
    write_rst(TABLES / "card_real.rst", list_table(title, rows))


# -- models side by side ----------------------------------------------------------------
STRONG = ("c_h", "n_h", "o_h", "mg_h", "al_h", "si_h", "ca_h", "ti_h", "ni_h")
N_COMPARED = 300


def write_comparison(models, inputs, work, workers, about):
    """Several models on the same stars, a row for each."""
    rows = [("model", "χ²/dof", "Teff [K]", "log g", "[M/H]", "[α/M]", "68 % coverage of the four",
             "least of all labels", "largest bias of an abundance", "recovered slope: strong / weak")]  # fmt: skip
    for name, model in models.items():
        truth = Truth(inputs, work, model, N_COMPARED)
        table, _ = fit(model, truth, slice(None), workers)
        found = {label: figures(model, truth, table, label) for label in (*FOUR, *model.labels)}
        slopes = {}
        for k, label in enumerate(model.labels):
            own, got = (truth.labels - truth.usual)[:, k], values(table[label]) - truth.usual[:, k]
            fine = np.isfinite(got)  # some stars may not be fitted
            slopes[label] = np.polyfit(own[fine], got[fine], 1)[0] if label not in NOT_ELEMENTS else np.nan
        weak = [label for label in model.labels if label not in (*STRONG, *NOT_ELEMENTS)]
        abundances = [label for label in model.labels if label.endswith("_h")]
        bias, least = (
            min(abundances, key=lambda n: -abs(found[n]["bias"])),
            min(found, key=lambda n: found[n]["cover_68"]),
        )
        rows.append((name, f"{np.nanmedian(values(table['reduced_chi2'])):.2f}", *(pair(n, found[n]) for n in FOUR),
                     " ".join(f"{found[n]['cover_68']:.2f}" for n in FOUR), f"{found[least]['cover_68']:.2f} ({least})",
                     f"{found[bias]['bias']:+.3f} ({bias})",
                     " / ".join(f"{np.mean([slopes[n] for n in part]):.2f}" for part in (STRONG, weak))))  # fmt: skip
    title = f"Models on the same {N_COMPARED} held-out stars (Eq. 11): median offset / half 16-84 % range; {about}"
    write_rst(TABLES / "card_models.rst", list_table(title, rows))


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("work", type=Path, help="folder of apogee_giants_data.py")
    parser.add_argument("--model", type=Path, help="file of a model; default: the embedded one")
    parser.add_argument("--stars", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2, help="processes of the fits")
    parser.add_argument("--beside", nargs="+", metavar="NAME=FILE", help="only compare these models")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    about = about_run(options.workers)
    if options.beside:
        models = {name: CalibratedModel.load(path) for name, path in (text.split("=", 1) for text in options.beside)}
        write_comparison(models, options.inputs, options.work, options.workers, about)
        return
    model = CalibratedModel.from_pretrained() if options.model is None else CalibratedModel.load(options.model)
    truth = Truth(options.inputs, options.work, model, options.stars)
    found = {}
    for name, arguments in FITS.items():
        part = slice(None) if name == "Eq. 11" else slice(options.stars // 5)  # the others are there for comparison
        found[name] = fit(model, truth, part, options.workers, **arguments)
        log.info("%s: %.2f s per star", name, found[name][1])
    table = found["Eq. 11"][0]
    write_fits(model, truth, found, about)
    write_labels(model, truth, table, about)
    write_edges(model, truth, table, about)
    write_networks(model, truth, truth.labels)
    write_real(model, truth, options.inputs, about)


if __name__ == "__main__":
    main()
