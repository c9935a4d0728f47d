"""Simulate a federation of hospitals on this machine.

One ServerApp and one ClientApp of Flower run for all sites on Ray, the same apps as in a real federation.
"""

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from types import FrameType

from fedmed.config import RunConfig
from fedmed.config.files import apply_override, load_run_config
from fedmed.errors import ConfigError, FedmedError
from fedmed.own_packages import use_own_packages
from fedmed.processes import single_instance, watch_parent
from fedmed.storage.run_folder import LOCK_FILE, RunFolder
from fedmed.versions import add_version_option

INSTALLED = "fedmed-simulate"
"""The command that a wheel brings; ``simulations/run.py`` is there in a checkout only."""
EPILOG = """\
examples:
  python simulations/run.py
      four synthetic sites, ADSR-Net-18, less than four minutes; ends with the path of a report
  python simulations/run.py --config configs/ham10000_sites.yaml
      real dermatoscopic images from four sites
  python simulations/run.py --set rounds=3 --set sites=8 --set model.name=resnet18
      any setting of the config, changed for this run
  python simulations/run.py --set data.partition.kind=pooled
      all images at one site: central training, the upper reference
  python simulations/run.py --resume runs/20260101-120000-phantom
      go on with a run that was stopped; its results are those of an undisturbed run
  python simulations/run.py --study configs/studies/fairness.yaml
      a study: several ways to train, several seeds, one run for each; ends with the path of a table. Stopped at any
      moment, the same line goes on: cells that are done are skipped, the one under way is resumed
  python simulations/run.py --study configs/studies/fairness.yaml --table
      draw the table again from the results that are there, without running anything

A study is a YAML file; configs/studies/fairness.yaml explains every part. What a cell (one arm, one seed) has found is
simulations/results/STUDY/ARM-SEED.json, or with --out DIR in DIR, beside table.html, table.md and table.json. A cell
whose settings have changed since is run again; --set KEY=VALUE changes a setting of all cells.

A run is a folder. Open report/index.html in it; report/report.json has every number. Every setting is explained in
configs/simulation.yaml.
exit code: 0 finished; 1 a problem that was explained; 2 wrong arguments; 130 stopped by Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    use_own_packages()
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _stop_like_ctrl_c)
    if options.parent:
        watch_parent(options.parent)
    if options.study:
        return _run_study(options)
    run: RunFolder | None = None
    try:
        run = _open_folder(options)
        with single_instance(run.path / LOCK_FILE, "a simulation in this run folder"):
            _simulate(run, _settle_settings(run, options), export=not options.parent)
    except KeyboardInterrupt:
        print("\nStopped. Everything up to the last closed round is saved.", file=sys.stderr)
        if run is not None:
            print(f"To go on, type:\n  {_resume_command(run.path)}", file=sys.stderr)
        return 130
    except FedmedError as error:
        if options.debug:
            traceback.print_exc()
        print(f"\nThe run did not finish.\n{error}", file=sys.stderr)
        if run is not None and any(run.checkpoints.iterdir()):
            print(f"To go on after mending it, type:\n  {_resume_command(run.path)}", file=sys.stderr)
        return 1
    return 0


def _run_study(options: argparse.Namespace) -> int:
    try:
        # Imported late, so that --help answers at once.
        from simulations.studies.command import run_study_command  # noqa: PLC0415

        return run_study_command(options)
    except KeyboardInterrupt:
        print("\nStopped. Finished cells are saved. To go on, type the same line again.", file=sys.stderr)
        return 130
    except FedmedError as error:
        if options.debug:
            traceback.print_exc()
        print(f"\nThe study did not finish.\n{error}", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_command(),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings of the run (default: configs/simulation.yaml)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: runs/DATE-NAME); with --study: of the results",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, for example --set training.optimizer.lr=0.01; may be given many times",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder; of --set, only workers, round_deadline_s, min_sites and "
        "max_missed_rounds can be given",
    )
    parser.add_argument(
        "--study", type=Path, metavar="FILE", help="run the grid of simulations that this file describes"
    )
    parser.add_argument(
        "--table", action="store_true", help="with --study: only draw the table from the results so far"
    )
    parser.add_argument("--keep", action="store_true", help="with --study: keep the run folders of finished cells")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # a study ends its cells with itself
    add_version_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.resume and (options.config or options.out):
        parser.error("--resume takes its settings and its folder from the run: leave out --config and --out")
    if options.study and (options.config or options.resume):
        parser.error("--study takes its settings from its file: leave out --config and --resume")
    if not options.study and (options.table or options.keep):
        parser.error("--table and --keep belong to --study FILE")
    return options


def _open_folder(options: argparse.Namespace) -> RunFolder:
    """Return the folder to resume, or a new one with the settings that were asked for."""
    if options.resume:
        return RunFolder.open(options.resume)
    from simulations.simulation import check_settings  # noqa: PLC0415  (imports torch)

    source = options.config or _default_config()
    config = load_run_config(source, options.overrides)
    check_settings(config, str(source))
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = options.out or Path("runs") / f"{stamp}-{config.name}"
    run = RunFolder.create(path, _resume_command(path))
    run.write_config(config)
    return run


def _settle_settings(run: RunFolder, options: argparse.Namespace) -> RunConfig:
    """Return the run's settings, with what may change at a resume, and note that it starts."""
    config = _change_for_resume(run, options.overrides if options.resume else ())
    run.write_config(config)
    run.record_start()
    return config


def _change_for_resume(run: RunFolder, overrides: Sequence[str]) -> RunConfig:
    """Return the run's settings with those changed that do not change its results."""
    allowed = ("workers", "round_deadline_s", "min_sites", "max_missed_rounds")
    for override in overrides:
        key = apply_override({}, override)
        if key not in allowed:
            raise ConfigError(
                f"--set {override}: '{key}' cannot change when a run is resumed. Allowed: {', '.join(allowed)}. "
                "For other settings start a new run."
            )
    return load_run_config(run.config_file, overrides)


def _default_config() -> Path:
    """Return the default settings: of the checkout, or those in the installed package."""
    return Path(str(resources.files("configs") / "simulation.yaml"))


def _simulate(run: RunFolder, config: RunConfig, *, export: bool) -> None:
    # Imported late, so that --help and a wrong setting answer at once.
    from server.supervision.console import make_listener  # noqa: PLC0415
    from simulations.simulation import run_simulation  # noqa: PLC0415

    print(f"run folder: {run.path}")
    with make_listener(config.rounds) as listener:
        run_simulation(run, config, listener, export=export)
    _print_result(run)


def _print_result(run: RunFolder) -> None:
    report = json.loads((run.report / "report.json").read_text())
    figure = report["figures"]["balanced_accuracy"]
    value = "n/a" if figure["value"] is None else f"{figure['value']:.3f}"
    bounds = figure["interval"]
    interval = f" (95 % interval {bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else ""
    print(
        f"chosen round {report['chosen_round']} of {report['rounds']}; pooled test, n = {figure['n']}: "
        f"balanced accuracy {value}{interval}"
    )
    if report["synthetic"]:
        print("The images are synthetic: this says that the software works, and nothing about patients.")
    print(f"report: {run.report / 'index.html'}")


def _command() -> str:
    return INSTALLED if Path(sys.argv[0]).name == INSTALLED else "python simulations/run.py"


def _resume_command(path: Path) -> str:
    return f"{_command()} --resume {path}"


def _stop_like_ctrl_c(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
