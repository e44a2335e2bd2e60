"""`Translation`: two domains of which neither has labels, and the networks that turn spectra of one into the other's.

Two spectrographs, or two synthetic codes: nothing is fitted here, and there is no emulator. Its file
is one safetensors file, as that of a `~cyclestarnet.CalibratedModel`: arrays (weights ``network.…``,
``grid.wavelength``, ``recipe.pixels``, ``scatter.first``, ``scatter.second``, ``typical_split_latent``, and a
self-test), and one JSON text of plain data, whose ``kind`` tells it from the file of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import astropy.units as u
import numpy as np
import torch

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import GridError, ModelFileError, SpectrumError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.networks.checkpoint import arrays_of, check_sizes, load_arrays, save_arrays
from cyclestarnet.networks.predictor import Translator
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.noise import NoiseModel
from cyclestarnet.spectra import NORMALISED, Spectrum, star_name, to_pixels, to_spectrum

__all__ = ["Translation", "is_translation_file"]

KIND = "translation"  # of a file; that of a model has none
VERSION = 1
TOLERANCE = 1e-4  # of the self-test's flux: other processors and versions of torch round otherwise
SIDES = ("first", "second")


@dataclass(frozen=True, eq=False, repr=False)
class Translation:
    """Translates spectra between two domains, both ways.

    `~cyclestarnet.train_translation` makes one. The second domain may have a split latent: what its spectra
    have besides what both domains know of a star, such as a resolution that varies.

    Parameters
    ----------
    name : str
        Name of the translation, which goes into the metadata of what it makes.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of both domains.
    translator : `~cyclestarnet.networks.Translator`
        The networks; the first domain is the one that they call synthetic.
    noise : `~cyclestarnet.NoiseModel`
        Which pixels count, the same rule for both domains.
    domains : (str, str), optional
        What the domains are called on the card and in metadata. Default: ``("first", "second")``.
    scatter : mapping of array, shape (n_pixels,), optional
        Error of translated flux besides that of the data, 1 σ, by the domain that is translated to:
        ``"first"`` and ``"second"``. Default: not known, and translated spectra have no uncertainty.
    typical_split_latent : array, shape (split_filters, latent_length), optional
        Split latent of the second domain to use where no spectrum gives one. None if the networks have none.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        Normalises all spectra. Default: they come normalised, in the way in which those of the training were.
    provenance : mapping of str, optional
        What it was made of, by name.

    Raises
    ------
    GridError
        If the parts have different numbers of pixels.
    ValueError
        If the split latent is missing or not one of the networks.

    Examples
    --------
    ::

        translation = Translation.load("uves-to-apogee.safetensors")
        print(translation)
        other = translation.to_second(star)
    """

    name: str
    grid: WavelengthGrid
    translator: Translator
    noise: NoiseModel
    domains: tuple[str, str] = SIDES
    scatter: Mapping[str, np.ndarray] | None = None
    typical_split_latent: np.ndarray | None = None
    recipe: ContinuumRecipe | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes, network = {"grid": self.grid.n_pixels}, self.translator.network.settings
        sizes["networks"] = network.n_pixels
        if self.recipe is not None:
            sizes["continuum recipe"] = self.recipe.grid.n_pixels
        sizes |= {f"scatter to the {side}": np.size(array) for side, array in (self.scatter or {}).items()}
        if len(set(sizes.values())) > 1:
            raise GridError(f"the parts of a translation must have the same number of pixels, but have {sizes}")
        if self.scatter is not None and set(self.scatter) != set(SIDES):
            raise ValueError(f"scatter must be of {' and '.join(SIDES)}, but is of {', '.join(self.scatter)}")
        wanted = (network.split_filters, network.latent_length) if network.split_filters else None
        given = None if self.typical_split_latent is None else np.shape(self.typical_split_latent)
        if given != wanted:
            raise ValueError(f"typical_split_latent must have the shape {wanted}, as in the networks, but has {given}")

    # -- spectra -----------------------------------------------------------------
    def to_second(self, spectrum: Spectrum, *, like: Spectrum | None = None) -> Spectrum:
        """Translate a spectrum of the first domain to the second.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Of the first domain: flux of shape (n,), with an uncertainty, at rest, vacuum wavelengths; other
            pixels than the grid's are resampled. Dimensionless and normalised, unless there is a ``recipe``.
        like : `~specutils.Spectrum`, optional
            One of the second domain, whose split latent (resolution, throughput) the result shall have.
            Default: a typical one.

        Returns
        -------
        `~specutils.Spectrum`
            Dimensionless flux, shape (n_pixels,), on the grid. Masked where no pixel of ``spectrum`` counts: what the
            networks say there is a guess. The uncertainty is that of ``spectrum`` and ``scatter`` in
            quadrature; there is none if ``scatter`` is None. ``meta`` has ``translation``, ``domain`` and ``object``.

        Raises
        ------
        TypeError, SpectrumError, GridError
            If the spectrum cannot be used; see `~cyclestarnet.spectra.to_pixels`.
        ValueError
            If ``like`` is given, but the networks have no split latent.

        Examples
        --------
        ::

            other = translation.to_second(star, like=another_of_the_second)
        """
        split = self.typical_split_latent
        if like is not None:
            if split is None:
                raise ValueError(f"like has no effect: translation {self.name!r} has no split latent; leave it out")
            split = self.encode(like, domain="second")[1]
        flux, used, sigma = self._seen(spectrum)
        return self._made("second", self.translator.synth_to_obs(flux[None], split)[0], used, sigma, spectrum)

    def to_first(self, spectrum: Spectrum) -> Spectrum:
        """Translate a spectrum of the second domain to the first.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Of the second domain, else as `to_second` takes it.

        Returns
        -------
        `~specutils.Spectrum`
            As of `to_second`.

        Raises
        ------
        TypeError, SpectrumError, GridError
            As `to_second`.

        Examples
        --------
        ::

            back = translation.to_first(translation.to_second(star))
        """
        flux, used, sigma = self._seen(spectrum)
        return self._made("first", self.translator.obs_to_synth(flux[None])[0], used, sigma, spectrum)

    def reconstruct(self, spectrum: Spectrum, *, domain: str = "first") -> Spectrum:
        """Pass a spectrum through the autoencoder of its own domain: what the latents know of it.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            As `to_second` takes it.
        domain : {"first", "second"}, optional
            Its domain.

        Returns
        -------
        `~specutils.Spectrum`
            As of `to_second`, but without an uncertainty: networks propagate none.

        Raises
        ------
        TypeError, SpectrumError, GridError
            As `to_second`.
        ValueError
            If there is no such domain.

        Examples
        --------
        ::

            residual = translation.reconstruct(star, domain="first").flux - star.flux
        """
        _check_side(domain)
        flux, used, _ = self._seen(spectrum)
        reconstruct = self.translator.reconstruct_synth if domain == "first" else self.translator.reconstruct_obs
        return self._made(domain, reconstruct(flux[None])[0], used, None, spectrum)

    def encode(self, spectrum: Spectrum, *, domain: str = "first") -> tuple[np.ndarray, np.ndarray | None]:
        """Latents of a spectrum.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            As `to_second` takes it.
        domain : {"first", "second"}, optional
            Its domain.

        Returns
        -------
        shared_latent : array, shape (shared_filters, latent_length)
            What both domains have in common.
        split_latent : array, shape (split_filters, latent_length), or None
            What spectra of the second domain have besides; None of the first, and of networks without one.

        Raises
        ------
        TypeError, SpectrumError, GridError, ValueError
            As `reconstruct`.

        Examples
        --------
        ::

            shared_latent, split_latent = translation.encode(star, domain="second")
        """
        _check_side(domain)
        flux = self._seen(spectrum)[0][None]
        if domain == "first":
            return self.translator.encode_synth(flux)[0], None
        shared, split = self.translator.encode_obs(flux)
        return shared[0], None if split is None else split[0]

    def _seen(self, spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flux as the encoders see it, which pixels count, and the errors of the data."""
        pixels = to_pixels(spectrum, self.grid, recipe=self.recipe)
        used = self.noise.used_pixels(pixels.flux, pixels.sigma)
        level = np.median(pixels.flux[used])
        if not NORMALISED[0] < level < NORMALISED[1]:
            raise SpectrumError(
                f"flux must be normalised, about 1 in the continuum, as that of the training of {self.name!r}, but its "
                f"median is {level:.3g}; divide it by its continuum"
            )
        return self.noise.filled_flux(pixels.raw, used), used, pixels.sigma

    def _made(
        self, side: str, flux: np.ndarray, used: np.ndarray, sigma: np.ndarray | None, source: Spectrum
    ) -> Spectrum:
        """A spectrum of what the networks say, with an uncertainty if there are an error of the data and a scatter."""
        ivar = None
        if sigma is not None and self.scatter is not None:
            ivar = np.zeros(len(flux))
            ivar[used] = 1 / (sigma[used] ** 2 + self.scatter[side][used] ** 2)
        meta = {"translation": self.name, "domain": self.domains[SIDES.index(side)], "object": star_name(source)}
        return to_spectrum(flux, self.grid, ivar=ivar, mask=~used, meta=meta)

    # -- the file ----------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Write the translation to one safetensors file, atomically.

        Parameters
        ----------
        path : path-like
            Of the file, which is replaced if it exists.

        Examples
        --------
        ::

            translation.save("uves-to-apogee.safetensors")
        """
        network, recipe, noise = self.translator.network, self.recipe, self.noise
        arrays = {f"network.{key}": value.cpu().numpy() for key, value in network.state_dict().items()}
        arrays |= {f"scatter.{side}": np.asarray(array, float) for side, array in (self.scatter or {}).items()}
        arrays["grid.wavelength"] = self.grid.wavelength.value
        if self.typical_split_latent is not None:
            arrays["typical_split_latent"] = self.typical_split_latent
        if recipe is not None:
            arrays["recipe.pixels"] = recipe.pixels
        arrays |= {f"selftest.{side}": flux for side, flux in self._test().items()}
        meta = {
            "kind": KIND,
            "version": VERSION,
            "name": self.name,
            "domains": list(self.domains),
            "chips": self.grid.chips,
            "degree": None if recipe is None else recipe.degree,
            "network": network.settings.to_dict(),
            "flux_mean": self.translator.flux_mean,
            "flux_std": self.translator.flux_std,
            "translation": self.translator.translation,
            "noise": {name: getattr(noise, name) for name in ("sigma_floor", "sigma_max", "fill")},
            "provenance": dict(self.provenance),
        }
        save_arrays(arrays, meta, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a translation that `save` wrote, and verify it with its self-test.

        Parameters
        ----------
        path : path-like
            The file. Nothing in it is executed.

        Returns
        -------
        `Translation`

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If the file is damaged, foreign, that of a model, or translates otherwise than when it was saved.

        Examples
        --------
        ::

            translation = Translation.load("uves-to-apogee.safetensors")
        """
        arrays, meta = load_arrays(path)
        meta = meta if isinstance(meta, dict) else {}
        if meta.get("kind") != KIND:
            raise ModelFileError(
                f"{path} does not hold a translation between two domains; if it is that of a model, which fits labels, "
                "read it with cyclestarnet.CalibratedModel.load"
            )
        if meta.get("version") != VERSION:
            raise ModelFileError(
                f"{path} has version {meta.get('version')!r} of the file of a translation, but this cyclestarnet reads "
                f"{VERSION}; update it"
            )
        try:
            translation = cls._of(arrays, meta)
            expected = {side: arrays[f"selftest.{side}"] for side in SIDES}
        except Exception as error:  # what its parts object to, in the words of each
            raise ModelFileError(f"{path} does not hold a complete translation: {error}") from error
        for side, flux in translation._test().items():
            difference = np.abs(flux - expected[side]).max() if flux.shape == expected[side].shape else np.inf
            if not difference < TOLERANCE:
                raise ModelFileError(
                    f"{path} fails its self-test: a flat spectrum translated to the {side} domain differs by "
                    f"{difference:.2g} from the one stored; the file was altered"
                )
        return translation

    def _test(self) -> dict[str, np.ndarray]:
        """A flat spectrum, translated both ways."""
        flat = np.ones((1, self.grid.n_pixels))
        second = self.translator.synth_to_obs(flat, self.typical_split_latent)
        return {"first": self.translator.obs_to_synth(flat)[0], "second": second[0]}

    @classmethod
    def _of(cls, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Self:
        settings = NetworkSettings(**meta["network"])
        with torch.device("meta"):  # of sizes alone: metadata can claim networks that no memory holds
            check_sizes("network", TranslationNetwork(settings), arrays)
        network = TranslationNetwork(settings)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in arrays_of("network", arrays).items()})
        grid = WavelengthGrid(arrays["grid.wavelength"] * u.AA, tuple(map(tuple, meta["chips"])))
        first, second = map(str, meta["domains"])
        pixels = arrays.get("recipe.pixels")
        return cls(
            name=str(meta["name"]),
            grid=grid,
            translator=Translator(network, meta["flux_mean"], meta["flux_std"], meta["translation"]),
            noise=NoiseModel(**meta["noise"]),
            domains=(first, second),
            scatter=arrays_of("scatter", arrays) or None,
            typical_split_latent=arrays.get("typical_split_latent"),
            recipe=None if pixels is None else ContinuumRecipe(grid, pixels, meta["degree"]),
            provenance={str(key): str(text) for key, text in meta["provenance"].items()},
        )

    # -- the card ----------------------------------------------------------------
    def __repr__(self) -> str:
        split = "none" if self.typical_split_latent is None else f"of the {self.domains[1]} domain"
        error = "not known: translated spectra have no uncertainty"
        if self.scatter is not None:
            error = ", ".join(
                f"{np.median(self.scatter[side]):.4f} to {domain}"
                for side, domain in zip(SIDES, self.domains, strict=True)
            )
        facts = {
            "domains": " and ".join(self.domains),
            "grid": repr(self.grid)[1:-1],
            "form": self.translator.translation,
            "split latent": split,
            "error of a pixel": error,
            **self.provenance,
        }
        return "\n".join([f"<Translation {self.name}>", *(f"{key}: {text}" for key, text in facts.items())])


def is_translation_file(path: str | Path) -> bool:
    """Whether a file holds a `Translation`.

    Parameters
    ----------
    path : path-like
        Of any file, or none.

    Returns
    -------
    bool
        False also of what cannot be read.

    Examples
    --------
    >>> from cyclestarnet.translation import is_translation_file
    >>> is_translation_file("apogee-giants")
    False
    """
    try:
        meta = load_arrays(path)[1]
    except OSError:  # ModelFileError is one
        return False
    return isinstance(meta, dict) and meta.get("kind") == KIND


def _check_side(domain: str) -> None:
    if domain not in SIDES:
        raise ValueError(f"domain must be one of {', '.join(map(repr, SIDES))}, but is {domain!r}")
