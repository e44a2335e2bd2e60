#!/usr/bin/env python
"""Measure a model of dwarfs on stars of known labels and on real stars: the tables of its card.

::

    python recipes/dwarfs_card.py INPUTS WORK --model MODEL

``INPUTS`` and ``WORK`` are those of ``apogee_dwarfs_data.py``; the stars of the split "test" in ``WORK/known.h5`` have
metallicities from rows of the catalogue that no other set draws from, and four labels are known of them.
Writes ``docs/tables/card_dwarfs_*.rst``.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import astropy.units as u
import numpy as np
import torch
from apogee_domains import TEST_ROWS, import_generator, normalised, write_stars
from apogee_dwarfs_data import LABELS, draw_dwarfs, dwarfs
from apogee_giants_data import giants
from astropy.nddata import StdDevUncertainty
from list_tables import list_table, write_rst
from model_card import (
    FITS,
    HEADS,
    TABLES,
    TestStars,
    about_run,
    figures,
    fit,
    pair,
    rows_of_star,
    values,
    write_edges,
    write_fits,
    write_networks,
)
from scipy.optimize import least_squares

from cyclestarnet import CalibratedModel, FitFlag
from cyclestarnet.grid import apogee_grid
from cyclestarnet.io import read
from cyclestarnet.spectra import Spectrum

log = logging.getLogger("dwarfs_card")

N_OTHERS = 100  # giants that the model of dwarfs must flag, and dwarfs for that of giants
PLACES = {
    "4500 K": (4500.0, 4.63),
    "5200 K": (5200.0, 4.54),
    "5900 K": (5900.0, 4.35),
}  # Teff, log g of the derivatives
FE_H, MG_FE, VBROAD = -0.1, 0.05, 5.0  # there
ALPHA = ("o_h", "mg_h", "si_h", "s_h", "ca_h", "ti_h")
K_DWARF = "real/apStar-dr17-2M19485057+5005279.fits"
ARTEFACT = [(15233.0, 15239.0) * u.AA]  # of the K dwarf, 50 % deep and not flagged
REAL = {
    "2M19485057+5005279, K dwarf": (K_DWARF, None),
    "the same, 15233-15239 Å ignored": (K_DWARF, ARTEFACT),
    "2M13012770+5754582": ("dwarfs/spectrum_ap_id_2M13012770+5754582_.npz", None),
    "2M15141711+0044474, M dwarf": ("real/apStar-r6-2M15141711+0044474.fits", None),
    "2M00242666+5341178, K giant": ("real/apVisit-r13-9518-57729-104.fits", None),
    "2M00005143+5615568, K giant": ("real/apStar-r6-2M00005143+5615568.fits", None),
}


# -- the stars ---------------------------------------------------------------------
class Dwarfs(TestStars):
    """Dwarfs, and the network of real ones that they come from."""

    card, names = "card_dwarfs", LABELS

    def __init__(self, inputs, work, model, n):
        super().__init__(work / "known.h5", model.grid, n)
        self.generator = import_generator(inputs)
        self.network = dwarfs(self.generator, inputs).base

    def of(self, _, name):
        """True values of a label."""
        return self.labels[:, self.known.index(name)]


def read_real(path):
    """A real star, also of the file of binspec, whose pixels are all of APOGEE's."""
    if path.suffix == ".fits":
        return read(path)
    with np.load(path) as data:
        flux, sigma = data["spectrum"].astype(float), data["spec_err"].astype(float)
    return Spectrum(
        flux=flux * u.one, spectral_axis=apogee_grid(len(flux)).wavelength, uncertainty=StdDevUncertainty(sigma)
    )


