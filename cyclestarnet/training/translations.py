"""Domains without labels, trained to a `~cyclestarnet.Translation` (S1, Section 3.2, but no fits).

The losses are those of a model, between two domains at a time: with errors and masks in all of them, and
nothing asks for labels. There are two doors, as to a model: `prepare_translation` for files, `train_translation`
(two domains) and `train_domains` (any number) for arrays in memory. `add_domain` adds one to what is trained.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import torch
from numpy.typing import ArrayLike

from cyclestarnet._version import __version__
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import GridError, SpectrumError
from cyclestarnet.files import locked
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.io.training_set import TrainingSet
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.networks.translator import DomainTranslator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.arrays import (
    check_numbers,
    common_grid,
    digest,
    held_out_rows,
    observed_table,
    require_same_spectra,
    table_digest,
)
from cyclestarnet.training.assembly import model_scatter, typical_latent
from cyclestarnet.training.config import LogConfig, RunConfig
from cyclestarnet.training.datasets import ObservedSource, ObservedSpectra, RenderedSpectra, SyntheticSpectra
from cyclestarnet.training.domain_trainer import DomainTrainer
from cyclestarnet.training.domains import Stars
from cyclestarnet.training.inputs import blamed, grid_of_file, least_held_out, read_recipe
from cyclestarnet.training.normalisation import check_observed
from cyclestarnet.training.runs import changed_settings, check_machine, kept_folder, paragraphs
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.training.tables import ArrayTable, SpectrumTable
from cyclestarnet.training.translation_config import DomainConfig, SavedConfig, TranslationConfig, TranslationPlan
from cyclestarnet.training.watch import WatchSettings
from cyclestarnet.translation import Translation

__all__ = [
    "Domain",
    "DomainSpectra",
    "EmulatedSpectra",
    "TranslationRun",
    "add_domain",
    "finish_translation",
    "prepare_translation",
    "train_domains",
    "train_translation",
]

log = logging.getLogger(__name__)

MOST_RENDERED = 1000  # spectra of an emulator that are held out
TO_SIGMA = 1.4826  # from the median absolute deviation of a Gaussian


@dataclass(frozen=True, eq=False)
class DomainSpectra:
    """Spectra of a domain, as `~cyclestarnet.train_domains` takes them.

    Parameters
    ----------
    flux : array, Quantity or `~specutils.Spectrum`, shape (n, n_pixels)
        Dimensionless flux at rest, on vacuum wavelengths that all domains share, about 1 in the continuum and
        normalised alike unless a recipe is given.
    errors : array or Quantity, shape (n, n_pixels), optional
        Standard deviations. Needed unless ``flux`` is a `~specutils.Spectrum` with an uncertainty. Pixels whose
        flux or error is not finite, or whose error is 0 or less, are ignored, and so are those above ``sigma_max``
        of the settings. Of synthetic spectra give what they are worth, such as 0.005.
    mask : array of bool, shape (n, n_pixels) or (n_pixels,), optional
        True = ignore the pixel. A mask that the spectra have themselves counts as well.
    split_latent : bool, optional
        Whether spectra of the domain differ from each other in more than the stars do, such as in resolution, and
        have a latent of their own for it. Default: False.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import DomainSpectra
    >>> flux = np.ones((100, 415))
    >>> DomainSpectra(flux, 0.01 * flux, split_latent=True).split_latent
    True
    """

    flux: ArrayLike | Spectrum
    errors: ArrayLike | None = None
    mask: ArrayLike | None = None
    split_latent: bool = False


@dataclass(frozen=True, eq=False)
class EmulatedSpectra:
    """A synthetic domain whose spectra an emulator makes while networks are trained.

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        Labels to flux on the pixels of all domains, such as that of a `~cyclestarnet.CalibratedModel`.
    labels : array, shape (n, n_labels)
        Labels to draw from, in the order and units of the emulator: the population of the domain. A
        `~cyclestarnet.LabelSet` makes them of a table (``model.labels.to_array(table)``).

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import EmulatedSpectra
    >>> from cyclestarnet.networks import Emulator
    >>> emulator = Emulator([4000, 0], [5500, 4], n_pixels=415, hidden=(8,))
    >>> labels = np.random.default_rng(0).uniform([4000, 0], [5500, 4], (1000, 2))
    >>> EmulatedSpectra(emulator, labels).labels.shape
    (1000, 2)
    """

    emulator: Emulator
    labels: ArrayLike
    split_latent = False  # nothing varies besides the labels


@dataclass(frozen=True, eq=False)
class Domain:
    """Spectra of one domain, ready to be trained on.

    Parameters
    ----------
    name : str
        What it is called.
    source : `~cyclestarnet.training.datasets.ObservedSource`
        The spectra to train on.
    held_out : `~cyclestarnet.training.domains.Stars`
        Those that training does not see.
    origin : str
        Where they come from, for the card.
    split_latent : bool, optional
        Whether the domain has a split latent. Default: False.

    Examples
    --------
    ::

        source = ObservedSpectra.from_table(table, settings, rows=rows)
        domain = Domain("UVES", source, Stars(table, held_out_rows), "arrays")
    """

    name: str
    source: ObservedSource
    held_out: Stars
    origin: str
    split_latent: bool = False


@dataclass(frozen=True, eq=False)
class TranslationRun:
    """A training of domains without labels that is ready to go.

    Parameters
    ----------
    config : `~cyclestarnet.training.translation_config.TranslationPlan`
        How it goes.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of all domains.
    domains : tuple of `Domain`
        Their spectra.
    recipe : `~cyclestarnet.ContinuumRecipe` or None
        That normalised them, if it is known.
    trainer : `~cyclestarnet.training.domain_trainer.DomainTrainer`
        The networks, at the last checkpoint of the folder if there is one.
    base : `~cyclestarnet.Translation`, optional
        What domains are added to. Default: nothing.

    Examples
    --------
    ::

        run = prepare_translation(read_translation_config("mine.toml"))
        print(run.summary())
        run.train()
        path = finish_translation(run)
    """

    config: TranslationPlan
    grid: WavelengthGrid
    domains: tuple[Domain, ...]
    recipe: ContinuumRecipe | None
    trainer: DomainTrainer
    base: Translation | None = None

    def train(self, *, until: int | None = None, progress: bool = True) -> None:
        """Train to the end, or for now to an iteration, with the rows and checkpoints that the plan asks for.

        Parameters
        ----------
        until : int, optional
            Stop after so many iterations. Default: the number of the settings.
        progress : bool, optional
            Show a bar. Default: True.

        Raises
        ------
        FloatingPointError, TrainingError
            As `~cyclestarnet.training.trainer.Trainer.run`.

        Examples
        --------
        ::

            run.train(until=1000)
        """
        every = self.config.log
        self.trainer.run(until=until, progress=progress, every=every.every, checkpoint_every=every.checkpoint_every)

    def summary(self) -> str:
        """What the run will do.

        Returns
        -------
        str
            A line for each thing: data, networks, settings, folder.

        Examples
        --------
        ::

            print(run.summary())
        """
        trainer, sizes = self.trainer, self.trainer.network.settings
        n_parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
        at = f", goes on from iteration {trainer.iteration:,}" if trainer.iteration else ""
        settings = self.config.training
        names = [domain.name for domain in self.domains]
        with_split = [domain.name for domain in self.domains if domain.split_latent]
        facts = {
            "translation": f"{self.config.run.name}: {', '.join(names[:-1])} and {names[-1]}",
            "grid": repr(self.grid),
        }
        for domain in self.domains:
            n_held = len(domain.held_out.rows)
            facts[f"{domain.name} domain"] = f"{len(domain.source):,} spectra, {n_held:,} held out"
        if self.base is not None:
            facts["stay as they are"] = ", ".join(self.base.domains)
        latents = f"a shared latent of {sizes.shared_filters} x {sizes.latent_length}"
        if with_split:
            latents += f", split ones of {sizes.split_filters} x {sizes.latent_length} of {', '.join(with_split)}"
        return paragraphs(
            facts
            | {
                "networks": f"{n_parameters:,} parameters, {latents}, on {trainer.device}",
                "training": f"{settings.n_iterations:,} iterations of 2 x {settings.batch_size} spectra{at}, "
                f"of {len(trainer.pairs)} pair{'s'[: len(trainer.pairs) > 1]} of domains",
                "other than the paper's": ", ".join(changed_settings(trainer)) or "nothing",
                "folder": str(self.config.run.folder),
            }
        )


def train_translation(
    first: ArrayLike | Spectrum,
    first_errors: ArrayLike | None,
    second: ArrayLike | Spectrum,
    second_errors: ArrayLike | None,
    *,
    first_mask: ArrayLike | None = None,
    second_mask: ArrayLike | None = None,
    wavelength: u.Quantity | WavelengthGrid | None = None,
    recipe: ContinuumRecipe | None = None,
    name: str = "translation",
    domains: tuple[str, str] = ("first", "second"),
    split_latent: Collection[str] | None = None,
    translation: str = "residual",
    settings: TrainingSettings | str = "paper",
    network: NetworkSettings | Mapping[str, Any] | None = None,
    watch: WatchSettings | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Translation:
    """Train a translation between two domains without labels, such as two spectrographs or two synthetic codes.

    The steps are those of ``cyclestarnet train CONFIG`` with a file of two domains. No star need be in both,
    but the stars must be of the same kind: what differs between the populations is taken for a
    difference between the domains.

    Parameters
    ----------
    first, second : array, Quantity or `~specutils.Spectrum`, shapes (n_first, n_pixels) and (n_second, n_pixels)
        Dimensionless flux at rest, on the same vacuum wavelengths, about 1 in the continuum and
        normalised alike unless ``recipe`` is given.
    first_errors, second_errors : array or Quantity, of the shapes of the spectra, or None
        Standard deviations. None only of a `~specutils.Spectrum` with an uncertainty. Pixels whose flux
        or error is not finite, or whose error is 0 or less, are ignored, and so are those above
        ``sigma_max`` of the settings (`~cyclestarnet.NoiseModel`). Of synthetic spectra give what they are
        worth, such as 0.005.
    first_mask, second_mask : array of bool, shape (n, n_pixels) or (n_pixels,), optional
        True = ignore the pixel. A mask that the spectra have themselves counts as well.
    wavelength : `~astropy.units.Quantity`, shape (n_pixels,), or `~cyclestarnet.WavelengthGrid`, optional
        Vacuum wavelengths of the pixels, rising. Where they leap, a detector ends. Needed
        unless ``first`` or ``second`` is a `~specutils.Spectrum`.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        Normalises the spectra of both domains, and all that will be translated. Default: they are normalised alike.
    name : str, optional
        Name of the translation. Default: ``"translation"``.
    domains : (str, str), optional
        Names of the domains. Default: ``("first", "second")``.
    split_latent : collection of {"first", "second"}, optional
        Which of the domains have a split latent: those whose spectra differ from each other in more than the stars
        do, such as in resolution. Default: the second, if the networks have ``split_filters``.
    translation : {"residual", "paper"}, optional
        Form of the translation (`~cyclestarnet.networks.Translator`). With ``"residual"`` (default), noise and weak
        lines come straight from the spectrum, whose errors hold for what it is translated to. With
        ``"paper"``, translated spectra have no uncertainty.
    settings : `~cyclestarnet.TrainingSettings` or {"paper", "repository"}, optional
        Every number of the training, or a preset. What is called ``synth`` there is of the first domain, what is
        called ``obs`` of the second; ``synthetic_sigma`` has no effect. Default: ``"paper"``.
    network : `~cyclestarnet.NetworkSettings` or dict, optional
        Sizes of the networks, or those that differ from the paper's, by name. Default: the paper's.
    watch : `~cyclestarnet.WatchSettings`, optional
        Score the run, and take the weights of the best score. Default: nobody watches.
    held_out : float, optional
        Fraction of the spectra of each domain that the networks do not see, and that tell the error of
        the translation. Default: 0.1.
    seed : int, optional
        Of the choice of those spectra, and of the networks unless ``settings`` are given. Default: 0.
    folder : path-like, optional
        For checkpoints, logs and the translation. The same call on the same folder goes on where an interrupted one
        was. Default: a temporary folder, which stays only if the training is interrupted or fails.
    device : str, optional
        ``"cpu"`` (default), ``"cuda"`` or ``"cuda:N"``: where the networks are trained.
    progress : bool, optional
        Show a bar. Default: True.

    Returns
    -------
    `~cyclestarnet.Translation`
        That of the file ``NAME.safetensors`` in ``folder``.

    Raises
    ------
    SpectrumError
        If spectra have impossible shapes or units, are not normalised, without errors, all masked, or too few.
    GridError
        If wavelengths are missing, differ, or do not fit the strides of the networks.
    ValueError
        If settings need labels, or the folder has a training of other settings or on other spectra.
    FloatingPointError
        If a loss is not finite, and no watch rolls the run back.
    TrainingError
        If the watch stops the run.
    FileExistsError
        If another process trains in the folder.

    See Also
    --------
    train : one domain has labels; the result fits them.

    Notes
    -----
    In the residual form a translated pixel has the error of the data and, in quadrature, a scatter that held-out
    spectra of the domain it comes from tell: what their reconstructions leave unexplained beyond the
    errors of the data, which the form passes on untranslated, and the scatter of what comes back from the
    other domain (a median absolute deviation). An error that both directions have in common, such as that of
    populations which differ, is in neither.

    Examples
    --------
    ::

        from cyclestarnet import train_translation

        translation = train_translation(
            uves, uves_errors, apogee, apogee_errors, wavelength=wavelength, domains=("UVES", "APOGEE"), folder="run"
        )
        print(translation)
        other = translation.to_second(star)
    """
    optional, with_split = split_latent is None, ("second",) if split_latent is None else tuple(split_latent)
    if strange := sorted(set(with_split) - {"first", "second"}):
        raise ValueError(f"split_latent must be of 'first' and 'second', but has {', '.join(map(repr, strange))}")
    given = {
        "first": DomainSpectra(first, first_errors, first_mask, "first" in with_split),
        "second": DomainSpectra(second, second_errors, second_mask, "second" in with_split),
    }
    with kept_folder(folder) as path, locked(path, "trains in"):
        plan = _plan(RunConfig(path, name, seed=seed, device=device), settings, network, translation, watch)
        run = _run_of_arrays(plan, given, domains, wavelength, recipe, held_out, split_is_optional=optional)
        return _trained(run, progress)


def train_domains(
    domains: Mapping[str, DomainSpectra | EmulatedSpectra | Spectrum],
    *,
    wavelength: u.Quantity | WavelengthGrid | None = None,
    recipe: ContinuumRecipe | None = None,
    name: str = "translation",
    translation: str = "residual",
    settings: TrainingSettings | str = "paper",
    network: NetworkSettings | Mapping[str, Any] | None = None,
    watch: WatchSettings | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Translation:
    """Train a translation between any number of domains that share one latent.

    Each domain has an encoder, a decoder, a critic and perhaps a split latent of its own; the inner encoder and decoder
    are the same for all. One iteration is of two domains and does with them what that of
    `~cyclestarnet.train_translation` does: each pair comes once, in random order, before any comes again. So
    iterations are shared out: three domains have three pairs, four have six.

    Parameters
    ----------
    domains : mapping of `~cyclestarnet.DomainSpectra`, `~cyclestarnet.EmulatedSpectra` or `~specutils.Spectrum`
        Spectra by the names of the domains, at least two. The first is the one that a ``warm_start`` trains,
        and of which the others then begin as copies. A `~specutils.Spectrum` must have an uncertainty.
    wavelength, recipe, name, translation, network, watch, held_out, seed, folder, device, progress
        As `~cyclestarnet.train_translation` takes them. ``split_filters`` of the network are of all
        split latents.
    settings : `~cyclestarnet.TrainingSettings` or {"paper", "repository"}, optional
        Every number of the training, or a preset. What is called ``synth`` there is of the first domain, what is
        called ``obs`` of all others; ``synthetic_sigma`` is the error of `~cyclestarnet.EmulatedSpectra`.
        Default: ``"paper"``.

    Returns
    -------
    `~cyclestarnet.Translation`
        That of the file ``NAME.safetensors`` in ``folder``.

    Raises
    ------
    SpectrumError
        If spectra have impossible shapes or units, are not normalised, without errors, all masked, or too few.
    GridError
        If wavelengths are missing, differ, or do not fit the strides of the networks.
    TypeError
        If a domain is none of the three kinds.
    ValueError
        If there are fewer than two domains, settings need labels, or the folder has a training of other settings or
        on other spectra.
    FloatingPointError
        If a loss is not finite, and no watch rolls the run back.
    TrainingError
        If the watch stops the run.
    FileExistsError
        If another process trains in the folder.

    See Also
    --------
    train_translation : two domains.
    add_domain : one more, later.

    References
    ----------
    O'Briain et al. 2021, ApJ 906, 130, Section 5.2.

    Examples
    --------
    ::

        from cyclestarnet import DomainSpectra, EmulatedSpectra, train_domains

        surveys = train_domains(
            {
                "MOOG": EmulatedSpectra(model.emulator, labels),
                "UVES": DomainSpectra(uves, uves_errors),
                "APOGEE": DomainSpectra(apogee, apogee_errors, bad_pixels, split_latent=True),
            },
            wavelength=wavelength,
            folder="run",
        )
        star_of_moog = surveys.translate(star, "UVES", "MOOG")
    """
    given = {title: _as_domain(title, spectra) for title, spectra in domains.items()}
    if len(given) < 2:
        raise ValueError(f"domains must be two or more, but there is {', '.join(given) or 'none'}")
    with kept_folder(folder) as path, locked(path, "trains in"):
        plan = _plan(RunConfig(path, name, seed=seed, device=device), settings, network, translation, watch)
        return _trained(_run_of_arrays(plan, given, tuple(given), wavelength, recipe, held_out), progress)


def add_domain(
    translation: Translation,
    name: str,
    spectra: DomainSpectra | EmulatedSpectra | Spectrum,
    *,
    beside: Mapping[str, DomainSpectra | EmulatedSpectra | Spectrum],
    settings: TrainingSettings | str = "paper",
    watch: WatchSettings | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Translation:
    """Add a domain to a translation; the networks of the others, and the inner ones, stay as they are to the byte.

    The new domain begins as a copy of the first of ``beside``, and is trained in pairs with each of them.

    Parameters
    ----------
    translation : `~cyclestarnet.Translation`
        What it is added to. It is not changed.
    name : str
        Name of the new domain.
    spectra : `~cyclestarnet.DomainSpectra`, `~cyclestarnet.EmulatedSpectra` or `~specutils.Spectrum`
        Its spectra, on the pixels of the translation, and normalised as those of the other domains; by its
        recipe if it has one.
    beside : mapping of the same
        Spectra of one or more domains that the translation has, by their names: some of those that it was trained
        on, or others. The stars must be of the same kind as those of ``spectra``. Whether they have a split latent
        is known.
    settings : `~cyclestarnet.TrainingSettings` or {"paper", "repository"}, optional
        Every number of the training, as of `~cyclestarnet.train_domains`, but without a ``warm_start``. What
        standardises flux, and which pixels count, is as in ``translation``, whatever they say. Default: ``"paper"``.
    watch, held_out, seed, folder, device, progress
        As `~cyclestarnet.train_translation` takes them. The file in ``folder`` is that of ``translation.name``.

    Returns
    -------
    `~cyclestarnet.Translation`
        With one more domain. Between it and domains that are not in ``beside``, errors are known only of
        what is translated from it.

    Raises
    ------
    SpectrumError, GridError, TypeError, FloatingPointError, TrainingError, FileExistsError
        As `~cyclestarnet.train_domains`.
    ValueError
        As that, or if the translation has a domain of that name, or none of a name in ``beside``.

    See Also
    --------
    train_domains : all domains at once.

    Examples
    --------
    ::

        more = add_domain(surveys, "GALAH", DomainSpectra(galah, errors), beside={"MOOG": DomainSpectra(flux, sigma)})
        print(more.domains)
    """
    if name in translation.domains:
        raise ValueError(f"{translation.name!r} has a domain {name!r} already; choose another name")
    if not beside or (strange := [known for known in beside if known not in translation.domains]):
        found = f"has {', '.join(map(repr, strange))}" if beside else "is empty"
        raise ValueError(f"beside must be of the domains {', '.join(translation.domains)}, but {found}")
    networks = translation.translator.network
    splits = dict(zip(translation.domains, networks.split_latents, strict=True))
    given = {
        known: own if isinstance(own, EmulatedSpectra) else replace(own, split_latent=splits[known])
        for known, own in ((known, _as_domain(known, own)) for known, own in beside.items())
    }
    given[name] = _as_domain(name, spectra)
    own, noise = translation.translator, translation.noise
    of_translation: dict[str, Any] = {"flux_mean": own.flux_mean, "flux_std": own.flux_std}
    of_translation |= {key: getattr(noise, key) for key in ("sigma_floor", "sigma_max", "fill")}
    with kept_folder(folder) as path, locked(path, "trains in"):
        config = RunConfig(path, translation.name, seed=seed, device=device)
        plan = _plan(config, settings, networks.settings, own.translation, watch)
        plan = replace(plan, training=replace(plan.training, **of_translation))
        grid, recipe = translation.grid, translation.recipe
        return _trained(_run_of_arrays(plan, given, tuple(given), grid, recipe, held_out, base=translation), progress)


def prepare_translation(config: TranslationConfig, *, progress: bool = True) -> TranslationRun:
    """Open the files of a configuration, and check that everything fits.

    Parameters
    ----------
    config : `~cyclestarnet.training.translation_config.TranslationConfig`
        As `~cyclestarnet.training.translation_config.read_translation_config` gives it.
    progress : bool, optional
        As `~cyclestarnet.training.runs.prepare` takes it; nothing here takes long enough for a bar.

    Returns
    -------
    `TranslationRun`

    Raises
    ------
    ConfigError
        If a file cannot be used, or does not fit the other. The message says which table named it.
    ValueError
        If the folder has a checkpoint of other settings.
    FileExistsError
        If another process trains in the folder.

    Examples
    --------
    ::

        run = prepare_translation(read_translation_config("mine.toml"))
        run.train()
        path = finish_translation(run)
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    check_machine(config)
    grids: dict[str, WavelengthGrid] = {}
    for title, given in config.domains.items():
        with blamed(config, title):
            grids[title] = _grid_of_domain(given)
            first = next(iter(grids))
            if grids[title] != grids[first]:
                raise GridError(
                    f"its pixels, {grids[title]!r}, are not those of [{first}], {grids[first]!r}; resample one of them"
                )
    grid = grids[first]
    sizes = config.network_settings(grid.n_pixels)
    recipe = read_recipe(config, grid)
    with_split = {title: given.split_latent for title, given in config.domains.items()}
    if set(with_split) == {"first", "second"} and with_split["second"] is None:
        with_split["second"] = sizes.split_filters > 0
    domains = [_domain_of_file(config, title, grid, recipe, bool(with_split[title])) for title in config.domains]
    return _ready(config, grid, recipe, domains)


