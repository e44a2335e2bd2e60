"""What the columns of tables mean: words for people, and UCDs for other programs."""

from __future__ import annotations

from astropy.table import Table

__all__ = ["described"]

# name: what it is, and its Unified Content Descriptor (https://www.ivoa.net/documents/UCD1+)
_LABELS = {
    "teff": ("effective temperature", "phys.temperature.effective"),
    "logg": ("logarithm of the surface gravity", "phys.gravity"),
    "vmicro": ("microturbulence", "phys.veloc.microTurb"),
    "vmacro": ("macroturbulence", "spect.line.broad"),
    "vbroad": ("broadening of the lines", "spect.line.broad"),
    "broadening": ("broadening beyond that of the model", "spect.line.broad"),
    "velocity": ("radial velocity of the spectrum as it came", "spect.dopplerVeloc"),
    "c12_c13": ("ratio of carbon isotopes", "phys.abund"),
    "m_h": ("[M/H]", "phys.abund.Z"),
    "alpha_m": ("[alpha/M]", "phys.abund"),
    "fe_h": ("[Fe/H]", "phys.abund.Fe"),
}
_PARTS = {
    "_err": ("standard error of the ", "stat.error;"),
    "_low": ("lower end of the central 68 % of the ", "stat.min;"),
    "_high": ("upper end of the central 68 % of the ", "stat.max;"),
}
_OTHERS = {
    "object": ("name of the star", "meta.id;meta.main"),
    "reduced_chi2": ("chi2 per degree of freedom, with the errors of the data", "stat.fit.chi2"),
    "reduced_chi2_total": ("the same, with the errors of the model, too", "stat.fit.chi2"),
    "dof": ("degrees of freedom", "stat.fit.dof"),
    "snr": ("median signal-to-noise ratio of a pixel", "stat.snr"),
    "success": ("whether the fit converged", "meta.code.status"),
    "converged": ("whether the chain is long enough", "meta.code.status"),
    "flags": ("sum of the flags of the fit", "meta.code.qual"),
    "flag_names": ("their names", "meta.code.qual"),
    "prior_dominated": ("labels of which the prior tells more than the spectrum", "meta.note"),
    "upper_limits": ("abundances whose lines are not seen", "meta.note"),
    "continuum": ("how the flux was normalised", "meta.note"),
    "message": ("how the fit ended", "meta.note"),
    "n_steps": ("steps of each walker", "meta.number"),
    "acceptance_fraction": ("part of the proposals that were accepted", "stat.value"),
    "autocorrelation_time": ("longest of all labels, in steps", "stat.value"),
    "n_nan": ("positions at which the posterior was no number", "meta.number"),
    "seconds": ("time that the star took", "time.duration"),
    "seed": ("of the sampling", "meta.id"),
}


def described(table: Table) -> Table:
    """Say in a table of labels what its columns are, in place.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Of fits or posteriors. Names that are not known stay without words.

    Returns
    -------
    `~astropy.table.Table`
        The same, with ``description`` and, in ``meta["ucd"]``, which VOTables keep, the Unified Content Descriptor of
        each column.

    Examples
    --------
    >>> from astropy.table import QTable
    >>> from cyclestarnet.descriptions import described
    >>> table = described(QTable({"teff": [4500.0], "mg_h_err": [0.03]}))
    >>> table["mg_h_err"].info.description, table["mg_h_err"].info.meta["ucd"]
    ('standard error of the [Mg/H]', 'stat.error;phys.abund')
    """
    for name in table.colnames:
        words = _words(name)
        if words is not None:
            info = table[name].info
            info.description, info.meta = words[0], (info.meta or {}) | {"ucd": words[1]}
    return table


def _words(name: str) -> tuple[str, str] | None:
    if name in _OTHERS:
        return _OTHERS[name]
    for end, (before, ucd) in _PARTS.items():
        if name.endswith(end):
            label = _words_of_label(name.removesuffix(end))
            return None if label is None else (f"{before}{label[0]}", f"{ucd}{label[1]}")
    return _words_of_label(name)


def _words_of_label(name: str) -> tuple[str, str] | None:
    """An abundance is known by its name: ``mg_h`` is [Mg/H]."""
    element, _, reference = name.partition("_")
    if name in _LABELS or reference not in ("h", "m", "fe"):
        return _LABELS.get(name)
    return f"[{element.capitalize()}/{reference.capitalize()}]", "phys.abund"
