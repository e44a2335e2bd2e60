"""Two domains of which neither has labels, trained to a `~cyclestarnet.Translation` (S1, Section 3.2, but no fits).

The networks and losses are those of a model: the first domain takes the place of the synthetic one, with
errors and masks of its own, and nothing asks for labels. There are two doors, as to a model: `prepare_translation` for
files, `train_translation` for arrays in memory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import torch
from numpy.typing import ArrayLike

from cyclestarnet._version import __version__
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import GridError
from cyclestarnet.files import locked
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.io.training_set import TrainingSet
from cyclestarnet.networks.predictor import Translator
from cyclestarnet.networks.translation import NetworkSettings
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
from cyclestarnet.training.datasets import ObservedSource, ObservedSpectra
from cyclestarnet.training.domains import Stars
from cyclestarnet.training.inputs import blamed, grid_of_file, least_held_out, read_recipe
from cyclestarnet.training.normalisation import check_observed
from cyclestarnet.training.runs import changed_settings, check_machine, chosen_weights, kept_folder, paragraphs
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.training.tables import SpectrumTable
from cyclestarnet.training.trainer import Trainer
from cyclestarnet.training.translation_config import DomainConfig, SavedConfig, TranslationConfig, TranslationPlan
from cyclestarnet.training.watch import WatchSettings
from cyclestarnet.translation import Translation

__all__ = ["Domain", "TranslationRun", "finish_translation", "prepare_translation", "train_translation"]

log = logging.getLogger(__name__)

TO_SIGMA = 1.4826  # from the median absolute deviation of a Gaussian


@dataclass(frozen=True, eq=False)
class Domain:
    """Spectra of one domain.

    Parameters
    ----------
    name : str
        What it is called.
    source : `~cyclestarnet.training.datasets.ObservedSource`
        The spectra to train on.
    stars, held_out : `~cyclestarnet.training.domains.Stars`
        Where those are, and those that training does not see.
    origin : str
        Where they come from, for the card.

    Examples
    --------
    ::

        source = ObservedSpectra.from_table(table, settings, rows=rows)
        domain = Domain("UVES", source, Stars(table, rows), Stars(table, held_out_rows), "arrays")
    """

    name: str
    source: ObservedSource
    stars: Stars
    held_out: Stars
    origin: str


@dataclass(frozen=True, eq=False)
class TranslationRun:
    """A training between two domains that is ready to go.

    Parameters
    ----------
    config : `~cyclestarnet.training.translation_config.TranslationPlan`
        How it goes.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of both domains.
    first, second : `Domain`
        Their spectra.
    recipe : `~cyclestarnet.ContinuumRecipe` or None
        That normalised them, if it is known.
    trainer : `~cyclestarnet.training.trainer.Trainer`
        The networks, at the last checkpoint of the folder if there is one.

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
    first: Domain
    second: Domain
    recipe: ContinuumRecipe | None
    trainer: Trainer

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
        return paragraphs(
            {
                "translation": f"{self.config.run.name}: {self.first.name} and {self.second.name}",
                "grid": repr(self.grid),
                "first domain": f"{len(self.first.source):,} spectra, {len(self.first.held_out.rows):,} held out",
                "second domain": f"{len(self.second.source):,} spectra, {len(self.second.held_out.rows):,} held out",
                "networks": f"{n_parameters:,} parameters, latents of {sizes.shared_filters} and {sizes.split_filters} "
                f"x {sizes.latent_length}, on {trainer.device}",
                "training": f"{settings.n_iterations:,} iterations of 2 x {settings.batch_size} spectra{at}",
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
    difference between the domains. The second domain may have a split latent
    (``split_filters`` of the network): make it the one whose spectra differ from each other in more
    than the stars do.

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
        What the domains are called on the card and in metadata. Default: ``("first", "second")``.
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
    training = TrainingSettings.from_preset(settings, seed=seed) if isinstance(settings, str) else settings
    one, other = domains
    with kept_folder(folder) as folder, locked(folder, "trains in"):
        plan = TranslationPlan(
            run=RunConfig(folder=folder, name=name, seed=seed, device=device),
            training=training,
            network=network.to_dict() if isinstance(network, NetworkSettings) else dict(network or {}),
            watch=watch,
            model=SavedConfig(translation=translation),  # type: ignore[arg-type]  # it looks at it
            log=LogConfig(),
        )
        check_machine(plan)
        grid = common_grid(wavelength, {"first": first, "second": second})
        if recipe is not None and recipe.grid != grid:
            raise GridError("the grid of recipe is not that of the spectra; make the recipe for their wavelengths")
        plan.network_settings(grid.n_pixels)
        tables = {
            side: observed_table(spectra, errors, grid=grid, mask=mask, recipe=recipe, name=side)
            for side, spectra, errors, mask in (
                ("first", first, first_errors, first_mask),
                ("second", second, second_errors, second_mask),
            )
        }
        parts = [
            _domain_of_table(tables[side], plan, side, title, held_out)
            for side, title in zip(tables, (one, other), strict=True)
        ]
        pixels = grid.wavelength.value if recipe is None else np.r_[grid.wavelength.value, recipe.pixels, recipe.degree]
        given = {side: table_digest(table) for side, table in tables.items()}
        held = [part.held_out.rows for part in parts]
        require_same_spectra(folder, given | {"pixels": digest(pixels), "held out": digest(*held)})
        run = _ready(plan, grid, recipe, *parts)
        log.info("%s", run.summary())
        run.train(progress=progress)
        return Translation.load(finish_translation(run))


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
    with blamed(config, "first"):
        grid = _grid_of_domain(config.first)
    with blamed(config, "second"):
        if (other := _grid_of_domain(config.second)) != grid:
            raise GridError(f"its pixels, {other!r}, are not those of [first], {grid!r}; resample one of them")
    config.network_settings(grid.n_pixels)
    recipe = read_recipe(config, grid)
    first, second = (_domain_of_file(config, side, grid, recipe) for side in ("first", "second"))
    return _ready(config, grid, recipe, first, second)


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
    config, training = run.config, run.config.training
    network, _, iteration = chosen_weights(run.trainer, config.model.weights)
    translator = Translator(network, training.flux_mean, training.flux_std, config.model.translation)
    first, second = (
        _Held.of(domain.held_out.spectra(config.model.n_validation, run.grid), training.noise)
        for domain in (run.first, run.second)
    )
    typical = typical_latent(translator.encode_obs(second.flux)[1])
    provenance = {
        "version": __version__,
        "first domain": f"{run.first.origin}, {len(run.first.source)} spectra",
        "second domain": f"{run.second.origin}, {len(run.second.source)} spectra",
        "training": f"{iteration} iterations of 2 x {training.batch_size} spectra, seed {training.seed}",
        "other than the paper's": ", ".join(changed_settings(run.trainer)) or "nothing",
        "errors": f"learnt from {len(first.flux)} and {len(second.flux)} spectra held out"
        if translator.is_residual
        else "none: the paper's form does not keep the noise of the data",
    }
    Translation(
        name=config.run.name,
        grid=run.grid,
        translator=translator,
        noise=training.noise,
        domains=(run.first.name, run.second.name),
        scatter=_scatter(translator, first, second, typical) if translator.is_residual else None,
        typical_split_latent=typical,
        recipe=run.recipe,
        provenance=provenance | config.model.provenance,
    ).save(config.model_path)
    return config.model_path


# -- domains -------------------------------------------------------------------------------
def _domain_of_table(table: SpectrumTable, plan: TranslationPlan, side: str, title: str, held_out: float) -> Domain:
    check_observed(table, plan.training, name=side)
    held = held_out_rows(table.n_spectra, held_out, plan.run.seed)  # the same rows of both, should rows be paired
    rows = np.setdiff1d(np.arange(table.n_spectra), held)
    check_numbers(f"the spectra of {side}", len(rows), len(held), least_held_out(plan))
    source = ObservedSpectra.from_table(table, plan.training, rows=rows)
    return Domain(title, source, Stars(table, rows), Stars(table, held), "arrays")


def _pixels_of_domain(given: DomainConfig) -> slice:
    return slice(*given.pixels) if given.pixels else slice(None)


def _grid_of_domain(given: DomainConfig) -> WavelengthGrid:
    n_file = TrainingSet(given.path, split=given.split).n_pixels
    return grid_of_file(given.path, n_file, _pixels_of_domain(given))


def _domain_of_file(
    config: TranslationConfig, side: str, grid: WavelengthGrid, recipe: ContinuumRecipe | None
) -> Domain:
    given: DomainConfig = getattr(config, side)
    with blamed(config, side):
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
        return Domain(
            given.name or side, source(stars.table, config.training, rows=stars.rows), stars, held_out, given.path.name
        )


def _ready(
    plan: TranslationPlan, grid: WavelengthGrid, recipe: ContinuumRecipe | None, first: Domain, second: Domain
) -> TranslationRun:
    held_out = None
    if plan.watch is not None:
        rows = second.held_out.spread(plan.watch.n_spectra)
        held_out = ObservedSpectra.from_table(second.held_out.table, plan.training, rows=rows)
    trainer = Trainer(
        plan.network_settings(grid.n_pixels),
        plan.training,
        first.source,
        second.source,
        plan.run.folder,
        device=plan.run.device,
        tensorboard=plan.log.tensorboard,
        watch=plan.watch,
        held_out=held_out,
    )
    return TranslationRun(plan, grid, first, second, recipe, trainer)


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


def _scatter(translator: Translator, first: _Held, second: _Held, typical: np.ndarray | None) -> dict[str, np.ndarray]:
    """Error of translated flux besides that of the data, by the domain that is translated to, (n_pixels,)."""
    there = translator.synth_to_obs(first.flux, typical)
    split = translator.encode_obs(second.flux)[1]
    middle = translator.standardise(translator.obs_to_synth(second.flux))
    again = translator.to_observed(middle, None if split is None else translator.as_tensor(split))
    back = {
        "first": translator.restore(again).double().cpu().numpy(),
        "second": translator.obs_to_synth(there),
    }
    kept = {
        "first": translator.reconstruct_obs(second.flux),
        "second": translator.reconstruct_synth(first.flux),
    }
    source = {"first": second, "second": first}
    return {
        side: np.hypot(
            model_scatter(
                np.where(given.used, kept[side] - given.flux, np.nan), np.where(given.used, given.sigma, 1.0)
            ),
            TO_SIGMA * np.median(np.abs(back[side] - given.flux), axis=0),
        )
        for side, given in source.items()
    }
