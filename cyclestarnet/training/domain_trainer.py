"""Training of any number of domains around one shared latent, without labels: iterations of two domains each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from cyclestarnet.networks.translation import NetworkSettings, SharedNetwork
from cyclestarnet.training.datasets import ObservedSource, ObservedSpectra
from cyclestarnet.training.loop import TrainingLoop, require_held_out, total
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.terms import SharedAdaptation, Transfers
from cyclestarnet.training.watch import WatchSettings, alignment_scores

__all__ = ["DomainTrainer"]


class DomainTrainer(TrainingLoop):
    """Trains a `~cyclestarnet.networks.SharedNetwork` on unpaired spectra of two domains or more.

    An iteration is of two domains, and does with them what the paper's does with synthetic and observed spectra.
    Each pair comes once, in random order, before any pair comes again: domains are trained
    equally often, and an iteration takes as long as one of two domains, however many there are.

    Parameters
    ----------
    network_settings : `~cyclestarnet.NetworkSettings`
        Sizes of the networks, for spectra of as many pixels as the sources have.
    settings : `~cyclestarnet.TrainingSettings`
        Every number of the training; those that the sources were made with. ``weight_synth`` is λ of the first
        domain, ``weight_obs`` that of all others; ``warm_start`` trains the first domain, of which
        the others then begin as copies.
    split_latents : mapping of bool
        By the names of all domains, in their order: whether it has a split latent.
    sources : mapping of `~cyclestarnet.training.datasets.ObservedSource`
        Spectra by the names of the domains; they are moved to ``device``. Domains of ``base`` may be missing.
    folder : path-like, optional
        Where checkpoints and ``losses.csv`` go. An existing checkpoint there is resumed.
        Default: nothing is written.
    base : `~cyclestarnet.networks.SharedNetwork`, optional
        Trained networks of the first domains, which stay as they are, as do the inner encoder and decoder. The other
        domains begin as copies of the first that ``sources`` has. Default: there are none.
    device : str, optional
        Where the networks are trained. Default: ``"cpu"``.
    tensorboard : bool, optional
        Log to TensorBoard, too. Default: False.
    watch : `~cyclestarnet.WatchSettings`, optional
        Watch the run: it sees scores that are means over all pairs. Needs ``held_out``.
    held_out : mapping of `~cyclestarnet.training.datasets.ObservedSpectra`, optional
        10 or more spectra of each domain that are not in ``sources``.

    Attributes
    ----------
    iteration : int
        How many iterations are done.
    network : `~cyclestarnet.networks.SharedNetwork`
        The networks with their latest weights; see `averaged_network`.
    parts : `~cyclestarnet.training.terms.SharedAdaptation`
        All that is trained.
    pairs : list of (int, int)
        The pairs that are trained, by the places of their domains.

    Raises
    ------
    ValueError
        If sources and settings do not fit each other, or there is no pair to train.
    OtherRunError
        If the folder's checkpoint was made with other settings or domains.
    ModelFileError
        If the checkpoint is damaged or that of something else. The message says how to go on.

    Examples
    --------
    ::

        trainer = DomainTrainer(sizes, settings, {"UVES": False, "APOGEE": True}, sources, "run")
        trainer.run()
        network = trainer.averaged_network()
    """

    parts: SharedAdaptation
    network: SharedNetwork

    def __init__(
        self,
        network_settings: NetworkSettings,
        settings: TrainingSettings,
        split_latents: Mapping[str, bool],
        sources: Mapping[str, ObservedSource],
        folder: str | os.PathLike | None = None,
        *,
        base: SharedNetwork | None = None,
        device: str = "cpu",
        tensorboard: bool = False,
        watch: WatchSettings | None = None,
        held_out: Mapping[str, ObservedSpectra] | None = None,
    ):
        self.names = tuple(split_latents)
        n_fixed = 0 if base is None else len(base.domains)
        present = [k for k, name in enumerate(self.names) if name in sources]
        self.pairs = [pair for pair in combinations(present, 2) if pair[1] >= n_fixed]
        trained = {k for pair in self.pairs for k in pair}
        if missing := [name for k, name in enumerate(self.names) if k >= n_fixed and k not in trained]:
            raise ValueError(f"there are no spectra to train {', '.join(missing)} with, and of another domain")
        if n_fixed and settings.warm_start:
            raise ValueError("warm_start must be 0 where domains are added: they begin as copies of a trained one")
        parts = SharedAdaptation(network_settings, settings, split_latents, base, like=present[0])
        by_name = {f"domain {self.names[k]}": sources[self.names[k]] for k in present}
        super().__init__(parts, settings, by_name, folder, device=device, tensorboard=tensorboard, watch=watch)
        self._spectra = [sources.get(name) for name in self.names]
        self._held_out: dict[int, tuple[Tensor, Tensor]] = {}
        if watch is not None:
            given = {k: require_held_out((held_out or {}).get(self.names[k])) for k in sorted(trained)}
            number = min(watch.n_spectra, *map(len, given.values()))
            self._held_out = {k: spectra.rows(torch.arange(number)) for k, spectra in given.items()}
        self._resume()

    @property
    def pair(self) -> tuple[int, int]:
        """The domains of the next iteration, by their places."""
        if self.iteration < self.settings.warm_start:
            return self.pairs[0]  # has the first domain
        turn, place = divmod(self.iteration, len(self.pairs))
        return self.pairs[np.random.default_rng([self.settings.seed, 5, turn]).permutation(len(self.pairs))[place]]

    # -- one iteration -------------------------------------------------------
    def _draw(self) -> dict[str, Tensor]:
        """The batch of this process: all draw the same spectra and take their share."""
        share, batch = slice(self.rank, None, self.n_processes), {}
        for side, k in zip(("first", "second"), self.pair, strict=True):
            source = self._spectra[k]
            assert source is not None  # of a pair
            flux, weight = source.draw(self.settings.batch_size, self.generator)
            batch[f"x_{side}"], batch[f"weight_{side}"] = flux[share].to(self.device), weight[share].to(self.device)
        return batch

    def _warm_start_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        collected = []
        for part in self._micro_batches(batch):
            terms = self.parts.warm_start_terms(part["x_first"], part["weight_first"])
            (total(terms, dict.fromkeys(terms, 1.0)) / self.settings.micro_batches).backward()
            collected.append(terms)
        return self._finish_step(self.optimizer, self._mean(collected), batch)

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        s, pair = self.settings, self.pair
        weights = {"latent": s.weight_latent, "spectra": s.weight_spectra}
        for k in pair:
            name, own = self.names[k], s.weight_obs if k else s.weight_synth
            weights |= {f"rec_{name}": own, f"cyc_{name}": own}
            weights[f"gen_{name}"] = s.weight_adversarial * s.adversarial_factor(self.iteration)
        collected, transfers = [], []
        for parameter in self.parts.critic_parameters():
            parameter.requires_grad_(False)
        self.optimizer.zero_grad(set_to_none=True)
        for part in self._micro_batches(batch):
            spectra, errors = ((part[f"{kind}_first"], part[f"{kind}_second"]) for kind in ("x", "weight"))
            terms, transfer = self.parts.autoencoder_terms(pair, spectra, errors)
            (total(terms, weights) / s.micro_batches).backward()
            collected.append(terms)
            transfers.append(transfer)
        found = self._finish_step(self.optimizer, self._mean(collected), batch)
        return found | self._critic_step(transfers, batch) if s.weight_adversarial else found

    def _critic_terms(self, transfers: Transfers) -> dict[str, Tensor]:
        return self.parts.critic_terms(self.pair, transfers)

    def _copy_first(self) -> None:
        self.parts.copy_first()

    # -- the watch -------------------------------------------------------------
    def _scores(self) -> dict[str, float]:
        """Means over all pairs."""
        network, found = self.averaged_network().to(self.device), []
        for one, other in self.pairs:
            (x_one, weight_one), (x_other, weight_other) = self._held_out[one], self._held_out[other]
            part = network.of((one, other))
            seed = self.settings.seed
            found.append(alignment_scores(part, x_one, x_other, weight_other, seed=seed, weight_synth=weight_one))
        return {name: float(np.mean([scores[name] for scores in found])) for name in found[0]}

    def _watched(self, row: dict[str, float]) -> dict[str, float]:
        """A row in which "synth" is the first domain (all that stay as they are), and "obs" the mean of the others."""
        n_first = max(1, self.parts.n_fixed)
        groups = {"synth": self.names[:n_first], "obs": self.names[n_first:]}
        seen = {name: value for name, value in row.items() if name in ("iteration", "critic_accuracy", "latent")}
        for kind in ("rec", "cyc", "gen"):
            for side, names in groups.items():
                every = [row[f"{kind}_{name}"] for name in self.names if f"{kind}_{name}" in row]
                own = [row[f"{kind}_{name}"] for name in names if f"{kind}_{name}" in row] or every
                if own:
                    seen[f"{kind}_{side}"] = float(np.mean(own))
        return seen

    # -- the end, and checkpoints ------------------------------------------------
    def averaged_network(self) -> SharedNetwork:
        """The network with the averaged weights.

        Returns
        -------
        `~cyclestarnet.networks.SharedNetwork`
            A copy in evaluation mode, without gradients, on the CPU.

        Examples
        --------
        ::

            translator = DomainTranslator(trainer.averaged_network(), settings.flux_mean, settings.flux_std)
        """
        return self._with_weights(self.average)

    def chosen_network(self, weights: str) -> tuple[SharedNetwork, int]:
        """The network with the weights that what is saved shall have.

        Parameters
        ----------
        weights : {"best", "last"}
            Of the best score, if there is a watch, or of the last iteration.

        Returns
        -------
        network : `~cyclestarnet.networks.SharedNetwork`
            With averaged weights.
        iteration : int
            That they are of.

        Examples
        --------
        ::

            network, iteration = trainer.chosen_network("best")
        """
        best = self.best_state() if weights == "best" else None
        if best is None:
            return self.averaged_network(), self.iteration
        return self._with_weights(best["average"]), best["iteration"]

    def _with_weights(self, weights: dict[str, Tensor]) -> SharedNetwork:
        network = SharedNetwork(self.network.settings, self.network.split_latents)
        network.load_state_dict(weights)
        return network.eval().requires_grad_(False)

    def _made_with(self) -> dict:
        domains = dict(zip(self.names, self.network.split_latents, strict=True))
        return super()._made_with() | {"domains": domains, "n_fixed": self.parts.n_fixed}