def finish_translation(run: TranslationRun, *, progress: bool = True) -> Path:
    """Learn the errors of a trained translation from held-out spectra, and save it.

    Parameters
    ----------
    run : `TranslationRun`
        Trained.
    progress : bool, optional
        As `~cyclestarnet.training.runs.finish` takes it; nothing here takes long enough for a bar.

    Returns
    -------
    path
        The file.

    Examples
    --------
    ::

        translation = Translation.load(finish_translation(run))
    """
    config, training, base = run.config, run.config.training, run.base
    network, iteration = run.trainer.chosen_network(config.model.weights)
    translator = DomainTranslator(network, training.flux_mean, training.flux_std, config.model.translation)
    names, held = run.trainer.names, {}
    for domain in run.domains:
        spectra = domain.held_out.spectra(config.model.n_validation, run.grid)
        held[domain.name] = _Held.of(spectra, training.noise)
    typical: dict[str, np.ndarray] = {} if base is None else dict(base.typical_split_latents)
    for domain in run.domains:
        if domain.split_latent and domain.name not in typical:
            latent = typical_latent(translator.encode(held[domain.name].flux, names.index(domain.name))[1])
            assert latent is not None  # the domain has a split latent
            typical[domain.name] = latent
    scatter = {} if base is None else dict(base.scatter)
    for source, target in permutations(names, 2):
        if translator.is_residual and source in held and (source, target) not in scatter:
            places = names.index(source), names.index(target)
            scatter[source, target] = _scatter(translator, held[source], *places, typical.get(target))
    Translation(
        name=config.run.name,
        grid=run.grid,
        translator=translator,
        noise=training.noise,
        domains=names,
        scatter=scatter,
        typical_split_latents=typical,
        recipe=run.recipe,
        provenance=_provenance(run, iteration, held),
    ).save(config.model_path)
    return config.model_path


