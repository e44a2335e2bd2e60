#!/usr/bin/env python
"""Tables and figures of docs/appendix/missing_lines.rst: what is found of lines that were taken away, and of giants.

The mock studies themselves are run by ``cyclestarnet mock-lines`` from the files
``missing_lines_*.toml`` beside this one; a study that is finished is only read here::

    python recipes/missing_lines.py mock  --study STUDY.toml        figures and scores of one training
    python recipes/missing_lines.py ways  --study STUDY.toml ...    how best to choose an element
    python recipes/missing_lines.py table --study STUDY.toml ...    S1, Table 1, from one or more studies
    python recipes/missing_lines.py real  --work WORK --inputs INPUTS [--null MODEL]

``WORK`` and ``INPUTS`` are those of ``apogee_giants_data.py``; ``--null`` is the model
of a study's training with nothing masked.
"""

from __future__ import annotations

import argparse
import logging
import sys
from datetime import date
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
from astropy.table import QTable, vstack
from list_tables import list_table, write_rst

from cyclestarnet import CalibratedModel
from cyclestarnet.grid import air_to_vacuum
from cyclestarnet.lines import (
    find_missing_lines,
    match_lines,
    read_line_list,
    score_missing_lines,
    star_differences,
    with_elements,
)
from cyclestarnet.lines.config import read_mock_config
from cyclestarnet.lines.mock import make_domains, make_run, observed_stars
from cyclestarnet.lines.mock_study import compare_attributions, trained
from cyclestarnet.plotting import (
    plot_error_map,
    plot_missing_lines,
    plot_precision_recall,
    plot_recovery,
    plot_recovery_error,
)
from cyclestarnet.spectra import to_spectrum

log = logging.getLogger("missing_lines")

DOCS = Path(__file__).parents[1] / "docs"
FDR = 0.05
N_STRONGEST, N_REAL_STARS = 30, 1_500
SURE = 0.8  # probability above which an element is not a guess
GIANT = np.array([[4600.0, 2.4, -0.1, 0.05]])  # teff, logg, m_h, alpha_m: where the truth is looked up
# What is known to be wrong with the line list of the synthetic grid (its README), and H-band lines of real giants.
KNOWN = (
    (15236.2, "missing in the list"),
    (16049.7, "missing in the list"),
    (16825.0, "missing in the list"),
    (16823.3, "Ni I, in the list at 16822.1"),
)
# Lines that surveys of giants in the H band measure (Smith et al. 2013, ApJ 765, 16), in air.
WELL_KNOWN = (
    ("Mg I", 15740.716), ("Mg I", 15765.8), ("Al I", 16718.957), ("Al I", 16750.564), ("Al I", 16763.360),
    ("Si I", 15960.063), ("Si I", 16094.787), ("K I", 15168.376), ("Ca I", 16150.763), ("Ca I", 16157.364),
    ("Fe I", 15207.526), ("Fe I", 15490.339), ("Ni I", 16589.295),
)  # fmt: skip
PUBLISHED = {0.1: "0.35-0.41", 0.2: "0.35-0.41", 0.3: "0.35-0.41", 0.4: "0.35-0.41", 0.5: "0.35-0.41"}
PUBLISHED |= {0.6: "0.35-0.41", 0.7: "0.35-0.41", 0.8: "4.50", 0.9: "4.59"}


