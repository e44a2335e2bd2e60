"""Options of fits, samplings and surveys: each stands once, here, and checks itself.

Methods of `CalibratedModel` that fit and sample take the fields of these classes as keyword arguments.
"""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclestarnet.fitting.isochrones import IsochronePrior
from cyclestarnet.fitting.priors import GaussianConstraints, GaussianPrior, ProductPrior
from cyclestarnet.grid import ranges_of
from cyclestarnet.masks import SpectroscopicMask
from cyclestarnet.pipeline.continuum_terms import ContinuumTerms, check_degree
from cyclestarnet.storage import storable

if TYPE_CHECKING:
    from dask.distributed import Client

__all__ = [
    "FitOptions",
    "ManyOptions",
    "SampleManyOptions",
    "SampleOptions",
    "check_choice",
    "one_only",
    "sorted_options",
    "takes",
]

SPACES = ("observed", "synthetic", "emulator")
METHODS = ("lm", "lbfgs")
SPLIT_LATENTS = ("own", "typical", "fitted")
SAMPLERS = ("emcee", "nuts")
# What options are called elsewhere
USUAL_NAMES = {
    "n_steps": "max_steps", "nsteps": "max_steps", "steps": "max_steps", "n_samples": "max_steps", "niter": "max_steps",
    "walkers": "n_walkers", "random_state": "seed", "filename": "output", "path": "output", "clobber": "overwrite",
    "n_jobs": "workers", "processes": "workers", "threads": "workers", "pool": "workers",
    "initial": "start", "guess": "start", "p0": "start", "x0": "start", "limits": "bounds", "mask": "ignore",
    "radial_velocity": "motion", "rv": "motion", "optimizer": "method",
}  # fmt: skip
MOTION = {"velocity": (-1000.0, 1000.0, 0.0), "broadening": (0.0, 60.0, 3.0)}  # km/s: bounds, and start


# Options that a file of a result can keep
for _kind in (ContinuumTerms, GaussianPrior, GaussianConstraints, ProductPrior, IsochronePrior):
    storable(_kind)


