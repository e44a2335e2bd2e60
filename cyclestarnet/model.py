"""`CalibratedModel`: the one object a user needs. It joins the rooms and computes nothing itself."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable, Table, vstack

from cyclestarnet.backend.checkpoint import load_arrays, save_arrays
from cyclestarnet.backend.emulator import Emulator
from cyclestarnet.backend.networks import NetworkSettings, TranslationNetwork
from cyclestarnet.backend.predictor import EmulatorPredictor, ObservedPredictor, Translator
from cyclestarnet.backend.published import (
    PAYNE_LABELS,
    adapt_emulator,
    read_payne_checkpoint,
    read_published_checkpoint,
)
from cyclestarnet.backend.settings import TrainingSettings
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.diagnostics import LatentCloud, line_shift
from cyclestarnet.exceptions import CycleStarNetError, FitWarning, GridError, LabelError, ModelFileError
from cyclestarnet.fitting.objective import GaussianPrior, Objective
from cyclestarnet.fitting.sampling import sample_posterior
from cyclestarnet.fitting.solvers import minimise
from cyclestarnet.grid import APSTAR_CHIPS, WavelengthGrid, apogee_grid
from cyclestarnet.labels import LabelSet, difference_unit, kelvin_scale
from cyclestarnet.results import FitFlag, FitResult, Posterior
from cyclestarnet.spectra import Pixels, to_pixels, to_spectrum

__all__ = ["CalibratedModel"]

SPACES = ("observed", "synthetic", "emulator")
DOMAINS = ("observed", "synthetic")
AIR_SHIFT = (-92.0, -72.0)  # km/s: where lines appear if air wavelengths are taken for vacuum
REST = 10.0  # km/s
ROUGH_ERROR = 0.01  # of a translated spectrum, before its own residuals tell
CUTS = {"paper": "red", "repository": "blue"}  # end of the APOGEE grid that the spectra of a preset lack


@dataclass(frozen=True, eq=False, repr=False)
class CalibratedModel:
    """A forward model of observed spectra: labels → emulator → translation.

    Get one with `from_pretrained` or `load`; make one from trained parts with
    the constructor.

    Parameters
    ----------
    name : str
    labels : `~cyclestarnet.LabelSet`
    grid : `~cyclestarnet.WavelengthGrid`
    emulator : `~cyclestarnet.backend.emulator.Emulator`
    translator : `~cyclestarnet.backend.predictor.Translator`
    recipe : `~cyclestarnet.ContinuumRecipe`
    prior : `~cyclestarnet.fitting.objective.GaussianPrior`
        Of the labels of the synthetic spectra in training.
    scatter : dict of array, shape (n_pixels,)
        The model's own error per pixel, 1 σ, for the spaces ``"observed"`` and ``"emulator"``.
    cloud : `~cyclestarnet.diagnostics.LatentCloud`
        Of the shared latents of observed training spectra.
    typical_nuisance : array, shape (split_filters, latent_length), or None
        Split latent to use where no observed spectrum gives one.
    limits : dict
        ``sigma_floor`` and ``sigma_max`` of training, ``reduced_chi2_total``
        and ``prior_distance`` beyond which fits are flagged.
    provenance : dict
        What the model was made of, and its measured figures.
    scatter_inflation : dict of float
        Factor on the variance of ``scatter`` in a fit, per space. The model's
        errors of neighbouring pixels are alike, so that they average out more
        slowly than noise does.
    label_error : array, shape (n_labels, n_labels), optional
        Covariance of the labels' errors that residuals do not show, because a
        wrong label can hide in the translation; learnt on validation stars of
        known labels, and added to the covariance of fits in the observed space.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import CalibratedModel
    >>> model = CalibratedModel.from_pretrained()
    >>> model.grid.n_pixels
    7167
    """

    name: str
    labels: LabelSet
    grid: WavelengthGrid
    emulator: Emulator
    translator: Translator
    recipe: ContinuumRecipe
    prior: GaussianPrior
    scatter: Mapping[str, np.ndarray]
    cloud: LatentCloud
    typical_nuisance: np.ndarray | None
    limits: Mapping[str, float]
    provenance: Mapping = field(default_factory=dict)
    scatter_inflation: Mapping[str, float] = field(default_factory=dict)
    label_error: np.ndarray | None = None

    def __post_init__(self):
        sizes = {
            "grid": self.grid.n_pixels,
            "emulator": self.emulator.n_pixels,
            "translation network": self.translator.network.settings.n_pixels,
            "continuum recipe": self.recipe.grid.n_pixels,
        } | {f"scatter ({space})": len(array) for space, array in self.scatter.items()}
        if len(set(sizes.values())) > 1:
            raise GridError(f"the parts of a model must have the same number of pixels, but have {sizes}")
        if len(self.labels) != self.emulator.n_labels:
            raise LabelError(f"{len(self.labels)} labels, but the emulator takes {self.emulator.n_labels}")

    # -- where models come from ------------------------------------------------
    @classmethod
    def from_pretrained(cls, name="apogee-giants"):
        """Load a model that ships with the package.

        Parameters
        ----------
        name : str, optional
            Default: ``"apogee-giants"``.

        Returns
        -------
        `CalibratedModel`

        Raises
        ------
        ValueError
            If there is no such model; the message lists those that exist.
        """
        folder = resources.files("cyclestarnet.data")
        known = sorted(p.name.removesuffix(".safetensors") for p in folder.iterdir() if p.name.endswith(".safetensors"))
        if name not in known:
            raise ValueError(
                f"no embedded model {name!r}; there are {known}. For a file use CalibratedModel.load(path)"
            )
        with resources.as_file(folder / f"{name}.safetensors") as path:
            return cls.load(path)

    @classmethod
    def load(cls, path):
        """Read a model that `save` wrote, and verify it with its self-test vector.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        ModelFileError
            If the file is damaged, foreign, or predicts other spectra than it did when it was saved.
        """
        arrays, meta = load_arrays(path)
        try:
            model = cls._from_arrays(arrays, meta)
            test_labels, expected = arrays["selftest.labels"], {d: arrays[f"selftest.{d}"] for d in DOMAINS}
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelFileError(f"{path} does not hold a complete model: {error}") from error
        for domain in reversed(DOMAINS):
            difference = np.abs(model._predictor(domain).flux(test_labels) - expected[domain]).max()
            if not difference < 1e-4:
                raise ModelFileError(
                    f"{path} fails its self-test: the {domain} spectrum differs by {difference:.2g} "
                    "from the one stored; the file was altered"
                )
        return model

    @classmethod
    def from_published(cls, checkpoint, emulator, *, preset="repository", labels=None, template=None):
        """Join the public files of Cycle-StarNet to a model.

        The files hold networks and the ranges of the labels, no more. What
        they lack is assumed, and ``provenance`` says so:

        - prior: a Gaussian in the middle of each label's range, σ half the
          range, instead of the training labels;
        - model error: 1 % in every pixel;
        - no spectrum is called unfamiliar and no labels outside of training;
          a reduced χ² above 2, model error included, is a poor fit;
        - typical split latent: zero, the mean of a normalised latent;
        - continuum: this package's continuum pixels as far as they lie on
          the grid, not those that normalised the training spectra.

        Parameters
        ----------
        checkpoint : path-like
            Such as ``kurucz_to_apogee_1.pth.tar``; see
            `~cyclestarnet.backend.published.read_published_checkpoint`.
        emulator : path-like
            Such as ``PAYNE.pth.tar``, on the 7214 pixels of
            ``apogee_grid(7214)`` or on those of the network alone.
        preset : {"paper", "repository"}, optional
            Which pixels the network takes, and the scaling of its flux. The
            paper drops the 47 reddest pixels. The authors' repository, and so
            the weights that they published, drops the 47 bluest. Default:
            ``"repository"``.
        labels : sequence of str, optional
            Names in the order of the emulator. Default: the 25 of the paper.
            A ``"teff"`` in units of 1000 K becomes one in K.
        template : `~cyclestarnet.backend.networks.NetworkSettings`, optional
            Pixels, strides, slope and ``latent_norm`` of the network. Default:
            the paper's.

        Returns
        -------
        `CalibratedModel`

        Raises
        ------
        ModelFileError
            If a file is damaged, holds code or has another layout, or the
            networks were trained with another emulator.
        LabelError
            If the names of the labels are not as many as the emulator takes.
        GridError
            If the emulator has other pixels, or if the network knows the
            emulator's spectra on the pixels of the other preset.

        Examples
        --------
        ::

            model = CalibratedModel.from_published(
                "kurucz_to_apogee_1.pth.tar", "PAYNE.pth.tar", preset="repository"
            )
            model.save("kurucz_to_apogee_1.safetensors")
        """
        settings = TrainingSettings.from_preset(preset)
        payne = read_payne_checkpoint(emulator)
        network, _ = read_published_checkpoint(checkpoint, template=template, emulator=payne)
        translator = Translator(network, settings.flux_mean, settings.flux_std)
        n_pixels, sizes = network.settings.n_pixels, network.settings
        grid = apogee_grid(n_pixels, cut=CUTS[preset])
        names = _published_labels(labels, payne.n_labels)
        scale = kelvin_scale(names, payne.upper.numpy())
        pixels = _published_pixels(payne, translator, preset)
        payne = adapt_emulator(payne, pixels=pixels, label_scale=scale)
        label_set = LabelSet(names, payne.lower.double().numpy(), payne.upper.double().numpy())
        n_latent = sizes.shared_filters * sizes.latent_length
        files = {"checkpoint": Path(checkpoint), "emulator": Path(emulator)}
        return cls(
            name=files["checkpoint"].name.removesuffix(".tar").removesuffix(".pth"),
            labels=label_set,
            grid=grid,
            emulator=payne,
            translator=translator,
            recipe=_apogee_recipe(grid),
            prior=GaussianPrior((label_set.lower + label_set.upper) / 2, np.diag(label_set.scale**2 / 4)),
            scatter={space: np.full(n_pixels, 0.01) for space in ("observed", "emulator")},
            cloud=LatentCloud(np.zeros(n_latent), np.zeros((0, n_latent)), np.zeros(0), 1.0, np.inf),
            typical_nuisance=np.zeros((sizes.split_filters, sizes.latent_length)) if network.has_split else None,
            limits={
                "sigma_floor": settings.sigma_floor,
                "sigma_max": settings.sigma_max,
                "reduced_chi2_total": 2.0,
                "prior_distance": np.inf,
            },
            provenance={
                "made from": "the public files of Cycle-StarNet (O'Briain et al. 2021)",
                "preset": preset,
                "assumed": "prior, model error, limits, typical split latent and continuum pixels; "
                "see CalibratedModel.from_published",
            }
            | {
                key: f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
                for key, path in files.items()
            },
        )

    def save(self, path, *, half=False):
        """Write the model to one safetensors file, atomically.

        Parameters
        ----------
        path : path-like
        half : bool, optional
            Store weights in float16: half the size, flux changed by about 1e-4.
        """
        state = {f"network.{k}": v for k, v in self.translator.network.state_dict().items()}
        state |= {f"emulator.{k}": v for k, v in self.emulator.state_dict().items()}
        arrays = {k: v.to(torch.float16 if half and v.ndim > 1 else v.dtype).numpy() for k, v in state.items()}
        arrays |= {
            "grid.wavelength": self.grid.wavelength.value,
            "recipe.pixels": self.recipe.pixels,
            "prior.mean": self.prior.mean,
            "prior.covariance": self.prior.covariance,
            "scatter.observed": np.asarray(self.scatter["observed"], dtype=np.float32),
            "scatter.emulator": np.asarray(self.scatter["emulator"], dtype=np.float32),
            "cloud.mean": self.cloud.mean,
            "cloud.basis": np.asarray(self.cloud.basis, dtype=np.float32),
            "cloud.variance": self.cloud.variance,
            "selftest.labels": self.prior.mean,
        }
        for name in ("typical_nuisance", "label_error"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        meta = {
            "name": self.name,
            "labels": self.labels.to_dict(),
            "chips": self.grid.chips,
            "degree": self.recipe.degree,
            "network": self.translator.network.settings.to_dict(),
            "emulator": {"hidden": self.emulator.hidden, "activation": self.emulator.activation},
            "flux_mean": self.translator.flux_mean,
            "flux_std": self.translator.flux_std,
            "cloud": {"rest": self.cloud.rest, "threshold": self.cloud.threshold},
            "limits": dict(self.limits),
            "scatter_inflation": dict(self.scatter_inflation),
            "provenance": dict(self.provenance),
        }
        # The self-test is of what a reader will get: of the rounded weights.
        stored = type(self)._from_arrays(arrays, meta)
        for domain in DOMAINS:
            arrays[f"selftest.{domain}"] = stored._predictor(domain).flux(self.prior.mean).astype(np.float32)
        save_arrays(arrays, meta, path)

    @classmethod
    def _from_arrays(cls, arrays, meta):
        labels = LabelSet(**meta["labels"])
        grid = WavelengthGrid(arrays["grid.wavelength"] * u.AA, tuple(map(tuple, meta["chips"])))
        emulator = Emulator(labels.lower, labels.upper, grid.n_pixels, **meta["emulator"])
        network = TranslationNetwork(NetworkSettings(**meta["network"]))
        for prefix, module in (("emulator.", emulator), ("network.", network)):
            own = {
                k.removeprefix(prefix): torch.from_numpy(v).float() for k, v in arrays.items() if k.startswith(prefix)
            }
            module.load_state_dict(own)
        return cls(
            name=meta["name"],
            labels=labels,
            grid=grid,
            emulator=emulator,
            translator=Translator(network, meta["flux_mean"], meta["flux_std"]),
            recipe=ContinuumRecipe(grid, arrays["recipe.pixels"], meta["degree"]),
            prior=GaussianPrior(arrays["prior.mean"], arrays["prior.covariance"]),
            scatter={space: arrays[f"scatter.{space}"].astype(float) for space in ("observed", "emulator")},
            cloud=LatentCloud(arrays["cloud.mean"], arrays["cloud.basis"], arrays["cloud.variance"], **meta["cloud"]),
            typical_nuisance=arrays.get("typical_nuisance"),
            limits=meta["limits"],
            provenance=meta["provenance"],
            scatter_inflation=meta["scatter_inflation"],
            label_error=arrays.get("label_error"),
        )

    # -- forward ---------------------------------------------------------------
    def predict(self, labels, *, domain="observed", like=None):
        """Predict the spectrum of given labels.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`
            All labels, within the training range; arrays give many spectra.
        domain : {"observed", "synthetic"}, optional
        like : `~specutils.Spectrum`, optional
            Observed spectrum whose split latent (line-spread function,
            continuum, ...) is used. Default: a typical one.

        Returns
        -------
        `~specutils.Spectrum`
            Normalised flux, shape (..., n_pixels).

        Raises
        ------
        LabelError
            If a label is missing, misspelt, has a wrong unit or is out of range.
        """
        values = self.labels.to_array(labels, check_range=True)
        flux = self._predictor(domain, self._nuisance(like)).flux(values)
        return to_spectrum(flux, self.grid, meta={"model": self.name, "domain": domain})

    def to_observed(self, spectrum, *, like=None):
        """Translate a synthetic spectrum to the observed domain (S1, synth→obs).

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Normalised synthetic flux; an uncertainty is not needed.
        like : `~specutils.Spectrum`, optional
            As in `predict`.

        Returns
        -------
        `~specutils.Spectrum`
        """
        flux = self._filled(self._pixels(spectrum, synthetic=True))
        translated = self.translator.synth_to_obs(flux[None], self._nuisance(like))[0]
        return to_spectrum(translated, self.grid, meta={"model": self.name, "domain": "observed"})

    def to_synthetic(self, spectrum):
        """Translate an observed spectrum to the synthetic domain (S1, obs→synth).

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Observed flux with uncertainty, as for `fit`.

        Returns
        -------
        `~specutils.Spectrum`
        """
        flux = self.translator.obs_to_synth(self._filled(self._pixels(spectrum))[None])[0]
        return to_spectrum(flux, self.grid, meta={"model": self.name, "domain": "synthetic"})

    def reconstruct(self, spectrum, *, domain="observed"):
        """Pass a spectrum through the autoencoder of its own domain.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
        domain : {"observed", "synthetic"}, optional
            Domain of ``spectrum``.

        Returns
        -------
        `~specutils.Spectrum`
        """
        _choice("domain", domain, DOMAINS)
        flux = self._filled(self._pixels(spectrum, synthetic=domain == "synthetic"))[None]
        translator = self.translator
        again = translator.reconstruct_obs(flux) if domain == "observed" else translator.reconstruct_synth(flux)
        return to_spectrum(again[0], self.grid, meta={"model": self.name, "domain": domain})

    def derivative_spectrum(self, labels, name, *, domain="observed", like=None):
        """Derivative of the spectrum with respect to one label (S1, Eq. 8).

        Exact, by forward-mode differentiation through all networks.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`
            Where the derivative is taken; one star.
        name : str
            Label.
        domain, like
            As in `predict`.

        Returns
        -------
        `~astropy.units.Quantity`, shape (n_pixels,)
            In 1 / (unit of the label): 1/K, 1/dex, s/km.
        """
        self.labels.index(name)
        return self.derivative_spectra(labels, domain=domain, like=like)[name]

    def derivative_spectra(self, labels, *, domain="observed", like=None):
        """Derivatives with respect to every label; see `derivative_spectrum`.

        Returns
        -------
        `~astropy.table.QTable`
            ``wavelength`` and a column per label, n_pixels rows.
        """
        values = self.labels.to_array(labels, check_range=True)
        if values.ndim != 1:
            raise LabelError(
                f"derivatives are taken at the labels of one star, but the labels have shape {values.shape[:-1]}"
            )
        _, slopes = self._predictor(domain, self._nuisance(like)).jacobian(values)
        columns = {"wavelength": self.grid.wavelength}
        columns |= {n: slopes[:, k] / difference_unit(n) for k, n in enumerate(self.labels)}
        return QTable(columns, meta={"model": self.name, "domain": domain})

    # -- inverse -----------------------------------------------------------------
    def fit(self, spectrum, *, space="observed", start=None, fixed=None, bounds=None, prior="training", method="lbfgs"):
        """Find the labels that maximise the posterior.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Rest frame, vacuum, with an uncertainty. Dimensionless flux is taken
            as normalised; flux with a unit is normalised by the model's recipe.
        space : {"observed", "synthetic", "emulator"}, optional
            Compare synth→obs(emulator) with the data (S1, Eq. 11, default), the
            emulator with obs→synth(data), unweighted (Eq. 10), or the emulator
            with the data (Eq. 9: no translation).
        start : mapping of str to `~astropy.units.Quantity`, or `~cyclestarnet.FitResult`, optional
            Starting labels; those not given start cold, at the mean of the prior.
        fixed : mapping of str to `~astropy.units.Quantity`, optional
            Labels held at a value.
        bounds : mapping of str to (low, high), optional
            Narrower bounds. Default: the training range.
        prior : "training", None or `~cyclestarnet.fitting.objective.GaussianPrior`, optional
            Gaussian of the training labels (default); flat within the bounds; your own.
        method : {"lbfgs"}, optional

        Returns
        -------
        `~cyclestarnet.FitResult`

        Raises
        ------
        SpectrumError, GridError
            If the spectrum cannot be used; see `~cyclestarnet.spectra.to_pixels`.
        LabelError
            If ``start``, ``fixed`` or ``bounds`` name unknown labels or have wrong units.

        Warns
        -----
        FitWarning
            If the fit did not converge.

        References
        ----------
        .. [1] O'Briain et al. 2021, ApJ 906, 130, Section 3.2.6.
        """
        _choice("space", space, SPACES)
        _choice("method", method, ("lbfgs",))
        settings = self._fit_settings(start, fixed, bounds, prior)
        pixels = self._pixels(spectrum)
        velocity = self._check_rest(pixels)
        objective = self._objective(pixels, space, settings)
        begin = settings["start"]
        if space == "observed":
            # Cold start: the fits without translation and to the translated spectrum are cheap, and one is close.
            cheap = [self._objective(pixels, other, settings) for other in ("emulator", "synthetic")]
            starts = [begin, *(minimise(other, begin, max_rounds=3).labels for other in cheap)]
            begin = max(starts, key=lambda labels: objective.log_posterior(labels)[0])
        scaled, optimum = self._fit_with_scaled_errors(objective, minimise(objective, begin), space)
        settings["options"] = {"space": space, "fixed": fixed, "bounds": bounds, "prior": prior}
        settings["error_scale"] = float(np.sqrt(objective.ivar.max() / scaled.ivar.max()))
        if space == "synthetic":
            optimum = replace(optimum, covariance=self._propagated(pixels, scaled, optimum))
        elif space == "observed" and self.label_error is not None:
            own = np.where(np.outer(settings["free"], settings["free"]), self.label_error, 0.0)
            optimum = replace(optimum, covariance=optimum.covariance + own)
        result = self._result(spectrum, pixels, scaled, optimum, space, settings, velocity)
        if not result.success:
            warnings.warn(f"the fit did not converge: {result.message}", FitWarning, stacklevel=2)
        return result

    def sample(
        self, spectrum, *, start=None, seed=None, rng=None, max_steps=5000, backend=None, progress=True, **options
    ):
        """Sample the posterior with emcee, started from the optimum and its covariance.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
        start : `~cyclestarnet.FitResult`, optional
            Default: `fit` is done first.
        seed : int, or rng : `numpy.random.Generator`, optional
            The same seed gives the same samples on the same machine.
        max_steps : int, optional
            Sampling stops earlier once the chain is 50 autocorrelation times long.
        backend : path-like, optional
            HDF5 file that keeps the chain; an existing one is continued.
        progress : bool, optional
        **options
            ``space``, ``fixed``, ``bounds`` and ``prior`` of `fit`, by default
            those of ``start``; ``n_walkers``.
            Eq. 10 (``space="synthetic"``) has no likelihood to sample.

        Returns
        -------
        `~cyclestarnet.Posterior`

        Warns
        -----
        FitWarning
            If the chain is shorter than 50 autocorrelation times.
        """
        n_walkers = options.pop("n_walkers", None)
        unknown = sorted(set(options) - {"space", "fixed", "bounds", "prior"})
        if unknown:
            raise TypeError(f"unknown options {unknown}; there are space, fixed, bounds, prior, n_walkers")
        if start is None:
            start = self.fit(spectrum, **options)
        options = {**start.meta["options"], **options}
        space = options.pop("space")
        _choice("space", space, ("observed", "emulator"))
        settings = self._fit_settings(start, **options)
        objective = self._objective(self._pixels(spectrum), space, settings)
        if space == start.space:
            objective = replace(objective, ivar=objective.ivar / start.meta["error_scale"] ** 2)
        rng = rng if rng is not None else np.random.default_rng(seed)
        chain = sample_posterior(
            objective, settings["start"], start.covariance, rng=rng, n_walkers=n_walkers, max_steps=max_steps,
            backend=backend, progress=progress,
        )  # fmt: skip
        free = tuple(n for n, is_free in zip(self.labels, settings["free"], strict=True) if is_free)
        columns = self.labels.to_quantities(chain.pop("samples"))
        held = set(self.labels) - set(free)
        table = QTable({n: q for n, q in columns.items() if n not in held})
        table["log_posterior"] = chain.pop("log_posterior")
        posterior = Posterior(samples=table, free=free, meta=start.meta, **chain)
        if not posterior.converged:
            warnings.warn(
                f"the chain of {posterior.n_steps} steps is too short: {posterior._headline()}",
                FitWarning,
                stacklevel=2,
            )
        return posterior

    def fit_many(self, spectra, *, progress=True, **options):
        """Fit many stars, one after the other; a bad one is flagged and never stops the rest.

        Parameters
        ----------
        spectra : iterable of `~specutils.Spectrum` or path-like
            Also one of them, or a `~specutils.Spectrum` with a row per star.
            Files are read as their names tell (``apStar-…``, ``apVisit-…``).
        progress : bool, optional
        **options
            Of `fit`.

        Returns
        -------
        `~astropy.table.QTable`
            A row per star in the order of the input. Rows of stars that could
            not be fitted have NaN labels, the flag ``FAILED`` and the reason in
            ``message``.
        """
        from tqdm.auto import tqdm

        from cyclestarnet.io import read

        unknown = sorted(set(options) - set(inspect.signature(self.fit).parameters))
        if unknown:
            raise TypeError(f"unknown options {unknown}; fit_many takes those of fit")
        self._fit_settings(*(options.get(k) for k in ("start", "fixed", "bounds")), options.get("prior", "training"))
        _choice("space", options.get("space", "observed"), SPACES)
        if isinstance(spectra, str | Path) or getattr(getattr(spectra, "flux", None), "ndim", 0) == 1:
            spectra = [spectra]  # one star; iterating over it would go through its pixels or letters
        rows = []
        for item in tqdm(list(spectra), desc="fitting", disable=not progress):
            name = item.name if isinstance(item, Path) else item if isinstance(item, str) else None
            try:
                spectrum = read(item) if name is not None else item
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FitWarning)  # the row's flag says it
                    row = self.fit(spectrum, **options).to_table()
                row["object"] = [str(row["object"][0]) or name or ""]
            except (CycleStarNetError, TypeError, OSError, FloatingPointError, np.linalg.LinAlgError) as error:
                row = self._failed_row(name or "", error)
            rows.append(row)
        return vstack(rows, metadata_conflicts="silent") if rows else self._failed_row("", "")[:0]

    # -- inside ------------------------------------------------------------------
    def _predictor(self, domain, nuisance=None):
        _choice("domain", domain, DOMAINS)
        if domain == "synthetic":
            return EmulatorPredictor(self.emulator)
        return ObservedPredictor(
            self.emulator, self.translator, self.typical_nuisance if nuisance is None else nuisance
        )

    def _pixels(self, spectrum, *, synthetic=False):
        if synthetic and getattr(spectrum, "uncertainty", None) is None and hasattr(spectrum, "flux"):
            sigma = np.full(spectrum.flux.shape, 0.005) * spectrum.flux.unit
            spectrum = type(spectrum)(
                flux=spectrum.flux, spectral_axis=spectrum.spectral_axis, mask=spectrum.mask, uncertainty=_std(sigma)
            )
        return to_pixels(spectrum, self.grid, recipe=self.recipe)

    def _filled(self, pixels: Pixels):
        """Flux for the encoders: bad pixels hold the continuum, as in training."""
        good = pixels.ivar > 0
        # In a noisy spectrum the limit of training would leave nothing.
        limit = max(self.limits["sigma_max"], 3 * np.median(pixels.ivar[good]) ** -0.5)
        usable = good & (pixels.ivar > limit**-2)
        return np.where(usable, pixels.flux, 1.0)

    def _nuisance(self, like):
        if like is None:
            return self.typical_nuisance
        split = self.translator.encode_obs(self._filled(self._pixels(like))[None])[1]
        return None if split is None else split[0]

    def _data_ivar(self, pixels):
        """Inverse variance with the error floor of training."""
        return np.minimum(pixels.ivar, self.limits["sigma_floor"] ** -2)

    def _total_ivar(self, ivar, space, inflation=1.0):
        """Inverse variance with the model's own scatter."""
        return np.where(ivar > 0, 1 / (1 / np.where(ivar > 0, ivar, 1.0) + inflation * self.scatter[space] ** 2), 0.0)

    def _check_rest(self, pixels):
        """Velocity of the lines against a mean star; air wavelengths raise."""
        template = self._predictor("synthetic").flux(self.prior.mean)
        velocity, _ = line_shift(self.grid.wavelength.value, pixels.flux, pixels.ivar, template)
        if AIR_SHIFT[0] < velocity < AIR_SHIFT[1]:
            raise GridError(
                f"The lines appear at {velocity:.0f} km/s, as they do when air wavelengths are taken for vacuum. "
                "Convert the spectral axis with cyclestarnet.air_to_vacuum, or shift the spectrum to rest"
            )
        return velocity

    def _fit_settings(self, start, fixed, bounds, prior):
        """Check the options of a fit before any work is done."""
        labels = self.labels
        lower, upper, free = labels.lower.copy(), labels.upper.copy(), np.ones(len(labels), dtype=bool)
        for name, pair in (bounds or {}).items():
            k = labels.index(name)
            low, high = (float(labels.value(name, value)) for value in pair)
            if not low < high or high <= lower[k] or low >= upper[k]:
                raise LabelError(
                    f"bounds of '{name}' must be (low, high) that overlap the training range "
                    f"{lower[k]:g} to {upper[k]:g}, but are {low:g}, {high:g}"
                )
            lower[k], upper[k] = max(low, lower[k]), min(high, upper[k])
        begin = self.prior.mean.copy()
        if isinstance(start, FitResult):
            start = start.labels
        for name, value in {**labels.known(start or {}), **(fixed or {})}.items():
            begin[labels.index(name)] = float(labels.value(name, value))
        free[[labels.index(name) for name in fixed or {}]] = False
        labels.check_range(np.where(free, np.clip(begin, labels.lower, labels.upper), begin))
        if not free.any():
            raise LabelError("all labels are fixed; nothing is left to fit")
        if isinstance(prior, str) and prior == "training":
            chosen = self.prior
        elif prior is None or isinstance(prior, GaussianPrior):
            chosen = prior
        else:
            raise TypeError(f'prior must be "training", None or a GaussianPrior, but is {prior!r}')
        said = "training" if chosen is self.prior else "none" if chosen is None else "Gaussian, user's own"
        return {
            "start": begin, "free": free, "lower": lower, "upper": upper, "prior": chosen, "prior_name": said,
            "fixed": tuple(fixed or ()),
        }  # fmt: skip

    def _objective(self, pixels, space, settings, error=ROUGH_ERROR):
        ivar = self._data_ivar(pixels)
        good = ivar > 0
        if space == "synthetic":
            predictor, flux = self._predictor("synthetic"), self.translator.obs_to_synth(self._filled(pixels)[None])[0]
            ivar = np.where(good, error**-2, 0.0)
        else:
            nuisance = self.translator.encode_obs(self._filled(pixels)[None])[1] if space == "observed" else None
            predictor = self._predictor(
                "observed" if space == "observed" else "synthetic", None if nuisance is None else nuisance[0]
            )
            flux = pixels.flux
            ivar = self._total_ivar(ivar, space, self.scatter_inflation.get(space, 1.0))
        return Objective(
            predictor, flux, ivar, settings["lower"], settings["upper"], settings["free"], settings["prior"]
        )

    @staticmethod
    def _fit_with_scaled_errors(objective, optimum, space):
        """Scale all errors so that the residuals bear them out, and fit again.

        A spectrum that the model cannot match to within its errors has larger
        errors than we knew: without this, misfits would overrule the prior and
        leave tiny error bars. Eq. 10 has no errors of its own: there they
        shrink as well.
        """
        for _ in range(3):
            good = objective.ivar > 0
            residual = objective.flux - objective.predictor.flux(optimum.labels)
            ratio = float(residual**2 @ objective.ivar / max(good.sum() - objective.free.sum(), 1))
            if 0.9 < ratio < 1.1 or (ratio < 1 and space != "synthetic"):
                break
            objective = replace(objective, ivar=objective.ivar / ratio)
            optimum = minimise(objective, optimum.labels)
        return objective, optimum

    def _propagated(self, pixels, objective, optimum, n_draws=64):
        """Covariance of Eq. 10: noise of the data, sent through the translation and the linearised fit.

        The residuals of a translated spectrum say little: the translation
        removes most of the noise, and correlates the rest.
        """
        ivar = self._total_ivar(self._data_ivar(pixels), "observed")
        sigma = np.where(ivar > 0, 1 / np.sqrt(np.where(ivar > 0, ivar, 1.0)), 0.0)
        noise = np.random.default_rng(0).standard_normal((n_draws, self.grid.n_pixels)) * sigma
        translated = self.translator.obs_to_synth(self._filled(pixels) + noise)
        _, slopes = objective.predictor.jacobian(optimum.labels)
        gain = optimum.covariance @ (slopes * objective.ivar[:, None]).T  # d labels / d translated flux
        return np.cov(gain @ translated.T)

    def _result(self, spectrum, pixels, objective, optimum, space, settings, velocity):
        data_ivar, good = self._data_ivar(pixels), objective.ivar > 0
        model_flux = objective.predictor.flux(optimum.labels)
        residual = np.where(good, objective.flux - model_flux, 0.0)
        dof = max(int(good.sum()) - int(settings["free"].sum()), 1)
        total_ivar = objective.ivar if space == "synthetic" else self._total_ivar(data_ivar, space)
        chi2, chi2_total = float(residual**2 @ data_ivar), float(residual**2 @ total_ivar)
        snr = float(np.median((pixels.flux * np.sqrt(pixels.ivar))[good]))
        latent = self.translator.encode_obs(self._filled(pixels)[None])[0]
        distance = float(self.cloud.distance(latent)[0])
        prior_distance = float(np.sqrt(self.prior.distance2(optimum.labels) / len(self.labels)))
        reasons = {
            FitFlag.NOT_CONVERGED: not optimum.success,
            FitFlag.AT_BOUND: optimum.at_bound.any(),
            FitFlag.OUTSIDE_TRAINING: prior_distance > self.limits["prior_distance"],
            FitFlag.POOR_FIT: space == "observed" and chi2_total / dof > self.limits["reduced_chi2_total"],
            FitFlag.UNFAMILIAR: distance > self.cloud.threshold,
            FitFlag.FEW_PIXELS: pixels.n_good < 0.5 * self.grid.n_pixels,
            FitFlag.LOW_SNR: snr < 20,
            FitFlag.VELOCITY: abs(velocity) > REST,
        }
        flags = FitFlag(0)
        for flag, holds in reasons.items():
            flags |= flag if holds else FitFlag(0)
        source = spectrum.meta or {}
        meta = {
            "object": str(source.get("object", source.get("apogee_id", ""))),
            "model": self.name,
            "prior": settings["prior_name"],
            "fixed": settings["fixed"],
            "n_evaluations": optimum.n_evaluations,
            "snr": snr,
            "normalised_here": pixels.continuum is not None,
            "error_scale": settings["error_scale"],
            "options": settings["options"],
            "velocity": velocity * u.km / u.s,
            "latent_distance": distance,
            "prior_distance": prior_distance,
            "at_bound": [n for n, hit in zip(self.labels, optimum.at_bound, strict=True) if hit],
        }
        return FitResult(
            label_set=self.labels,
            values=optimum.labels,
            covariance=optimum.covariance,
            chi2=chi2,
            chi2_total=chi2_total,
            dof=dof,
            success=optimum.success,
            message=optimum.message,
            flags=flags,
            spectrum=to_spectrum(objective.flux, self.grid, ivar=data_ivar, meta={"model": self.name}),
            model_spectrum=to_spectrum(model_flux, self.grid, meta={"model": self.name, "domain": space}),
            space=space,
            meta=meta,
        )

    def _failed_row(self, name, error):
        labels = self.labels
        nothing = labels.to_quantities(np.full((1, len(labels)), np.nan))
        columns = {"object": [name]}
        for label, value in nothing.items():
            columns[label] = value
            columns[f"{label}_err"] = [np.nan] * difference_unit(label)
        columns |= {
            "reduced_chi2": [np.nan], "reduced_chi2_total": [np.nan], "snr": [np.nan], "success": [False],
            "flags": [FitFlag.FAILED.value], "flag_names": ["FAILED"], "message": [str(error)],
        }  # fmt: skip
        return QTable(columns)

    # -- showing -------------------------------------------------------------------
    def __repr__(self):
        return f"<CalibratedModel {self.name}: {len(self.labels)} labels, {self.grid!r}>"

    def _repr_html_(self):
        facts = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in self.provenance.items())
        return f"<p><b>CalibratedModel</b> {self.name}</p>{self.labels._repr_html_()}<table>{facts}</table>"