def mock(options):
    """One training: scores, ways to attribute, and its figures."""
    (path,) = options.study
    config = read_mock_config(path)
    domains = make_domains(config)
    run = make_run(config, domains, max(config.mock.fractions), config.mock.seeds[0])
    model = trained(run)
    lines = find_missing_lines(model, fdr=1.0, seed=run.seed)
    believed = lines.at(FDR)
    stars = star_differences(model, observed_stars(domains, config.mock.n_stars), ignore=believed.pixels)
    believed = with_elements(believed, stars)
    curve = score_missing_lines(lines, run.mask)
    score = score_missing_lines(believed, run.mask, truth=domains.derivatives())
    pull, off = wavelength_errors(domains, believed, run.mask)
    precision, recall = curve.at(FDR)
    rows = [
        ("lines at a false-discovery rate of 5 %", f"{len(believed)}"),
        ("masked features", f"{len(run.mask.masked)} ({run.mask.pixels.sum()} pixels)"),
        ("precision (of lines at random)", f"{precision:.3f} ({curve.chance:.3f})"),
        ("recall", f"{recall:.3f}"),
        ("element right, features other than of C, N, O", f"{score.element_accuracy:.3f} of {score.n_element}"),
        ("element truly the steepest, all lines", f"{score.steepest_accuracy:.3f}"),
        ("set right, features of C, N, O", f"{score.set_accuracy:.3f} of {score.n_set}, {score.set_size:.2f} elements"),
        ("wavelength against noiseless dips: half 16-84 % range in σ", f"{pull:.2f}"),
        ("the same, median size", f"{off:.3f} Å"),
        ("median agreement of flux and derivatives", f"{np.nanmedian(believed.table['agreement']):.2f}"),
    ]
    write_table(
        "missing_score", ("", "value"), rows, "Catalogue of the full-size training, 30 % of the features masked"
    )
    giant = domains.label_set.to_quantities(domains.giant[None])
    both = [model.derivative_spectra(giant, domain=domain) for domain in ("synthetic", "observed")]
    for name, window in (("missing_recovery", (15_880, 15_985)), ("missing_recovery_cn", (15_225, 15_330))):
        axes = plot_recovery(*both, domains.derivatives(), window=window * u.AA, features=run.mask.masked)
        save(axes[0].figure, name)
    save(plot_error_map(QTable.read(run.folder / "recovery.ecsv")).figure, "missing_error_map")
    save(plot_missing_lines(believed, truth=run.mask)[0].figure, "missing_found")
    save(plot_precision_recall(curve).figure, "missing_precision_recall")


def ways(options):
    """Four ways to choose an element, in one training of each study."""
    rows = []
    for path in options.study:
        config = read_mock_config(path)
        domains = make_domains(config)
        run = make_run(config, domains, 0.3, config.mock.seeds[0])
        model = trained(run)
        lines = find_missing_lines(model, seed=run.seed)
        stars = star_differences(model, observed_stars(domains, config.mock.n_stars), ignore=lines.pixels)
        for row in compare_attributions(model, lines, run.mask, stars, seed=run.seed):
            cells = (f"{row['right']:.2f} of {row['n']}", f"{row['right_cno']:.2f} of {row['n_cno']}")
            rows.append((network_of(config, model), row["way"], *cells))
    header = ("network, scatter of elements", "element by", "features other than C, N, O", "C, N, O: one of them")
    write_table("missing_ways", header, rows, "Four ways to choose the likeliest element, 30 % of the features masked")


def network_of(config, model):
    """Size of the networks, and how much elements vary on their own in their training."""
    n = sum(parameter.numel() for parameter in model.translator.network.parameters())
    return f"{n:,} parameters, {scatter_of(config)}"


def scatter_of(config):
    """How much elements vary on their own in a study."""
    return f"{config.mock.element_scatter or 0.02:g} dex"  # the labels of the first apogee-giants have 0.02


def wavelength_errors(domains, lines, mask):
    """Scatter of (found - true) / error, and median size of found - true, for lines in masked features.

    The true wavelength is the centre of what the mask has taken from the mean spectrum.
    """
    from cyclestarnet.lines import dip_centre
    from cyclestarnet.networks.predictor import EmulatorPredictor

    flux = EmulatorPredictor(domains.emulator).flux(domains.pool[:500]).mean(0)
    lacking = np.where(mask.pixels, flux - 1, 0.0)
    off, error = [], []
    for row in lines.table:
        peak = row["peak"] - 1 + int(np.argmin(lacking[row["peak"] - 1 : row["peak"] + 2]))
        if mask.pixels[peak - 1 : peak + 2].all():
            off.append(row["wavelength"].value - dip_centre(lacking, domains.grid, peak, lines.noise)[0])
            error.append(row["wavelength_err"].value)
    off, error = np.array(off), np.array(error)
    return float(np.diff(np.percentile(off / error, [16, 84]))[0] / 2), float(np.median(np.abs(off)))


