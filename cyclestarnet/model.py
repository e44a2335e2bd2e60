"""`CalibratedModel`: the one object a user needs. It joins the rooms and computes nothing itself."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import resources
from pathlib import Path

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable, Table

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.exceptions import CycleStarNetError, FitWarning, GridError, LabelError, ModelFileError
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import APSTAR_CHIPS, WavelengthGrid, apogee_grid
from cyclestarnet.labels import LabelSet, difference_unit, kelvin_scale
from cyclestarnet.networks.checkpoint import load_arrays, save_arrays
from cyclestarnet.networks.clouds import LatentCloud, SplitLatentCloud
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.predictor import BATCH, EmulatorPredictor, ObservedPredictor, Translator
from cyclestarnet.networks.published import (
    PAYNE_LABELS,
    PUBLISHED_SPECTRA,
    adapt_emulator,
    read_payne_checkpoint,
    read_published_checkpoint,
)
from cyclestarnet.networks.shortcuts import Shortcuts
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.pipeline.fit import fit_stars, make_objective, prepare_stars
from cyclestarnet.pipeline.options import FitSetup, check_choice
from cyclestarnet.results import FitFlag, FitResult, Posterior
from cyclestarnet.spectra import Pixels, to_pixels, to_spectrum

__all__ = ["CalibratedModel"]

DOMAINS = ("observed", "synthetic")


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
    emulator : `~cyclestarnet.networks.emulator.Emulator`
    translator : `~cyclestarnet.networks.predictor.Translator`
    recipe : `~cyclestarnet.ContinuumRecipe`
    prior : `~cyclestarnet.fitting.priors.GaussianPrior`
        Of the labels of the synthetic spectra in training.
    scatter : dict of array, shape (n_pixels,)
        The model's own error per pixel, 1 σ, for the spaces ``"observed"`` and ``"emulator"``.
    cloud : `~cyclestarnet.networks.clouds.LatentCloud`
        Of the shared latents of observed training spectra.
    typical_split_latent : array, shape (split_filters, latent_length), or None
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
    shortcuts : `~cyclestarnet.networks.shortcuts.Shortcuts`, optional
        First guesses and expected derivatives, which make fits quick.
    split_latent_cloud : `~cyclestarnet.networks.clouds.SplitLatentCloud`, optional
        Of the split latents of observed training spectra: the prior of fits with ``split_latent="fitted"``.

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
    typical_split_latent: np.ndarray | None
    limits: Mapping[str, float]
    provenance: Mapping = field(default_factory=dict)
    scatter_inflation: Mapping[str, float] = field(default_factory=dict)
    label_error: np.ndarray | None = None
    shortcuts: Shortcuts | None = None
    split_latent_cloud: SplitLatentCloud | None = None

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
            `~cyclestarnet.networks.published.read_published_checkpoint`.
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
        template : `~cyclestarnet.networks.translation.NetworkSettings`, optional
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
        if preset not in PUBLISHED_SPECTRA:
            raise ValueError(f"preset must be one of {', '.join(map(repr, PUBLISHED_SPECTRA))}, but is {preset!r}")
        spectra = PUBLISHED_SPECTRA[preset]
        payne = read_payne_checkpoint(emulator)
        network, _ = read_published_checkpoint(checkpoint, template=template, emulator=payne)
        translator = Translator(network, spectra.flux_mean, spectra.flux_std)
        n_pixels, sizes = network.settings.n_pixels, network.settings
        grid = apogee_grid(n_pixels, cut=spectra.cut)
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
            typical_split_latent=np.zeros((sizes.split_filters, sizes.latent_length)) if network.has_split else None,
            limits={
                "sigma_floor": spectra.sigma_floor,
                "sigma_max": spectra.sigma_max,
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
        arrays, meta = self._contents()
        if half:
            matrices = {k: v for k, v in arrays.items() if k.startswith(("network.", "emulator.")) and v.ndim > 1}
            arrays |= {k: v.astype(np.float16) for k, v in matrices.items()}
        # The self-test is of what a reader will get: of the rounded weights.
        stored = type(self)._from_arrays(arrays, meta)
        for domain in DOMAINS:
            arrays[f"selftest.{domain}"] = stored._predictor(domain).flux(self.prior.mean).astype(np.float32)
        save_arrays(arrays, meta, path)

    def _contents(self):
        """Arrays and plain data that make a model, as its file holds them."""
        state = {f"network.{k}": v for k, v in self.translator.network.state_dict().items()}
        state |= {f"emulator.{k}": v for k, v in self.emulator.state_dict().items()}
        arrays = {k: v.cpu().numpy() for k, v in state.items()}
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
        for name in ("typical_split_latent", "label_error"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        if self.split_latent_cloud is not None:
            arrays |= {f"split_latent.{k}": np.asarray(v, np.float32) for k, v in vars(self.split_latent_cloud).items()}
        if self.shortcuts is not None:
            arrays |= {
                f"shortcuts.{key}": np.asarray(value, dtype=np.float16 if key == "slopes" else np.float32)
                for key, value in vars(self.shortcuts).items()
            }
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
        return arrays, meta

    @classmethod
    def _from_arrays(cls, arrays, meta):
        arrays = {k.replace("nuisance", "split_latent"): v for k, v in arrays.items()}
        labels = LabelSet(**meta["labels"])
        grid = WavelengthGrid(arrays["grid.wavelength"] * u.AA, tuple(map(tuple, meta["chips"])))
        emulator = Emulator(labels.lower, labels.upper, grid.n_pixels, **meta["emulator"])
        network = TranslationNetwork(NetworkSettings(**meta["network"]))
        for prefix, module in (("emulator.", emulator), ("network.", network)):
            own = {
                k.removeprefix(prefix): torch.from_numpy(v).float() for k, v in arrays.items() if k.startswith(prefix)
            }
            module.load_state_dict(own)
        split = {k.removeprefix("split_latent."): v for k, v in arrays.items() if k.startswith("split_latent.")}
        shortcuts = {k.removeprefix("shortcuts."): v for k, v in arrays.items() if k.startswith("shortcuts.")}
        if shortcuts:
            shortcuts = {k: v.astype(np.float32 if k == "slopes" else float) for k, v in shortcuts.items()}
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
            typical_split_latent=arrays.get("typical_split_latent"),
            limits=meta["limits"],
            provenance=meta["provenance"],
            scatter_inflation=meta["scatter_inflation"],
            label_error=arrays.get("label_error"),
            shortcuts=Shortcuts(**shortcuts) if shortcuts else None,
            split_latent_cloud=SplitLatentCloud(**{k: v.astype(float) for k, v in split.items()}) if split else None,
        )

    def to(self, device):
        """The same model with its networks on another device.

        Parameters
        ----------
        device : str or torch.device
            Such as ``"cuda"``: then stars of a block are fitted together, and
            their last bits depend on the block.

        Returns
        -------
        `CalibratedModel`
        """
        emulator, network = (copy.deepcopy(m).to(device) for m in (self.emulator, self.translator.network))
        translator = Translator(network, self.translator.flux_mean, self.translator.flux_std)
        return replace(self, emulator=emulator, translator=translator)

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
        flux = self._predictor(domain, self._split_latent(like)).flux(values)
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
        translated = self.translator.synth_to_obs(flux[None], self._split_latent(like))[0]
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
        check_choice("domain", domain, DOMAINS)
        flux = self._filled(self._pixels(spectrum, synthetic=domain == "synthetic"))[None]
        translator = self.translator
        again = translator.reconstruct_obs(flux) if domain == "observed" else translator.reconstruct_synth(flux)
        return to_spectrum(again[0], self.grid, meta={"model": self.name, "domain": domain})

    def derivative_spectrum(self, labels, name, *, domain="observed", like=None):
        """Derivative of the spectrum with respect to one label (S1, Eq. 8); see `derivative_spectra`.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`
        name : str
            Label.
        domain, like
            As in `derivative_spectra`.

        Returns
        -------
        `~astropy.units.Quantity`, shape (..., n_pixels)
            In 1 / (unit of the label): 1/K, 1/dex, s/km.
        """
        return self.derivative_spectra(labels, domain=domain, names=[name], like=like)[name]

    def derivative_spectra(self, labels, *, domain="observed", names=None, like=None):
        """Derivatives of the spectrum with respect to labels (S1, Eq. 8).

        Exact, by forward-mode differentiation through all networks.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`
            Where the derivatives are taken, within the training range; arrays
            are those of many stars.
        domain : {"observed", "synthetic", "difference"}, optional
            ``"difference"`` is observed − synthetic: what the synthetic
            spectra lack (S1, Section 4.2), as far as the network has learnt it.
        names : sequence of str, optional
            Labels to differentiate by. Default: all.
        like : `~specutils.Spectrum`, optional
            As in `predict`.

        Returns
        -------
        `~astropy.table.QTable` or `~cyclestarnet.derivatives.DerivativeSpectra`
            Of one star a table: ``wavelength`` and a column per label, n_pixels
            rows. Of many stars, derivatives of shape (..., n_pixels) by label,
            with the spectra. Either way ``[name]`` is a
            `~astropy.units.Quantity` in 1 / (unit of the label).

        Raises
        ------
        LabelError
            If a label is missing, unknown, has a wrong unit or is out of range.

        Examples
        --------
        >>> import astropy.units as u
        >>> from cyclestarnet import CalibratedModel
        >>> model = CalibratedModel.from_pretrained()
        >>> labels = model.labels.to_quantities(model.prior.mean) | {"teff": [4400, 4500] * u.K}
        >>> model.derivative_spectra(labels, names=["mg_h", "si_h"])["mg_h"].shape
        (2, 7167)
        """
        check_choice("domain", domain, (*DOMAINS, "difference"))
        values = self.labels.to_array(labels, check_range=True)
        names = self.labels.names if names is None else (names,) if isinstance(names, str) else tuple(names)
        chosen = [self.labels.index(name) for name in names]
        rows = values.reshape(-1, len(self.labels))
        flux, slopes = np.zeros((len(rows), len(self.grid))), np.zeros((len(chosen), len(rows), len(self.grid)))
        for part, sign in {"observed": 1, "synthetic": -1}.items() if domain == "difference" else [(domain, 1)]:
            predictor = self._predictor(part, self._split_latent(like))
            for k in range(0, len(rows), BATCH):  # the derivatives by all labels are there for few stars only
                found = predictor.jacobian(rows[k : k + BATCH])
                flux[k : k + BATCH] += sign * found[0]
                slopes[:, k : k + BATCH] += sign * found[1].swapaxes(0, 1)[chosen]
        shape = (*values.shape[:-1], len(self.grid))
        derivatives = DerivativeSpectra(
            self.grid,
            flux.reshape(shape),
            {name: slope.reshape(shape) for name, slope in zip(names, slopes, strict=True)},
            self.labels.to_quantities(values),
            domain=domain,
            meta={"model": self.name},
        )
        return derivatives.to_table() if derivatives.shape == () else derivatives

    # -- inverse -----------------------------------------------------------------
    def fit(
        self,
        spectrum,
        *,
        space="observed",
        start=None,
        fixed=None,
        bounds=None,
        tied=(),
        motion=(),
        prior="training",
        split_latent="own",
        ignore=None,
        inflation=1.0,
        method="lbfgs",
    ):
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
            Starting labels; those not given start at the mean of the prior.
            Default: a guess from the spectrum's latent.
        fixed : mapping of str to `~astropy.units.Quantity`, optional
            Labels held at a value.
        bounds : mapping of str to (low, high), optional
            Narrower bounds. Default: the training range.
        tied : sequence of sequences of str, optional
            Groups of labels that move together and keep the differences that
            they have at ``start``, or else at the mean of the prior. For
            example, the α elements in one group and all others in a second
            leave [M/H] and [α/M].
        motion : sequence of {"velocity", "broadening"}, optional
            Fit a radial velocity or an extra Gaussian broadening (σ), too, in
            km/s. They become labels of the result.
        prior : optional
            ``"training"``: Gaussian of the training labels (default). None:
            flat within the bounds. A mapping of label or combination to
            (mean, sigma). An object such as `~cyclestarnet.GaussianPrior` or
            `~cyclestarnet.fitting.isochrones.IsochronePrior`. A list of these: their product.
        split_latent : {"own", "typical", "fitted"}, optional
            Split latent of the observed domain: from the star's own spectrum
            (the paper's choice), that of a typical training star, or fitted
            along with the labels, with a prior learnt from training stars. The
            labels' errors then include that it is not known. Its coordinates
            are no labels: ``meta["split_latent"]`` of the result has their
            ``values`` and ``errors``, in σ of training stars.
        ignore : array of bool, shape (n_pixels,), or sequence of (low, high), optional
            Pixels of the model, or wavelength regions, that are not used.
        inflation : float, optional
            Factor on the errors of the data.
        method : {"lbfgs", "lm"}, optional
            L-BFGS with a strong-Wolfe line search, or Levenberg-Marquardt,
            which is quicker and ends within a fraction of the error bar.

        Returns
        -------
        `~cyclestarnet.FitResult`

        Raises
        ------
        SpectrumError, GridError
            If the spectrum cannot be used; see `~cyclestarnet.spectra.to_pixels`.
        LabelError
            If ``start``, ``fixed``, ``bounds`` or ``tied`` name unknown labels or have wrong units.
        ValueError
            If an option has an unknown value, or ``split_latent="fitted"`` and the model does not know how split
            latents scatter.

        Warns
        -----
        FitWarning
            If the fit did not converge.

        References
        ----------
        .. [1] O'Briain et al. 2021, ApJ 906, 130, Section 3.2.6.
        """
        setup = FitSetup.of(
            self, space=space, start=start, fixed=fixed, bounds=bounds, tied=tied, motion=motion, prior=prior,
            split_latent=split_latent, ignore=ignore, inflation=inflation, method=method,
        )  # fmt: skip
        (result,) = fit_stars(self, [spectrum], setup)
        if isinstance(result, Exception):
            raise result
        if not result.success:
            warnings.warn(f"the fit did not converge: {result.message}", FitWarning, stacklevel=2)
        return result

    def sample(
        self, spectrum, *, start=None, seed=None, rng=None, n_walkers=None, max_steps=10_000, backend=None,
        progress=True, **options,
    ):  # fmt: skip
        """Sample the posterior with emcee, started from the optimum and its covariance.

        With ``split_latent="fitted"`` the split latent is sampled along, and left
        out of the samples: they are marginalised over it.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
        start : `~cyclestarnet.FitResult`, or as `fit` takes it, optional
            Unless it is a result that has all that is to be sampled, `fit` is done first.
        seed : int, or rng : `numpy.random.Generator`, optional
            The same seed gives the same samples on the same machine.
        n_walkers : int, optional
            Default: twice the number of parameters and two.
        max_steps : int, optional
            Sampling stops earlier once the chain is 50 autocorrelation times long.
        backend : path-like, optional
            HDF5 file that keeps the chain; an existing one is continued.
        progress : bool, optional
        **options
            Of `fit`, by default those of ``start``. Eq. 10 (``space="synthetic"``) has no likelihood to sample.

        Returns
        -------
        `~cyclestarnet.Posterior`

        Warns
        -----
        FitWarning
            If the chain is shorter than 50 autocorrelation times.
        """
        from cyclestarnet.fitting.sampling import sample_posterior

        self._known_options(options)
        chosen = start.meta["options"] | options if isinstance(start, FitResult) else options
        check_choice("space", chosen.get("space", "observed"), ("observed", "emulator"))
        if not isinstance(start, FitResult):
            start = self.fit(spectrum, start=start, **options)
        setup = FitSetup.of(self, **(chosen | {"start": start}))
        no_split_latent = len(setup.layout.coordinates) and "split_latent" not in start.meta
        if no_split_latent or start.label_set.names != setup.labels.names:  # not all that is sampled was fitted
            start = self.fit(spectrum, **setup.options)
            setup = FitSetup.of(self, **(setup.options | {"start": start}))
        stars, (place,) = prepare_stars(self, [spectrum], setup)
        if isinstance(place, Exception):
            raise place
        objective, parameters = make_objective(self, stars, setup), setup.parameters
        layout, split_latent = setup.layout, {"values": [], "errors": []}
        if len(layout.coordinates):
            split_latent = start.meta["split_latent"]
        covariance = np.diag(layout.row(np.zeros(len(setup.labels)), np.square(split_latent["errors"])))
        covariance[np.ix_(layout.labels, layout.labels)] = start.covariance
        inverse = np.linalg.pinv(parameters.matrix)
        chain = sample_posterior(
            objective.log_posterior,
            parameters.lower,
            parameters.upper,
            parameters.values(layout.row(setup.begin, split_latent["values"])),
            inverse @ covariance @ inverse.T,
            rng=np.random.default_rng(seed if rng is None else rng),
            n_walkers=n_walkers,
            max_steps=max_steps,
            backend=backend,
            identity=self._identity(spectrum, setup),
            progress=progress,
        )
        varies = parameters.matrix.any(1)[layout.labels]
        free = tuple(name for name, moves in zip(setup.labels, varies, strict=True) if moves)
        columns = setup.labels.to_quantities(parameters.labels(chain.pop("samples"))[:, layout.labels])
        table = QTable({name: q for name, q in columns.items() if name in free or name not in setup.labels})
        table["log_posterior"] = chain.pop("log_posterior")
        fixed = tuple(setup.options["fixed"] or ())
        meta = start.meta | {"prior": setup.prior_name, "fixed": fixed, "options": setup.options}
        posterior = Posterior(samples=table, free=free, meta=meta, **chain)
        if not posterior.converged:
            warnings.warn(
                f"the chain of {posterior.n_steps} steps is too short: {posterior._headline()}",
                FitWarning,
                stacklevel=2,
            )
        return posterior

    def fit_many(
        self, spectra, *, output=None, overwrite=False, selection=None, client=None, progress=True, method="lm",
        **options,
    ):  # fmt: skip
        """Fit many stars; a bad one is flagged and never stops the rest.

        Stars are read ahead while others are fitted, and rows are written as
        they come. The same call after a kill goes on where it was.

        Parameters
        ----------
        spectra : iterable of `~specutils.Spectrum` or path-like
            Also one of them, a pattern such as ``"spectra/apStar-*.fits"``, a
            `~specutils.Spectrum` with a row per star, or an HDF5 file as
            `~cyclestarnet.io.training_set` has it.
            Files are read as their names tell (``apStar-…``, ``apVisit-…``).
        output : path-like, optional
            Table to write: ``.ecsv``, ``.fits`` or ``.parquet``.
        overwrite : bool, optional
        selection : `~cyclestarnet.io.training_set.Selection`, optional
            Rows of an HDF5 file.
        client : `dask.distributed.Client`, optional
            Fit on its workers; see `cyclestarnet.pipeline.many`.
        progress : bool, optional
        method : {"lm", "lbfgs"}, optional
        **options
            Others of `fit`.

        Returns
        -------
        `~astropy.table.QTable`
            A row per star in the order of the input. Rows of stars that could
            not be fitted have NaN labels, the flag ``FAILED`` and the reason in
            ``message``.
        """
        from cyclestarnet.pipeline.many import fit_survey, star_sources

        self._known_options(options)
        setup = FitSetup.of(self, method=method, **options)
        return fit_survey(
            star_sources(spectra, grid=self.grid, selection=selection),
            partial(fit_stars, self, setup=setup),
            partial(_failed_row, setup.labels),
            run={"model": self.name, "weights": self._digest} | setup.options,
            output=output,
            overwrite=overwrite,
            progress=progress,
            client=client,
        )

    def _known_options(self, options):
        known = [name for name in inspect.signature(self.fit).parameters if name != "spectrum"]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise TypeError(f"unknown options {unknown}; there are those of fit: {', '.join(known)}")

    @cached_property
    def _digest(self):
        """Of all that fits depend on: tells models apart."""
        arrays, meta = self._contents()
        del meta["provenance"]
        digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
        for name, array in sorted(arrays.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def _identity(self, spectrum, setup):
        """Of a sampling: model, data, parameters and options."""
        from cyclestarnet.files import as_json

        pixels, parameters = self._pixels(spectrum), setup.parameters
        kept = ("space", "prior", "split_latent", "ignore", "inflation", "motion")
        options = {key: setup.options[key] for key in kept}
        digest = hashlib.sha256((self._digest + as_json(options)).encode())
        for array in (pixels.flux, pixels.ivar, *vars(parameters).values()):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    # -- inside ------------------------------------------------------------------
    def _predictor(self, domain, split_latent=None):
        check_choice("domain", domain, DOMAINS)
        if domain == "synthetic":
            return EmulatorPredictor(self.emulator)
        return ObservedPredictor(
            self.emulator, self.translator, self.typical_split_latent if split_latent is None else split_latent
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
        return np.where(self._encoded(pixels), pixels.flux, 1.0)

    def _encoded(self, pixels: Pixels):
        """Pixels that encoders see."""
        # In a noisy spectrum the limit of training would leave nothing.
        limit = max(self.limits["sigma_max"], 3 * np.median(pixels.ivar[pixels.ivar > 0]) ** -0.5)
        return pixels.ivar > limit**-2

    def _split_latent(self, like):
        if like is None:
            return self.typical_split_latent
        split = self.translator.encode_obs(self._filled(self._pixels(like))[None])[1]
        return None if split is None else split[0]

    def _data_ivar(self, pixels):
        """Inverse variance with the error floor of training."""
        return np.minimum(pixels.ivar, self.limits["sigma_floor"] ** -2)

    def _total_ivar(self, ivar, space, inflation=1.0):
        """Inverse variance with the model's own scatter."""
        return np.where(ivar > 0, 1 / (1 / np.where(ivar > 0, ivar, 1.0) + inflation * self.scatter[space] ** 2), 0.0)

    # -- showing -------------------------------------------------------------------
    def __repr__(self):
        return f"<CalibratedModel {self.name}: {len(self.labels)} labels, {self.grid!r}>"

    def _repr_html_(self):
        facts = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in self.provenance.items())
        return f"<p><b>CalibratedModel</b> {self.name}</p>{self.labels._repr_html_()}<table>{facts}</table>"


def _failed_row(labels, name, error):
    """Row of a table for a star without a fit."""
    nothing = labels.to_quantities(np.full((1, len(labels)), np.nan))
    columns = {"object": [name]}
    for label, value in nothing.items():
        columns[label] = value
        columns[f"{label}_err"] = [np.nan] * difference_unit(label)
    ours = isinstance(error, CycleStarNetError | str)
    columns |= {
        "reduced_chi2": [np.nan], "reduced_chi2_total": [np.nan], "dof": [0], "snr": [np.nan], "success": [False],
        "flags": [FitFlag.FAILED.value], "flag_names": ["FAILED"],
        "message": [str(error) if ours else f"{type(error).__name__}: {error}"],
    }  # fmt: skip
    return QTable(columns)


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
    flux = EmulatorPredictor(emulator).flux(((emulator.lower + emulator.upper) / 2).numpy())
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
