"""Code from outside fedmed, named by its import path: ``package.module:name``.

A model, a loss, a source of images, an aggregation rule or a step of the server can come from a package that a person
has installed beside fedmed. No code travels: each process imports what is installed where it runs. Which code that is,
is found without importing it (:func:`find_extension`) and told with distribution, version and the SHA-256 of the
module's file, so that other processes can compare theirs (:func:`check_installed`).

At a hospital, code that its ``client.yaml`` does not name is never imported (:func:`allow_only`).
"""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedmed.errors import ExtensionError, ExtensionFailedError, tame
from fedmed.installed_code import find_distribution, find_module_file
from fedmed.registry import Registry

T = TypeVar("T")

RESERVED = ("timm", "torchvision")
"""``timm:NAME`` is no import path: these prefixes are kept for the networks of those libraries."""
_OWN = ("fedmed", "server", "client", "simulations", "configs")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_LONGEST = 200
_SHORT = 12


def is_path(name: str) -> bool:
    """Return whether a name is meant as an import path; a registered name never holds a colon."""
    return ":" in name


def check_path(path: str) -> str:
    """Return an import path if it is one that may be named at all.

    Raises
    ------
    ExtensionError
        If it has another form, or points into fedmed itself or into Python's own library.
    """
    shown = tame(path, _LONGEST)
    module, _, name = path.partition(":")
    top = module.partition(".")[0]
    if top in RESERVED:  # their builders fetch weights from the internet, which a policy must be asked about
        raise ExtensionError(
            f"'{shown}': networks of {top} cannot be named like this in this version. Allowed: a function of your own "
            "package that builds one."
        )
    if len(path) > _LONGEST or not _PATH.fullmatch(path):
        raise ExtensionError(
            f"'{shown}' is no import path. Allowed: package.module:name, for example my_package.networks:build."
        )
    if top in _OWN:
        raise ExtensionError(f"'{shown}' points into fedmed itself. What fedmed has is named without a path.")
    if top in sys.stdlib_module_names:
        raise ExtensionError(f"'{shown}' points into Python's own library. Allowed: a package made for fedmed.")
    if name.startswith("__"):
        raise ExtensionError(f"'{shown}' names something of Python's own. Allowed: a function or class of the module.")
    return path


def _check_path_value(path: str) -> str:
    try:
        return check_path(path)
    except ExtensionError as error:
        raise ValueError(str(error).removesuffix(".")) from None


ImportPath = Annotated[str, AfterValidator(_check_path_value)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(min_length=1, max_length=100)]


class Extension(BaseModel):
    """Which code an import path means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: ImportPath
    distribution: Word | None
    """What was installed to bring it; null: a loose file, which belongs to no installed distribution."""
    version: Word | None
    """Of the distribution."""
    sha256: Sha256
    """Of the module's file."""

    def __str__(self) -> str:
        origin = "a loose file" if self.distribution is None else f"{self.distribution} {self.version}"
        return tame(f"'{self.path}' of {origin}, SHA-256 {self.sha256[:_SHORT]}", 2 * _LONGEST)


