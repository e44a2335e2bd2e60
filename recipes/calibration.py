#!/usr/bin/env python
"""Whether the errors of labels are right: ranks of true labels in the posteriors of stars that the model made.

Two kinds of posteriors::

    python recipes/calibration.py --work WORK                                      emcee, all labels, 300 stars
    python recipes/calibration.py --work WORK --method laplace --stars 2000        the errors of fit_many, all labels

Labels that are not ``--free`` are held at their true values. ``--space emulator``
is faster: data and model are then the emulator's. Of samples, all labels together are ranked, too, by
their distance from random points (``joint``; the expected coverage of TARP). Stars are added to
``WORK/ranks.jsonl`` one by one, so that a run can be killed and run again; at
the end the table is printed, and ``WORK/ranks.rst`` and ``WORK/ranks.png`` are made. Those of the pages
are ``docs/tables/fits_calibration.rst`` and ``docs/_static/ranks.png``.
`cyclestarnet.training.calibration_ranks` does the work, and says what ranks tell.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

from list_tables import list_table, write_rst

from cyclestarnet import CalibratedModel
from cyclestarnet.io import read
from cyclestarnet.plotting import plot_ranks
from cyclestarnet.training import calibration_ranks, rank_table
from cyclestarnet.training.ranks import JOINT, expected_coverage

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def table(ranks, options):
    """Text of the table of the pages."""
    header = ("label", "p of even ranks (χ²)", "within the band", "mean rank", "68 %", "95 %", "width of pulls")
    rows = [
        (
            row["label"], f"{row['p']:.2g}", "yes" if row["in_band"] else "no", f"{row['mean_rank']:.3f}",
            f"{row['cover_68']:.3f}", f"{row['cover_95']:.3f}", f"{row['pull_width']:.2f}",
        )
        for row in rank_table(ranks)
    ]  # fmt: skip
    errors = {"chains": "samples of emcee", "laplace": "Laplace errors of fits"}[options.method]
    low, high = options.snr
    title = (
        f"Ranks of true labels, {errors} in the {options.space} space, {ranks.n_stars} stars that the model made, "
        f"S/N {low:g} to {high:g}, seed {options.seed}; {date.today().isoformat()}"
    )
    return list_table(title, [header, *rows])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", type=Path, help="file of a model; default: the embedded one")
    parser.add_argument("--method", choices=["chains", "laplace"], default="chains")
    parser.add_argument("--space", choices=["observed", "emulator"], default="observed")
    parser.add_argument("--free", nargs="+", help="labels; default: all")
    parser.add_argument("--stars", type=int, default=300)
    parser.add_argument("--snr", type=float, nargs=2, default=(40, 180), metavar=("LOW", "HIGH"), help="per pixel")
    parser.add_argument(
        "--like", type=Path, help="observed spectrum whose split latent is used; default: a typical one"
    )
    parser.add_argument("--split-latent", choices=["own", "typical", "fitted"], default="own", help="of the fits")
    parser.add_argument("--max-steps", type=int, default=10_000, help="of a chain")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    model = CalibratedModel.from_pretrained() if options.model is None else CalibratedModel.load(options.model)
    ranks = calibration_ranks(
        model,
        options.stars,
        method=options.method,
        space=options.space,
        free=options.free,
        snr=options.snr,
        like=None if options.like is None else read(options.like),
        split_latent=options.split_latent,
        max_steps=options.max_steps,
        seed=options.seed,
        path=options.work / "ranks.jsonl",
    )
    print(f"{ranks.n_stars} stars, {len(ranks.failed)} left out because the {options.method} did not converge")
    if ranks.by_label:
        print("\n".join(rank_table(ranks).pformat(max_lines=-1, max_width=-1)))
        if JOINT in ranks.by_label:
            found = zip(*expected_coverage(ranks.by_label[JOINT]), strict=True)
            told = [f"{covered:.2f} of {level:.1f}" for level, covered in found if round(level, 9) in LEVELS]
            print("truths within regions of a probability, all labels together: " + ", ".join(told))
        write_rst(options.work / "ranks.rst", table(ranks, options))
        plot_ranks(ranks)[0].figure.savefig(options.work / "ranks.png", dpi=110)


if __name__ == "__main__":
    main()
