"""Write the deployable model of a finished run: a folder that is enough by itself.

It holds the merged network as ONNX and for PyTorch, a manifest, a model card, and a program that classifies files.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from fedmed.config import RunConfig
from fedmed.errors import FedmedError, RunFolderError
from fedmed.protocol.release import MANIFEST_FILE
from fedmed.storage.run_folder import RunFolder
from fedmed.versions import add_version_option

EPILOG = """\
examples:
  python -m fedmed.export runs/20260101-120000-phantom --out model
  python -m fedmed.export runs/20260101-120000-phantom --out model --check
      and score the run's test images again with the exported model
  python -m fedmed.predict --model model IMAGE_OR_FOLDER... --csv out.csv

exit code: 0 finished; 1 a problem that was explained, or --check found a difference; 2 wrong arguments.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    try:
        return _export(options)
    except FedmedError as error:
        if options.debug:
            traceback.print_exc()
        print(f"\nNothing was exported.\n{error}", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fedmed.export",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the model appears")
    parser.add_argument("--site", metavar="NAME", help="with batch_norm: local, whose model")
    parser.add_argument(
        "--check", action="store_true", help="reproduce the logged test figures with the exported model"
    )
    add_version_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def _export(options: argparse.Namespace) -> int:
    run, folder = RunFolder.open(options.run), options.out.absolute()
    _check_target(folder)
    # Imported late, so that a wrong argument is answered at once.
    from fedmed.export.run import export_run, reproduce  # noqa: PLC0415

    manifest = export_run(run, folder, site=options.site)
    sizes, proof = manifest["sizes"], manifest["proof"]
    print(
        f"{folder}: {sizes['onnx']['bytes'] / 2**20:.1f} MiB, {sizes['onnx']['latency_ms']:.1f} ms for one image "
        f"(trained network: {sizes['train_form']['latency_ms']:.1f} ms)"
    )
    print(f"equal to the trained network within {proof['onnx']['max_abs_error']:.1e}, on {proof['images']}")
    if not options.check:
        return 0
    if not isinstance(run.read_settings(), RunConfig):
        print("The test images are at the hospitals, so the test cannot be repeated here.", file=sys.stderr)
        return 1
    result = reproduce(run, folder, site=options.site)
    print(result.describe())
    return 0 if result.succeeded else 1


def _check_target(folder: Path) -> None:
    """Refuse to replace what is no earlier export."""
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / MANIFEST_FILE).is_file())):
        raise RunFolderError(f"'{folder}' exists and is no exported model. Name another folder with --out.")


if __name__ == "__main__":
    sys.exit(main())