def table(options):
    """S1, Table 1, and the scores of catalogues at each fraction."""
    parts = []
    for path in options.study:
        config = read_mock_config(path)
        part = QTable.read(config.run.folder / "study.ecsv")
        part["network"] = f"{part['parameters'][0]:,} parameters, {scatter_of(config)}"
        parts.append(part[part["fraction"] > 0])
    rows = vstack(parts, metadata_conflicts="silent")
    cells = []
    for network in dict.fromkeys(rows["network"]):
        own = rows[rows["network"] == network]
        for fraction in dict.fromkeys(own["fraction"]):
            some = own[own["fraction"] == fraction]
            cells.append(
                (
                    network,
                    f"{fraction:.0%}",
                    ", ".join(f"{v:.2f}" for v in some["error"]),
                    ", ".join(f"{v:.2f}" for v in some["error_population"]),
                    PUBLISHED.get(round(float(fraction), 3), ""),
                    f"{some['depth'].mean():.1f}",
                    *(
                        ", ".join(f"{v:.2f}" for v in some[name])
                        for name in ("precision", "recall", "element_accuracy", "set_accuracy")
                    ),
                )
            )
    header = ("network, scatter of elements", "masked", "K giant [%]", "label sets [%]", "published [%]")
    header += ("mean depth [%]", "precision", "recall", "element right", "set right")
    write_table("missing_fractions", header, cells, "Error of restored pixels, and catalogues; a number per seed")
    save(plot_recovery_error(rows).figure, "missing_fractions")


def real(options):
    """The embedded model: MOOG spectra against observed-like giants."""
    model = CalibratedModel.from_pretrained()
    null = [CalibratedModel.load(path) for path in options.null]
    lines = find_missing_lines(model, null=null, fdr=1.0)
    with h5py.File(options.work / "observed.h5") as file:
        flux, sigma, good = (file[f"{key} train"][:N_REAL_STARS] for key in ("spectra", "spectra_err", "spectra_msk"))
    stars = to_spectrum(flux.astype(float), model.grid, ivar=good / sigma.astype(float) ** 2)
    top, believed = lines.strongest(N_STRONGEST), lines.at(FDR)
    top = with_elements(top, star_differences(model, stars, ignore=top.pixels | believed.pixels))
    line_list = read_line_list(options.inputs / "data" / "moog_grid" / "lines_grid.dat.gz", medium="vacuum")
    matched = match_lines(top.table, line_list)
    matched["truth"] = true_elements(options.inputs, matched["wavelength"].value, model.grid)
    order = np.argsort(-matched["significance"])
    right = np.array([row["element"] == row["truth"] for row in matched])
    sure = np.asarray(matched["probability"]) > SURE
    rows = []
    for row in matched[order]:
        rows.append(
            (
                f"{row['wavelength'].value:.2f} ± {row['wavelength_err'].value:.2f}",
                f"{row['depth']:.3f}",
                f"{row['synthetic_depth']:.3f}",
                row["kind"],
                f"{row['width'].value:.2f}",
                f"{row['fdr']:.3f}",
                f"{row['element']} {row['probability']:.2f}",
                row["elements"] if len(row["elements"].split()) < 5 else f"{len(row['elements'].split())} elements",
                row["truth"],
                "" if np.ma.is_masked(row["species"]) else f"{row['species']} {row['line_wavelength'].value:.2f}",
            )
        )
    header = (
        "wavelength [Å]", "depth", "in MOOG", "kind", "FWHM [Å]", "FDR", "element", "95 % set", "truth", "in the list",
    )  # fmt: skip
    title = (
        f"The strongest of {model.name}, and the element that is steepest there in the simulated stars: "
        f"right for {right.sum()} of {len(right)}, and for {(right & sure).sum()} of the {sure.sum()} with a "
        f"probability above {SURE}; {date.today()}"
    )
    write_table("missing_real", header, rows, title)
    write_known(model, lines)
    write_well_known(model, lines, FDR if null else 1.0)  # without a null model the bumps set the rate, and none passes
    counts = {kind: int((lines.at(FDR).table["kind"] == kind).sum()) for kind in ("missing", "weak", "shifted")}
    log.info("%d lines at FDR %.2f: %s; noise %.4f", len(lines.at(FDR)), FDR, counts, lines.noise)
    save(plot_missing_lines(top)[0].figure, "missing_h_band")