# -- tables -------------------------------------------------------------------------
def write_labels(model, truth, table, about):
    """What is found of the labels whose truth is known."""
    rows = [("label", "bias / scatter", "median error", "68 %", "95 %", "scatter of the stars")]
    for name in truth.names:
        f, digits = figures(model, truth, table, name), 0 if name == "teff" else 3
        low, high = np.percentile(truth.of(model, name), [16, 84])
        rows.append((HEADS[name], pair(name, f), f"{f['error']:.{digits}f}", f"{f['cover_68']:.2f}",
                     f"{f['cover_95']:.2f}", f"{(high - low) / 2:.{digits}f}"))  # fmt: skip
    write_rst(
        TABLES / f"{truth.card}_labels.rst",
        list_table(f"Labels of {len(table)} held-out dwarfs (Eq. 11); {about}", rows),
    )


def directions(model):
    """Ways to change a star that the network of real dwarfs knows, as weights of the model's labels.

    With [Fe/H] of the network change all elements of its real stars, and with [Mg/Fe] those that go with magnesium.
    """
    elements = [name for name in model.labels if name.endswith("_h")]
    return {
        "Teff": ({"teff": 1.0}, 0),
        "log g": ({"logg": 1.0}, 1),
        "[Fe/H] of the network: all abundances": (dict.fromkeys(elements, 1.0), 2),
        "[Mg/Fe] of the network: all α elements": (dict.fromkeys(ALPHA, 1.0), 3),
        "[Mg/Fe] of the network: Mg alone": ({"mg_h": 1.0}, 3),
    }


def write_derivatives(model, truth, about):
    """Correlation and slope of derivatives against those of the network of real dwarfs."""
    rows = [("derivative", "star", "model: r, slope", "untranslated emulator: r, slope")]
    steps = np.array([20.0, 0.05, 0.05, 0.05])
    for place, (teff, logg) in PLACES.items():
        labels = dict.fromkeys(model.labels, FE_H) | dict.fromkeys(ALPHA, FE_H + MG_FE)
        labels |= {"teff": teff, "logg": logg, "vmicro": 1.0, "vbroad": VBROAD}
        at = model.labels.to_quantities(np.array([labels[name] for name in model.labels]))
        slopes = [model.derivative_spectra(at, domain=domain) for domain in ("observed", "synthetic")]
        for text, (weights, k) in directions(model).items():
            change = steps[k] * (np.arange(5) == k)
            centre = np.array([teff, logg, FE_H, MG_FE, VBROAD + 1.5])
            high, low = normalised(truth.network(np.stack([centre + change, centre - change])), model.recipe)
            true = (high - low).astype(float) / (2 * steps[k])
            ours = [sum(weight * own[name].value for name, weight in weights.items()) for own in slopes]
            cells = [f"{np.corrcoef(s, true)[0, 1]:.2f}, {(s @ true) / (true @ true):.2f}" for s in ours]
            rows.append((text, place, *cells))
    title = f"Derivatives against those of the network of real dwarfs, both normalised by our recipe; {about}"
    write_rst(TABLES / f"{truth.card}_derivatives.rst", list_table(title, rows))


def network_fit(truth, model, result):
    """Labels that the network of real dwarfs gives the same normalised spectrum, same recipe on both sides."""
    n, network = model.grid.n_pixels, truth.network
    good = ~result.spectrum.mask
    flux, sigma = (np.where(good, x, 1.0) for x in (result.spectrum.flux.value, result.spectrum.uncertainty.array))
    ivar = good / sigma**2
    good &= np.isfinite(model.recipe(np.ones(n), ivar))  # a chip with few good pixels has no continuum
    weight = 1 / np.hypot(sigma, network.scatter[:n])
    span = network.high - network.low

    def residual(x):
        spectrum = network((network.low + x * span)[None])[0, :n].astype(float)
        return np.where(good, (spectrum / model.recipe(spectrum, ivar) - flux) * weight, 0.0)

    starts = ([0.2, 0.6, 0.6, 0.4, 0.15], [0.5, 0.5, 0.6, 0.4, 0.15])
    fits = [least_squares(residual, x, bounds=(0, 1), diff_step=1e-3) for x in starts]
    best = min(fits, key=lambda found: found.cost)
    teff, logg, fe_h, mg_fe, _ = network.low + best.x * span
    at_edge = np.any((best.x[:4] < 0.01) | (best.x[:4] > 0.99))
    return (
        f"{teff:.0f}",
        *(f"{x:.2f}" for x in (logg, fe_h, fe_h + mg_fe)),
        "",
        "at its edge" if at_edge else "",
    )