def _provenance(run: TranslationRun, iteration: int, held: Mapping[str, _Held]) -> dict[str, str]:
    """What goes on the card; of what a domain was added to, all that was there."""
    training, names = run.config.training, [domain.name for domain in run.domains]
    made = {f"{domain.name} domain": f"{domain.origin}, {len(domain.source)} spectra" for domain in run.domains}
    numbers = " and ".join(str(len(held[name].flux)) for name in names)
    facts = {
        "training": f"{iteration} iterations of 2 x {training.batch_size} spectra, seed {training.seed}",
        "other than the paper's": ", ".join(changed_settings(run.trainer)) or "nothing",
        "errors": f"learnt from {numbers} spectra held out"
        if run.config.model.translation == "residual"
        else "none: the paper's form does not keep the noise of the data",
    }
    if run.base is None:
        return {"version": __version__} | made | facts | run.config.model.provenance
    added = names[-1]
    facts = {f"{key} of {added}": text for key, text in facts.items()}
    facts[f"{added} was added"] = f"beside {', '.join(names[:-1])}, all but it unchanged"
    return {**run.base.provenance, f"{added} domain": made[f"{added} domain"], **facts}


# -- domains -------------------------------------------------------------------------------
def _as_domain(name: str, given: DomainSpectra | EmulatedSpectra | Spectrum) -> DomainSpectra | EmulatedSpectra:
    if isinstance(given, Spectrum):
        return DomainSpectra(given)
    if not isinstance(given, DomainSpectra | EmulatedSpectra):
        raise TypeError(
            f"domain {name!r} must be DomainSpectra(flux, errors), EmulatedSpectra(emulator, labels) or a Spectrum "
            f"with an uncertainty, but is a {type(given).__name__}"
        )
    return given


