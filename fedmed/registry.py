"""Names to builders, for models, losses, data sources and aggregators."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, TypeVar

from fedmed.errors import ConfigError, suggest_nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from a name in the config to the function that builds the thing.

    Parameters
    ----------
    kind : str
        What is registered, in the singular, for error messages: ``"model"``.

    Notes
    -----
    The keyword-only parameters of a builder are its options. One whose name Python reserves ends in an underscore
    there, and has none as an option: ``global_`` is the option ``global``.

    Examples
    --------
    >>> losses = Registry("loss")
    >>> @losses.register("ce")
    ... def build_cross_entropy(): ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._builders: dict[str, Callable[..., T]] = {}
        self._paths: dict[str, str] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Return a decorator that registers a builder under ``name``."""

        def add(builder: Callable[..., T]) -> Callable[..., T]:
            assert name not in self.names(), f"{self.kind} {name!r} is registered twice"
            self._builders[name] = builder
            return builder

        return add

    def register_lazily(self, name: str, path: str) -> None:
        """Register a builder that is imported when it is first used.

        Parameters
        ----------
        name : str
            The name in the config.
        path : str
            Where the builder is: ``"package.module:function"``.
        """
        assert name not in self.names(), f"{self.kind} {name!r} is registered twice"
        self._paths[name] = path

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        return sorted(self._builders.keys() | self._paths.keys())

    def build(self, name: str, *args: Any, **options: Any) -> T:
        """Build what is registered under ``name``.

        Raises
        ------
        ConfigError
            If the name is unknown or an option is not one of the builder's.
        """
        if name not in self.names():
            raise ConfigError(
                f"There is no {self.kind} '{name}'.{suggest_nearest(name, self.names())} "
                f"Allowed: {', '.join(self.names())}."
            )
        builder = self._find(name)
        return builder(*args, **self._match_options(name, builder, options))

    def _find(self, name: str) -> Callable[..., T]:
        if name not in self._builders:
            module, _, attribute = self._paths[name].partition(":")
            self._builders[name] = getattr(import_module(module), attribute)
        return self._builders[name]

    def _match_options(self, name: str, builder: Callable[..., T], options: dict[str, Any]) -> dict[str, Any]:
        """Return the options under the names of the builder's parameters."""
        parameters = inspect.signature(builder).parameters.values()
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            return options
        allowed = {p.name.removesuffix("_"): p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        for option in options:
            if option not in allowed:
                raise ConfigError(
                    f"The {self.kind} '{name}' has no option '{option}'.{suggest_nearest(option, allowed)} "
                    f"Allowed: {', '.join(sorted(allowed)) or 'none'}."
                )
        return {allowed[option]: value for option, value in options.items()}
