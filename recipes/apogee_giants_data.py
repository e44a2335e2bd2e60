#!/usr/bin/env python
"""The data of the training ``apogee_giants.toml``: what ``cyclestarnet train`` needs besides the configuration.

    python recipes/apogee_giants_data.py INPUTS WORK
    cp recipes/apogee_giants.toml WORK
    cyclestarnet train WORK/apogee_giants.toml

``INPUTS`` holds ``data/moog_grid`` (MOOG spectra with 20 labels), ``data/apogee`` (a Cannon model of real
APOGEE giants, abundances of real giants, and what is needed to simulate observations) and ``tools`` (their
reader and generator). All spectra are normalised by the package's APOGEE recipe. ``WORK`` gets

``synthetic.h5``
    the grid, for the emulator;
``labels.npz``
    labels of the synthetic domain, drawn like those of the observed stars, but of other stars: the label
    prior of the model;
``observed.h5``
    observed-like stars without labels, for training (``train``) and for the model's errors (``val``);
``known.h5``
    stars whose 20 labels are known: ``val`` to learn the errors of labels from, and ``test``, of rows of the
    catalogues that no other set draws from.
"""

from __future__ import annotations

import numpy as np
from apogee_domains import (
    TEST_ROWS,
    TRAINING_ROWS,
    Stars,
    continuum_recipe,
    import_generator,
    make_parser,
    write_grid,
    write_stars,
)

N_POOL = 88_000
N_TRAIN, N_VALIDATION, N_KNOWN = 22_000, 1_000, 500
COOL_FRACTION, COOL_LIMIT = 0.15, 4050.0


def draw_labels(generator, rng, n, rows):
    """Labels (n, 4) of giants; some cool ones come from the thin edge of the Cannon's training set."""
    cannon, n_cool = generator.CannonModel(), round(COOL_FRACTION * n)
    labels, *_ = generator.draw_labels(rng, n, cannon, 0.3, 5, rows)
    edge, *_ = generator.draw_labels(rng, 40 * n_cool, cannon, 0.05, 1, rows)
    labels = np.concatenate([labels[n_cool:], edge[edge[:, 0] < COOL_LIMIT][:n_cool]])
    return labels[rng.permutation(len(labels))]


def giants(generator):
    """Giants whose 20 labels are known."""
    return Stars(
        draw=lambda rng, n, rows: draw_labels(generator, rng, n, rows),
        base=generator.CannonModel(),
        elements=generator.Elements(),
        names=generator.LABEL20_NAMES,
        truth=lambda labels, labels20: labels20,
    )


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--test", type=int, default=1_000, metavar="N", help="stars in the split test of known.h5")
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    generator = import_generator(options.inputs)
    from load_moog_grid import load

    names, lower, upper = write_grid(load(), options.work / "synthetic.h5", continuum_recipe())
    if tuple(names) != generator.LABEL20_NAMES:
        raise ValueError(f"the labels of the grid are {names}, but those of the stars {generator.LABEL20_NAMES}")
    rng = np.random.default_rng([options.seed, 0])
    four = draw_labels(generator, rng, N_POOL, TRAINING_ROWS)
    defaults = generator.build_parser().parse_args(["unused.h5"])
    stars = giants(generator)
    pool, _ = stars.elements.draw(rng, four, defaults.element_scale, defaults.peculiar)
    # clipped, not left out: that would take away giants of high gravity, and with them the zero point of log g
    np.savez(options.work / "labels.npz", labels=pool.clip(lower, upper))
    splits = {"train": (N_TRAIN, TRAINING_ROWS), "val": (N_VALIDATION, TRAINING_ROWS)}
    write_stars(generator, stars, options.work / "observed.h5", splits, [options.seed, 1], labelled=False)
    splits = {"val": (N_KNOWN, TRAINING_ROWS), "test": (options.test, TEST_ROWS)}
    write_stars(generator, stars, options.work / "known.h5", splits, [options.seed, 2], labelled=True)


if __name__ == "__main__":
    main()
