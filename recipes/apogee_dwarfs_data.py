#!/usr/bin/env python
"""The data of the training ``apogee_dwarfs.toml``: what ``cyclestarnet train`` needs besides the configuration.

    python recipes/apogee_dwarfs_data.py INPUTS WORK
    cp recipes/apogee_dwarfs.toml WORK
    cyclestarnet train WORK/apogee_dwarfs.toml

``INPUTS`` holds ``data/moog_dwarfs`` and ``data/moog_grid`` (MOOG spectra with 20 labels), ``data/apogee`` (the network
of binspec, which was trained on real APOGEE dwarfs of five labels; abundances of real giants; what is needed to
simulate observations) and ``tools`` (their reader and generator). ``WORK`` gets the files that
``apogee_giants_data.py`` describes. Of the stars in ``known.h5`` only Teff, log g, [Fe/H] and [Mg/H] are known: the
others are not labels of the network.

No catalogue of dwarfs is at hand, so the stars are made up (`draw_dwarfs`):

* Teff is uniform; log g is a main sequence with scatter, and with some evolution above 5200 K;
* [Fe/H] and [alpha/M] are jointly those of real giants of DR17, and single elements deviate from what is usual
  there as those of real giants of DR12 do. Carbon and nitrogen are shifted back to what they were before the
  dredge-up: solar at solar [M/H];
* the broadening is log-normal, with some fast rotators; the network's v_macro is taken as v_broad + 1.5 km/s, which
  agrees with the widths of lines in MOOG's spectra to about 2 km/s.

The network of binspec knows no single elements but Fe and Mg, and the responses of the giants' generator end at
log g 4.0 and 5450 K. So an observed star has the abundances that are usual in real dwarfs of its five labels, whatever
the table says of its other elements.
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

N_POOL = 80_000
N_TRAIN, N_VALIDATION, N_KNOWN, N_TEST = 20_000, 1_000, 500, 1_000
LABELS = ("teff", "logg", "fe_h", "mg_h")  # those that are known of an observed star
TEFF, LOGG = (4220.0, 6200.0), (4.02, 4.92)  # within the grid's range and the network's
FE_H, MG_FE = (-0.75, 0.35), (-0.25, 0.45)
VBROAD = (1.6, 19.0)
TYPICAL_GIANT = (4800.0, 2.7)  # whose usual abundances are those of dwarfs, but for carbon and nitrogen
LEAST_LOGG = 3.8  # of dwarfs in the grid of giants


class DwarfNetwork:
    """The network of binspec: spectra of labels teff, logg, fe_h, mg_fe, v_macro.

    Its own errors are not published; the scatter of real stars about it is taken as that of real giants about
    their Cannon model (two real dwarfs: 0.007 and 0.008 beyond the noise; the Cannon: 0.006).
    """

    def __init__(self, inputs, scatter):
        with np.load(inputs / "data" / "apogee" / "dwarfs" / "binspec_normalized_spectra.npz") as data:
            self.weights = [data[f"{kind}_array_{k}"].astype(np.float32) for kind in "wb" for k in range(2)]
            self.low, self.high = data["x_min"], data["x_max"]
        self.scatter = scatter

    def __call__(self, labels):
        """Flux (N, 7214), float32, of labels (N, 5)."""
        w0, w1, b0, b1 = self.weights
        x = ((labels - self.low) / (self.high - self.low) - 0.5).astype(np.float32)
        hidden = 1 / (1 + np.exp(-(np.einsum("pij,nj->npi", w0, x, optimize=True) + b0)))
        return (w1 * hidden).sum(-1) + b1


def main_sequence(rng, teff, fe_h):
    """log g of dwarfs."""
    t = (teff - 4200.0) / 1000.0
    zero_age = 4.65 - 0.06 * t - 0.055 * t**2 - 0.1 * fe_h
    evolved = 0.15 * np.abs(rng.standard_normal(len(teff))) * ((teff - 5200.0) / 1000.0).clip(0, 1)
    return zero_age - evolved + 0.07 * rng.standard_normal(len(teff))


def draw_dwarfs(generator, rng, n, rows):
    """Labels (n, 20) of dwarfs whose metallicities are those of rows of the catalogue of giants."""
    with np.load(generator.DATA_DIR / "labels" / "dr17_rgb_labels.npz") as data:
        catalogue = data["labels"][:, 2:]
    remainders, modulus = generator.parse_fold(rows)
    catalogue = catalogue[np.isin(np.arange(len(catalogue)) % modulus, remainders)]
    elements, drawn = generator.Elements(), []
    while sum(map(len, drawn)) < n:
        teff = rng.uniform(*TEFF, n)
        m_h, alpha_m = catalogue[rng.integers(0, len(catalogue), n)].astype(float).T
        giants = np.column_stack([np.tile(TYPICAL_GIANT, (n, 1)), m_h, alpha_m])
        labels, _ = elements.draw(rng, giants, 1.0, 0.0)
        labels[:, 2:4] -= elements.usual(np.array([[*TYPICAL_GIANT, 0.0, 0.0]]))[:, 2:4]  # no dredge-up
        labels[:, 2] = np.minimum(labels[:, 2], labels[:, 4] + 0.2)  # no carbon stars
        labels[:, 0], labels[:, 1] = teff, main_sequence(rng, teff, m_h)
        labels[:, 18] = (0.95 + 0.3 * (teff - 5000) / 1000 + 0.12 * rng.standard_normal(n)).clip(0.65, 1.95)
        vbroad = 4.0 * np.exp(0.4 * (teff - 5000) / 1000 + 0.4 * rng.standard_normal(n))
        fast = rng.random(n) < 0.1
        labels[:, 19] = np.where(fast, rng.uniform(*VBROAD, n), vbroad.clip(*VBROAD))
        drawn.append(labels[inside(generator, labels)])
    return np.concatenate(drawn)[:n]


def inside(generator, labels):
    """Which stars the network of dwarfs and the grid both know."""
    logg, fe_h, mg_h = (labels[:, generator.LABEL20_NAMES.index(name)] for name in LABELS[1:])
    ranges = ((logg, LOGG), (fe_h, FE_H), (mg_h - fe_h, MG_FE))
    return np.all([(low <= values) & (values <= high) for values, (low, high) in ranges], axis=0)


def to_network(generator, labels):
    """Labels (n, 5) of the network of dwarfs from 20."""
    teff, logg, fe_h, mg_h, vbroad = (labels[:, generator.LABEL20_NAMES.index(name)] for name in (*LABELS, "vbroad"))
    return np.column_stack([teff, logg, fe_h, mg_h - fe_h, vbroad + 1.5])


def dwarfs(generator, inputs):
    """Dwarfs of whom the network's labels are known."""
    return Stars(
        draw=lambda rng, n, rows: to_network(generator, draw_dwarfs(generator, rng, n, rows)),
        base=DwarfNetwork(inputs, generator.CannonModel().scatter),
        elements=None,
        names=LABELS,
        truth=lambda labels, _: np.column_stack([labels[:, :3], labels[:, 2] + labels[:, 3]]),
    )