@storable
@dataclass(frozen=True, eq=False)
class FitOptions:
    """How a spectrum is fitted: the keyword arguments of `~cyclestarnet.CalibratedModel.fit`.

    Parameters
    ----------
    space : {"observed", "synthetic", "emulator"}, optional
        Where model and data are compared: synth→obs(emulator) with the data (S1, Eq. 11,
        default), the emulator with obs→synth(data), unweighted (Eq. 10), or the emulator with
        the data (Eq. 9: no translation).
    start : mapping of str to `~astropy.units.Quantity`, table, or `~cyclestarnet.FitResult`, optional
        Starting labels; those not given start at the mean of the prior, and those that are fixed at their value.
        Default: a guess from the spectrum's latent. For ``fit_many`` a value may be a column, as in ``fixed``.
    fixed : mapping of str to `~astropy.units.Quantity`, or table, optional
        Labels held at a value. Default: none. For ``fit_many`` a value may be a column, of shape (n_stars,) in the
        order of the stars, such as ``{"teff": table["teff"]}``: where it is NaN or masked, the label of that star is
        free. Of a table, the columns that are named like labels count.
    bounds : mapping of str to (low, high), optional
        Narrower bounds of labels. Default: the training range.
    tied : sequence of sequences of str, optional
        Groups of labels that move together and keep the differences that they have at ``start``,
        or else at the mean of the prior. For example, the α elements in one group and all others
        in a second leave [M/H] and [α/M]. Default: none.
    motion : {"velocity", "broadening"} or a sequence of them, optional
        Fit a radial velocity or an extra Gaussian broadening (σ), too, in km/s. They become labels
        of the result. Default: neither.
    prior : optional
        ``"training"``: Gaussian of the training labels (default). None: flat within the bounds.
        A mapping of label or combination to (mean, sigma), which for ``fit_many`` may be columns, as in ``fixed``;
        it is flat where the mean is NaN or masked. An object such as
        `~cyclestarnet.GaussianPrior` or `~cyclestarnet.IsochronePrior`. A list of
        these: their product.
    split_latent : {"own", "typical", "fitted"}, optional
        Split latent of the observed domain: from the star's own spectrum (the paper's choice),
        that of a typical training star, or fitted along with the labels, with a prior learnt from
        training stars. The labels' errors then include that it is not known. Its coordinates are
        no labels: ``result.split_latent`` has their ``values`` and ``errors``, in σ of training
        stars. Other spaces have no split latent, and refuse another choice than ``"own"``.
    normalise : bool, optional
        Whether the model's continuum recipe is applied to the spectrum, whatever the unit of its flux, and whoever
        normalised it before: other continua give other labels. Default: yes, if the training spectra went through
        that recipe (``model.normalises``). False: the flux is taken as it is.
    ignore : array of bool of shape (n_pixels,), (low, high), `~specutils.SpectralRegion`, or list of these, optional
        Pixels of the model, or ranges of vacuum wavelength (Angstrom, if they have no unit), that are not used:
        the data are bad there. Or a `~cyclestarnet.SpectroscopicMask`, of pixels where the synthetic spectra are: these
        do not count in χ², but networks that read the spectrum see them. Default: none.
    continuum_degree : int or `~cyclestarnet.ContinuumTerms`, optional
        Degree of a polynomial in each chip by which the model's flux may be off from the data's, with coefficients of
        about 2 %; or ``ContinuumTerms(degree, windows)``, of one in each of some windows of wavelength. The posterior
        is marginalised over them, so that the errors of labels hold what the continuum does not tell;
        ``model_spectrum`` is that with the most likely ones. Default: none, the continuum is trusted.
    inflation : float, optional
        Factor on the errors of the data. Default: 1.
    model_scatter : bool, optional
        Whether the model's own error in each pixel counts in the weights, too. Default: True.
        False, with ``prior=None``, is the fit as the paper prints it (Eq. 11): deep lines, which no model
        gets right to the noise, then decide.
    method : {"lm", "lbfgs"}, optional
        Levenberg-Marquardt, the default, which is several times quicker and ends within a fraction of the error
        bar; or the paper's, L-BFGS with a strong-Wolfe line search.

    Raises
    ------
    ValueError
        If an option has an unknown value.
    TypeError
        If an option is of another kind.
    GridError
        If ``ignore`` is no mask and holds anything but ranges of wavelength.

    Examples
    --------
    >>> from cyclestarnet.pipeline import FitOptions
    >>> FitOptions(motion="velocity").motion
    ('velocity',)
    >>> FitOptions(space="sky")
    Traceback (most recent call last):
    ...
    ValueError: space must be one of 'observed', 'synthetic', 'emulator', but is 'sky'
    """

    space: str = "observed"
    start: Any = None
    fixed: Mapping | None = None
    bounds: Mapping | None = None
    tied: Sequence[Sequence[str]] = ()
    motion: str | Sequence[str] = ()
    prior: Any = "training"
    split_latent: str = "own"
    normalise: bool | None = None
    ignore: Any = None
    continuum_degree: int | None = None
    inflation: float = 1.0
    model_scatter: bool = True
    method: str = "lm"

    def __post_init__(self) -> None:
        check_choice("space", self.space, SPACES)
        check_choice("method", self.method, METHODS)
        check_choice("split_latent", self.split_latent, SPLIT_LATENTS)
        if not (isinstance(self.inflation, Real) and 0 < self.inflation < np.inf):
            raise ValueError(
                f"inflation must be a positive factor on the errors of the data, but is {self.inflation!r}"
            )
        if not (self.continuum_degree is None or isinstance(self.continuum_degree, ContinuumTerms)):
            check_degree("continuum_degree", self.continuum_degree, or_else=", or a ContinuumTerms")
        if not isinstance(self.normalise, bool | None):
            raise TypeError(f"normalise must be True, False or None, but is {self.normalise!r}")
        if not isinstance(self.model_scatter, bool):
            raise TypeError(f"model_scatter must be True or False, but is {self.model_scatter!r}")
        if self.split_latent != "own" and self.space != "observed":
            raise ValueError(
                f"split_latent={self.split_latent!r} has no effect with space={self.space!r}, which has none; "
                'leave it out, or use space="observed"'
            )
        motion = (self.motion,) if isinstance(self.motion, str) else tuple(self.motion or ())
        for name in motion:
            check_choice("motion", name, MOTION)
        if motion and self.space == "synthetic":
            raise ValueError('motion cannot be fitted with space="synthetic": a translated spectrum is at rest')
        tied = self.tied or ()
        if isinstance(tied, str) or any(isinstance(group, str) for group in tied):
            raise TypeError("tied must be a sequence of groups of labels, such as [('o_h', 'mg_h', 'si_h')]")
        for name in ("fixed", "bounds"):
            if not (isinstance(getattr(self, name), Mapping | None) or (name == "fixed" and _is_table(self.fixed))):
                raise TypeError(f"{name} must be a mapping by name of label, but is {getattr(self, name)!r}")
        start = self.start
        if isinstance(getattr(start, "labels", None), Mapping):
            # of a result its labels, not all of it; its motion need not be fitted again
            start = {name: v for name, v in start.labels.items() if name in motion or name not in MOTION}
        checked = {"motion": tuple(name for name in MOTION if name in motion), "start": start}
        checked |= {"tied": tuple(tuple(group) for group in tied), "inflation": float(self.inflation)}
        taken = isinstance(self.ignore, np.ndarray) and self.ignore.dtype == bool
        if not (taken or isinstance(self.ignore, SpectroscopicMask | None)):
            checked["ignore"] = ranges_of(self.ignore, "ignore")
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class SampleOptions:
    """How a posterior is sampled: keyword arguments of `~cyclestarnet.CalibratedModel.sample` beside those of a fit.

    Parameters
    ----------
    seed : int, optional
        The same seed gives the same samples on the same machine. Default: another one each time.
    rng : `numpy.random.Generator`, optional
        Used instead of a seed, and advanced.
    sampler : {"emcee", "nuts"}, optional
        ``"nuts"``: a second opinion, by another method that shares nothing but the posterior: the No-U-Turn Sampler
        of mici (extra ``nuts``), which follows exact gradients. It keeps no ``backend``. Default: ``"emcee"``.
    n_walkers : int, optional
        Walkers of the ensemble. Default: twice the number of parameters and two. Of ``"nuts"``: chains, 4.
    max_steps : int, optional
        Sampling stops by itself when the chain is 50 autocorrelation times long, after 100 to 300 steps
        if the posterior is close to a Gaussian. This is where it stops in any case: the most that a
        difficult one may cost. A step is a spectrum of each walker. Default: 10,000.
    length : float, optional
        Autocorrelation times after which the chain is long enough, 10 or more. 10 make some hundred independent
        samples, enough for a mean, a width or a rank. Default: 50, as the ends of intervals need it.
    backend : path-like, optional
        HDF5 file that keeps the chain; an existing one is continued, if it is of the same model, spectrum,
        options and, where one is given, seed. Default: the chain is not kept.
    progress : bool, optional
        Show a progress bar, with the time that is left. The estimate before the first step is logged, too.

    Raises
    ------
    ValueError
        If a number is not positive, both a seed and a generator are given, the sampler is unknown, or ``"nuts"`` is to
        keep a backend.

    Examples
    --------
    >>> from cyclestarnet.pipeline import SampleOptions
    >>> SampleOptions(seed=1).generator().integers(100)
    np.int64(47)
    """

    seed: int | None = None
    rng: np.random.Generator | None = None
    sampler: str = "emcee"
    n_walkers: int | None = None
    max_steps: int = 10_000
    length: float = 50.0
    backend: Any = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SAMPLERS)
        if self.sampler == "nuts" and self.backend is not None:
            raise ValueError('sampler="nuts" keeps no backend; leave it out, or take sampler="emcee"')
        if self.seed is not None and self.rng is not None:
            raise ValueError("give a seed or a generator (rng), not both")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more, but is {self.max_steps}")

    def generator(self) -> np.random.Generator:
        """Make the generator of the sampling.

        Returns
        -------
        `numpy.random.Generator`
            The given one, or a new one of the seed.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.pipeline import SampleOptions
        >>> rng = np.random.default_rng(1)
        >>> SampleOptions(rng=rng).generator() is rng
        True
        """
        return np.random.default_rng(self.seed if self.rng is None else self.rng)


