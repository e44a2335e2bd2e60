"""Chains in files: a sampling that was killed goes on where it stood."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import h5py
import numpy as np

from cyclestarnet.exceptions import FileFormatError
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
    identity : str, optional
        Of the star, model and options that the chain belongs to. A file with another one is refused.

    Examples
    --------
    ::

        from cyclestarnet.fitting.sampling import sample_posterior

        store = ChainFile("chain.h5", identity="HD 122563, second night")
        chain = sample_posterior(log_posterior, lower, upper, centre, covariance, rng=rng, store=store)
    """

    path: str | PathLike[str]
    identity: str = ""

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
        ValueError
            If its identity is another one.

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
                names = ("accepted", "chain", "log_prob")
                accepted, chain, log_prob = (dataset_of(file, f"mcmc/{name}")[...] for name in names)
            shape = attributes["iteration"], attributes["nwalkers"], attributes["ndim"]
            if chain.shape != shape or log_prob.shape != shape[:2] or accepted.shape != shape[1:2]:
                shapes = f"{chain.shape}, {log_prob.shape}, {accepted.shape}"
                raise ValueError(f"its arrays have shapes {shapes}, not {shape}")
            random_state = tuple(attributes[f"random_state_{i}"] for i in range(5))
            np.random.RandomState().set_state(random_state)  # emcee would pass over a damaged one in silence
            found, n_nan = attributes["identity"], int(attributes["n_nan"])
        except Exception as error:  # what is in it may be anything
            raise FileFormatError(
                f"{self} is damaged or holds no chain of cyclestarnet ({error}); remove it, or name another backend"
            ) from error
        if found != self.identity:
            raise ValueError(
                f"{self} holds the chain of another star, model or choice of options ({found!r}, but this one is "
                f"{self.identity!r}); name another backend"
            )
        return ChainState(chain, log_prob, accepted, random_state, n_nan)

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
        >>> state = ChainState(np.zeros((30, 8, 3)), np.zeros((30, 8)), np.zeros(8), random_state, 0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ChainFile(f"{folder}/chain.h5").save(state)
        ...     print(ChainFile(f"{folder}/chain.h5").load().n_steps)
        30
        """
        n_steps, n_walkers, k = state.positions.shape

        def fill(file: h5py.File) -> None:
            group = file.create_group("mcmc")
            group.attrs.update(
                nwalkers=n_walkers, ndim=k, has_blobs=False, iteration=n_steps, identity=self.identity,
                n_nan=state.n_nan, **{f"random_state_{i}": value for i, value in enumerate(state.random_state)},
            )  # fmt: skip
            group["accepted"] = state.accepted
            group.create_dataset("chain", data=state.positions, fletcher32=True)
            group.create_dataset("log_prob", data=state.log_posterior, fletcher32=True)

        write_hdf5(self.path, fill)