def _plan(
    run: RunConfig,
    settings: TrainingSettings | str,
    network: NetworkSettings | Mapping[str, Any] | None,
    translation: str,
    watch: WatchSettings | None,
) -> TranslationPlan:
    return TranslationPlan(
        run=run,
        training=TrainingSettings.from_preset(settings, seed=run.seed) if isinstance(settings, str) else settings,
        network=network.to_dict() if isinstance(network, NetworkSettings) else dict(network or {}),
        watch=watch,
        model=SavedConfig(translation=translation),  # type: ignore[arg-type]  # it looks at it
        log=LogConfig(),
    )


def _run_of_arrays(
    plan: TranslationPlan,
    given: Mapping[str, DomainSpectra | EmulatedSpectra],
    titles: Sequence[str],
    wavelength: u.Quantity | WavelengthGrid | None,
    recipe: ContinuumRecipe | None,
    held_out: float,
    *,
    base: Translation | None = None,
    split_is_optional: bool = False,
) -> TranslationRun:
    """A run on spectra in memory, by what messages call them."""
    for title in titles:
        if not title or not title.isprintable():
            raise ValueError(f"the name of a domain must be a text in one line, but is {title!r}")
    check_machine(plan)
    arrays = {title: own.flux for title, own in given.items() if isinstance(own, DomainSpectra)}
    grid = common_grid(wavelength, arrays)
    if recipe is not None and recipe.grid != grid:
        raise GridError("the grid of recipe is not that of the spectra; make the recipe for their wavelengths")
    sizes = plan.network_settings(grid.n_pixels)
    domains, digests = [], {}
    for (argument, own), title in zip(given.items(), titles, strict=True):
        if isinstance(own, EmulatedSpectra):
            domain, digests[argument] = _emulated_domain(own, plan, title, grid, recipe, held_out)
        else:
            split = own.split_latent and not (split_is_optional and not sizes.split_filters)
            table = observed_table(own.flux, own.errors, grid=grid, mask=own.mask, recipe=recipe, name=argument)
            domain = _domain_of_table(table, plan, argument, title, held_out, split)
            digests[argument] = table_digest(table)
        domains.append(domain)
    pixels = grid.wavelength.value if recipe is None else np.r_[grid.wavelength.value, recipe.pixels, recipe.degree]
    digests |= {"pixels": digest(pixels), "held out": digest(*(domain.held_out.rows for domain in domains))}
    if base is not None:
        weights = base.translator.network.state_dict().values()
        digests["what is added to"] = digest(*(value.cpu().numpy() for value in weights))
    require_same_spectra(plan.run.folder, digests)
    return _ready(plan, grid, recipe, domains, base)


