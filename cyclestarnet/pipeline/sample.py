"""From a spectrum to a posterior: the sampling that `~cyclestarnet.CalibratedModel.sample` asks for."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from astropy.table import QTable

from cyclestarnet.exceptions import FitWarning
from cyclestarnet.files import as_json
from cyclestarnet.fitting.chains import Chain
from cyclestarnet.fitting.sampling import sample_posterior
from cyclestarnet.pipeline.chains import ChainFile
from cyclestarnet.pipeline.fit import fit_one, make_objective, prepare_stars
from cyclestarnet.pipeline.options import FitOptions, SampleOptions, check_choice
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.results import FitResult, Posterior
from cyclestarnet.spectra import Spectrum

__all__ = ["sample_one"]

# options that a chain depends on
IDENTITY = ("space", "prior", "split_latent", "normalise", "ignore", "inflation", "model_scatter", "motion")


def sample_one(
    parts: ModelParts, spectrum: Spectrum, sampling: SampleOptions, chosen: Mapping[str, Any], *, digest: str
) -> Posterior:
    """Sample the posterior of one star; see `~cyclestarnet.CalibratedModel.sample`.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    spectrum : `~specutils.Spectrum`
        Of the star.
    sampling : `~cyclestarnet.pipeline.SampleOptions`
        How to sample.
    chosen : mapping
        Options of a fit that were chosen; others are those of the result in ``"start"``, if it is one.
    digest : str
        Of the model, by which a chain in a file knows it again.

    Returns
    -------
    `~cyclestarnet.Posterior`

    Examples
    --------
    ::

        posterior = sample_one(model, spectrum, SampleOptions(seed=1), {"start": result}, digest=digest_of(model))
    """
    start = chosen.get("start")
    if isinstance(start, FitResult):
        split = {} if chosen.get("space", start.options.space) == "observed" else {"split_latent": "own"}
        options = replace(start.options, **(split | chosen))
    else:
        options = FitOptions(**chosen)
    check_choice("space", options.space, ("observed", "emulator"))
    if not isinstance(start, FitResult):
        start = fit_one(parts, spectrum, options)
        options = replace(options, start=start)
    setup = FitSetup.of(parts, options)
    unfitted = len(setup.layout.coordinate_places) and start.split_latent is None
    if unfitted or start.label_set.names != setup.label_set.names:  # not all that is sampled was fitted
        start = fit_one(parts, spectrum, options)
        setup = FitSetup.of(parts, replace(options, start=start))
    stars, (place,) = prepare_stars(parts, [spectrum], setup)
    if isinstance(place, Exception):
        raise place
    objective, parameters = make_objective(parts, stars, setup), setup.parameters
    begin, covariance = _begin(setup, start)
    store = None
    if sampling.backend is not None:
        store = ChainFile(sampling.backend, _identity(digest, stars.pixels[0], setup))
    chain = sample_posterior(
        objective.log_posterior,
        parameters.lower,
        parameters.upper,
        begin,
        covariance,
        rng=sampling.generator(),
        n_walkers=sampling.n_walkers,
        max_steps=sampling.max_steps,
        store=store,
        progress=sampling.progress,
    )
    posterior = _posterior(chain, setup, start)
    if not posterior.converged:
        warnings.warn(
            f"the chain of {posterior.n_steps} steps is too short: {posterior.headline}", FitWarning, stacklevel=3
        )
    return posterior


def _begin(setup, start):
    """Parameters from which walkers start, and their covariance: the optimum of the fit."""
    layout, parameters = setup.layout, setup.parameters
    values, errors = ([], []) if start.split_latent is None else (start.split_latent.values, start.split_latent.errors)
    if not len(layout.coordinate_places):
        values, errors = [], []
    covariance = np.diag(layout.row(np.zeros(len(setup.label_set)), np.square(errors)))
    covariance[np.ix_(layout.label_places, layout.label_places)] = start.covariance
    inverse = np.linalg.pinv(parameters.matrix)
    return parameters.values(layout.row(setup.begin, values)), inverse @ covariance @ inverse.T


def _identity(digest, pixels, setup):
    """Of a sampling: model, data, parameters and options."""
    options = {key: getattr(setup.options, key) for key in IDENTITY}
    found = hashlib.sha256((digest + as_json(options)).encode())
    for array in (pixels.flux, pixels.ivar, *vars(setup.parameters).values()):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _posterior(chain: Chain, setup, start) -> Posterior:
    """Samples of labels, with units, from a chain of parameters."""
    layout, parameters, labels = setup.layout, setup.parameters, setup.label_set
    varies = parameters.matrix.any(1)[layout.label_places]
    free = tuple(name for name, moves in zip(labels, varies, strict=True) if moves)
    columns = labels.to_quantities(parameters.labels(chain.samples)[:, layout.label_places])
    table = QTable({name: q for name, q in columns.items() if name in free or name not in labels})
    times = {name: chain.autocorrelation_time_of(table[name].value) for name in table.colnames}
    table["log_posterior"] = chain.log_posterior
    return Posterior(
        samples=table,
        acceptance_fraction=chain.acceptance_fraction,
        autocorrelation_time=chain.autocorrelation_time,
        label_autocorrelation_time=times,
        converged=chain.converged,
        free=free,
        n_steps=chain.n_steps,
        options=setup.options,
        meta=start.meta | {"prior": setup.prior_name, "fixed": tuple(setup.options.fixed or ())},
        n_walkers=chain.n_walkers,
        thin=chain.thin,
        lowest_acceptance=chain.lowest_acceptance,
        n_nan=chain.n_nan,
    )