def write_real(model, other, truth, inputs, about):
    """Real stars with the models of dwarfs and of giants, beside the labels of the network of real dwarfs."""
    rows = [("star", "fit", *(HEADS[name] for name in truth.names), "χ²/dof", "flags")]
    for star, (path, ignore) in REAL.items():
        fits = {
            f"Eq. 9, {model.name}": (model, {"space": "emulator", "ignore": ignore}),
            f"Eq. 11, {other.name}": (other, {"ignore": ignore}),
            f"Eq. 11, {model.name}": (model, {"ignore": ignore}),
        }
        found, result = rows_of_star(star, read_real(inputs / "data" / "apogee" / path), fits, truth.names)
        rows += [*found, (star, "network of real dwarfs", *network_fit(truth, model, result))]
    title = f"Real stars; the network of binspec is fitted to the same pixels; {about}"
    write_rst(TABLES / f"{truth.card}_real.rst", list_table(title, rows))


def write_flags(model, other, truth, work, workers, about):
    """Each model on its own stars and on the other's."""
    path = work / "giants.h5"
    if not path.exists():
        stars = giants(truth.generator)
        write_stars(truth.generator, stars, path, {"test": (N_OTHERS, TEST_ROWS)}, [0, 2], labelled=True)
    rows = [("stars", "model", "χ²/dof", "flagged", "flags of more than 5 %")]
    for text, stars in (("dwarfs", truth), ("giants", TestStars(path, model.grid, N_OTHERS))):
        for own in (model, other):
            table, _ = fit(own, stars, slice(N_OTHERS), workers)
            flags = values(table["flags"]).astype(int)
            shares = {flag.name: np.mean(flags & flag.value > 0) for flag in FitFlag}
            often = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share > 0.05)
            chi2 = np.nanmedian(values(table["reduced_chi2"]))
            rows.append((text, own.name, f"{chi2:.2f}", f"{np.mean(flags > 0):.0%}", often))
    title = f"{N_OTHERS} simulated dwarfs and giants that training has not seen, with both models; {about}"
    write_rst(TABLES / f"{truth.card}_flags.rst", list_table(title, rows))


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("work", type=Path, help="folder of apogee_dwarfs_data.py")
    parser.add_argument("--model", type=Path, help="file of a model; default: the embedded one")
    parser.add_argument("--stars", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1, help="processes of the fits")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    about = about_run(options.workers)
    name = "apogee-dwarfs"
    model = CalibratedModel.from_pretrained(name) if options.model is None else CalibratedModel.load(options.model)
    other = CalibratedModel.from_pretrained("apogee-giants")
    truth = Dwarfs(options.inputs, options.work, model, options.stars)
    write_real(model, other, truth, options.inputs, about)
    write_derivatives(model, truth, about)
    write_flags(model, other, truth, options.work, options.workers, about)
    found = {}
    for text, arguments in FITS.items():
        part = slice(None) if text == "Eq. 11" else slice(options.stars // 5)
        found[text] = fit(model, truth, part, options.workers, **arguments)
        log.info("%s: %.2f s per star", text, found[text][1])
    write_fits(model, truth, found, about)
    write_labels(model, truth, found["Eq. 11"][0], about)
    write_edges(model, truth, found["Eq. 11"][0], about)
    write_networks(model, truth, draw_dwarfs(truth.generator, np.random.default_rng([0, 3]), 500, TEST_ROWS))


if __name__ == "__main__":
    main()
