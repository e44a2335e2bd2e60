"""Make the figures of these pages and the tables of the models' provenance: ``python docs/figures.py [NAME ...]``.

The figures rest on the embedded model and the spectrum that ships with it, so
they must be made again when the model is replaced. Names: see ``FIGURES``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import astropy.units as u
import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt

from cyclestarnet import CalibratedModel, datasets
from cyclestarnet.plotting.diagrams import Diagram

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
from list_tables import list_table, write_rst

matplotlib.use("Agg")
HERE = Path(__file__).parent
STATIC = HERE / "_static"
MODEL, DWARFS = "apogee-giants", "apogee-dwarfs"
SYNTHETIC, OBSERVED, COMMON, GREY = "C0", "C3", "C2", "0.35"


@cache
def model():
    return CalibratedModel.from_pretrained(MODEL)


@cache
def k_giant():
    return datasets.k_giant()


@cache
def fitted(space="observed"):
    return model().fit(k_giant(), space=space)


# -- plots --------------------------------------------------------------------
def k_giant_fit():
    """The K giant and its fit, the middle of each chip."""
    figure, axes = plt.subplots(6, 1, figsize=(10, 7.6), height_ratios=[3, 1] * 3, layout="constrained")
    for k, (start, stop) in enumerate(model().grid.chips):
        middle = model().grid.wavelength[(start + stop) // 2]
        fitted().plot(axes[2 * k : 2 * k + 2], window=(middle - 60 * u.AA, middle + 60 * u.AA))
    for axis in axes[2:]:
        axis.set_title("", loc="left")
        if axis.get_legend():
            axis.get_legend().remove()
    axes[0].set_title(axes[0].get_title(loc="left"), loc="left", fontsize=9)
    for axis in axes[:-1]:
        axis.set_xlabel("")
    figure.savefig(STATIC / "k_giant.png", dpi=90)


def gap():
    """Best fits of the emulator alone (Eq. 9) and of the translated emulator (Eq. 11), and their residuals."""
    low, high = 15490.0, 15560.0
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(11, 5.6), sharex=True, height_ratios=[2, 1, 1], layout="constrained"
    )
    wavelength = model().grid.wavelength.value
    show = (wavelength > low) & (wavelength < high)
    data = np.where(fitted().spectrum.mask, np.nan, fitted().spectrum.flux.value)
    top.plot(wavelength[show], data[show], color=GREY, lw=2.2, alpha=0.5, label="data")
    spaces = (("emulator", SYNTHETIC, middle, "Eq. 9"), ("observed", OBSERVED, bottom, "Eq. 11"))
    for space, colour, axis, equation in spaces:
        result = fitted(space)
        text = {"emulator": "emulator alone", "observed": "emulator, translated"}[space] + f" ({equation})"
        top.plot(wavelength[show], result.model_spectrum.flux.value[show], color=colour, lw=1, label=text)
        axis.axhline(0, color="0.8", lw=0.8)
        axis.plot(wavelength[show], result.residual.value[show], color=colour, lw=1)
        axis.set(ylim=(-0.12, 0.12), ylabel=f"data − model\n({equation})")
    top.set(xlim=(low, high), ylim=(0.69, 1.05), ylabel="normalised flux")
    top.legend(frameon=False, ncols=3, loc="lower left")
    bottom.set_xlabel("vacuum wavelength [Å]")
    figure.savefig(STATIC / "gap.png", dpi=90)


def translation():
    """The K giant translated to the synthetic domain, beside the emulator at its labels."""
    low, high = 15490.0, 15560.0
    figure, axis = plt.subplots(figsize=(11, 3.4), layout="constrained")
    labels = fitted().labels
    data = fitted().spectrum
    translated = model().to_synthetic(k_giant())
    spectra = {
        "data": np.where(data.mask, np.nan, data.flux.value),
        "data, translated to synthetic": np.where(translated.mask, np.nan, translated.flux.value),
        "emulator at the labels of the fit": model().predict(labels, domain="synthetic").flux.value,
    }
    wavelength = model().grid.wavelength.value
    show = (wavelength > low) & (wavelength < high)
    styles = ((GREY, 2.2, "-", 0.5), (COMMON, 1.2, "-", 1), (SYNTHETIC, 1.2, "--", 1))
    for (text, flux), (colour, width, line, alpha) in zip(spectra.items(), styles, strict=True):
        axis.plot(wavelength[show], flux[show], color=colour, lw=width, ls=line, alpha=alpha, label=text)
    axis.set(xlim=(low, high), ylim=(0.69, 1.05), ylabel="normalised flux", xlabel="vacuum wavelength [Å]")
    axis.legend(frameon=False, ncols=3, loc="lower left")
    figure.savefig(STATIC / "translation.png", dpi=90)


def derivatives():
    """Derivative spectra of magnesium in both domains (Eq. 8)."""
    low, high = 15735.0, 15780.0
    figure, axis = plt.subplots(figsize=(11, 3.4), layout="constrained")
    labels = fitted().labels
    for domain, colour in (("synthetic", SYNTHETIC), ("observed", OBSERVED)):
        like = k_giant() if domain == "observed" else None
        slope = model().derivative_spectrum(labels, "mg_h", domain=domain, like=like)
        wavelength = model().grid.wavelength.value
        show = (wavelength > low) & (wavelength < high)
        axis.plot(wavelength[show], slope[show].value, color=colour, lw=1.2, label=domain)
    axis.set(xlim=(low, high), ylabel="∂ flux / ∂ [Mg/H]  [1/dex]", xlabel="vacuum wavelength [Å]")
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(STATIC / "derivatives.png", dpi=90)


# -- diagrams -----------------------------------------------------------------
def diagram(width, height):
    """An empty diagram of some inches."""
    return Diagram(plt.figure(figsize=(width, height)).add_axes((0, 0, 1, 1)), width, height)


def save(d, name):
    # No date and fixed identifiers: the same figure is the same file.
    with plt.rc_context({"svg.hashsalt": "cyclestarnet", "svg.fonttype": "path"}):
        d.ax.figure.savefig(STATIC / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    plt.close(d.ax.figure)


def networks():
    """The networks of both domains, with the way of a fit by Eq. 11 in bold."""
    d = diagram(11.6, 4.5)
    top, shared, bottom, split = 3.75, 2.75, 1.75, 0.75
    columns = (0.85, 2.25, 3.65, 5.05, 6.45, 7.85, 9.25, 10.75)
    d.box("labels", columns[0], top, "labels", SYNTHETIC, data=True)
    d.box("payne", columns[1], top, "emulator", SYNTHETIC)
    d.box("x_s", columns[2], top, "synthetic\nspectrum", SYNTHETIC, data=True)
    d.box("x_o", columns[2], bottom, "observed\nspectrum", OBSERVED, data=True)
    d.box("e_s", columns[3], top, r"encoder $E_\mathrm{synth}$", SYNTHETIC, width=1.25)
    d.box("e_o", columns[3], bottom, r"encoder $E_\mathrm{obs}$", OBSERVED, width=1.25)
    d.box("e_sh", columns[4], shared, "encoder\n" r"$E_\mathrm{sh}$", COMMON, width=0.95)
    d.box("e_sp", columns[4], split, "encoder\n" r"$E_\mathrm{sp}$", OBSERVED, width=0.95)
    d.box("z_sh", columns[5], shared, "shared latent\n" r"$z_\mathrm{sh}$", COMMON, data=True)
    d.box("z_sp", columns[5], split, "split latent\n" r"$z_\mathrm{sp}$", OBSERVED, data=True)
    d.box("d_sh", columns[6], shared, "decoder\n" r"$D_\mathrm{sh}$", COMMON, width=0.95)
    d.box("d_sp", columns[6], split, "decoder\n" r"$D_\mathrm{sp}$", OBSERVED, width=0.95)
    d.box("d_s", columns[7], top, "decoder " r"$D_\mathrm{synth}$" "\n→ synthetic", SYNTHETIC, width=1.4)
    d.box("d_o", columns[7], bottom, "decoder " r"$D_\mathrm{obs}$" "\n→ observed", OBSERVED, width=1.4)
    bold = {"color": "black", "width": 2.4}
    for start, stop in (("labels", "payne"), ("payne", "x_s"), ("x_s", "e_s")):
        d.arrow(start, stop, **bold)
    for start, stop in (("e_s", "e_sh"), ("e_sh", "z_sh"), ("z_sh", "d_sh"), ("d_sh", "d_o")):
        d.arrow(start, stop, **bold)
    for start, stop in (("x_o", "e_o"), ("e_o", "e_sp"), ("e_sp", "z_sp"), ("z_sp", "d_sp"), ("d_sp", "d_o")):
        d.arrow(start, stop, color="black", width=1.6, line="--")
    d.arrow("e_o", "e_sh")
    d.arrow("d_sh", "d_s")
    d.note(0.27, 2.35, "bold: a fit in the observed domain (Eq. 11)", ha="left")
    d.note(0.27, 2.1, "dashed: the star's own split latent", ha="left")
    d.note(0.27, 1.2, "rounded: data;  filled: networks", ha="left")
    d.note(0.27, 0.95, "blue: synthetic domain;  red: observed;", ha="left")
    d.note(0.27, 0.7, "green: both domains", ha="left")
    save(d, "networks")


def data_flow():
    """The way of a star through the package."""
    d = diagram(11.6, 2.7)
    row, above = 0.95, 2.05
    columns = (0.85, 2.75, 4.65, 6.55, 8.45, 10.55)
    texts = ("FITS file", "Spectrum", "Pixels", "Objective", "optimum", "FitResult")
    for x, text in zip(columns, texts, strict=True):
        d.box(text, x, row, text, GREY, data=True, width=1.15)
    d.box("Predictor", columns[3], above, "Predictor\nlabels → flux, ∂ flux", SYNTHETIC, width=1.75)
    d.box("prior", columns[4] + 0.1, above, "prior,\nbounds, fixed", SYNTHETIC, data=True, width=1.3)
    d.box(
        "weights",
        columns[1] + 0.95,
        above,
        "model file: emulator,\ntranslation network",
        SYNTHETIC,
        data=True,
        width=2.0,
    )
    rooms = ("io", "spectra", "pipeline", "fitting", "pipeline")
    for start, stop, room in zip(texts[:-1], texts[1:], rooms, strict=True):
        d.arrow(start, stop, text=room)
    d.arrow("weights", "Predictor", text="networks")
    d.arrow("Predictor", "Objective", shift=-0.1)
    d.arrow("prior", "Objective", sides="down", shift=0.35)
    captions = (
        "flux, error, bits", "units, mask,\nvacuum, at rest", "flux, ivar on the\nmodel's grid,\nnormalised",
        "log posterior\nand gradient", "labels,\ncovariance", "Quantities, flags,\nχ², residual",
    )  # fmt: skip
    for x, text in zip(columns, captions, strict=True):
        d.note(x, row - 0.36, text, va="top", fontsize=8.5)
    save(d, "data_flow")


# -- table --------------------------------------------------------------------
def provenance():
    """``tables/provenance*.rst``: what the model files say about themselves."""
    for name, own in {"provenance": model(), "provenance_dwarfs": CalibratedModel.from_pretrained(DWARFS)}.items():
        table = list_table("", provenance_rows(own).items(), header=False, widths="20 80")
        write_rst(HERE / "tables" / f"{name}.rst", ".. made by docs/figures.py from the model file\n", table)


def provenance_rows(own):
    """What the file of a model says about itself."""
    said = {key: value for key, value in own.provenance.items() if key != "measured"}  # has its own table
    rows = {**said, "labels": ", ".join(own.labels), "grid": repr(own.grid)[1:-1]}
    settings = own.translator.network.settings
    rows["split latent"] = f"{settings.split_filters} x {settings.latent_length} numbers"
    rows["shared latent"] = f"{settings.shared_filters} x {settings.latent_length} numbers"
    errors = {name: getattr(own.noise, name) for name in ("sigma_floor", "sigma_max")}
    return rows | {f"limit: {name}": f"{value:.4g}" for name, value in (errors | asdict(own.limits)).items()}


FIGURES = (networks, data_flow, provenance, k_giant_fit, gap, translation, derivatives)


def main():
    names = [figure.__name__ for figure in FIGURES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    chosen = parser.parse_args().names or names
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"no figures {unknown}; there are {', '.join(names)}")
    torch.set_num_threads(1)
    for figure in FIGURES:
        if figure.__name__ in chosen:
            figure()


if __name__ == "__main__":
    main()
