"""`CalibratedModel`: the one object a user needs. It joins the rooms and computes nothing itself."""

from __future__ import annotations

import copy
import html
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import astropy.units as u
import torch
from astropy.table import QTable

from cyclestarnet.datasets import pretrained_file
from cyclestarnet.derivatives import predictor_derivatives
from cyclestarnet.exceptions import CycleStarNetWarning, SpectrumError
from cyclestarnet.io.stars import star_sources
from cyclestarnet.model_file import digest_of, load_parts, save_parts
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.pipeline.columns import SurveySetup
from cyclestarnet.pipeline.completion import completed
from cyclestarnet.pipeline.fit import fit_numbered, fit_one
from cyclestarnet.pipeline.many import failed_row, fit_survey
from cyclestarnet.pipeline.options import (
    FitOptions,
    ManyOptions,
    SampleManyOptions,
    SampleOptions,
    check_choice,
    one_only,
    sorted_options,
    takes,
)
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.pipeline.sample import sample_one
from cyclestarnet.pipeline.sample_many import sample_survey
from cyclestarnet.pipeline.spectral_model import spectral_model
from cyclestarnet.pipeline.translate import (
    DOMAINS,
    EncodedSpectra,
    encode_spectra,
    encode_split_latent,
    predictor_of,
    seen_flux,
    spectrum_of,
)
from cyclestarnet.published import read_published_parts
from cyclestarnet.results import FitResult, Posterior, signed
from cyclestarnet.spectra import Spectrum
from cyclestarnet.storage import origin

if TYPE_CHECKING:
    from astropy.modeling import Fittable1DModel
    from numpy.typing import ArrayLike

    from cyclestarnet.training.adaptation import AdaptationReport

__all__ = ["CalibratedModel"]


