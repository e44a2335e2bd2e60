"""`Translation`: domains that share a latent, and the networks that turn spectra of any into those of any other.

Two spectrographs, or two synthetic codes, or several of both: no labels are needed, and nothing is fitted. Its file
is one safetensors file, as that of a `~cyclestarnet.CalibratedModel`: arrays (weights ``network.…``,
``grid.wavelength``, ``recipe.pixels``, ``scatter.SOURCE.TARGET`` and ``typical_split_latent.DOMAIN`` by the
places of the domains, and a self-test), and one JSON text of plain data, whose ``kind`` tells it from the file of
a model. Files of version 1, of two domains of which the second may have a split latent, are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from cyclestarnet.networks.translation import NetworkSettings, SharedNetwork
from cyclestarnet.networks.translator import DomainTranslator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.spectra import NORMALISED, Spectrum, star_name, to_pixels, to_spectrum

__all__ = ["Translation", "is_translation_file"]

KIND = "translation"  # of a file; that of a model has none
VERSION = 2
TOLERANCE = 1e-4  # of the self-test's flux: other processors and versions of torch round otherwise
SIDES = ("first", "second")
PARTS_OF_VERSION_1 = {
    "encoder_synth": "domains.0.encoder",
    "decoder_synth": "domains.0.decoder",
    "encoder_obs": "domains.1.encoder",
    "decoder_obs": "domains.1.decoder",
    "encoder_sp": "domains.1.split_encoder",
    "decoder_sp": "domains.1.split_decoder",
}


@dataclass(frozen=True, eq=False, repr=False)
class Translation:
    """Translates spectra between domains that share a latent: from any of them to any other.

    `~cyclestarnet.train_translation` makes one of two domains, `~cyclestarnet.train_domains` of more, and
    `~cyclestarnet.add_domain` adds one later. A domain may have a split latent: what its spectra
    have besides what all domains know of a star, such as a resolution that varies.

    Parameters
    ----------
    name : str
        Name of the translation, which goes into the metadata of what it makes.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of all domains.
    translator : `~cyclestarnet.networks.DomainTranslator`
        The networks.
    noise : `~cyclestarnet.NoiseModel`
        Which pixels count, the same rule for all domains.
    domains : tuple of str, optional
        Names of the domains, in the order of the networks. Default: ``("first", "second")``.
    scatter : mapping of array, shape (n_pixels,), optional
        Error of translated flux besides that of the data, 1 σ, by the domains (from, to). Default: not
        known. Spectra that are translated between domains without one have no uncertainty.
    typical_split_latents : mapping of array, shape (split_filters, latent_length), optional
        By the names of the domains that have split latents: the one to use where no spectrum gives one.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        Normalises all spectra. Default: they come normalised, in the way in which those of the training were.
    provenance : mapping of str, optional
        What it was made of, by name.

    Raises
    ------
    GridError
        If the parts have different numbers of pixels.
    ValueError
        If names are missing or not unique, or split latents missing or not those of the networks.

    Examples
    --------
    ::

        translation = Translation.load("surveys.safetensors")
        print(translation)
        other = translation.translate(star, "UVES", "APOGEE")
    """

    name: str
    grid: WavelengthGrid
    translator: DomainTranslator
    noise: NoiseModel
    domains: tuple[str, ...] = SIDES
    scatter: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    typical_split_latents: Mapping[str, np.ndarray] = field(default_factory=dict)
    recipe: ContinuumRecipe | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        network = self.translator.network
        sizes = {"grid": self.grid.n_pixels, "networks": network.settings.n_pixels}
        if self.recipe is not None:
            sizes["continuum recipe"] = self.recipe.grid.n_pixels
        sizes |= {f"scatter from {one} to {other}": np.size(array) for (one, other), array in self.scatter.items()}
        if len(set(sizes.values())) > 1:
            raise GridError(f"the parts of a translation must have the same number of pixels, but have {sizes}")
        if len(self.domains) < 2 or len(set(self.domains)) < len(self.domains):
            raise ValueError(f"domains must be two names or more that differ, but are {', '.join(self.domains)}")
        if len(self.domains) != len(network.domains):
            raise ValueError(f"there are {len(self.domains)} names of domains, but networks of {len(network.domains)}")
        if strange := {name for pair in self.scatter for name in pair} - set(self.domains):
            raise ValueError(f"scatter is of {', '.join(sorted(strange))}, but the domains are {_listed(self.domains)}")
        shape = (network.settings.split_filters, network.settings.latent_length)
        wanted = {name: shape for name, split in zip(self.domains, network.split_latents, strict=True) if split}
        given = {name: np.shape(array) for name, array in self.typical_split_latents.items()}
        if given != wanted:
            raise ValueError(
                f"typical_split_latents must be of {_listed(list(wanted)) or 'no domain'}, as in the networks, "
                f"of the shape {shape}, but are {given}"
            )

    # -- spectra -----------------------------------------------------------------
    def translate(self, spectrum: Spectrum, source: str, target: str, *, like: Spectrum | None = None) -> Spectrum:
        """Translate a spectrum of one domain to another.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Of the domain ``source``: flux of shape (n,), with an uncertainty, at rest, vacuum wavelengths; other
            pixels than the grid's are resampled. Dimensionless and normalised, unless there is a ``recipe``.
        source, target : str
            Names of the domains.
        like : `~specutils.Spectrum`, optional
            One of the domain ``target``, whose split latent (resolution, throughput) the result shall have.
            Default: a typical one.

        Returns
        -------
        `~specutils.Spectrum`
            Dimensionless flux, shape (n_pixels,), on the grid. Masked where no pixel of ``spectrum`` counts: what the
            networks say there is a guess. The uncertainty is that of ``spectrum`` and ``scatter`` in
            quadrature; there is none if that is not known. ``meta`` has ``translation``, ``domain`` and ``object``.

        Raises
        ------
        TypeError, SpectrumError, GridError
            If the spectrum cannot be used; see `~cyclestarnet.spectra.to_pixels`.
        ValueError
            If there is no such domain, both are the same, or ``like`` is given, but the domain has no split latent.

        Examples
        --------
        ::

            other = translation.translate(star, "UVES", "APOGEE", like=another_of_apogee)
        """
        one, other = self._place(source), self._place(target)
        if one == other:
            raise ValueError(f"source and target must differ, but both are {source!r}; see reconstruct")
        split = self.typical_split_latents.get(target)
        if like is not None:
            if split is None:
                raise ValueError(f"like has no effect: domain {target!r} has no split latent; leave it out")
            split = self.encode(like, target)[1]
        flux, used, sigma = self._seen(spectrum)
        made = self.translator.translate(flux[None], one, other, split)[0]
        return self._made(target, made, used, sigma, self.scatter.get((source, target)), spectrum)

    def to_second(self, spectrum: Spectrum, *, like: Spectrum | None = None) -> Spectrum:
        """Translate a spectrum of the first of two domains to the second.

        Parameters
        ----------
        spectrum, like : `~specutils.Spectrum`
            As `translate` takes them.

        Returns
        -------
        `~specutils.Spectrum`
            As of `translate`.

        Raises
        ------
        TypeError, SpectrumError, GridError
            As `translate`.
        ValueError
            As `translate`, or if there are more than two domains.

        Examples
        --------
        ::

            other = translation.to_second(star)
        """
        first, second = self._both()
        return self.translate(spectrum, first, second, like=like)

    def to_first(self, spectrum: Spectrum, *, like: Spectrum | None = None) -> Spectrum:
        """Translate a spectrum of the second of two domains to the first.

        Parameters
        ----------
        spectrum, like : `~specutils.Spectrum`
            As `translate` takes them.

        Returns
        -------
        `~specutils.Spectrum`
            As of `translate`.

        Raises
        ------
        TypeError, SpectrumError, GridError, ValueError
            As `to_second`.

        Examples
        --------
        ::

            back = translation.to_first(translation.to_second(star))
        """
        first, second = self._both()
        return self.translate(spectrum, second, first, like=like)

    def reconstruct(self, spectrum: Spectrum, domain: str) -> Spectrum:
        """Pass a spectrum through the autoencoder of its own domain: what the latents know of it.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            As `translate` takes it.
        domain : str
            Name of its domain.

        Returns
        -------
        `~specutils.Spectrum`
            As of `translate`, but without an uncertainty: networks propagate none.

        Raises
        ------
        TypeError, SpectrumError, GridError
            As `translate`.
        ValueError
            If there is no such domain.

        Examples
        --------
        ::

            residual = translation.reconstruct(star, "UVES").flux - star.flux
        """
        place = self._place(domain)
        flux, used, _ = self._seen(spectrum)
        return self._made(domain, self.translator.reconstruct(flux[None], place)[0], used, None, None, spectrum)

    def encode(self, spectrum: Spectrum, domain: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Latents of a spectrum.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            As `translate` takes it.
        domain : str
            Name of its domain.

        Returns
        -------
        shared_latent : array, shape (shared_filters, latent_length)
            What all domains have in common.
        split_latent : array, shape (split_filters, latent_length), or None
            What spectra of this domain have besides; None of a domain without one.

        Raises
        ------
        TypeError, SpectrumError, GridError, ValueError
            As `reconstruct`.

        Examples
        --------
        ::

            shared_latent, split_latent = translation.encode(star, "APOGEE")
        """
        place = self._place(domain)
        shared, split = self.translator.encode(self._seen(spectrum)[0][None], place)
        return shared[0], None if split is None else split[0]

    def _place(self, domain: str) -> int:
        if domain not in self.domains:
            raise ValueError(f"there is no domain {domain!r}; those of {self.name!r} are {_listed(self.domains)}")
        return self.domains.index(domain)

    def _both(self) -> tuple[str, str]:
        if len(self.domains) != 2:
            raise ValueError(f"{self.name!r} has {len(self.domains)} domains, {_listed(self.domains)}; use translate")
        return self.domains[0], self.domains[1]

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
        self,
        domain: str,
        flux: np.ndarray,
        used: np.ndarray,
        sigma: np.ndarray | None,
        scatter: np.ndarray | None,
        source: Spectrum,
    ) -> Spectrum:
        """A spectrum of what the networks say, with an uncertainty if there are an error of the data and a scatter."""
        ivar = None
        if sigma is not None and scatter is not None:
            ivar = np.zeros(len(flux))
            ivar[used] = 1 / (sigma[used] ** 2 + scatter[used] ** 2)
        meta = {"translation": self.name, "domain": domain, "object": star_name(source)}
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
        for (source, target), array in self.scatter.items():
            arrays[f"scatter.{self._place(source)}.{self._place(target)}"] = np.asarray(array, float)
        for domain, array in self.typical_split_latents.items():
            arrays[f"typical_split_latent.{self._place(domain)}"] = np.asarray(array)
        arrays["grid.wavelength"] = self.grid.wavelength.value
        if recipe is not None:
            arrays["recipe.pixels"] = recipe.pixels
        arrays |= {f"selftest.{place}": flux for place, flux in enumerate(self._test())}
        meta = {
            "kind": KIND,
            "version": VERSION,
            "name": self.name,
            "domains": list(self.domains),
            "split_latents": list(network.split_latents),
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
                f"{path} does not hold a translation between domains; if it is that of a model, which fits labels, "
                "read it with cyclestarnet.CalibratedModel.load"
            )
        if meta.get("version") not in (1, VERSION):
            raise ModelFileError(
                f"{path} has version {meta.get('version')!r} of the file of a translation, but this cyclestarnet reads "
                f"1 and {VERSION}; update it"
            )
        try:
            if meta["version"] == 1:
                arrays, meta = _of_version_1(arrays, meta)
            translation = cls._of(arrays, meta)
            expected = [arrays[f"selftest.{place}"] for place in range(len(translation.domains))]
        except Exception as error:  # what its parts object to, in the words of each
            raise ModelFileError(f"{path} does not hold a complete translation: {error}") from error
        for domain, flux, wanted in zip(translation.domains, translation._test(), expected, strict=True):
            difference = np.abs(flux - wanted).max() if flux.shape == wanted.shape else np.inf
            if not difference < TOLERANCE:
                raise ModelFileError(
                    f"{path} fails its self-test: a flat spectrum translated to the domain {domain!r} differs by "
                    f"{difference:.2g} from the one stored; the file was altered"
                )
        return translation

    def _test(self) -> list[np.ndarray]:
        """A flat spectrum, translated to each domain from the one before it, and to the first from the last."""
        flat, n = np.ones((1, self.grid.n_pixels)), len(self.domains)
        return [
            self.translator.translate(flat, (place - 1) % n, place, self.typical_split_latents.get(domain))[0]
            for place, domain in enumerate(self.domains)
        ]

    @classmethod
    def _of(cls, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Self:
        settings, splits = NetworkSettings(**meta["network"]), [bool(split) for split in meta["split_latents"]]
        with torch.device("meta"):  # of sizes alone: metadata can claim networks that no memory holds
            check_sizes("network", SharedNetwork(settings, splits), arrays)
        network = SharedNetwork(settings, splits)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in arrays_of("network", arrays).items()})
        grid = WavelengthGrid(arrays["grid.wavelength"] * u.AA, tuple(map(tuple, meta["chips"])))
        domains, pixels = tuple(map(str, meta["domains"])), arrays.get("recipe.pixels")
        scatter = {tuple(map(int, key.split("."))): array for key, array in arrays_of("scatter", arrays).items()}
        typical = arrays_of("typical_split_latent", arrays)
        return cls(
            name=str(meta["name"]),
            grid=grid,
            translator=DomainTranslator(network, meta["flux_mean"], meta["flux_std"], meta["translation"]),
            noise=NoiseModel(**meta["noise"]),
            domains=domains,
            scatter={(domains[one], domains[other]): array for (one, other), array in scatter.items()},
            typical_split_latents={domains[int(place)]: array for place, array in typical.items()},
            recipe=None if pixels is None else ContinuumRecipe(grid, pixels, meta["degree"]),
            provenance={str(key): str(text) for key, text in meta["provenance"].items()},
        )

    # -- the card ----------------------------------------------------------------
    def __repr__(self) -> str:
        error = "not known: translated spectra have no uncertainty"
        if self.scatter:
            by_target = {
                domain: [array for (_, target), array in self.scatter.items() if target == domain]
                for domain in self.domains
            }
            error = ", ".join(f"{np.median(found):.4f} to {domain}" for domain, found in by_target.items() if found)
        split = [domain for domain in self.domains if domain in self.typical_split_latents]
        facts = {
            "domains": _listed(self.domains),
            "grid": repr(self.grid)[1:-1],
            "form": self.translator.translation,
            "split latent": f"of {_listed(split)}" if split else "none",
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


def _listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), *names[-1:]])


def _of_version_1(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and metadata of a file of version 1, by the names of version 2."""
    renamed = {}
    for key, array in arrays.items():
        part, _, rest = key.removeprefix("network.").partition(".")
        if key.startswith("network.") and part in PARTS_OF_VERSION_1:
            key = f"network.{PARTS_OF_VERSION_1[part]}.{rest}"
        renamed[key] = array
    names = {"typical_split_latent": "typical_split_latent.1", "scatter.first": "scatter.1.0"}
    names |= {"scatter.second": "scatter.0.1", "selftest.first": "selftest.0", "selftest.second": "selftest.1"}
    renamed = {names.get(key, key): array for key, array in renamed.items()}
    return renamed, meta | {"split_latents": [False, meta["network"]["split_filters"] > 0]}
