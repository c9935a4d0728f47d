"""Test whether small numbers that sites hold back can be worked out from what a run has told.

For an auditor. Reads every table in the run's folder and its history, and asks an integer program for each hidden row
(a class in a patient group, or in two groups crossed) whether it may still have every number from 0 to k_row - 1, or
has k_row patients for certain. Rows that are the same images, as equal figures tell, are taken to be so. What cannot
be proven within the time counts as failed.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed.errors import FedmedError
from fedmed.versions import add_version_option

if TYPE_CHECKING:
    from fedmed.fairness.reconstruction.exposure import Exposed
    from fedmed.fairness.reconstruction.run import Finding

EPILOG = """\
examples:
  python -m fedmed.disclosure federation/run
  python -m fedmed.disclosure federation/run --k-row 10 --json
      with another threshold than 5, for a program to read

A line such as
  hospital_a, test: sex x age_group: female, 60+ in class 3 cannot be 0, 1 of 0 to 4; it is from 2 to 7
says that 2 to 7 images are in a row that the site has held back. Sites run the same test before they answer, so a line
means that a site has an older version, that tables were told under lower thresholds, or that the time was short: give
more with --time-limit.

exit code: 0 every hidden row keeps its values; 1 some do not, or it is not proven, or a problem that was explained;
2 wrong arguments.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    try:
        return _test(options)
    except FedmedError as error:
        if options.debug:
            traceback.print_exc()
        print(f"\nNothing was tested.\n{error}", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fedmed.disclosure",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--k-row",
        type=_read_threshold,
        default=5,
        metavar="N",
        help="fewest patients of a row that is told (default 5)",
    )
    parser.add_argument(
        "--time-limit", type=float, default=120.0, metavar="SECONDS", help="for all programs together (default 120)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_version_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def _read_threshold(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} was found; a whole number from 1 is needed")
    return int(text)


def _test(options: argparse.Namespace) -> int:
    # Imported late, so that a wrong argument is answered at once.
    from fedmed.fairness.reconstruction.run import check_run  # noqa: PLC0415

    started = time.monotonic()
    findings = check_run(options.run, options.k_row, options.time_limit)
    seconds = time.monotonic() - started
    holds = not any(finding.exposed for finding in findings)
    if options.json:
        print(json.dumps(_to_json(findings, options.k_row, seconds), indent=2))
    else:
        _print(findings, options.k_row, seconds)
    return 0 if holds else 1


def _print(findings: Sequence["Finding"], k_row: int, seconds: float) -> None:
    for finding in findings:
        failed = len(finding.exposed)
        verdict = "all keep their values" if not failed else f"{failed} do not keep their values"
        print(f"{finding.site}, {finding.part}: {finding.hidden} hidden rows, {verdict} (unit: {finding.unit})")
        for one in finding.exposed:
            print(f"  {_describe(one, k_row)}")
        for first, second in finding.linked:
            print(
                f"  link: {first.attribute} {first.group} and {second.attribute} {second.group} in class "
                f"{first.label + 1} have equal figures, so they are taken for the same images"
            )
    total = sum(len(finding.exposed) for finding in findings)
    print(
        f"{'HOLDS' if not total else 'FAILED'}: {total} of {sum(finding.hidden for finding in findings)} hidden rows "
        f"do not keep every value from 0 to {k_row - 1}; {seconds:.0f} s"
    )


def _describe(one: "Exposed", k_row: int) -> str:
    what = f"{' x '.join(one.attributes)}: {', '.join(one.groups) or 'all groups'}"
    what += f" in class {one.label + 1}" if one.label >= 0 else ""
    if not one.is_proven:
        return f"{what} is not proven to keep 0 to {k_row - 1}"
    low, high = ("?" if value is None else value for value in (one.low, one.high))
    return f"{what} cannot be {', '.join(map(str, one.missing))} of 0 to {k_row - 1}; it is from {low} to {high}"


def _to_json(findings: Sequence["Finding"], k_row: int, seconds: float) -> dict[str, object]:
    return {
        "holds": not any(finding.exposed for finding in findings),
        "k_row": k_row,
        "seconds": round(seconds, 1),
        "parts": [
            {
                "site": finding.site,
                "part": finding.part,
                "unit": finding.unit,
                "hidden_rows": finding.hidden,
                "exposed": [
                    {
                        "attributes": list(one.attributes),
                        "groups": list(one.groups),
                        "class": one.label if one.label >= 0 else None,
                        "missing": list(one.missing),
                        "low": one.low,
                        "high": one.high,
                        "proven": one.is_proven,
                    }
                    for one in finding.exposed
                ],
                "links": [[list(first), list(second)] for first, second in finding.linked],
            }
            for finding in findings
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
