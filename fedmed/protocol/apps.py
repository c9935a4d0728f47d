"""The apps on both ends of a message: imported by name, with PyTorch made ready."""

import importlib
from typing import TypeVar

T = TypeVar("T")


def load_app(reference: str, kind: type[T]) -> T:
    """Import an app by its ``module:attribute``.

    Parameters
    ----------
    reference : str
        Of what is installed here.
    kind : type
        Flower's ``ClientApp`` or ``ServerApp``; it is not imported here, so that each side loads its own alone.

    Raises
    ------
    TypeError
        If the attribute is something else.
    """
    module, _, attribute = reference.partition(":")
    app = getattr(importlib.import_module(module), attribute)
    if not isinstance(app, kind):
        raise TypeError(f"'{reference}' is a {type(app).__name__}, not a {kind.__name__}.")
    return app


def warm_up(threads: int, device_wish: str = "auto") -> None:
    """Import PyTorch, set its threads and take one optimizer step, which imports more than PyTorch itself does.

    Parameters
    ----------
    threads : int
        PyTorch threads.
    device_wish : str
        ``device`` of client.yaml; with ``cpu`` the GPU is not touched.
    """
    # Here and not above: others import this module for its names, and need not have torch.
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    device = "cuda" if device_wish != "cpu" and torch.cuda.is_available() else "cpu"
    # Zeros, so that torch's global random generator stays untouched.
    kernel = torch.zeros(8, 3, 3, 3, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([kernel], lr=0.1)
    torch.nn.functional.conv2d(torch.zeros(2, 3, 16, 16, device=device), kernel).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