@dataclass(frozen=True, eq=False)
class ManyOptions:
    """How many stars are fitted or sampled: keyword arguments of ``fit_many`` and ``sample_many`` of a model.

    Parameters
    ----------
    output : path-like, optional
        Table to write: ``.ecsv``, ``.fits``, ``.parquet`` (needs pyarrow) or ``.csv`` (without units).
        Rows are kept beside it in ``<output>.partial`` as they come: the same call made again after a
        kill goes on with the stars that are left. Default: the table is only returned.
    overwrite : bool, optional
        Replace an existing output.
    selection : `~cyclestarnet.io.Selection`, optional
        Rows of an HDF5 file. Default: all.
    workers : int, optional
        Processes of this machine that work side by side, each on one thread; the rows are those of
        one process to the last bit. In a script, the call must stand under
        ``if __name__ == "__main__":``. Default: 1, this process.
    client : `dask.distributed.Client`, optional
        Work on its workers instead; see `cyclestarnet.pipeline.many`.
    progress : bool, optional
        Show a progress bar.

    Raises
    ------
    ValueError
        If ``workers`` is no positive number, or given with a client.

    Examples
    --------
    >>> from cyclestarnet.pipeline import ManyOptions
    >>> ManyOptions(output="labels.ecsv", workers=2).workers
    2
    """

    output: Any = None
    overwrite: bool = False
    selection: Any = None
    workers: int = 1
    client: Client | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
            raise ValueError(f"workers must be a number of processes, 1 or more, but is {self.workers!r}")
        if self.workers > 1 and self.client is not None:
            raise ValueError(f"give workers={self.workers}, or a client that has workers of its own, not both")


