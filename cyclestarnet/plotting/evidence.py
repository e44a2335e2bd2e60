"""The evidence for a model: all figures of the paper that there is data for, tables, and a page with both.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table

from cyclestarnet._version import __version__
from cyclestarnet.files import write_atomically
from cyclestarnet.masks import MASKED
from cyclestarnet.plotting.axes import DOMAIN_STYLES, pyplot, telling_ranges
from cyclestarnet.plotting.derivatives import plot_derivatives
from cyclestarnet.plotting.diagrams import plot_networks
from cyclestarnet.plotting.lines import plot_error_map, plot_recovery_error
from cyclestarnet.plotting.pages import html_table, image, page, png_of
from cyclestarnet.plotting.populations import plot_embeddings, plot_kiel
from cyclestarnet.plotting.residuals import plot_residuals
from cyclestarnet.plotting.results import plot_fits
from cyclestarnet.plotting.training import plot_training
from cyclestarnet.reading.tables import read_table

__all__ = ["EvidenceFigure", "evidence_figures", "write_evidence"]

log = logging.getLogger(__name__)

SPACES = {
    "emulator": "emulator alone (Eq. 9)",
    "synthetic": "translated data (Eq. 10)",
    "observed": "translated emulator (Eq. 11)",
}
METALLICITIES = ("m_h", "fe_h")
MANY = 500  # stars, from which single ones hide each other
DERIVATIVE_WIDTH, MASK_WIDTH = 60.0, 120.0  # Angstrom
MOST_FAILED = 200  # stars that the page lists


@dataclass(frozen=True)
class EvidenceFigure:
    """A figure that can be drawn.

    Parameters
    ----------
    name : str
        Of its file.
    caption : str
        What it shows, and which figure of the paper.
    draw : callable
        Takes nothing, and returns the axes.

    Examples
    --------
    ::

        for figure in evidence_figures(evidence):
            axes = figure.draw()
    """

    name: str
    caption: str
    draw: Callable[[], Any]


def evidence_figures(
    evidence: Any,
    *,
    training: str | os.PathLike[str] | None = None,
    mock: str | os.PathLike[str] | None = None,
    isochrones: QTable | None = None,
) -> Iterator[EvidenceFigure]:
    """List the figures that there is data for, in the order of a report.

    Parameters
    ----------
    evidence : `~cyclestarnet.training.evidence.Evidence`
        Of `~cyclestarnet.training.evidence.collect_evidence`.
    training, mock, isochrones : optional
        As `~cyclestarnet.training.evidence.Evidence.write` takes them.

    Yields
    ------
    `EvidenceFigure`

    Examples
    --------
    ::

        {figure.name: figure.draw() for figure in evidence_figures(evidence)}
    """
    residuals, masked = _split(evidence.residuals)
    yield EvidenceFigure(
        "residuals",
        "Residuals of fits without and with the translation, in σ of the quoted errors (S1, Figure 8).",
        lambda: plot_residuals(residuals),
    )
    if masked:
        yield EvidenceFigure(
            "residuals_masked",
            "The same of fits that leave out the pixels of the mask.",
            lambda: plot_residuals({f"{name}, masked": own for name, own in masked.items()}),
        )
        yield EvidenceFigure(
            "mask",
            "Where most pixels are masked: residuals of the fits without a mask, and the windows of the mask, shaded.",
            lambda: _masked_residuals(evidence.mask, residuals),
        )
    for domain, own in evidence.autoencoders.items():
        yield EvidenceFigure(
            f"autoencoder_{domain}",
            f"Spectra of the {domain} domain less what its own encoder and decoder make of them (S1, Figures 5 and 6)."
            + (" They contain the noise of the spectra." if domain == "observed" else ""),
            lambda domain=domain, own=own: plot_residuals({f"{domain} → {domain}": own}),
        )
    for name, fits in evidence.examples.items():
        results = {SPACES[space]: own for space, own in fits.items()}
        yield EvidenceFigure(
            name.lower().replace(" ", "_"),
            f"The star nearest to a {name}, where both fits differ most (S1, Figure 7).",
            lambda results=results: plot_fits(results),
        )
    if evidence.maps:
        yield EvidenceFigure(
            "latents",
            "Maps by t-SNE of stars of both domains, by their spectra and by their shared latents (S1, Figure 10).",
            lambda: plot_embeddings(
                {
                    f"{text}: told apart {100 * evidence.scores[name]:.0f} % of the time": evidence.maps[name]
                    for name, text in (("spectra", "spectra"), ("latents", "shared latents"))
                }
            ),
        )
    yield from _kiel_diagrams(evidence, isochrones)
    yield EvidenceFigure(
        "derivatives",
        f"Spectra of the {next(iter(evidence.examples))} in both domains, and their derivatives by abundances "
        "(Eq. 8; S1, Figures 12 and 14).",
        lambda: _derivatives(evidence.derivatives),
    )
    yield EvidenceFigure(
        "networks", "The networks with their critics (S1, Figure 3).", lambda: plot_networks(evidence.settings)
    )
    if training is not None:
        yield EvidenceFigure("training", "The training (S1, Figure B1).", lambda: plot_training(training))
    if mock is not None:
        study = Path(mock)
        yield EvidenceFigure(
            "recovery_error",
            "Error of restored pixels against the fraction of lines that was masked (S1, Table 1).",
            lambda: plot_recovery_error(_found(study, "study.ecsv")),
        )
        yield EvidenceFigure(
            "error_map",
            "Where the error of restored pixels is large (S1, Figure 13).",
            lambda: plot_error_map(_found(study, "recovery.ecsv")),
        )


def _kiel_diagrams(evidence, isochrones):
    tables, masked = _split(evidence.tables)
    if not {"teff", "logg"} <= set(evidence.tables["observed"].colnames):
        return
    bins = 30 if evidence.n_fitted > MANY else None
    yield EvidenceFigure(
        "kiel_chi2",
        "Labels by three ways to fit, coloured by χ² (S1, Figure 9).",
        lambda: plot_kiel(tables, bins=bins, isochrones=isochrones),
    )
    if masked:
        yield EvidenceFigure(
            "kiel_chi2_masked",
            "The same of fits that leave out the pixels of the mask.",
            lambda: plot_kiel(masked, bins=bins, isochrones=isochrones),
        )
    metallicity = [name for name in METALLICITIES if name in evidence.tables["observed"].colnames]
    if metallicity:
        known = evidence.catalogue
        known = {"labels of the set": known} if known is not None and {"teff", "logg"} <= set(known.colnames) else {}
        yield EvidenceFigure(
            "kiel_metallicity",
            "The same, coloured by metallicity"
            + (", beside the labels that the set has" if known else "")
            + " (S1, Figure 11).",
            lambda: plot_kiel(tables | known, color=metallicity[-1], bins=bins, isochrones=isochrones),
        )


def _split(by_space):
    """What there is of the spaces, by their texts: of fits to all pixels, and of those with a mask."""
    own = {space: value for space, value in by_space.items() if not space.endswith(MASKED)}
    masked = {space.removesuffix(MASKED): value for space, value in by_space.items() if space.endswith(MASKED)}
    return tuple({SPACES[space]: value for space, value in some.items()} for some in (own, masked))


def _masked_residuals(mask, residuals):
    """Residuals where most pixels are masked, with the windows of the mask."""
    grid = next(iter(residuals.values())).grid
    wavelength = grid.wavelength.to_value(u.AA)
    masked = mask.pixels(grid)
    ranges = telling_ranges(wavelength, masked.astype(float), width=MASK_WIDTH)
    low, high = max(ranges, key=lambda ends: masked[(wavelength >= ends[0]) & (wavelength <= ends[1])].sum())
    axes = plot_residuals(residuals, window=(low, high))
    for ax in axes:
        for window in mask:
            ax.axvspan(*window, color=DOMAIN_STYLES["synth"][1], alpha=0.25, lw=0)
        ax.set_xlim(low, high)
    return axes


def _derivatives(domains):
    synthetic, observed = domains["synthetic"], domains["observed"]
    wavelength = synthetic.grid.wavelength.to_value(u.AA)
    abundances = [name for name in synthetic if name.endswith("_h")] or list(synthetic)[:1]
    slope = np.sqrt(np.sum([observed[name].value ** 2 for name in abundances], axis=0))
    window = telling_ranges(wavelength, slope, width=DERIVATIVE_WIDTH)[0]
    names = None if abundances[0].endswith("_h") else abundances
    return plot_derivatives(synthetic, observed, window=window, names=names)


def _found(folder, name):
    """A table of a mock study, the first of its name in the folder or those below."""
    found = sorted(folder.rglob(name))
    if not found:
        raise FileNotFoundError(f"{folder} has no {name}; give the folder of a study by cyclestarnet mock-lines")
    return read_table(found[0])


# -- the report ----------------------------------------------------------------------------
def write_evidence(
    evidence: Any,
    folder: str | os.PathLike[str],
    *,
    training: str | os.PathLike[str] | None = None,
    mock: str | os.PathLike[str] | None = None,
    isochrones: QTable | None = None,
) -> Path:
    """Write tables, figures and a page; see `~cyclestarnet.training.evidence.Evidence.write`.

    Parameters
    ----------
    evidence : `~cyclestarnet.training.evidence.Evidence`
        Of `~cyclestarnet.training.evidence.collect_evidence`.
    folder : path-like
        Made if it is not there.
    training, mock, isochrones : optional
        As there.

    Returns
    -------
    `~pathlib.Path`
        The page.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    OSError
        If a file cannot be written.

    Examples
    --------
    ::

        write_evidence(evidence, "report")
    """
    plt, folder = pyplot(), Path(folder)
    for name, table in _tables(evidence).items():
        _write_table(table, folder / "tables" / f"{name}.ecsv")
    shown = []
    for figure in evidence_figures(evidence, training=training, mock=mock, isochrones=isochrones):
        try:
            drawn = np.ravel(figure.draw())[0].figure
            try:
                png = png_of(drawn)
            finally:
                plt.close(drawn)
        except Exception as error:  # one figure that fails must not cost the others, which took minutes
            log.warning("figure %s cannot be drawn: %s", figure.name, error)
            shown.append(f"<p>{html.escape(figure.caption)} Not drawn: {html.escape(str(error))}</p>")
            continue
        path = folder / "figures" / f"{figure.name}.png"
        write_atomically(path, lambda temporary, png=png: temporary.write_bytes(png))
        shown.append(
            f"<figure>{image(png, figure.caption)}<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
        )
    text = page(f"{evidence.model} on {evidence.spectra}", _parts(evidence, shown))
    target = folder / "report.html"
    write_atomically(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return target


def _tables(evidence):
    tables = {"numbers": evidence.to_table(), "layers": evidence.settings.to_table()}
    tables |= {f"residuals_{space.replace(', ', '_')}": own.to_table() for space, own in evidence.residuals.items()}
    tables |= {f"autoencoder_{domain}": own.to_table() for domain, own in evidence.autoencoders.items()}
    for name, places in evidence.maps.items():
        x, y = np.concatenate(places).T
        domain = np.repeat(["synthetic", "observed"], [len(part) for part in places])
        tables[f"map_{name}"] = QTable({"domain": domain, "x": x, "y": y})
    if evidence.mask is not None:
        tables["mask"] = evidence.mask.table
    return tables


def _write_table(table, path):
    write_atomically(path, lambda temporary: table.write(temporary, format="ascii.ecsv", overwrite=True))


def _parts(evidence, shown):
    drawn = len(evidence.tables["observed"])
    facts = Table(rows=list(evidence.provenance.items()) or [("", "")], names=("", " "), dtype=("U", "U"))
    yield (
        f"<p>{evidence.n_fitted} of {drawn} stars, drawn from {evidence.n_spectra:,} of "
        f"{html.escape(evidence.spectra)} (seed {evidence.seed}), were fitted in three ways: with the emulator alone, "
        "after translation of the data, and with the translated emulator, which the table calls observed. Made by "
        f"cyclestarnet {html.escape(__version__)}.</p>"
    )
    yield (
        "<p>The paper's numbers are those of its own model and of its APOGEE spectra. χ² and residuals in σ depend on "
        "the signal-to-noise ratio of the stars as much as on the model: compare models on the same stars. "
        "Whether the spectra of this set are real, only its owner knows.</p>"
    )
    yield html_table(evidence.to_table())
    if evidence.mask is not None:
        yield _about_mask(evidence.mask)
    yield "<h2>Figures</h2>"
    yield from shown
    yield "<h2>Layers of the networks (S1, Table A1)</h2>"
    yield html_table(evidence.settings.to_table())
    failed = evidence.tables["observed"][~np.isfinite(evidence.tables["observed"]["reduced_chi2"])]
    if len(failed):
        yield "<h2>Stars that could not be fitted</h2>"
        yield html_table(failed["object", "message"][:MOST_FAILED])
        if len(failed) > MOST_FAILED:
            yield f"<p>And {len(failed) - MOST_FAILED:,} more: tables/fits_observed.fits has all.</p>"
    yield "<h2>The model</h2>"
    yield html_table(facts)


def _about_mask(mask):
    made = mask.table.meta
    told = f"<p>The mask has {len(mask)} windows"
    if {"n_stars", "threshold"} <= set(made):
        told += f", made of {int(made['n_stars']):,} stars, where the emulator is off by more than "
        told += f"{100 * float(made['threshold']):g} % of the continuum"
    return told + (
        "; tables/mask.ecsv lists them. <i>Masked</i> are fits that leave out its pixels, and their residuals at the "
        "others; <i>outside the mask</i> are residuals of the fits to all pixels, at these same pixels.</p>"
    )
