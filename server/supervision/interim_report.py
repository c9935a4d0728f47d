"""``python -m server.supervision.interim_report RUN``: write the report of a run that is still going on.

A process of its own, because drawing takes seconds for which no round should wait.
"""

import os
import sys
from pathlib import Path

from fedmed.storage.run_folder import RunFolder
from server.finish.report import write_interim_report


def main() -> int:
    """Run the process; return its exit code."""
    os.nice(10)
    write_interim_report(RunFolder.open(Path(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
