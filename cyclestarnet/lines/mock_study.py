"""The mock study of missing lines: from one file of settings to trained models that never saw them (S1, Section 4.2).

A model that is trained on the two domains of `cyclestarnet.lines.mock`, unpaired
and without being told what is missing, should put the missing lines back. A study is
an ordinary training (`cyclestarnet.training.runs`) on files that are made for
it in its folder. A study that was killed goes on where it was.
"""

from __future__ import annotations

import json
import logging
from itertools import product

import astropy.units as u
import numpy as np
from astropy.table import QTable

from cyclestarnet.files import write_atomically
from cyclestarnet.lines.attribution import attribute
from cyclestarnet.lines.config import MockConfig
from cyclestarnet.lines.differences import model_differences, star_differences
from cyclestarnet.lines.elements import elements_of
from cyclestarnet.lines.features import FeatureMask
from cyclestarnet.lines.missing import MissingLines, find_missing_lines, with_elements
from cyclestarnet.lines.mock import MockDomains, MockRun, make_domains, make_run, observed_stars
from cyclestarnet.lines.score import score_missing_lines
from cyclestarnet.model import CalibratedModel
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.progress import tqdm
from cyclestarnet.training.runs import finish, prepare

__all__ = ["compare_attributions", "recovery", "study", "trained"]

log = logging.getLogger(__name__)

BLOCK = 64  # spectra that are translated at once
FDR = 0.05  # up to which a line is believed
CNO = {"c_h", "n_h", "o_h"}


def study(config: MockConfig, *, progress=True) -> QTable:
    """Run a mock study: every fraction and seed, from the spectra to the scored catalogue.

    What is done is kept in the folder of the study and not done again.

    Parameters
    ----------
    config : `~cyclestarnet.lines.config.MockConfig`
        Of the study.
    progress : bool, optional
        Show bars.

    Returns
    -------
    `~astropy.table.QTable`
        A row per training, as in S1, Table 1, also in ``study.ecsv`` of the
        folder. That of each training has its model, ``mask.ecsv``,
        ``recovery.ecsv`` (`recovery`), ``lines.ecsv`` (the catalogue, with a
        false-discovery rate of 5 %), and ``score.ecsv`` (precision and recall of all dips).

    Examples
    --------
    ::

        table = study(read_mock_config("mock.toml"))
    """
    domains = make_domains(config, progress=progress)
    runs = [make_run(config, domains, *pair) for pair in product(sorted(config.mock.fractions), config.mock.seeds)]
    models = {run.folder: trained(run, progress=progress) for run in runs}
    rows = []
    for run in runs:
        null = [models[other.folder] for other in runs if other.fraction == 0 and other is not run]
        rows.append(_scored(config, domains, run, models[run.folder], null, progress))
        _write_table(QTable(rows), domains.folder / "study.ecsv")
    return QTable(rows)


def trained(run: MockRun, *, progress=True):
    """The model of a run: read, or trained first.

    Parameters
    ----------
    run : `MockRun`
        Which.
    progress : bool, optional
        Show bars.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`

    Examples
    --------
    ::

        model = trained(make_run(config, domains, fraction=0.3, seed=0))
    """
    config = run.training
    if not config.model_path.exists():
        ready = prepare(config, progress=progress)
        log.info("%s: %r", run.folder.name, run.mask)
        ready.train(progress=progress)
        finish(ready, progress=progress)
    return CalibratedModel.load(config.model_path)


def recovery(model, domains: MockDomains, mask: FeatureMask, labels=None, *, progress=True) -> QTable:
    """Compare translated spectra with complete ones, at known labels (S1, Figure 13).

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        Of a training of the study.
    domains : `MockDomains`
        Spectra of the study, and the truth.
    mask : `~cyclestarnet.lines.FeatureMask`
        Of that training.
    labels : array, shape (n, n_labels), optional
        Default: the K giant.
    progress : bool, optional
        Show a bar.

    Returns
    -------
    `~astropy.table.QTable`
        A row per label set: the labels, ``error``, the mean of
        abs(translated − complete) / complete over the masked pixels, ``error_elsewhere``
        over all others, and ``depth``, what the masked pixels lacked, all in per cent.

    Examples
    --------
    ::

        recovery(trained(run), domains, run.mask)["error"]
    """
    labels = domains.giant[None] if labels is None else np.asarray(labels)
    truth, parts = EmulatorPredictor(domains.emulator), []
    for start in tqdm(range(0, len(labels), BLOCK), desc="recovery", disable=not progress or len(labels) < BLOCK):
        block = labels[start : start + BLOCK]
        complete = truth.flux(block)
        error = 100 * np.abs(model.predict(model.labels.to_quantities(block)).flux.value - complete) / complete
        parts.append(
            [_mean(a, w) for a, w in ((error, mask.pixels), (error, ~mask.pixels), (100 - 100 * complete, mask.pixels))]
        )
    columns = dict(zip(("error", "error_elsewhere", "depth"), np.concatenate(parts, axis=1), strict=True))
    label_set = domains.label_set
    given = {name: values for name, values in label_set.to_quantities(labels).items() if name in label_set}
    return QTable(given | {name: column * u.percent for name, column in columns.items()})