@dataclass(frozen=True, eq=False, repr=False)
class CalibratedModel(ModelParts):
    """A forward model of observed spectra: labels → emulator → translation.

    Get one with `from_pretrained` or `load`; make one with `~cyclestarnet.train`,
    or from trained parts with the constructor.

    Parameters
    ----------
    name : str
        Name of the model, as results and tables have it.
    labels : `~cyclestarnet.LabelSet`
        Labels that the emulator takes, with their ranges.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the model.
    recipe : `~cyclestarnet.ContinuumRecipe`
        How the training spectra were normalised, and data are.
    emulator : `~cyclestarnet.networks.Emulator`
        Labels → synthetic flux.
    translator : `~cyclestarnet.networks.Translator`
        Synthetic flux → observed flux, and back.
    noise : `~cyclestarnet.NoiseModel`
        Which pixels count, and the errors of data, model and labels.
    population : `~cyclestarnet.pipeline.Population`
        The stars of the training: prior of the labels, and where latents lie.
    limits : `~cyclestarnet.pipeline.FlagLimits`, optional
        Beyond which fits are flagged.
    shortcuts : `~cyclestarnet.networks.Shortcuts`, optional
        First guesses and expected derivatives, which make fits quick. Default: none.
    provenance : mapping, optional
        What the model was made of, and its measured figures, by name.
    normalises : bool, optional
        Whether ``recipe`` normalised the training spectra, so that it has to normalise all others. Default: True.
    zero_points : array, shape (n_labels,), optional
        By how much the networks take the labels of observed stars for larger than they are. Default: by nothing.

    Raises
    ------
    GridError
        If the parts have different numbers of pixels.
    LabelError
        If the emulator takes another number of labels, or there are not as many zero points.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel, datasets
    >>> model = CalibratedModel.from_pretrained()
    >>> result = model.fit(datasets.k_giant())
    >>> bool(4400 < result.labels["teff"].value < 4600), result.labels["teff"].unit
    (True, Unit("K"))
    """

    # -- where models come from ------------------------------------------------
    @classmethod
    def _of(cls, parts: ModelParts) -> Self:
        return cls(**{own.name: getattr(parts, own.name) for own in fields(parts)})

    @classmethod
    def from_pretrained(cls, name: str = "apogee-giants") -> Self:
        """Load a model that ships with the package, or that somebody publishes.

        Parameters
        ----------
        name : str, optional
            One of `cyclestarnet.list_models`, or the address of a file, which is fetched once into the download cache
            of astropy; ``#sha256=…`` after it says which file it must be (`~cyclestarnet.datasets.fetch_model`).
            Default: ``"apogee-giants"``.

        Returns
        -------
        `CalibratedModel`

        Raises
        ------
        ValueError
            If there is no such model; the message lists those that exist.
        OSError
            If an address cannot be reached, and its file is not in the cache.
        ModelFileError
            If the file is damaged, foreign, or another one than its address says.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel
        >>> CalibratedModel.from_pretrained().grid.n_pixels
        7167
        """
        with pretrained_file(name) as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a model that `save` wrote, and verify it with its self-test.

        Parameters
        ----------
        path : path-like
            Also a file of the version before.

        Returns
        -------
        `CalibratedModel`

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If the file is damaged, foreign, or predicts other spectra than it did when it was saved.

        Examples
        --------
        ::

            model = CalibratedModel.load("runs/giants/giants.safetensors")
        """
        return cls._of(load_parts(path))

    @classmethod
    def from_published(
        cls,
        checkpoint: str | Path,
        emulator: str | Path,
        *,
        preset: str = "repository",
        labels: Sequence[str] | None = None,
        template: NetworkSettings | None = None,
    ) -> Self:
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

        Networks see the flux of bad pixels as the spectrum has it, as they did
        in the published code (``model.noise.fill`` is None); models of this
        package see the continuum there.

        Parameters
        ----------
        checkpoint : path-like
            Such as ``kurucz_to_apogee_1.pth.tar``; see
            `~cyclestarnet.networks.read_published_checkpoint`.
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
        template : `~cyclestarnet.NetworkSettings`, optional
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
        parts = read_published_parts(checkpoint, emulator, preset=preset, labels=labels, template=template)
        return cls._of(parts)

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write the model to one safetensors file, atomically.

        Parameters
        ----------
        path : path-like
            Of the file, which is replaced if it exists.
        half : bool, optional
            Store weights in float16: half the size, flux changed by about 1e-4. Default: float32.

        Examples
        --------
        ::

            model.save("giants.safetensors", half=True)
        """
        save_parts(self, path, half=half)

    def to(self, device: str | torch.device) -> Self:
        """Return the same model with its networks on another device.

        Parameters
        ----------
        device : str or torch.device
            Such as ``"cuda"``: then stars of a block are fitted together, and
            their last bits depend on the block.

        Returns
        -------
        `CalibratedModel`

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel
        >>> CalibratedModel.from_pretrained().to("cpu").translator.device
        device(type='cpu')
        """
        return replace(self, emulator=copy.deepcopy(self.emulator).to(device), translator=self.translator.to(device))

    # -- forward ---------------------------------------------------------------
    def predict(
        self, labels: Mapping[str, u.Quantity], *, domain: str = "observed", like: Spectrum | None = None
    ) -> Spectrum:
        """Predict the spectrum of given labels.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`, table, or result of a fit
            Within the training range; arrays give many spectra. Motion has no say: spectra are at rest.
            Besides ``teff``, ``logg`` and one abundance, or a combination such as ``m_h``, others may be left out:
            they are what the model's prior expects of such a star (the conditional mean).
        domain : {"observed", "synthetic"}, optional
            Whose spectra: translated ones (default), or those of the emulator.
        like : `~specutils.Spectrum`, optional
            Observed spectrum whose split latent (line-spread function,
            continuum, ...) is used. Default: a typical one. The synthetic domain has none.

        Returns
        -------
        `~specutils.Spectrum`
            Normalised flux, shape (..., n_pixels).

        Warns
        -----
        CycleStarNetWarning
            If labels were left out; ``meta["filled"]`` has their values.

        Raises
        ------
        LabelError
            If a label is missing, misspelt, has a wrong unit or is out of range, or a combination such as ``m_h`` is
            not what its members give.
        ValueError
            If ``like`` is given for the synthetic domain.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel
        >>> model = CalibratedModel.from_pretrained()
        >>> model.predict(model.labels.to_quantities(model.prior.mean)).flux.shape
        (7167,)
        """
        values, filled = self._completed(labels)
        predictor = predictor_of(self, domain, encode_split_latent(self, like, domain=domain))
        spectrum = spectrum_of(self, predictor.flux(values), domain)
        spectrum.meta |= filled
        return spectrum

    def as_spectral_model(
        self,
        labels: Mapping[str, u.Quantity] | None = None,
        *,
        domain: str = "observed",
        like: Spectrum | None = None,
    ) -> Fittable1DModel:
        """Return the forward model as one of `astropy.modeling`, to be joined with components of your own.

        It has a parameter for each label, a number in the label's unit, with the training range as bounds. Add an
        emission line, multiply it by a continuum, tie and fix its parameters, and fit it with a fitter of astropy that
        keeps bounds (``TRFLSQFitter``; ``weights=1 / sigma``) to normalised flux, such as the ``spectrum`` of a
        `FitResult`. `fit` does more: it has the errors of the
        model, a prior, and flags.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`, or result of a fit, optional
            To begin with; some may be left out, as in `predict`. Default: the mean of the model's prior.
        domain : {"observed", "synthetic"}, optional
            Whose spectra: translated ones (default), or those of the emulator.
        like : `~specutils.Spectrum`, optional
            As in `predict`.

        Returns
        -------
        `~astropy.modeling.Fittable1DModel`
            Of vacuum wavelength, a `~astropy.units.Quantity` or in Angstrom, within the model's range; between pixels
            by cubic splines. Derivatives by labels are exact.

        Raises
        ------
        LabelError
            If a label is missing, misspelt, has a wrong unit or is out of range.
        GridError
            If it is evaluated where the model has no pixels.

        Examples
        --------
        >>> from astropy.modeling.models import Gaussian1D
        >>> from cyclestarnet import CalibratedModel
        >>> star = CalibratedModel.from_pretrained().as_spectral_model()
        >>> star.teff = 4500
        >>> emission = star + Gaussian1D(0.1, mean=15_700, stddev=0.3)
        >>> print(f"{emission(15_700.0) - star(15_700.0):.2f}")
        0.10
        """
        values = self.population.prior.mean
        if labels is not None:
            values, _ = self._completed(labels)
        return spectral_model(self, values, domain=domain, split_latent=encode_split_latent(self, like, domain=domain))

    def to_observed(
        self, spectrum: Spectrum, *, like: Spectrum | None = None, normalise: bool | None = None
    ) -> Spectrum:
        """Translate a synthetic spectrum to the observed domain (S1, synth→obs).

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Synthetic flux, shape (n_pixels,); an uncertainty is not needed.
        like : `~specutils.Spectrum`, optional
            As in `predict`.
        normalise : bool, optional
            As in `fit`.

        Returns
        -------
        `~specutils.Spectrum`
            Normalised flux, shape (n_pixels,). Masked where no pixel of ``spectrum`` counts: what the network
            returns there is a guess. ``meta`` has ``model``, ``domain`` and ``object``; there is no uncertainty.

        Raises
        ------
        SpectrumError, GridError
            If the spectrum cannot be used; see `~cyclestarnet.pipeline.ModelParts.pixels_of`.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel
        >>> model = CalibratedModel.from_pretrained()
        >>> star = model.predict(model.labels.to_quantities(model.prior.mean), domain="synthetic")
        >>> model.to_observed(star).meta["domain"]
        'observed'
        """
        flux, used = seen_flux(self, spectrum, domain="synthetic", normalise=normalise)
        translated = self.translator.synth_to_obs(flux[None], encode_split_latent(self, like))
        return spectrum_of(self, translated[0], "observed", used=used, source=spectrum)

    def to_synthetic(self, spectrum: Spectrum, *, normalise: bool | None = None) -> Spectrum:
        """Translate an observed spectrum to the synthetic domain (S1, obs→synth).

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Observed flux with uncertainty, as for `fit`.
        normalise : bool, optional
            As in `fit`.

        Returns
        -------
        `~specutils.Spectrum`
            Normalised flux, shape (n_pixels,). Masked where no pixel of ``spectrum`` counts: what the network
            returns there is a guess. ``meta`` has ``model``, ``domain`` and ``object``; there is no uncertainty.

        Raises
        ------
        SpectrumError, GridError
            If the spectrum cannot be used; see `~cyclestarnet.pipeline.ModelParts.pixels_of`.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> CalibratedModel.from_pretrained().to_synthetic(datasets.k_giant()).flux.shape
        (7167,)
        """
        flux, used = seen_flux(self, spectrum, normalise=normalise)
        translated = self.translator.obs_to_synth(flux[None])
        return spectrum_of(self, translated[0], "synthetic", used=used, source=spectrum)

    def reconstruct(self, spectrum: Spectrum, *, domain: str = "observed", normalise: bool | None = None) -> Spectrum:
        """Pass a spectrum through the autoencoder of its own domain.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            As `to_synthetic` or `to_observed` takes it.
        domain : {"observed", "synthetic"}, optional
            Domain of ``spectrum``.
        normalise : bool, optional
            As in `fit`.

        Returns
        -------
        `~specutils.Spectrum`
            Normalised flux, shape (n_pixels,). Masked where no pixel of ``spectrum`` counts: what the network
            returns there is a guess. ``meta`` has ``model``, ``domain`` and ``object``; there is no uncertainty.

        Raises
        ------
        SpectrumError, GridError
            If the spectrum cannot be used; see `~cyclestarnet.pipeline.ModelParts.pixels_of`.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> CalibratedModel.from_pretrained().reconstruct(datasets.k_giant()).meta["domain"]
        'observed'
        """
        (flux, used), translator = seen_flux(self, spectrum, domain=domain, normalise=normalise), self.translator
        reconstruct = translator.reconstruct_obs if domain == "observed" else translator.reconstruct_synth
        return spectrum_of(self, reconstruct(flux[None])[0], domain, used=used, source=spectrum)

    def encode(
        self,
        spectra: Iterable[Spectrum | str | Path] | Spectrum | str | Path,
        *,
        domain: str = "observed",
        normalise: bool | None = None,
    ) -> EncodedSpectra:
        """Find the latents of spectra: what the networks know of a star (S1, Figure 10).

        Parameters
        ----------
        spectra : iterable of `~specutils.Spectrum` or path-like
            All that `fit_many` takes. Synthetic spectra need no uncertainty.
        domain : {"observed", "synthetic"}, optional
            Of the spectra. Default: observed.
        normalise : bool, optional
            As in `fit`.

        Returns
        -------
        `~cyclestarnet.pipeline.EncodedSpectra`
            A row per spectrum, in the order of the input. Those of spectra that cannot be used are NaN, and
            ``messages`` says why.

        Raises
        ------
        SpectrumError
            If none can be used.
        FileNotFoundError, IsADirectoryError
            If nothing matches a pattern, a path is not there, or is a folder.
        ValueError
            If there is no such domain.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> encoded = CalibratedModel.from_pretrained().encode(datasets.k_giant())
        >>> encoded.shared_latent.shape, encoded.split_latent.shape
        ((1, 25, 24), (1, 1, 24))
        """
        return encode_spectra(self, star_sources(spectra, grid=self.grid), domain=domain, normalise=normalise)

    def derivative_spectrum(self, labels, name, *, domain="observed", like=None):
        """Derivative of the spectrum with respect to one label (S1, Equation 8); see `derivative_spectra`.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`
            Where the derivative is taken, within the training range.
        name : str
            Label.
        domain : {"observed", "synthetic", "difference"}, optional
            As in `derivative_spectra`.
        like : `~specutils.Spectrum`, optional
            As in `predict`.

        Returns
        -------
        `~astropy.units.Quantity`, shape (..., n_pixels)
            In 1 / (unit of the label): 1/K, 1/dex, s/km.

        Raises
        ------
        LabelError
            If a label is missing, unknown, has a wrong unit or is out of range.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel
        >>> model = CalibratedModel.from_pretrained()
        >>> model.derivative_spectrum(model.labels.to_quantities(model.prior.mean), "mg_h").unit
        Unit("1 / dex")
        """
        return self.derivative_spectra(labels, domain=domain, names=[name], like=like)[name]

    def derivative_spectra(self, labels, *, domain="observed", names=None, like=None):
        """Derivatives of the spectrum with respect to labels (S1, Equation 8).

        Exact, by forward-mode differentiation through all networks.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`
            Where the derivatives are taken, within the training range; arrays
            are those of many stars. Some may be left out, as in `predict`.
        domain : {"observed", "synthetic", "difference"}, optional
            ``"difference"`` is observed − synthetic: what the synthetic
            spectra lack (S1, Section 4.2), as far as the network has learnt it.
        names : sequence of str, optional
            Labels to differentiate by. Default: all.
        like : `~specutils.Spectrum`, optional
            As in `predict`.

        Returns
        -------
        `~cyclestarnet.derivatives.DerivativeSpectra`
            Derivatives of shape (..., n_pixels) by label, with the spectra: ``[name]`` is a
            `~astropy.units.Quantity` in 1 / (unit of the label), and ``["wavelength"]`` goes with it. ``to_table()``
            makes a table of one star's.

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
        values, filled = self._completed(labels)
        names = self.labels.names if names is None else (names,) if isinstance(names, str) else tuple(names)
        signs = {"observed": 1, "synthetic": -1} if domain == "difference" else {domain: 1}
        split_latent = encode_split_latent(self, like, domain=domain)
        predictors = [(sign, predictor_of(self, part, split_latent)) for part, sign in signs.items()]
        return predictor_derivatives(
            predictors, values, names, label_set=self.labels, grid=self.grid, domain=domain,
            meta={"model": self.name} | filled,
        )  # fmt: skip

    def _completed(self, labels: Any) -> tuple[Any, dict[str, Any]]:
        """Values of all labels, and under ``"filled"`` those that were not given; a warning names them."""
        labels, names = completed(self, labels)
        values = self.labels.to_array(labels, check_range=True)
        if not names:
            return values, {}
        warnings.warn(
            f"{', '.join(names)} were not given, and are what the prior of {self.name} expects of such a star; "
            "the values are in meta['filled']",
            CycleStarNetWarning,
            stacklevel=3,
        )
        return values, {"filled": {name: labels[name] for name in names}}

    # -- inverse -----------------------------------------------------------------
    def _read(self, spectrum: Spectrum | str | Path) -> Spectrum:
        """A spectrum, read if it is a path."""
        if not isinstance(spectrum, str | os.PathLike):
            return spectrum
        stars = list(star_sources(spectrum, grid=self.grid))
        if len(stars) != 1:
            raise SpectrumError(f"{os.fspath(spectrum)} has {len(stars)} stars, but one is fitted; use fit_many")
        return stars[0].read()

    @takes(FitOptions)
    def fit(self, spectrum: Spectrum | str | Path, *more: Any, **options: Any) -> FitResult:
        """Find the labels that maximise the posterior (S1, Section 4.1.3 to 4.1.5).

        Parameters
        ----------
        spectrum : `~specutils.Spectrum` or path-like
            Rest frame, vacuum, with an uncertainty; a file is read as by `fit_many`. Whatever the unit of the
            flux, and whoever normalised it, the model's recipe normalises it; see ``normalise``.
        **options
            Fields of `~cyclestarnet.FitOptions`.

        Returns
        -------
        `~cyclestarnet.FitResult`

        Raises
        ------
        SpectrumError, GridError
            If the spectrum cannot be used; see `~cyclestarnet.pipeline.ModelParts.pixels_of`.
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
        .. [1] O'Briain et al. 2021, ApJ 906, 130, Sections 4.1.3 to 4.1.5.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> result = CalibratedModel.from_pretrained().fit(datasets.k_giant())
        >>> result.success, result.flags.names
        (True, [])
        """
        one_only("fit", more)
        (chosen,) = sorted_options(options, FitOptions)
        return signed(fit_one(self, self._read(spectrum), FitOptions(**chosen)), self._digest)

    @takes(SampleOptions, FitOptions)
    def sample(self, spectrum: Spectrum | str | Path, *more: Any, **options: Any) -> Posterior:
        """Sample the posterior with emcee, or for a second opinion with NUTS, from the optimum and its covariance.

        If ``start`` is a result, options of a fit that are not given are those of that fit; unless it
        has all that is to be sampled, `fit` is done first. With ``split_latent="fitted"`` the split
        latent is sampled along, and left out of the samples: they are marginalised over it. Eq. 10
        (``space="synthetic"``) has no likelihood to sample.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            As for `fit`.
        **options
            Fields of `~cyclestarnet.SampleOptions` and `~cyclestarnet.FitOptions`.

        Returns
        -------
        `~cyclestarnet.Posterior`

        Raises
        ------
        SpectrumError, GridError, LabelError
            As `fit`.
        ImportError
            If emcee is not installed, or mici for ``sampler="nuts"``.

        Warns
        -----
        FitWarning
            If the chain is too short.

        Examples
        --------
        ::

            result = model.fit(spectrum)
            posterior = model.sample(spectrum, start=result, seed=1, backend="chain.h5")
            posterior.interval("teff")
        """
        one_only("sample", more)
        sampling, chosen = sorted_options(options, SampleOptions, FitOptions)
        posterior = sample_one(self, self._read(spectrum), SampleOptions(**sampling), chosen, digest=self._digest)
        return signed(posterior, self._digest)

    @takes(ManyOptions, FitOptions)
    def fit_many(
        self, spectra: Iterable[Spectrum | str | Path] | Spectrum | str | Path, *more: Any, **options: Any
    ) -> QTable:
        """Fit many stars; a bad one is flagged and never stops the rest.

        Stars are read ahead while others are fitted, and rows are written as
        they come. The same call after a kill goes on where it was.

        Parameters
        ----------
        spectra : iterable of `~specutils.Spectrum` or path-like
            Also one of them, a pattern such as ``"spectra/apStar-*.fits"``, a
            `~specutils.Spectrum` of many stars, or an HDF5 file as
            `~cyclestarnet.io.training_set` has it. A generator is read as far as stars are needed.
            Files are read as their names tell (``apStar-…``, ``apVisit-…``).
        **options
            Fields of `~cyclestarnet.ManyOptions` and `~cyclestarnet.FitOptions`.

        Returns
        -------
        `~astropy.table.QTable`
            A row per star in the order of the input. Rows of stars that could
            not be fitted have NaN labels, the flag ``FAILED`` and the reason in
            ``message``. ``meta`` has the model, the digest of its weights, the
            version of the package, the date (UTC) and the options.

        Raises
        ------
        FileExistsError
            If ``output`` exists and is not to be overwritten, or holds an unfinished run of another kind.
        FileNotFoundError, IsADirectoryError
            If nothing matches a pattern, a path is not there, or is a folder.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> table = CalibratedModel.from_pretrained().fit_many([datasets.k_giant()], progress=False)
        >>> table["success"][0]
        np.True_
        """
        one_only("fit_many", more)
        given, chosen = sorted_options(options, ManyOptions, FitOptions)
        many, fitting = ManyOptions(**given), FitOptions(**chosen)
        setup = SurveySetup.of(self, fitting)
        return fit_survey(
            setup.paired(star_sources(spectra, grid=self.grid, selection=many.selection)),
            partial(fit_numbered, setup=setup),
            partial(failed_row, setup.label_set),
            many,
            run={"model": self.name, "weights": self._digest} | vars(setup.options),
            meta=origin({"model": self.name, "weights": self._digest}, setup.options),
        )

    @takes(ManyOptions, SampleManyOptions, FitOptions)
    def sample_many(
        self, spectra: Iterable[Spectrum | str | Path] | Spectrum | str | Path, *more: Any, **options: Any
    ) -> QTable:
        """Sample the posteriors of many stars; a bad one is flagged and never stops the rest.

        Each star is fitted, and then sampled as by `sample`. Rows are written as they come, and the same
        call after a kill goes on where it was. The progress bar estimates the time that is left from the stars
        that are done.

        Parameters
        ----------
        spectra : iterable of `~specutils.Spectrum` or path-like
            All that `fit_many` takes.
        **options
            Fields of `~cyclestarnet.ManyOptions`, `~cyclestarnet.SampleManyOptions` and
            `~cyclestarnet.FitOptions`.

        Returns
        -------
        `~astropy.table.QTable`
            A row per star in the order of the input: the columns of `Posterior.to_table
            <cyclestarnet.Posterior.to_table>`, that is medians, errors and ends of the central 68 % interval with the
            errors that residuals do not show, whether the chain is long enough (``converged``), its steps,
            acceptance and longest autocorrelation time; χ², S/N and flags of the fit; and ``seed``, with which
            ``sample(spectrum, seed=…)`` gives the same samples, -1 without any. Labels that are fixed
            have an error of 0. Rows of stars that could not be sampled have NaN labels, the flag ``FAILED`` and
            the reason in ``message``.

        Raises
        ------
        FileExistsError
            If ``output`` exists and is not to be overwritten, or holds an unfinished run of another kind, or
            ``chains`` holds samples of another run.
        OtherRunError
            If ``chains`` holds an unfinished chain of other stars, options or seeds.
        OSError
            If a file of chains cannot be written.
        ImportError
            If emcee is not installed.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> model, star = CalibratedModel.from_pretrained(), datasets.k_giant()
        >>> labels = model.fit(star, space="emulator").labels
        >>> held = {name: labels[name] for name in model.labels if name != "teff"}
        >>> table = model.sample_many([star], space="emulator", fixed=held, progress=False)
        >>> table["converged"][0], table["teff_low"][0] < table["teff"][0] < table["teff_high"][0]
        (np.True_, np.True_)
        """
        one_only("sample_many", more)
        given, sampled, chosen = sorted_options(options, ManyOptions, SampleManyOptions, FitOptions)
        many, setup = ManyOptions(**given), SurveySetup.of(self, FitOptions(**chosen))
        stars = setup.paired(star_sources(spectra, grid=self.grid, selection=many.selection))
        return sample_survey(stars, setup, SampleManyOptions(**sampled), many, digest=self._digest)

    # -- its own spectra ------------------------------------------------------------
    def adapt(
        self, observed: ArrayLike | Spectrum | str | Path, errors: ArrayLike | None = None, **options: Any
    ) -> tuple[CalibratedModel, AdaptationReport]:
        """Finish the training on your own observed spectra, of which no label is known.

        Parameters
        ----------
        observed : path-like, or array, Quantity or `~specutils.Spectrum`, shape (n, n_pixels)
            50 or more observed spectra, at rest, on the pixels of ``model.grid``, or an HDF5 file of them.
        errors : array or Quantity, shape (n, n_pixels), optional
            Standard deviation of ``observed``. Needed of arrays without an uncertainty.
        **options
            Keyword arguments of `cyclestarnet.adapt`, which does the work and says all.

        Returns
        -------
        model : `~cyclestarnet.CalibratedModel`
            The new one; this one does not change.
        report : `~cyclestarnet.training.before_after.AdaptationReport`
            What held-out stars look like before and after.

        Raises
        ------
        SpectrumError, GridError, ValueError
            As `cyclestarnet.adapt`.

        Examples
        --------
        ::

            adapted, report = model.adapt("mine.h5", folder="mine")
        """
        from cyclestarnet.training.adaptation import adapt  # late: trainings stand above models

        return adapt(self, observed, errors, **options)

    @cached_property
    def _digest(self) -> str:
        return digest_of(self)

    # -- showing -------------------------------------------------------------------
    def __repr__(self) -> str:
        return f"<CalibratedModel {self.name}: {len(self.labels)} labels, {self.grid!r}>"

    def _repr_html_(self) -> str:
        rows = [[html.escape(str(text)) for text in fact] for fact in self.provenance.items()]
        facts = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in rows)
        name = html.escape(self.name)
        return f"<p><b>CalibratedModel</b> {name}</p>{self.labels._repr_html_()}<table>{facts}</table>"