def _trained(run: TranslationRun, progress: bool) -> Translation:
    log.info("%s", run.summary())
    run.train(progress=progress)
    return Translation.load(finish_translation(run))


def _domain_of_table(
    table: SpectrumTable, plan: TranslationPlan, argument: str, title: str, held_out: float, split_latent: bool
) -> Domain:
    check_observed(table, plan.training, name=argument)
    held = held_out_rows(table.n_spectra, held_out, plan.run.seed)  # the same rows of all, should rows be paired
    rows = np.setdiff1d(np.arange(table.n_spectra), held)
    check_numbers(f"the spectra of {argument}", len(rows), len(held), least_held_out(plan))
    source = ObservedSpectra.from_table(table, plan.training, rows=rows)
    return Domain(title, source, Stars(table, held), "arrays", split_latent)


def _emulated_domain(
    given: EmulatedSpectra,
    plan: TranslationPlan,
    title: str,
    grid: WavelengthGrid,
    recipe: ContinuumRecipe | None,
    held_out: float,
) -> tuple[Domain, str]:
    """A domain of an emulator, and its digest."""
    emulator, labels = given.emulator, np.asarray(given.labels, dtype=float)
    if recipe is not None:
        raise ValueError(
            f"domain {title!r} is an emulator's, whose spectra recipe cannot normalise; give spectra, DomainSpectra"
        )
    if emulator.n_pixels != grid.n_pixels:
        raise GridError(
            f"the emulator of {title!r} makes {emulator.n_pixels} pixels, not the {grid.n_pixels} of the grid"
        )
    if labels.ndim != 2 or labels.shape[1] != emulator.n_labels or not np.isfinite(labels).all():
        raise SpectrumError(
            f"labels of {title!r} must be finite, of the shape (n, {emulator.n_labels}) as the emulator's, but have "
            f"{labels.shape}, or NaN"
        )
    held = held_out_rows(len(labels), held_out, plan.run.seed)
    rows = np.setdiff1d(np.arange(len(labels)), held)
    check_numbers(f"the labels of {title}", len(rows), len(held), least_held_out(plan))
    kept = held[np.unique(np.linspace(0, len(held) - 1, min(MOST_RENDERED, len(held))).astype(int))]
    with torch.no_grad():
        flux = emulator(torch.as_tensor(labels[kept]).to(emulator.lower)).double().cpu().numpy()
    table = ArrayTable(flux, np.full(flux.shape, plan.training.synthetic_sigma), np.zeros(flux.shape, bool))
    check_observed(table, plan.training, name=title)
    source = RenderedSpectra(SyntheticSpectra(emulator, labels[rows], plan.training))
    origin = f"an emulator, {len(labels)} rows of labels"
    weights = (value.cpu().numpy() for value in emulator.state_dict().values())
    return Domain(title, source, Stars(table, np.arange(len(kept))), origin), digest(labels, *weights)


