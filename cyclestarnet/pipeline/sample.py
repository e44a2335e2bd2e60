"""From a spectrum to a posterior: the sampling that `~cyclestarnet.CalibratedModel.sample` asks for."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from astropy.table import QTable

from cyclestarnet.exceptions import FitWarning
from cyclestarnet.files import as_json
from cyclestarnet.fitting.approximation import approximate
from cyclestarnet.fitting.chains import Chain, Progress
from cyclestarnet.fitting.nuts import sample_by_gradients
from cyclestarnet.fitting.sampling import sample_posterior
from cyclestarnet.fitting.solvers import levenberg_marquardt
from cyclestarnet.pipeline.chains import ChainFile
from cyclestarnet.pipeline.fit import fit_one, make_objective, prepare_stars, settled
from cyclestarnet.pipeline.options import FitOptions, SampleOptions, check_choice
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.pipeline.report import hidden_covariance
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.progress import tqdm
from cyclestarnet.results import FitResult, Posterior
from cyclestarnet.spectra import Spectrum

__all__ = ["sample_one"]

log = logging.getLogger(__name__)

# options that a chain depends on
IDENTITY = (
    "space", "prior", "split_latent", "normalise", "ignore", "continuum_degree", "inflation", "model_scatter", "motion",
)  # fmt: skip
LONG = 80  # characters of an option that a file says in words
TOGETHER = 6  # positions that go through the networks at once: what they make of them stays in the processor's cache


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
    sampling : `~cyclestarnet.SampleOptions`
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
    singly = make_objective(parts, stars, setup)
    optimum = levenberg_marquardt(singly, _begin(setup, start))
    singly, optimum = settled(parts, stars, setup, levenberg_marquardt, singly, optimum)
    centre, covariance = approximate(singly, setup.parameters.values(optimum.inputs[0]))
    with tqdm(desc="sampling", unit="step", disable=not sampling.progress) as bar:
        how = {
            "rng": sampling.generator(), "n_walkers": sampling.n_walkers, "max_steps": sampling.max_steps,
            "length": sampling.length, "watch": partial(_show, bar),
        }  # fmt: skip
        if sampling.sampler == "nuts":
            chain = sample_by_gradients(singly, centre, covariance, **how)
        else:
            store = None
            if sampling.backend is not None:
                store = ChainFile(sampling.backend, _identity(digest, stars.pixels[0], setup, sampling.seed))
            chain = sample_posterior(
                make_objective(parts, stars, setup, together=TOGETHER, model_flux=optimum.flux).log_posterior,
                setup.parameters.lower,
                setup.parameters.upper,
                centre,
                covariance,
                store=store,
                **how,
            )
    posterior = _posterior(chain, setup, start, _hidden_errors(parts, singly, optimum, setup))
    if not posterior.converged:
        warnings.warn(
            f"the chain of {posterior.n_steps} steps is too short: {posterior.headline}", FitWarning, stacklevel=3
        )
    return posterior


def _begin(setup, start):
    """Where the search for the optimum of what is sampled begins, whatever the start was the optimum of."""
    coordinates = start.split_latent.values if len(setup.layout.coordinate_places) else []
    return setup.layout.row(setup.begin, coordinates)[None]


def _hidden_errors(parts, objective, optimum, setup):
    """Errors that residuals do not show, of each label and combination."""
    labels, places = setup.label_set, setup.layout.label_places
    hidden = hidden_covariance(parts, 0, objective, optimum, setup, optimum.covariance[0][np.ix_(places, places)])
    every = np.vstack([np.eye(len(labels)), labels.combination_matrix])
    errors = np.sqrt(np.einsum("ij,jk,ik->i", every, hidden, every).clip(0))
    return dict(zip([*labels, *labels.combinations], errors.tolist(), strict=True))


def _show(bar, progress: Progress) -> None:
    """Tell how far a sampling is, and before it starts, how long it will take."""
    tau, seconds = progress.autocorrelation_time, progress.seconds_per_step
    if not progress.n_steps:
        log.info(
            "sampling: %.2g s a step; about %d steps, %.2g min, if the posterior is as close to a Gaussian as the "
            "densities at the start", seconds, progress.expected_steps, progress.seconds_left / 60,
        )  # fmt: skip
    bar.total = progress.expected_steps
    bar.set_postfix_str(f"tau {tau:.1f}, about {progress.seconds_left:.0f} s left", refresh=False)
    bar.update(progress.n_steps - bar.n)


def _identity(digest, pixels, setup, seed):
    """What a chain depends on, by name."""
    texts = {name: as_json(getattr(setup.options, name)) for name in IDENTITY}
    identity = {name: text if len(text) < LONG else _hash(text.encode()) for name, text in texts.items()}
    identity |= {"model": digest, "spectrum": _hash(pixels.flux, pixels.ivar), "seed": seed}
    return identity | {"free labels or bounds": _hash(*vars(setup.parameters).values())}


def _hash(*arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes() if isinstance(array, np.ndarray) else array)
    return found.hexdigest()[:16]


def _posterior(chain: Chain, setup, start, hidden_errors) -> Posterior:
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
        hidden_errors={name: hidden_errors[name] for name in times},
    )