def compare_attributions(model, lines: MissingLines, mask: FeatureMask, stars, *, seed=0, progress=True) -> QTable:
    """Tell how often four ways to choose the element of a line are right.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        Of a training of the study.
    lines : `~cyclestarnet.lines.MissingLines`
        Its catalogue.
    mask : `~cyclestarnet.lines.FeatureMask`
        What its synthetic spectra lacked.
    stars : `~cyclestarnet.lines.FluxDifferences` or None
        Of observed stars, by `~cyclestarnet.lines.star_differences`.
    seed : int, optional
        Of the labels of translated spectra.
    progress : bool, optional
        Show bars.

    Returns
    -------
    `~astropy.table.QTable`
        Rows: the derivatives of one star, of the mean of 50, a regression on the
        labels of translated spectra, and one on those of observed stars.
        ``right`` is the share of masked features other than of C, N and O
        whose line is given to their element, ``right_cno`` that of the others,
        where any of C, N and O is right.

    Examples
    --------
    ::

        compare_attributions(model, lines, run.mask, star_differences(model, observed_stars(domains, 1000)))
    """
    peaks, names = np.asarray(lines.table["peak"]), elements_of(model.labels)
    giant, pool = (
        model.labels.to_quantities(model.prior.mean),
        model_differences(model, n=50, seed=seed, progress=False),
    )
    several = model.derivative_spectra(model.labels.to_quantities(pool.values), domain="difference", names=names)
    one = model.derivative_spectra(giant, domain="difference", names=names)
    at = peaks[:, None] + np.arange(-1, 2)
    found = {
        "derivatives of one star": -np.array([one[name].value[at].mean(-1) for name in names]).T,
        "derivatives of 50 label sets": -np.array([several[name].value.mean(0)[at].mean(-1) for name in names]).T,
        "regression over label sets": attribute(model_differences(model, seed=seed, progress=progress), peaks)[1],
    }
    if stars is not None:
        found["regression over observed stars"] = attribute(stars, peaks)[1]
    rows = []
    for way, preference in found.items():
        chosen = np.array(names)[preference.argmax(1)]
        single, others = [], []
        for feature in mask.masked:
            inside = np.flatnonzero((peaks >= feature.start - 1) & (peaks < feature.stop + 1))
            if len(inside):
                name = chosen[inside[np.argmin(np.abs(peaks[inside] - feature.peak))]]
                if feature.label in CNO:
                    others.append(name in CNO)
                else:
                    single.append(name == feature.label)
        rows.append((way, np.mean(single or np.nan), len(single), np.mean(others or np.nan), len(others)))
    return QTable(rows=rows, names=("way", "right", "n", "right_cno", "n_cno"))


# -- inside --------------------------------------------------------------------------------
def _scored(config, domains, run, model, null, progress):
    """A row of the study, and the files that it sums up; those that are there are not made again."""
    given, mask, folder = config.mock, run.mask, run.folder
    note = folder / "score.json"
    made_with = {"n_stars": given.n_stars, "n_scored": given.n_scored, "null": [one.name for one in null]}
    if note.exists() and (there := json.loads(note.read_text(encoding="utf-8")))["made_with"] == made_with:
        return there["row"]
    giant = recovery(model, domains, mask)
    rows = np.random.default_rng([config.run.seed, 6]).permutation(len(domains.pool))[: given.n_scored]
    population = recovery(model, domains, mask, domains.pool[rows], progress=progress)
    _write_table(population, folder / "recovery.ecsv")
    network = model.translator.network
    row = {
        "fraction": run.fraction,
        "seed": run.seed,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "iterations": config.training.n_iterations,
        "features": len(mask.masked),
        "pixels": int(mask.pixels.sum()),
        "error": float(giant["error"][0].value),
        "error_elsewhere": float(giant["error_elsewhere"][0].value),
        "error_population": float(population["error"].value.mean()),
        "depth": float(giant["depth"][0].value),
    }
    lines = find_missing_lines(model, null=null, fdr=1.0, seed=run.seed, progress=progress)
    believed = lines.at(FDR)
    if given.n_stars and len(believed):
        stars = observed_stars(domains, given.n_stars)
        believed = with_elements(believed, star_differences(model, stars, ignore=believed.pixels, progress=progress))
    believed.write(folder / "lines.ecsv")
    curve = score_missing_lines(lines, mask)
    score = score_missing_lines(believed, mask, truth=domains.derivatives())
    _write_table(QTable({n: getattr(curve, n) for n in ("fdr", "precision", "recall")}), folder / "score.ecsv")
    precision, recall = curve.at(FDR)
    row |= {"lines": len(believed), "precision": precision, "recall": recall, "chance": curve.chance}
    row |= {
        n: getattr(score, n)
        for n in ("element_accuracy", "n_element", "set_accuracy", "n_set", "set_size", "steepest_accuracy")
    }
    text = json.dumps({"made_with": made_with, "row": row}, indent=1)
    write_atomically(note, lambda path: path.write_text(text, encoding="utf-8"))
    return row


def _mean(error, pixels):
    """Mean over some pixels (n,); NaN if there is none."""
    return error[:, pixels].mean(1) if pixels.any() else np.full(len(error), np.nan)


def _write_table(table, path):
    write_atomically(path, lambda temporary: table.write(temporary, format="ascii.ecsv", overwrite=True))
