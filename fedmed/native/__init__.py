"""Optional C++ kernels for depthwise convolutions on a CPU; whoever calls them must do without them too.

The library is built when fedmed is installed and a C++ compiler is there, or by hand with ``python -m fedmed.native``.
It is loaded at its first use, by ctypes. ``FEDMED_NATIVE=0`` in the environment leaves it out; ``portable``, ``avx2``
or ``avx512`` choose a narrower instruction set than the processor has.
"""

import ctypes
import functools
import logging
import os
from pathlib import Path

from fedmed.native.build import LIBRARY

__all__ = ["ABI_VERSION", "FORMS", "Kernels", "Problem", "load_kernels", "native_form"]

ABI_VERSION = 1
"""Version of the C interface; a library of another version is not used."""
FORMS = ("portable", "avx2", "avx512")
"""Instruction sets, narrowest first; the library knows them by their place here."""
VARIABLE = "FEDMED_NATIVE"
_log = logging.getLogger(__name__)
_WORDS = ("batch", "height", "width", "channels", "stride", "reach", "branches", "threads", "is_double")
_ADDRESSES = (
    *("sides", "kernels", "scales", "shifts", "x", "merged", "bias", "mean", "variance", "deviation", "products"),
    *("firsts", "gradient", "grad_x", "grad_kernels", "grad_scales", "grad_shift"),
)


class Problem(ctypes.Structure):
    """One layer's sizes and the addresses of its arrays; the C++ file says what each holds."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _WORDS),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _ADDRESSES),
    ]


class Kernels:
    """The loaded library, bound to one instruction set.

    Parameters
    ----------
    library : ctypes.CDLL
        Of our ABI version.
    form : str
        One of :data:`FORMS`.
    """

    def __init__(self, library: ctypes.CDLL, form: str) -> None:
        self.form = form
        self._library = library
        self._number = FORMS.index(form)

    def window_reach(self, problem: Problem) -> int:
        """Return the reach E of the tap window, (2E+1) x (2E+1), in which the problem is solved."""
        found: int = self._library.fedmed_window_reach(ctypes.byref(problem))
        return found

    def bag_sizes(self, problem: Problem) -> tuple[int, int]:
        """Return how many numbers the arrays ``products`` and ``firsts`` of a bag hold."""
        products, firsts = ctypes.c_int64(), ctypes.c_int64()
        self._library.fedmed_bag_sizes(
            self._number, ctypes.byref(problem), ctypes.byref(products), ctypes.byref(firsts)
        )
        return products.value, firsts.value

    def bag_forward(self, problem: Problem) -> None:
        """Fill statistics, merged kernel and bias of a bag."""
        self._call("fedmed_bag_forward", problem)

    def bag_backward(self, problem: Problem) -> None:
        """Fill the gradients of a bag; that of the input only where ``grad_x`` is set."""
        self._call("fedmed_bag_backward", problem)

    def weight_gradient(self, problem: Problem) -> None:
        """Fill ``grad_kernels``, (C, K, K), of one depthwise convolution."""
        self._call("fedmed_weight_gradient", problem)

    def _call(self, name: str, problem: Problem) -> None:
        if getattr(self._library, name)(self._number, ctypes.byref(problem)):
            raise MemoryError(f"Not enough memory for the work space of {name}.")


def native_form() -> str | None:
    """Return the instruction set that the native kernels use here, or None where they are not used."""
    kernels = load_kernels()
    return kernels.form if kernels else None


def load_kernels() -> Kernels | None:
    """Return the native kernels as the environment asks for them now, or None."""
    return _load(os.environ.get(VARIABLE, "1"), LIBRARY)


@functools.lru_cache(maxsize=8)
def _load(wish: str, path: Path) -> Kernels | None:
    """Load once for every wish, and say once in the log which form runs, or why none does."""
    if wish == "0":
        _log.info("Depthwise layers train in pure torch (%s=0).", VARIABLE)
        return None
    if not path.exists():
        _log.info("Depthwise layers train in pure torch: no native library here; 'python -m fedmed.native' builds it.")
        return None
    try:
        library = ctypes.CDLL(str(path))
        version = library.fedmed_abi_version()
        best = library.fedmed_best_form()
    except (OSError, AttributeError) as error:
        _log.warning("Depthwise layers train in pure torch: %s cannot be loaded (%s).", path.name, error)
        return None
    if version != ABI_VERSION:
        _log.warning(
            "Depthwise layers train in pure torch: %s has interface %s, this version of fedmed wants %s. "
            "Build it again with 'python -m fedmed.native'.",
            path.name,
            version,
            ABI_VERSION,
        )
        return None
    form = FORMS[min(best, FORMS.index(wish) if wish in FORMS else best)]
    _log.info("Depthwise layers train with native kernels (%s).", form)
    return Kernels(library, form)