def write_known(model, lines):
    """What is found of the known defects of the line list."""
    checks = []
    for wavelength, text in KNOWN:
        k = int(np.argmin(np.abs(lines.table["wavelength"].value - wavelength)))
        row = lines.table[k]
        rank = int((lines.table["significance"] > row["significance"]).sum()) + 1
        off = row["wavelength"].value - wavelength
        checks.append((f"{wavelength:.1f}", text, f"{off:+.2f}", f"{row['depth']:.3f}", row["kind"], rank))
    k = int(np.argmin(np.abs(model.grid.wavelength.value - 15660.9)))
    excess = lines.difference[k - 2 : k + 3].max()
    checks.append(("15660.9", "Fe I, too strong in the list", "", f"{-excess:.3f}", "", ""))
    header = ("wavelength [Å]", "known of the line list", "found at [Å]", "depth", "kind", "rank")
    write_table("missing_known", header, checks, "Known defects of the line list, and what is found")


def write_well_known(model, lines, fdr):
    """What is found of the lines that surveys measure."""
    rows = []
    for species, air in WELL_KNOWN:
        wavelength = air_to_vacuum(air * u.AA).value
        near = slice(*np.searchsorted(model.grid.wavelength.value, [wavelength - 0.35, wavelength + 0.35]))
        synthetic = model.predict(model.labels.to_quantities(model.prior.mean), domain="synthetic").flux.value[near]
        found = lines.table[np.abs(lines.table["wavelength"].value - wavelength) < 0.35]
        found = found[found["fdr"] <= fdr]
        rows.append(
            (
                species,
                f"{wavelength:.2f}",
                f"{1 - synthetic.min():.3f}",
                f"{lines.difference[near][synthetic.argmin()]:+.3f}",
                ", ".join(f"{row['kind']}, {row['depth']:.3f}" for row in found) or "no line",
            )
        )
    header = ("line", "wavelength [Å]", "depth in MOOG", "observed - synthetic", "in the catalogue")
    write_table("missing_well_known", header, rows, "Well-known lines of giants")


def true_elements(inputs, wavelengths, grid):
    """Which element makes the flux of the simulated stars fall most steeply at some wavelengths.

    Iron moves the base, too: its [M/H] is that of iron, and the others stay where they are.
    """
    sys.path.insert(0, str(inputs / "tools"))
    import make_observed_domain as generator

    elements, cannon, names = generator.Elements(), generator.CannonModel(), list(generator.LABEL20_NAMES)
    giant, columns = elements.usual(GIANT), [k for k, name in enumerate(names) if name.endswith("_h")]
    slopes = []
    for k in columns:
        step, iron = 0.05 * (np.arange(len(names)) == k), 0.05 * (names[k] == "fe_h") * np.array([0, 0, 1, 0])
        low, high = (
            (cannon(GIANT + way * iron) * elements.ratio(giant + way * step, elements.usual(GIANT + way * iron)))[0]
            for way in (-1, 1)
        )
        slopes.append((high - low)[: grid.n_pixels] / 0.1)
    pixel = np.abs(grid.wavelength.value[:, None] - wavelengths).argmin(0)
    return [names[columns[k]].removesuffix("_h").capitalize() for k in np.argmin(np.array(slopes)[:, pixel], axis=0)]


def write_table(name, header, lines, title):
    """Write one list-table."""
    write_rst(DOCS / "tables" / f"{name}.rst", list_table(title, (header, *lines)))
    log.info("%s\n%s", name, "\n".join(" | ".join(map(str, line)) for line in (header, *lines)))


def save(figure, name):
    """Write one figure of the documentation."""
    figure.savefig(DOCS / "_static" / f"{name}.png", dpi=110)


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["mock", "ways", "table", "real"])
    parser.add_argument("--study", type=Path, nargs="+", default=[], help="files of mock studies")
    parser.add_argument("--work", type=Path, help="folder of apogee_giants_data.py")
    parser.add_argument("--inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("--null", type=Path, nargs="*", default=[], help="models of trainings with nothing masked")
    options = parser.parse_args(argv)
    {"mock": mock, "ways": ways, "table": table, "real": real}[options.stage](options)


if __name__ == "__main__":
    main()
