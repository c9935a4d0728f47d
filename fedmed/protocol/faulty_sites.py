"""What the server computes from the sites' answers goes on without a site whose answer breaks it, and names that site.

Answers are checked at the door. This is for what no check has foreseen: one site's content must not end a round of all.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from fedmed.errors import FedmedError

_logger = logging.getLogger("fedmed.server")

T = TypeVar("T")
R = TypeVar("R")
_MOST_PAIRS = 16
"""Sites up to which two at once are looked for."""


@dataclass(frozen=True)
class WithoutFaulty(Generic[R]):
    """A result, and the sites that it does without."""

    result: R
    left_out: dict[str, str]
    """Site to reason."""


def without_faulty(
    sites: Mapping[str, T],
    compute: Callable[[Mapping[str, T]], R],
    *,
    what: str,
    is_sound: Callable[[R], bool] | None = None,
    fatal: tuple[type[Exception], ...] = (FedmedError,),
) -> WithoutFaulty[R]:
    """Compute something from all sites' answers; if that fails because of one, from those of the others.

    Parameters
    ----------
    sites : mapping of str to object
        What each site has sent.
    compute : callable
        Of such a mapping; changes nothing that lasts.
    what : str
        What is computed, for people: ``"the validation figures"``.
    is_sound : callable, optional
        Whether a result can be used; default: that all of its numbers are finite.
    fatal : tuple of exception types
        Of ``compute``, which are about the run and not about a site, and are raised.

    Raises
    ------
    Exception
        A fatal one, or the first one of ``compute`` where no site can be told that is to blame.

    Notes
    -----
    Left out are the sites with whose answer alone it fails as well; if that is none or all, one site after the other,
    and of few sites every two. This costs time only where something has failed.
    """
    check = has_finite_numbers if is_sound is None else is_sound
    try:
        return WithoutFaulty(_compute(sites, compute, check), {})
    except fatal:
        raise
    except Exception as error:
        _logger.warning("%s failed with the answers of all sites", what, exc_info=True)
        reason = f"{what} cannot be computed with its answer ({type(error).__name__})"
        for culprits in _list_suspects(sites, compute, check):
            rest = {site: of_site for site, of_site in sites.items() if site not in culprits}
            try:
                return WithoutFaulty(_compute(rest, compute, check), dict.fromkeys(sorted(culprits), reason))
            except fatal:
                raise
            except Exception as again:
                _logger.debug("nor without %s: %s", culprits, type(again).__name__)
        raise


class _UnsoundError(Exception):
    """A result holds numbers that are not finite."""


def _compute(sites: Mapping[str, T], compute: Callable[[Mapping[str, T]], R], check: Callable[[R], bool]) -> R:
    result = compute(sites)
    if not check(result):
        raise _UnsoundError
    return result


def _list_suspects(
    sites: Mapping[str, T], compute: Callable[[Mapping[str, T]], R], check: Callable[[R], bool]
) -> Iterator[set[str]]:
    names = sorted(sites)
    alone = {name for name in names if not _works(name, sites, compute, check)}
    if 0 < len(alone) < len(names):
        yield alone
    if len(names) > 1:
        yield from ({name} for name in names)
    if 2 < len(names) <= _MOST_PAIRS:
        yield from (set(pair) for pair in itertools.combinations(names, 2))


def _works(
    name: str, sites: Mapping[str, T], compute: Callable[[Mapping[str, T]], R], check: Callable[[R], bool]
) -> bool:
    try:
        _compute({name: sites[name]}, compute, check)
    except Exception:
        return False
    return True


def has_finite_numbers(value: object) -> bool:
    """Return whether no number in a value, of any depth, is infinite or NaN; None stands for what is not defined."""
    if isinstance(value, BaseModel):
        return has_finite_numbers(value.__dict__)
    if isinstance(value, Mapping):
        return all(map(has_finite_numbers, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(has_finite_numbers, value))
    return not isinstance(value, float) or math.isfinite(value)