def _pixels_of_domain(given: DomainConfig) -> slice:
    return slice(*given.pixels) if given.pixels else slice(None)


def _grid_of_domain(given: DomainConfig) -> WavelengthGrid:
    n_file = TrainingSet(given.path, split=given.split).n_pixels
    return grid_of_file(given.path, n_file, _pixels_of_domain(given))


def _domain_of_file(
    config: TranslationConfig, title: str, grid: WavelengthGrid, recipe: ContinuumRecipe | None, split_latent: bool
) -> Domain:
    given = config.domains[title]
    with blamed(config, title):
        stars, held_out = (
            Stars(table, table.rows(given.selection))
            for table in (
                TrainingSet(given.path, split=split, pixels=_pixels_of_domain(given), grid=grid)
                for split in (given.split, given.validation)
            )
        )
        check_numbers(f"the spectra of {given.path.name}", len(stars.rows), len(held_out.rows), least_held_out(config))
        check_observed(stars.table, config.training, recipe=recipe, name=given.path.name)
        source = StreamedSpectra if given.memory == "streamed" else ObservedSpectra.from_table
        spectra = source(stars.table, config.training, rows=stars.rows)
        name = given.name or title.removeprefix("domains.")
        return Domain(name, spectra, held_out, given.path.name, split_latent)


