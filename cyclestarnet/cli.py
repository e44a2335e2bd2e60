"""Command line: ``cyclestarnet adapt``, ``demo``, ``derivatives``, ``fit``, ``info``, ``missing-lines``,
``mock-lines``, ``predict``, ``prepare``, ``report``, ``sample`` and ``train``."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cyclestarnet._version import __version__
from cyclestarnet.exceptions import CycleStarNetError, CycleStarNetWarning

__all__ = ["main"]

log = logging.getLogger(__name__)


def _model(name):
    from cyclestarnet import CalibratedModel

    is_file = "://" not in str(name) and Path(name).suffix == ".safetensors"
    return CalibratedModel.load(name) if is_file else CalibratedModel.from_pretrained(name)


def _bars(options: argparse.Namespace) -> bool:
    """Whether to show progress bars."""
    return sys.stderr.isatty() and not options.quiet


def _labels(texts: Sequence[str]) -> dict[str, Any]:
    """Labels of texts like ``teff=4500``, in their units."""
    from cyclestarnet.labels import unit_of_label

    labels = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            labels[name] = float(value) * unit_of_label(name)
        except ValueError:
            wrong = f"{value!r} is no number" if equals else "there is no ="
            raise ValueError(f"labels are given as teff=4500 mg_h=-0.2, but in {text!r} {wrong}") from None
    return labels


def _demo(options: argparse.Namespace) -> int:
    """Fit a real K giant that ships with the package, with and without the translation, and plot it."""
    from cyclestarnet import datasets

    model, star = _model("apogee-giants"), datasets.k_giant()
    plain = model.fit(star, space="emulator")
    result = model.fit(star)
    print(repr(result))
    print(
        f"\nreduced chi2: {plain.reduced_chi2:.2f} with the synthetic spectra as they are (Eq. 9), "
        f"{result.reduced_chi2:.2f} after translation to the observed domain (Eq. 11)"
    )
    result.plot()[0].figure.savefig(options.output, dpi=120)
    print(f"data, model and residual: {options.output}")
    return 0


def _fit(options: argparse.Namespace) -> int:
    """Fit spectrum files and print or write a table; run again after a kill, it goes on where it was."""
    model = _model(options.model)
    try:
        table = model.fit_many(
            # one name may be a pattern, which no shell can make too long, or a file of many stars
            options.files[0] if len(options.files) == 1 else options.files,
            output=options.output,
            overwrite=options.overwrite,
            space=options.space,
            method=options.method,
            prior=None if options.no_prior else "training",
            continuum_degree=options.continuum_degree,
            progress=_bars(options),
        )
    except KeyboardInterrupt:
        kept = "; run the same command again to go on where it was" if options.output else ", and nothing is saved"
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return 130
    if options.output:
        print(f"{options.output}: {len(table)} rows, {int((~table['success']).sum())} of them failed or not converged")
    else:
        _print_results(table)
    return 0 if table["success"].all() else 1


def _predict(options: argparse.Namespace) -> int:
    """Write the spectrum of labels."""
    from astropy.table import QTable

    from cyclestarnet.files import write_atomically

    spectrum = _model(options.model).predict(_labels(options.labels), domain=options.domain)
    table = QTable({"wavelength": spectrum.spectral_axis.quantity, "flux": spectrum.flux})
    write_atomically(options.output, lambda path: table.write(path, format=_format(options.output), overwrite=True))
    print(f"{options.output}: {len(table)} pixels, vacuum wavelengths")
    return 0


def _derivatives(options: argparse.Namespace) -> int:
    """Write what changes of labels do to the spectrum (S1, Eq. 8)."""
    from cyclestarnet.files import write_atomically

    model = _model(options.model)
    spectra = model.derivative_spectra(_labels(options.labels), domain=options.domain, names=options.names)
    table = spectra.to_table()
    table.meta = {name: value for name, value in table.meta.items() if name != "filled"}  # the warning names them
    write_atomically(options.output, lambda path: table.write(path, format=_format(options.output), overwrite=True))
    print(f"{options.output}: derivatives by {', '.join(options.names or model.labels)}")
    return 0


def _format(path: Path) -> str:
    formats = {".ecsv": "ascii.ecsv", ".fits": "fits"}
    if path.suffix not in formats:
        raise ValueError(f"the file to write must end in {' or '.join(formats)}, but is {path}")
    return formats[path.suffix]


def _missing_lines(options: argparse.Namespace) -> int:
    """Find lines that observed spectra have and synthetic ones lack, and which element may make them."""
    from cyclestarnet.lines import find_missing_lines

    models, null = ([_model(name) for name in names] for names in (options.model, options.null))
    chosen = {name: getattr(options, name) for name in ("fdr", "n", "seed")}
    lines = find_missing_lines(models, null=null, progress=_bars(options), **chosen)
    lines.write(options.output)
    print(f"{options.output}: {len(lines)} lines up to a false-discovery rate of {options.fdr:g}")
    return 0


def _sample(options: argparse.Namespace) -> int:
    """Sample posteriors of spectrum files and print or write a table; run again after a kill, it goes on."""
    model = _model(options.model)
    try:
        table = model.sample_many(
            options.files[0] if len(options.files) == 1 else options.files,
            output=options.output,
            overwrite=options.overwrite,
            chains=options.chains,
            space=options.space,
            prior=None if options.no_prior else "training",
            continuum_degree=options.continuum_degree,
            seed=options.seed,
            max_steps=options.max_steps,
            workers=options.workers,
            progress=_bars(options),
        )
    except KeyboardInterrupt:
        kept = options.output or options.chains
        told = "; run the same command again to go on where it was" if kept else ", and nothing is saved"
        print(f"\ninterrupted{told}", file=sys.stderr)
        return 130
    if options.output:
        print(f"{options.output}: {len(table)} rows, {int((~table['converged']).sum())} of them failed or too short")
    else:
        _print_results(table)
    return 0 if table["converged"].all() else 1


def _print_results(table):
    """Print what most users look at first."""
    columns = ["object", "reduced_chi2", "flag_names", "message"]
    for name in ("alpha_m", "m_h", "logg", "teff"):
        if name in table.colnames:
            columns[1:1] = [name, f"{name}_err"]
    shown = table[columns]
    for name in shown.colnames[1:-2]:
        shown[name].info.format = ".0f" if name.startswith("teff") else ".3f"
    print("\n".join(shown.pformat(max_lines=-1, max_width=-1)))


def _info(options: argparse.Namespace) -> int:
    """Print what a model or a translation is made of, or how far a training is."""
    if Path(options.model).is_dir():
        return _info_of_run(Path(options.model))
    from cyclestarnet.cards import model_card
    from cyclestarnet.translation import Translation, is_translation_file

    print(Translation.load(options.model) if is_translation_file(options.model) else model_card(options.model))
    return 0


def _info_of_run(folder):
    """Print iteration, last losses and last scores of a training."""
    from cyclestarnet.training.logs import read_run

    record = read_run(folder)
    last = record.settings.get("n_iterations")
    print(
        f"{folder}: no checkpoint yet"
        if record.iteration is None
        else f"{folder}: checkpoint of iteration {record.iteration:,} of {last:,}"
    )
    for title, table in (("losses", record.losses), ("scores", record.scores)):
        if len(table.get("iteration", ())):
            print(f"{title} at iteration {table['iteration'][-1]:,}:")
            _print_last_row(table)
    return 0


def _print_last_row(table):
    """Print the last number of each column of a log, and all that a column of text said."""
    for name, column in table.items():
        if column.dtype.kind == "U":
            said = [f"{text} ({i:,})" for i, text in zip(table["iteration"], column, strict=True) if text]
            print(f"  {name:20}{', '.join(said)}")
        elif name != "iteration" and column[-1] == column[-1]:  # NaN is not itself
            print(f"  {name:20}{column[-1]:.4g}")


def _adapt(options: argparse.Namespace) -> int:
    """Finish the training of a model on your own spectra; run again after a kill, it goes on where it was."""
    from cyclestarnet.training.adaptation import adapt, adaptation_settings
    from cyclestarnet.training.watch import WatchSettings

    output = options.output
    if output.suffix != ".safetensors":
        raise ValueError(f"the model to write must end in .safetensors, but is {output}")
    if output.exists() and Path(options.model).exists() and output.samefile(options.model):
        raise ValueError(f"{output} is the model to begin with; give the new one another name")
    folder = output.with_suffix("") if options.folder is None else options.folder
    base = _model(options.model)
    changes = {} if options.iterations is None else {"n_iterations": options.iterations}
    try:
        model, report = adapt(
            base,
            options.spectra,
            name=output.stem,
            settings=adaptation_settings(base, seed=options.seed, **changes),
            watch=WatchSettings() if options.watch else None,
            seed=options.seed,
            folder=folder,
            progress=_bars(options),
        )
    except KeyboardInterrupt:
        saved = f"what is done is saved in {folder}" if (folder / "checkpoint.pt").exists() else "nothing is saved"
        print(f"\ninterrupted; {saved}. Run the same command again to go on", file=sys.stderr)
        return 130
    model.save(output)
    page = output.with_suffix(".html")
    report.write(page)
    print(repr(report))
    print(f"model: {output}\nreport: {page}")
    return 0


def _train(options: argparse.Namespace) -> int:
    """Train a model, or a translation, as a TOML file says; run again, it goes on where it was."""
    from cyclestarnet.training.config import example_config, read_config
    from cyclestarnet.training.translation_config import (
        example_translation_config,
        is_translation,
        read_translation_config,
    )

    if options.example:
        print(example_config() if options.example == "model" else example_translation_config(), end="")
        return 0
    if options.config is None:
        raise ValueError("give the file of the training; cyclestarnet train --example prints one to begin with")
    from cyclestarnet.training.runs import joined_processes

    config = (read_translation_config if is_translation(options.config) else read_config)(options.config)
    again = f"run the same command again to go on: cyclestarnet train {options.config}"
    try:
        with joined_processes(config) as (config, rank):
            return _train_and_finish(config, options, again, talks=rank == 0)
    except KeyboardInterrupt:
        if (config.run.folder / "checkpoint.pt").exists():
            print(f"\ninterrupted; what is done is saved in {config.run.folder}. To go on, {again}", file=sys.stderr)
        else:
            print(f"\ninterrupted before the training began, and nothing is saved; {again}", file=sys.stderr)
        return 130


def _train_and_finish(config, options, again, *, talks):
    """Prepare, train, and finish unless there is more to train; only one of several processes talks."""
    from cyclestarnet.training.config import Config
    from cyclestarnet.training.runs import finish, prepare
    from cyclestarnet.training.translations import finish_translation, prepare_translation

    is_model = isinstance(config, Config)
    progress = talks and _bars(options)
    run = (prepare if is_model else prepare_translation)(config, progress=progress)
    if talks:
        print(run.summary(), flush=True)
    trainer, last = run.trainer, config.training.n_iterations
    try:
        run.train(until=options.until, progress=progress)
    finally:  # of a run that failed it is wanted most
        if talks:
            _progress_figure(config.run.folder)
    if not talks:
        return 0
    if trainer.iteration < last:
        print(f"stopped at iteration {trainer.iteration:,} of {last:,}; {again}")
        return 0
    if not is_model:
        print(f"translation: {finish_translation(run)}")
        return 0
    print("trained; fits of validation stars now tell the model's own errors", flush=True)
    print(f"model: {finish(run, progress=progress)}")
    return 0


def _progress_figure(folder):
    """Write ``progress.png``, if there is anything to draw and to draw with."""
    if not (folder / "losses.csv").exists():
        return
    try:
        from matplotlib import pyplot

        from cyclestarnet.plotting.training import plot_training

        figure = plot_training(folder)[0].figure
        try:
            figure.savefig(folder / "progress.png", dpi=120)
        finally:
            pyplot.close(figure)
    except ImportError:
        return
    except Exception as error:  # a training must not fail for want of a figure, nor its own error be hidden
        log.warning("progress.png cannot be drawn: %s", error)
        return
    print(f"progress: {folder / 'progress.png'}")


def _prepare(options: argparse.Namespace) -> int:
    """Make a training set of spectrum files; run again after a kill, it goes on where it was."""
    import astropy.units as u

    from cyclestarnet.io import StarCuts, prepare_training_set, summarise_preparation

    model, chosen = _model(options.model), {}
    if options.snr is not None:
        chosen["snr"] = tuple(options.snr)
    if options.chi2_max is not None:
        chosen["chi2_max"] = options.chi2_max
    if options.broadening_max is not None:
        chosen["broadening_max"] = options.broadening_max * u.km / u.s
    val, test = options.val, options.test
    try:
        report = prepare_training_set(
            options.output,
            options.spectra[0] if len(options.spectra) == 1 else options.spectra,
            grid=model.grid,
            recipe=model.recipe,
            catalogue=options.catalogue,
            cuts=StarCuts(**chosen, one_per_star=not options.all_spectra),
            splits={"train": 1 - val - test, "val": val, "test": test},
            seed=options.seed,
            workers=options.workers,
            overwrite=options.overwrite,
            progress=_bars(options),
        )
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on where it was", file=sys.stderr)
        return 130
    print(summarise_preparation(report))
    return 0


def _report(options: argparse.Namespace) -> int:
    """Fit a set of spectra as the paper does, and put its figures and numbers on one page; run again, it goes on."""
    from cyclestarnet.io import StarCuts
    from cyclestarnet.plotting.axes import pyplot
    from cyclestarnet.reading.tables import read_table
    from cyclestarnet.training.evidence import collect_evidence

    if (options.output / "report.html").exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} has a report; use --overwrite, or another folder")
    pyplot()  # what is missing must not be found out after all fits
    isochrones = None if options.isochrones is None else read_table(options.isochrones)
    try:
        evidence = collect_evidence(
            _model(options.model),
            options.spectra,
            n_stars=options.stars,
            split=options.split,
            cuts=StarCuts() if options.cuts else None,
            catalogue=options.catalogue,
            mask=options.mask,
            seed=options.seed,
            folder=options.output,
            overwrite=options.overwrite,
            workers=options.workers,
            progress=_bars(options),
        )
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on where it was", file=sys.stderr)
        return 130
    page = evidence.write(options.output, training=options.training, mock=options.mock, isochrones=isochrones)
    print(repr(evidence))
    print(f"page: {page}")
    return 0


def _mock_lines(options: argparse.Namespace) -> int:
    """Take known lines away, train, and see what comes back; run again, it goes on where it was."""
    from cyclestarnet.lines.config import example_mock_config, read_mock_config
    from cyclestarnet.lines.mock_study import study

    if options.example:
        print(example_mock_config(), end="")
        return 0
    if options.config is None:
        raise ValueError("give the file of the study; cyclestarnet mock-lines --example prints one to begin with")
    config = read_mock_config(options.config)
    try:
        table = study(config, progress=_bars(options))
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; run the same command again to go on: cyclestarnet mock-lines {options.config}",
            file=sys.stderr,
        )
        return 130
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            table[name].info.format = ".3f"
    shown = ["fraction", "seed", "error", "error_population", "precision", "recall", "element_accuracy", "set_accuracy"]
    print("\n".join(table[shown].pformat(max_lines=-1, max_width=-1)))
    print(
        f"errors: mean of the masked pixels in %, of the K giant and of at most {config.mock.n_scored:,} label sets; "
        f"all files are in {config.run.folder}"
    )
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="cyclestarnet",
        description="Fit stellar spectra with synthetic ones that were calibrated on observed ones.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    talk = argparse.ArgumentParser(add_help=False)
    talk.add_argument("-q", "--quiet", action="store_true", help="errors only: no bars, no warnings")
    talk.add_argument("-v", "--verbose", action="store_true", help="say more of what goes on")
    commands = SimpleNamespace(add_parser=partial(subparsers.add_parser, parents=[talk]))

    sub = commands.add_parser("adapt", help=_adapt.__doc__)
    sub.add_argument("spectra", type=Path, help="HDF5 file of 50 or more spectra on the pixels of the model")
    sub.add_argument("-o", "--output", type=Path, required=True, help="model to write: .safetensors")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing model")
    sub.add_argument("--model", default="apogee-giants", help="embedded model or .safetensors file to begin with")
    sub.add_argument("--iterations", type=int, metavar="N", help="length of the training (default: 2000)")
    sub.add_argument("--watch", action="store_true", help="score the training, and keep the weights of the best score")
    sub.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    sub.add_argument("--folder", type=Path, help="for checkpoints and logs (default: OUTPUT without its suffix)")
    sub.set_defaults(run=_adapt)

    sub = commands.add_parser("demo", help=_demo.__doc__)
    sub.add_argument("-o", "--output", type=Path, default=Path("cyclestarnet-demo.png"), help="figure to write")
    sub.set_defaults(run=_demo)

    sub = commands.add_parser("derivatives", help=_derivatives.__doc__)
    sub.add_argument("labels", nargs="+", help="where they are taken, such as teff=4500 logg=2.2 m_h=-0.5")
    sub.add_argument("-o", "--output", type=Path, required=True, help="table to write: .ecsv or .fits")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing table")
    sub.add_argument("--model", default="apogee-giants", help="embedded model or .safetensors file")
    sub.add_argument("--domain", choices=["observed", "synthetic", "difference"], default="observed")
    sub.add_argument("--names", nargs="+", metavar="LABEL", help="labels to differentiate by (default: all)")
    sub.set_defaults(run=_derivatives)

    sub = commands.add_parser("fit", help=_fit.__doc__)
    sub.add_argument(
        "files", nargs="+", help="apStar, aspcapStar, apVisit or mwmStar files, a pattern in quotes, or an HDF5 file"
    )
    sub.add_argument(
        "-o", "--output", type=Path, help="table to write: .ecsv, .fits, .parquet or .csv (default: print)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing table")
    sub.add_argument("--model", default="apogee-giants", help="embedded model or .safetensors file")
    sub.add_argument("--space", choices=["observed", "synthetic", "emulator"], default="observed")
    sub.add_argument("--method", choices=["lm", "lbfgs"], default="lm", help="quick (default), or the paper's")
    sub.add_argument("--no-prior", action="store_true", help="flat prior within the training range")
    sub.add_argument(
        "--continuum-degree", type=int, metavar="N", help="fit a polynomial in each chip, too (default: none)"
    )
    sub.set_defaults(run=_fit)

    sub = commands.add_parser("info", help=_info.__doc__)
    sub.add_argument(
        "model", nargs="?", default="apogee-giants", help="embedded model, .safetensors file, or folder of a training"
    )
    sub.set_defaults(run=_info)

    sub = commands.add_parser("missing-lines", help=_missing_lines.__doc__)
    sub.add_argument("-o", "--output", type=Path, required=True, help="table to write: .ecsv or .csv")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing table")
    sub.add_argument("--model", nargs="+", default=["apogee-giants"], help="embedded models or .safetensors files")
    sub.add_argument("--null", nargs="+", default=[], metavar="MODEL", help="models of trainings that lacked nothing")
    sub.add_argument("--fdr", type=float, default=0.05, help="false-discovery rate of the lines (0.05)")
    sub.add_argument("-n", type=int, default=1000, metavar="N", help="label sets at which domains are compared (1000)")
    sub.add_argument("--seed", type=int, default=0, help="of these label sets (0)")
    sub.set_defaults(run=_missing_lines)

    sub = commands.add_parser("predict", help=_predict.__doc__)
    sub.add_argument("labels", nargs="+", help="such as teff=4500 logg=2.2 m_h=-0.5; in K, dex and km/s")
    sub.add_argument("-o", "--output", type=Path, required=True, help="table to write: .ecsv or .fits")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing table")
    sub.add_argument("--model", default="apogee-giants", help="embedded model or .safetensors file")
    sub.add_argument("--domain", choices=["observed", "synthetic"], default="observed")
    sub.set_defaults(run=_predict)

    sub = commands.add_parser("prepare", help=_prepare.__doc__)
    sub.add_argument(
        "spectra", nargs="+", help="folder, text file with a path in each line, pattern in quotes, or files of SDSS"
    )
    sub.add_argument("-o", "--output", type=Path, required=True, help="training set to write (.h5)")
    sub.add_argument("--catalogue", type=Path, help="table with chi2, broadening and flags of the stars, as allStar")
    sub.add_argument("--model", default="apogee-giants", help="whose pixels and continuum recipe the set gets")
    sub.add_argument("--snr", type=float, nargs=2, metavar=("LOW", "HIGH"), help="between which S/N is (30 500)")
    sub.add_argument("--chi2-max", type=float, metavar="X", help="below which the catalogue's reduced chi2 is (50)")
    sub.add_argument("--broadening-max", type=float, metavar="KM/S", help="below which the broadening is (10)")
    sub.add_argument("--all-spectra", action="store_true", help="all spectra of a star, not its best one only")
    sub.add_argument("--val", type=float, default=0.1, help="share of the stars for validation (0.1)")
    sub.add_argument("--test", type=float, default=0.1, help="share of the stars for tests (0.1)")
    sub.add_argument("--seed", type=int, default=0, help="of the splits (0)")
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read (1)")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing set")
    sub.set_defaults(run=_prepare)

    sub = commands.add_parser("report", help=_report.__doc__)
    sub.add_argument("model", help="embedded model or .safetensors file")
    sub.add_argument("spectra", help="HDF5 file, folder, text file with a path in each line, or pattern in quotes")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="for page, figures and tables")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing report, or one of another run")
    sub.add_argument("--stars", type=int, default=200, metavar="N", help="how many to draw from the set (200)")
    sub.add_argument("--split", help="of an HDF5 file (test, or else val, or else the only one)")
    sub.add_argument("--cuts", action="store_true", help="make the paper's cuts first, and of files a set with splits")
    sub.add_argument("--catalogue", type=Path, help="table with what cuts of files need, as for prepare")
    sub.add_argument(
        "--mask",
        nargs="?",
        const=True,
        default=False,
        metavar="TABLE",
        help="fit with and without this mask, or one that is made of stars of the set",
    )
    sub.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="processes that fit (1)")
    sub.add_argument("--training", type=Path, metavar="FOLDER", help="of a training, to show its progress")
    sub.add_argument("--mock", type=Path, metavar="FOLDER", help="of a study by mock-lines, to show its errors")
    sub.add_argument("--isochrones", type=Path, metavar="TABLE", help="with columns teff, logg, age and m_h")
    sub.set_defaults(run=_report)

    sub = commands.add_parser("sample", help=_sample.__doc__)
    sub.add_argument("files", nargs="+", help="as for fit")
    sub.add_argument(
        "-o", "--output", type=Path, help="table to write: .ecsv, .fits, .parquet or .csv (default: print)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing table, and samples in --chains")
    sub.add_argument("--chains", type=Path, metavar="FOLDER", help="where samples go, a file for each star")
    sub.add_argument("--model", default="apogee-giants", help="embedded model or .safetensors file")
    sub.add_argument("--space", choices=["observed", "emulator"], default="observed")
    sub.add_argument("--no-prior", action="store_true", help="flat prior within the training range")
    sub.add_argument(
        "--continuum-degree", type=int, metavar="N", help="fit a polynomial in each chip, too (default: none)"
    )
    sub.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    sub.add_argument("--max-steps", type=int, default=10_000, metavar="N", help="length at which a chain ends anyway")
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="processes that sample (1)")
    sub.set_defaults(run=_sample)

    sub = commands.add_parser("train", help=_train.__doc__)
    sub.add_argument("config", nargs="?", type=Path, help="TOML file that describes the training")
    sub.add_argument("--until", type=int, metavar="N", help="stop at iteration N, for now")
    sub.add_argument(
        "--example",
        nargs="?",
        const="model",
        choices=("model", "translation"),
        help="print a file with all settings, to begin with: of a model (default), or of two domains without labels",
    )
    sub.set_defaults(run=_train)

    sub = commands.add_parser("mock-lines", help=_mock_lines.__doc__)
    sub.add_argument("config", nargs="?", type=Path, help="TOML file that describes the study")
    sub.add_argument("--example", action="store_true", help="print a file with all settings, to begin with")
    sub.set_defaults(run=_mock_lines)
    return parser


@contextmanager
def _messages(options: argparse.Namespace) -> Iterator[None]:
    """What the package logs, on stderr: warnings, or errors only, or all that it has to say."""
    ours, handler = logging.getLogger("cyclestarnet"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.ERROR if options.quiet else logging.INFO if options.verbose else logging.WARNING)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        What a shell would give after the program's name. Default: the arguments of the process.

    Returns
    -------
    int
        The exit status: 0 if all went well, 1 if a fit failed or did not converge or a chain is too short, 2 after an
        error that was told on stderr, 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        If the arguments are not those of a command, or ask for help.

    Examples
    --------
    >>> from cyclestarnet.cli import main
    >>> main(["info", "apogee-giants"])
    <ModelCard ...
    0
    """
    options = _parser().parse_args(argv)
    output = getattr(options, "output", None)
    unfinished = output is not None and options.command == "prepare" and Path(f"{output}.partial").exists()
    one_file = hasattr(options, "overwrite") and options.command != "report"
    overwrites = one_file and output is not None and output.exists()
    if overwrites and not options.overwrite and not unfinished:
        print(f"cyclestarnet: {output} exists; use --overwrite", file=sys.stderr)
        return 2
    try:
        with warnings.catch_warnings(), _messages(options):
            warnings.simplefilter("ignore" if options.quiet else "default", CycleStarNetWarning)
            return options.run(options)
    except (CycleStarNetError, OSError, ValueError, ImportError, FloatingPointError) as error:
        print(f"cyclestarnet: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