@dataclass(frozen=True, eq=False)
class SampleManyOptions:
    """How posteriors of many stars are sampled: keyword arguments of `~cyclestarnet.CalibratedModel.sample_many`.

    Parameters
    ----------
    seed : int, optional
        Of all that is random. What a star gets of it depends on its number among the stars alone. Default: 0.
    n_walkers : int, optional
        Walkers of each ensemble. Default: twice the number of parameters and two.
    max_steps : int, optional
        Where a sampling stops in any case; most need 100 to 300 steps. Default: 10,000.
    chains : path-like, optional
        Folder for the samples, a FITS file ``<number>-<name>.fits`` for each star, which
        `Posterior.read <cyclestarnet.Posterior.read>` reads. Until the run ends, an HDF5 file beside it keeps the
        chain, so that the same call after a kill goes on in the middle of a star; the files of chains that are too
        short stay, and can be prolonged. Default: the table alone is kept.

    Raises
    ------
    ValueError
        If a number is negative, or ``max_steps`` is not positive.

    Examples
    --------
    >>> from cyclestarnet.pipeline import SampleManyOptions
    >>> SampleManyOptions(chains="chains").seed
    0
    """

    seed: int = 0
    n_walkers: int | None = None
    max_steps: int = 10_000
    chains: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise ValueError(f"seed must be a whole number, 0 or more, but is {self.seed!r}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more, but is {self.max_steps}")


def _is_table(value):
    return hasattr(value, "colnames")