class AllowedExtension(BaseModel):
    """What a hospital allows: one import path, perhaps of one version or of one file only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: ImportPath
    version: Word | None = None
    """Only this version of the distribution; null: any."""
    sha256: Sha256 | None = None
    """Only the file with this hash; null: any file of an installed distribution, and no loose one."""

    def covers(self, extension: Extension) -> bool:
        """Return whether this is the code that is meant."""
        if self.sha256 is None and extension.distribution is None:
            return False
        return (
            self.path == extension.path
            and self.version in {None, extension.version}
            and self.sha256 in {None, extension.sha256}
        )


_allowed: ContextVar[Callable[[Extension], bool] | None] = ContextVar("allowed extensions", default=None)
_loaded: dict[str, str] = {}
"""Modules that were imported here, with the hash of their file then."""


@contextmanager
def allow_only(entries: Sequence[AllowedExtension], own: Sequence[str] = ()) -> Iterator[None]:
    """Let nothing be imported inside this block but what a hospital allows.

    It is the last of several checks: whatever a plan says, and whoever forgets to look at it, nothing else is run.

    Parameters
    ----------
    entries : sequence of AllowedExtension
        What the site's policy allows.
    own : sequence of str
        Import paths that the site's own settings name for itself.
    """
    token = _allowed.set(lambda found: found.path in own or any(entry.covers(found) for entry in entries))
    try:
        yield
    finally:
        _allowed.reset(token)


def find_extension(path: str) -> Extension:
    """Return which code an import path means here. Nothing is imported.

    Raises
    ------
    ExtensionError
        If the path may not be named, or its module is not installed here.
    """
    module = check_path(path).partition(":")[0]
    file = find_module_file(module)
    if file is None:
        raise ExtensionError(
            f"'{path}' is not installed here: there is no file of a module '{module}'. Install its package beside "
            "fedmed."
        )
    distribution = find_distribution(module, file)
    return Extension(
        path=path,
        distribution=None if distribution is None else distribution.metadata["Name"],
        version=None if distribution is None else distribution.version,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def check_installed(wanted: Iterable[Extension]) -> None:
    """Check that the same code is installed here. Nothing is imported.

    Parameters
    ----------
    wanted : iterable of Extension
        As the coordinating site has described them.

    Raises
    ------
    ExtensionError
        If one is not here, or is of another distribution or version, or its file differs.
    """
    for one in wanted:
        _compare(one)


def load_extension(path: str) -> Callable[..., object]:
    """Import a module and return the function or class that a path names.

    Raises
    ------
    ExtensionError
        If it is not installed here, not allowed here, or cannot be called.
    ExtensionFailedError
        If the module ends with an error when it is imported.
    """
    found = find_extension(path)
    allowed = _allowed.get()
    if allowed is not None and not allowed(found):
        raise ExtensionError(f"{found}, is not allowed at this site (policy.extensions in its client.yaml).")
    module, _, name = path.partition(":")
    if _loaded.setdefault(module, found.sha256) != found.sha256:
        raise ExtensionError(f"The file of '{module}' has changed since this process has loaded it. Start it again.")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        _loaded.pop(module)
        raise ExtensionFailedError(f"'{module}' cannot be imported here: {describe_failure(error)}") from error
    if Path(str(getattr(imported, "__file__", None))).resolve() != find_module_file(module):
        raise ExtensionError(f"Another module '{module}' is loaded here already, from another place.")
    attribute = getattr(imported, name, None)
    if attribute is None:
        raise ExtensionError(f"The module '{module}' has no '{name}' (SHA-256 {found.sha256[:_SHORT]}).")
    if not callable(attribute):
        raise ExtensionError(f"'{path}' is a {type(attribute).__name__}. Needed: a function or class to call.")
    return attribute  # type: ignore[no-any-return]


def build_extension(kind: str, path: str, result: type[T], /, *args: object, **options: object) -> T:
    """Call what an import path names and return what it makes.

    Parameters
    ----------
    kind : str
        What is built, in the singular, for messages: ``"model"``.
    path : str
        ``package.module:name`` of a function or class. As for registered names, its keyword-only parameters are the
        options.
    result : type
        What it must return.
    *args
        Its positional arguments.
    **options
        Options of the settings.

    Raises
    ------
    ExtensionError
        See :func:`load_extension`; or it returns something else.
    ExtensionFailedError
        If it ends with an error.
    ConfigError
        If it does not have an option.
    """
    function = load_extension(path)
    registry: Registry[object] = Registry(kind)
    registry.register(path)(_explain_failures(kind, path, function))
    built = registry.build(path, *args, **options)
    if not isinstance(built, result):
        raise ExtensionError(
            f"The {kind} '{path}' has made a {type(built).__name__}. Needed: {result.__module__}.{result.__qualname__}."
        )
    return built


def _explain_failures(kind: str, path: str, function: Callable[..., object]) -> Callable[..., object]:
    """Return a function that does the same and whose errors name the extension."""

    def call(*args: object, **options: object) -> object:
        try:
            return function(*args, **options)
        except Exception as error:
            raise ExtensionFailedError(f"The {kind} '{path}' cannot be built: {describe_failure(error)}") from error

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise ExtensionError(f"'{path}' does not tell its parameters. Needed: a function written in Python.") from None
    shown: Any = call
    shown.__signature__ = signature
    return call


def describe_failure(error: BaseException) -> str:
    """Return the kind of an error of code from outside fedmed, and the first line of what it says."""
    first = next(iter(str(error).splitlines()), "")
    return tame(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def _compare(wanted: Extension) -> None:
    try:
        found = find_extension(wanted.path)
    except ExtensionError as error:
        raise ExtensionError(f"{error} Wanted: {wanted}.") from None
    if (found.distribution, found.version) != (wanted.distribution, wanted.version):
        raise ExtensionError(f"Found here: {found}. Wanted: {wanted}. Install the version that is wanted.")
    if found.sha256 != wanted.sha256:
        raise ExtensionError(
            f"Found here: {found}. Wanted: {wanted}. Name and version are the same, the file differs. "
            "Install it again from where the coordinating site has it."
        )
