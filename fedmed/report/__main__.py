"""Draw the page of a run's report again, with the installed version of fedmed.

The page is drawn from report/report.json of the run, which any earlier version may have written. Numbers are taken as
they are there; --tables computes them again from the run's evaluation tables, as this version computes them.
"""

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jinja2 import TemplateError

from fedmed.errors import FedmedError, RunFolderError, tame
from fedmed.report.content import ReportContent
from fedmed.report.page import save_page, write_report
from fedmed.report.reading import MOST_BYTES, read_document
from fedmed.report.schema.document import Document
from fedmed.storage.run_folder import RunFolder
from fedmed.versions import add_version_option

EPILOG = """\
examples:
  python -m fedmed.report runs/20260101-120000-phantom
      draw report/index.html and report/tripod_ai.md in the run's folder again
  python -m fedmed.report runs/20260101-120000-phantom --out page
      leave the run as it is; index.html, tripod_ai.md and a copy of report.json appear in the folder page
  python -m fedmed.report federation_report/report.json --out page
      of a report alone, for example one that a coordinating site has sent
  python -m fedmed.report runs/20260101-120000-phantom --tables --out page
      compute all figures again; the run must be finished

exit code: 0 drawn; 1 a problem that was explained; 2 wrong arguments.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    try:
        page = _draw(options.run, options.out, from_tables=options.tables)
    except FedmedError as error:
        if options.debug:
            traceback.print_exc()
        print(f"Nothing was drawn. {error}", file=sys.stderr)
        return 1
    print(f"report: {page}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fedmed.report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a file report.json")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the page appears; default: RUN/report")
    parser.add_argument("--tables", action="store_true", help="compute the numbers again from the run's tables")
    add_version_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def _draw(run: Path, out: Path | None, *, from_tables: bool) -> Path:
    file = find_report(run)
    folder = file.parent if out is None else out.absolute()
    has_tables = (run / "tables" / "test").is_dir()
    if from_tables or (has_tables and not file.is_file()):
        content = _read_tables(run)
        with _explain_writing(folder):
            return write_report(folder, content, inside=False)
    document = _read(file)
    try:
        with _explain_writing(folder):
            return save_page(folder, document, with_numbers=folder != file.parent.absolute())
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, RuntimeError, TemplateError) as error:
        raise RunFolderError(
            f"No page can be drawn from {file}, since its numbers do not belong together ({type(error).__name__}: "
            f"{tame(str(error), 200)}). Take the file as the run has written it, or compute it again with --tables."
        ) from error


def find_report(run: Path) -> Path:
    """Return where the numbers of a run are: ``RUN/report/report.json``, or beside, or RUN itself.

    Parameters
    ----------
    run : Path
        Folder of a run, folder of a report, or ``report.json``.
    """
    if run.is_file():
        return run.absolute()
    beside = run.absolute() / "report.json"
    return beside if beside.is_file() else run.absolute() / "report" / "report.json"


def _read(file: Path) -> Document:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise RunFolderError(f"{file} is larger than {MOST_BYTES:,} bytes, so that it is no report of fedmed.")
        return read_document(file.read_bytes())
    except OSError as error:
        raise RunFolderError(
            f"{file} cannot be read ({error.strerror}). Needed: the folder of a run that has a report, or its "
            "report.json."
        ) from None


@contextmanager
def _explain_writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"The page cannot be written into {folder} ({error.strerror or error}). Name another folder with --out."
        ) from error


def _read_tables(run: Path) -> ReportContent:
    opened = RunFolder.open(run)
    try:
        finished = json.loads((opened.path / "finished.json").read_text(encoding="utf-8"))
        chosen = int(finished["chosen_round"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"{run} is no finished run (no finished.json with the chosen round), so that no report can be computed "
            "from its tables. Go on with the run first."
        ) from None
    # The library imports no program of a coordinating site, but this command may be given its run.
    content: ReportContent = importlib.import_module("server.finish.report").build_content(opened, chosen, tested=True)
    return content


if __name__ == "__main__":
    sys.exit(main())
