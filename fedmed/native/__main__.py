"""Build the native kernels by hand: ``python -m fedmed.native``.

They make the training of ERoHPRF's bags and of large depthwise convolutions on a CPU faster. The install builds them
where it finds a C++ compiler. FEDMED_NATIVE=0 leaves them out; portable, avx2 or avx512 chooses a form.
"""

import argparse
import sys
from collections.abc import Sequence

from fedmed.native import native_form
from fedmed.native.build import LIBRARY, build_library
from fedmed.versions import add_version_option


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the library beside this file and say what it will run."""
    parser = argparse.ArgumentParser(
        "python -m fedmed.native", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version_option(parser)
    parser.parse_args(arguments)
    problem = build_library()
    if problem:
        sys.stderr.write(f"The native kernels were not built: {problem}. Training works without them, but slower.\n")
        return 1
    sys.stdout.write(f"Built {LIBRARY}; this processor runs its form '{native_form()}'.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
