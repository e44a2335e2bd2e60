"""What in a line list the missing lines of a catalogue may be."""

from __future__ import annotations

import warnings

import astropy.units as u
import numpy as np
from astropy.table import MaskedColumn, QTable
from astropy.utils.masked import Masked

from cyclestarnet.blanks import floats_of, mask_of, place_of
from cyclestarnet.exceptions import CycleStarNetWarning
from cyclestarnet.lines.line_lists import in_vacuum

__all__ = ["match_lines"]

# Probability of an element that a catalogue excludes, or does not know: its answer may be wrong.
LEAST_PROBABILITY = 0.01
# Lines grow with their strength between linearly (weak ones) and hardly (saturated ones).
GROWTH = 0.5
# σ of a sign test: of 740 catalogues, by chance one matches better in the wrong medium.
WRONG_MEDIUM = 3.0


def match_lines(
    table: QTable,
    line_list: QTable,
    *,
    tolerance: u.Quantity | None = None,
    n_best: int = 3,
    temperature: u.Quantity = 4500 * u.K,
) -> QTable:
    """Find what in a line list the missing lines of a catalogue may be.

    All lines of the list within the tolerance are candidates. Their score is
    the sum of

    * −½ (3 offset / tolerance)², a Gaussian whose 3 σ are the tolerance;
    * ln P: the catalogue's probabilities of the elements of the species, summed
      (C and N for CN), but at least 1 %;
    * ½ ln 10 (s − s_max) with the strength s = log gf − θ ep, θ = 5040 K / temperature, and s_max
      that of the strongest line of the same species in the whole list. So
      species are compared without abundances, and of two lines of one species
      the stronger wins; ½ because lines saturate. Lines of unknown strength
      get the median of the others.

    Parameters
    ----------
    table : `~astropy.table.QTable`
        A row per missing line, with ``wavelength``, ``wavelength_err`` and
        ``width`` (FWHM), in vacuum, and ``probabilities`` of shape (n_lines,
        n_elements), of the elements named in ``table.meta["elements"]``.
    line_list : `~astropy.table.QTable`
        As of `read_line_list` or `as_line_list`.
    tolerance : `~astropy.units.Quantity`, optional
        Largest offset, for all rows or one each. Default: 3 ``wavelength_err``
        plus half the ``width``: what was found may be a blend, the centre of
        which lies elsewhere than that of its strongest part.
    n_best : int, optional
        So many candidates are named.
    temperature : `~astropy.units.Quantity`, optional
        Of excitation.

    Returns
    -------
    `~astropy.table.QTable`
        Copy of ``table`` with the columns ``species``, ``line_wavelength``
        [Angstrom, vacuum], ``line_offset`` (line − catalogue) [Angstrom],
        ``log_gf`` and ``ep`` [eV] of the best candidate, masked where there is
        none, and ``candidates``: species and wavelengths of the best, as text.

    Raises
    ------
    ValueError
        If columns are missing, or ``n_best`` is less than 1.

    Warns
    -----
    CycleStarNetWarning
        If significantly more rows match better with the list shifted by the
        difference of air and vacuum: then one of both is in the wrong medium.
        Fewer than 10 rows cannot tell.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from astropy.table import QTable, Table
    >>> from cyclestarnet.lines import as_line_list, match_lines
    >>> found = QTable({"wavelength": [15167.20] * u.AA, "wavelength_err": [0.02] * u.AA, "width": [0.7] * u.AA})
    >>> found["probabilities"], found.meta["elements"] = np.array([[0.1, 0.9]]), ["Fe", "K"]
    >>> lines = Table({"wavelength": [15167.05, 15167.211] * u.AA, "species": ["Fe I", "K I"]})
    >>> print(match_lines(found, as_line_list(lines, medium="vacuum"))["species", "candidates"])
    species           candidates
    ------- -----------------------------
        K I K I 15167.211, Fe I 15167.050
    """
    _require(table, "table", ("wavelength", "wavelength_err", "width", "probabilities"))
    _require(line_list, "line_list", ("wavelength", "species", "elements", "log_gf", "ep"))
    if n_best < 1:
        raise ValueError(f"n_best must be 1 or more, but is {n_best}")
    if tolerance is None:
        tolerance = 3 * table["wavelength_err"] + table["width"] / 2
    # Of 0 would divide.
    tolerance = np.maximum(np.broadcast_to(u.Quantity(tolerance).to_value(u.AA), len(table)), 1e-6)
    wavelength = table["wavelength"].to_value(u.AA)
    line_list = _unmasked(line_list)
    line_list = line_list[np.argsort(line_list["wavelength"], kind="stable")]
    lines = line_list["wavelength"].to_value(u.AA)
    species, species_of = np.unique(np.asarray(line_list["species"]), return_inverse=True)
    ln_probability = _ln_probability(table, line_list, species_of, len(species))
    strength = _relative_strength(line_list, species_of, len(species), temperature)

    def candidates(lines):
        """Rows and lines within the tolerance, and their scores."""
        first = np.searchsorted(lines, wavelength - tolerance)
        count = np.maximum(np.searchsorted(lines, wavelength + tolerance, side="right") - first, 0)
        row = np.repeat(np.arange(len(table)), count)
        line = np.arange(len(row)) + np.repeat(first - np.cumsum(count) + count, count)
        score = -0.5 * (3 * (lines[line] - wavelength[row]) / tolerance[row]) ** 2
        return row, line, score + ln_probability[row, species_of[line]] + GROWTH * np.log(10) * strength[line]

    def best_scores(lines):
        row, _, score = candidates(lines)
        best = np.full(len(table), -np.inf)
        np.maximum.at(best, row, score)
        return best

    shift = in_vacuum(line_list["wavelength"], "air").to_value(u.AA) - lines
    _warn_of_medium(best_scores(lines), air=best_scores(lines + shift), twice=best_scores(lines - shift))
    row, line, score = candidates(lines)
    order = np.lexsort((-score, row))
    return _with_candidates(table, line_list, row[order], line[order], n_best)