def read_grid(inputs, load):
    """MOOG's spectra of dwarfs, from both grids."""
    grid, more = load(inputs / "data" / "moog_dwarfs" / "moog_apogee_dwarfs.npz"), load()
    rows = more["labels"][:, 1] >= LEAST_LOGG
    return {
        "label_names": grid["label_names"],
        "labels": np.concatenate([grid["labels"], more["labels"][rows]]),
        "flux": np.concatenate([grid["flux"], more["flux"][rows]]),
    }


def main(argv=None):
    options = make_parser(__doc__).parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    generator = import_generator(options.inputs)
    from load_moog_grid import load

    grid = read_grid(options.inputs, load)
    _, lower, upper = write_grid(grid, options.work / "synthetic.h5", continuum_recipe())
    pool = draw_dwarfs(generator, np.random.default_rng([options.seed, 0]), N_POOL, TRAINING_ROWS)
    np.savez(options.work / "labels.npz", labels=pool.clip(lower, upper))
    stars = dwarfs(generator, options.inputs)
    splits = {"train": (N_TRAIN, TRAINING_ROWS), "val": (N_VALIDATION, TRAINING_ROWS)}
    write_stars(generator, stars, options.work / "observed.h5", splits, [options.seed, 1], labelled=False)
    splits = {"val": (N_KNOWN, TRAINING_ROWS), "test": (N_TEST, TEST_ROWS)}
    write_stars(generator, stars, options.work / "known.h5", splits, [options.seed, 2], labelled=True)


if __name__ == "__main__":
    main()