def _ready(
    plan: TranslationPlan,
    grid: WavelengthGrid,
    recipe: ContinuumRecipe | None,
    domains: Sequence[Domain],
    base: Translation | None = None,
) -> TranslationRun:
    names = [domain.name for domain in domains]
    if len(set(names)) < len(names):
        raise ValueError(f"names of domains must differ, but are {', '.join(names)}")
    held_out = {}
    for domain in domains if plan.watch is not None else ():
        rows = domain.held_out.spread(plan.watch.n_spectra)  # type: ignore[union-attr]  # there is one
        held_out[domain.name] = ObservedSpectra.from_table(domain.held_out.table, plan.training, rows=rows)
    networks = None if base is None else base.translator.network
    splits = {} if base is None else dict(zip(base.domains, base.translator.network.split_latents, strict=True))
    trainer = DomainTrainer(
        plan.network_settings(grid.n_pixels),
        plan.training,
        splits | {domain.name: domain.split_latent for domain in domains if domain.name not in splits},
        {domain.name: domain.source for domain in domains},
        plan.run.folder,
        base=networks,
        device=plan.run.device,
        tensorboard=plan.log.tensorboard,
        watch=plan.watch,
        held_out=held_out,
    )
    return TranslationRun(plan, grid, tuple(domains), recipe, trainer, base)


# -- errors --------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Held:
    """Held-out spectra of a domain: flux as the networks see it, which pixels count, and errors, (n, n_pixels)."""

    flux: np.ndarray
    used: np.ndarray
    sigma: np.ndarray

    @classmethod
    def of(cls, spectra: Spectrum, noise: NoiseModel) -> _Held:
        flux, sigma = spectra.flux.value, spectra.uncertainty.array
        used = noise.used_pixels(flux, sigma, spectra.mask)
        return cls(noise.filled_flux(flux, used), used, sigma)


def _scatter(
    translator: DomainTranslator, held: _Held, source: int, target: int, typical: np.ndarray | None
) -> np.ndarray:
    """Error of flux that is translated from one domain to another, besides that of the data, (n_pixels,)."""
    there = translator.translate(held.flux, source, target, typical)
    back = translator.translate(there, target, source, translator.encode(held.flux, source)[1])
    lost = np.where(held.used, translator.reconstruct(held.flux, source) - held.flux, np.nan)
    return np.hypot(
        model_scatter(lost, np.where(held.used, held.sigma, 1.0)),
        TO_SIGMA * np.median(np.abs(back - held.flux), axis=0),
    )