def check_choice(argument: str, value: Any, choices: Any) -> None:
    """Raise if the value of an argument is none of its choices.

    Parameters
    ----------
    argument : str
        Its name, for the message.
    value : object
        What was given.
    choices : iterable
        What it may be.

    Raises
    ------
    ValueError
        If the value is none of these.

    Examples
    --------
    >>> from cyclestarnet.pipeline.options import check_choice
    >>> check_choice("domain", "observed", ("observed", "synthetic"))
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, but is {value!r}")


def sorted_options(given: Mapping[str, Any], *kinds: type) -> list[dict[str, Any]]:
    """Sort keyword arguments by the class of options that has them.

    Parameters
    ----------
    given : mapping
        Keyword arguments of a call.
    *kinds : type
        Classes of options.

    Returns
    -------
    list of dict
        For each class those that are its fields.

    Raises
    ------
    TypeError
        If a name is a field of none; the message names the one that may be meant.

    Examples
    --------
    >>> from cyclestarnet.pipeline.options import FitOptions, SampleOptions, sorted_options
    >>> sorted_options({"seed": 1, "space": "emulator"}, SampleOptions, FitOptions)
    [{'seed': 1}, {'space': 'emulator'}]
    """
    names = [{f.name for f in fields(kind)} for kind in kinds]
    known = sorted(set().union(*names))
    unknown = sorted(set(given) - set(known))
    if unknown:
        usual = USUAL_NAMES.get(unknown[0])
        near = [usual] if usual in known else difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.7)
        meant = f"did you mean {near[0]!r}? There" if near else "there"
        raise TypeError(f"unknown options {unknown}; {meant} are: {', '.join(known)}")
    return [{name: value for name, value in given.items() if name in own} for own in names]


def one_only(name: str, more: Sequence[Any]) -> None:
    """Raise if a function of one spectrum was called with more, such as arrays.

    Parameters
    ----------
    name : str
        Of the function, for the message.
    more : sequence
        What came after the first argument.

    Raises
    ------
    TypeError
        If there is anything; the message shows how arrays become a spectrum.

    Examples
    --------
    >>> from cyclestarnet.pipeline.options import one_only
    >>> one_only("fit", ())
    """
    if more:
        kinds = ", ".join(type(one).__name__ for one in more[:3])
        raise TypeError(
            f"{name} takes what holds the spectra, and options by name, but got {len(more)} more ({kinds}). "
            "Arrays become a spectrum by Spectrum(flux=flux * u.one, spectral_axis=wavelength * u.AA, "
            "uncertainty=StdDevUncertainty(error)), with astropy.units as u, Spectrum of specutils and "
            "StdDevUncertainty of astropy.nddata"
        )


def takes(*kinds: type):
    """Give a function that takes ``**options`` the signature and the documentation of classes of options.

    Parameters
    ----------
    *kinds : type
        Classes of options, whose fields are the keyword arguments.

    Returns
    -------
    callable
        Decorator. In the docstring it replaces the parameter ``**options``.

    Examples
    --------
    >>> import inspect
    >>> from cyclestarnet.pipeline.options import SampleOptions, takes
    >>> @takes(SampleOptions)
    ... def sample(**options):
    ...     return options
    >>> inspect.signature(sample).parameters["max_steps"].default
    10000
    """

    def decorate(function):
        signature, added, text = inspect.signature(function), [], []
        for kind in kinds:
            for own in fields(kind):
                default = None if own.default is MISSING else own.default
                added.append(inspect.Parameter(own.name, inspect.Parameter.KEYWORD_ONLY, default=default))
            section = re.search(r"^Parameters\n-+\n(.*?)(?=\n\w[^\n]*\n-+\n)", inspect.getdoc(kind), re.M | re.S)
            text.append(section.group(1).rstrip())
        hidden = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        kept = [p for p in signature.parameters.values() if p.kind not in hidden]
        function.__signature__ = signature.replace(parameters=[*kept, *added])
        if function.__doc__:
            entry = re.compile(r"^( *)\*\*options\n(?:\1 +.*\n)*", re.M)
            words = "\n".join(text) + "\n"
            function.__doc__ = entry.sub(lambda found: textwrap.indent(words, found.group(1)), function.__doc__)
        return function

    return decorate