def _choice(argument, value, choices):
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, but is {value!r}")


def _published_labels(labels, n_labels):
    if labels is None and n_labels != len(PAYNE_LABELS):
        raise LabelError(
            f"the emulator takes {n_labels} labels, not the paper's {len(PAYNE_LABELS)}; name them by `labels`"
        )
    names = PAYNE_LABELS if labels is None else tuple(labels)
    if len(names) != n_labels:
        raise LabelError(f"labels names {len(names)} labels, but the emulator takes {n_labels}: {', '.join(names)}")
    return names


def _published_pixels(emulator, translator, preset):
    """Pixels of a published emulator that its network takes; the wrong end raises."""
    n_all, n_pixels = sum(b - a for a, b in APSTAR_CHIPS), translator.network.settings.n_pixels
    if emulator.n_pixels == n_pixels:
        return slice(None)
    if emulator.n_pixels != n_all:
        raise GridError(
            f"the emulator has {emulator.n_pixels} pixels, but must have {n_all}, or the network's {n_pixels}"
        )
    pixels = {"paper": slice(n_pixels), "repository": slice(n_all - n_pixels, None)}
    flux = EmulatorPredictor(emulator).flux((emulator.lower + emulator.upper) / 2)
    # A trained network knows its pixels: displaced spectra come back with errors many times larger.
    errors = {
        name: np.sqrt(np.mean((translator.reconstruct_synth(flux[None, part])[0] - flux[part]) ** 2))
        for name, part in pixels.items()
    }
    best = min(errors, key=errors.get)
    if errors[preset] > 2 * errors[best]:
        raise GridError(
            f"the network returns the emulator's spectrum with an error of {errors[preset]:.2g} on the pixels of "
            f"preset={preset!r}, but {errors[best]:.2g} on those of preset={best!r}; use that one"
        )
    return pixels[preset]


def _apogee_recipe(grid):
    """Recipe with the continuum pixels of this package that lie on a grid."""
    with resources.as_file(resources.files("cyclestarnet.data") / "apogee_continuum_pixels.ecsv") as path:
        return ContinuumRecipe.from_wavelengths(grid, Table.read(path)["wavelength"])


def _std(sigma):
    from astropy.nddata import StdDevUncertainty

    return StdDevUncertainty(sigma)