def _require(table, name, columns):
    missing = [column for column in columns if column not in table.colnames]
    if missing:
        raise ValueError(
            f"{name} must have the columns {', '.join(columns)}, but lacks {', '.join(missing)}"
            + ("; pass it through as_line_list first" if name == "line_list" else "")
        )


def _unmasked(line_list):
    """The columns that count, without masks: what is not known of strength and energy is NaN."""
    for name in ("wavelength", "species", "elements"):
        mask = mask_of(line_list[name])
        if mask is not None and mask.any():
            raise ValueError(f"column {name!r} of line_list has no value{place_of(mask)}: leave out such rows")
    return QTable(
        {
            "wavelength": floats_of(line_list["wavelength"]) * line_list["wavelength"].unit,
            "species": np.array(np.ma.getdata(line_list["species"]), dtype=str),
            "elements": np.array(np.ma.getdata(line_list["elements"]), dtype=str),
            "log_gf": floats_of(line_list["log_gf"]),
            "ep": floats_of(line_list["ep"]) * line_list["ep"].unit,
        }
    )


def _ln_probability(table, line_list, species_of, n_species):
    """ln P of each species in each row, shape (n_rows, n_species)."""
    names = list(table.meta.get("elements", ()))
    probabilities = np.asarray(table["probabilities"], dtype=float)
    if probabilities.shape != (len(table), len(names)):
        raise ValueError(
            f"probabilities must have a column for each name in table.meta['elements'] ({len(names)}), but has shape "
            f"{probabilities.shape}"
        )
    elements = np.empty(n_species, dtype=object)
    elements[species_of] = np.asarray(line_list["elements"], dtype=str)
    member = np.array([[name in text.split() for name in names] for text in elements], dtype=float)
    return np.log(np.maximum(probabilities @ member.reshape(n_species, len(names)).T, LEAST_PROBABILITY))


def _relative_strength(line_list, species_of, n_species, temperature):
    """log gf - theta ep, relative to the strongest line of the species: 0 or less."""
    theta = 5040 / u.Quantity(temperature).to_value(u.K)
    strength = np.asarray(line_list["log_gf"], dtype=float) - theta * line_list["ep"].to_value(u.eV)
    strongest = np.full(n_species, -np.inf)
    np.fmax.at(strongest, species_of, strength)
    relative = strength - strongest[species_of]
    known = np.isfinite(relative)
    return np.where(known, relative, np.median(relative[known]) if np.any(known) else 0.0)


def _warn_of_medium(best, *, air, twice):
    """Warn if a shifted list matches more rows better than by chance."""
    for shifted, reading in (
        (air, "its wavelengths may be in air: read it with medium='air'"),
        (twice, "either was it in vacuum but read with medium='air', or the catalogue is in air"),
    ):
        better, worse = np.count_nonzero(shifted > best), np.count_nonzero(shifted < best)
        if better - worse > WRONG_MEDIUM * np.sqrt(better + worse):
            warnings.warn(
                f"{better} of {len(best)} rows match the line list better, and {worse} worse, when it is shifted by "
                f"the difference of air and vacuum; {reading}",
                CycleStarNetWarning,
                stacklevel=3,
            )


def _with_candidates(table, line_list, row, line, n_best):
    """Copy of the table with columns of the candidates, which come row by row and best first."""
    first = np.searchsorted(row, np.arange(len(table)))
    last = np.searchsorted(row, np.arange(len(table)), side="right")
    found = first < last
    best = line[first[found]]

    def filled(values, empty):
        values = np.asarray(values)
        column = np.full(len(table), empty, dtype=values.dtype)
        column[found] = values[best]
        return column

    wavelength = filled(line_list["wavelength"].to_value(u.AA), np.nan)
    log_gf, ep = filled(line_list["log_gf"], np.nan), filled(line_list["ep"].to_value(u.eV), np.nan)
    texts = [f"{s} {w:.3f}" for s, w in zip(line_list["species"], line_list["wavelength"].to_value(u.AA), strict=True)]
    names = [", ".join(texts[i] for i in line[a : min(b, a + n_best)]) for a, b in zip(first, last, strict=True)]
    matched = QTable(table, copy=True)
    matched["species"] = MaskedColumn(filled(np.asarray(line_list["species"], dtype=str), ""), mask=~found)
    matched["line_wavelength"] = Masked(wavelength * u.AA, mask=~found)
    matched["line_offset"] = matched["line_wavelength"] - table["wavelength"]
    matched["log_gf"] = MaskedColumn(log_gf, mask=np.isnan(log_gf))
    matched["ep"] = Masked(ep * u.eV, mask=np.isnan(ep))
    matched["candidates"] = np.array(names, dtype=str)
    return matched
