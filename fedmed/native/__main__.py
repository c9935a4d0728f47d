"""Build the native kernels by hand: ``python -m fedmed.native``."""

import sys

from fedmed.native import native_form
from fedmed.native.build import LIBRARY, build_library


def main() -> int:
    """Build the library beside this file and say what it will run."""
    problem = build_library()
    if problem:
        sys.stderr.write(f"The native kernels were not built: {problem}. Training works without them, but slower.\n")
        return 1
    sys.stdout.write(f"Built {LIBRARY}; this processor runs its form '{native_form()}'.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
