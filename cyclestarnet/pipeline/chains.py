"""Chains in files: a sampling that was killed goes on where it stood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import h5py
import numpy as np

from cyclestarnet.exceptions import FileFormatError, OtherRunError
from cyclestarnet.files import write_hdf5
from cyclestarnet.fitting.chains import ChainState
from cyclestarnet.reading.hdf5 import dataset_of, open_hdf5

__all__ = ["ChainFile"]


@dataclass(frozen=True)
class ChainFile:
    """A chain in an HDF5 file, a `~cyclestarnet.fitting.chains.ChainStore`.

    The file is laid out as emcee's own, so that ``emcee.backends.HDFBackend``
    can read it, but it is replaced in one step: emcee writes into the file that
    it has, at every step, and of 40 processes that were killed, 5 left chain
    and counts that did not fit each other.

    Parameters
    ----------
    path : path-like
        Of the file, which need not exist yet.
    identity : mapping of str to str, number or None, optional
        What the chain depends on, such as star, model, options and seed. A file in which any of it
        differs is refused, by its name. What is None here may be anything there.

    Examples
    --------
    ::

        from cyclestarnet.fitting.sampling import sample_posterior

        store = ChainFile("chain.h5", identity={"star": "HD 122563", "seed": 1})
        chain = sample_posterior(log_posterior, lower, upper, centre, covariance, rng=rng, store=store)
    """

    path: str | PathLike[str]
    identity: Mapping[str, str | float | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.path)

    def load(self) -> ChainState | None:
        """Read the chain.

        Returns
        -------
        `~cyclestarnet.fitting.chains.ChainState` or None
            None if there is no file.

        Raises
        ------
        FileFormatError
            If the file is damaged or not one of ours.
        OtherRunError
            If it was begun with another identity; the message says what differs.

        Examples
        --------
        >>> from cyclestarnet.pipeline.chains import ChainFile
        >>> ChainFile("no_such_file.h5").load() is None
        True
        """
        if not Path(self.path).exists():
            return None
        try:
            with open_hdf5(self.path) as file:
                attributes = dict(file["mcmc"].attrs)
                names = ("accepted", "chain", "log_prob", "centre", "covariance")
                accepted, chain, log_prob, centre, covariance = (
                    dataset_of(file, f"mcmc/{name}")[...] for name in names
                )
            shape = attributes["iteration"], attributes["nwalkers"], attributes["ndim"]
            right = shape, shape[:2], shape[1:2], shape[2:], 2 * shape[2:]
            shapes = tuple(array.shape for array in (chain, log_prob, accepted, centre, covariance))
            if shapes != right:
                raise ValueError(f"its arrays have shapes {shapes}, not {right}")
            random_state = tuple(attributes[f"random_state_{i}"] for i in range(5))
            np.random.RandomState().set_state(random_state)  # emcee would pass over a damaged one in silence
            found, n_nan, share = dict(json.loads(attributes["identity"])), attributes["n_nan"], attributes["share"]
            state = ChainState(chain, log_prob, accepted, random_state, int(n_nan), centre, covariance, float(share))
        except Exception as error:  # what is in it may be anything
            raise FileFormatError(
                f"{self} is damaged or holds no chain of cyclestarnet ({error}); remove it, or name another backend"
            ) from error
        other = {name: found.get(name) for name, value in self.identity.items() if value not in (None, found.get(name))}
        if other:
            differences = "; ".join(f"{name} {value!r}, here {self.identity[name]!r}" for name, value in other.items())
            raise OtherRunError(
                f"{self} holds a chain that differs in {' and '.join(other)}, and cannot be continued as this one "
                f"({differences}); name another backend, or remove it"
            )
        return state

    def save(self, state: ChainState) -> None:
        """Write the chain in the place of what is there.

        Parameters
        ----------
        state : `~cyclestarnet.fitting.chains.ChainState`
            The chain so far.

        Raises
        ------
        OSError
            If the file cannot be written; it is then as it was before.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from cyclestarnet.fitting.chains import ChainState
        >>> from cyclestarnet.pipeline.chains import ChainFile
        >>> random_state = np.random.RandomState(1).get_state()
        >>> chain = np.zeros((30, 8, 3)), np.zeros((30, 8)), np.zeros(8), random_state, 0
        >>> state = ChainState(*chain, centre=np.zeros(3), covariance=np.eye(3), share=0.7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ChainFile(f"{folder}/chain.h5").save(state)
        ...     print(ChainFile(f"{folder}/chain.h5").load().n_steps)
        30
        """
        n_steps, n_walkers, k = state.positions.shape

        def fill(file: h5py.File) -> None:
            group = file.create_group("mcmc")
            group.attrs.update(
                nwalkers=n_walkers, ndim=k, has_blobs=False, iteration=n_steps,
                identity=json.dumps(dict(self.identity)), n_nan=state.n_nan, share=state.share,
                **{f"random_state_{i}": value for i, value in enumerate(state.random_state)},
            )  # fmt: skip
            for name in ("accepted", "centre", "covariance"):
                group[name] = getattr(state, name)
            group.create_dataset("chain", data=state.positions, fletcher32=True)
            group.create_dataset("log_prob", data=state.log_posterior, fletcher32=True)

        write_hdf5(self.path, fill)
