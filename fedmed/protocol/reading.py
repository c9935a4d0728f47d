"""Requests and reports as objects: both sides build and read the same classes, and one sentence says what does not fit.

Numbers are strict: a bool is no whole number, a text is no number, and no float is infinite or NaN. A field's
``description`` says what is allowed; where it ends with a full stop it is the whole sentence.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fedmed.errors import FedmedError, WireError, tame
from fedmed.protocol.release import SHA256

SAME_VERSION = "Server and site must run the same version of fedmed."
_LARGEST_COUNT = 100_000_000

Count = Annotated[int, Field(ge=0, le=_LARGEST_COUNT)]
"""Of images, or anything that a site counts."""
Sha256 = Annotated[str, Field(pattern=f"^{SHA256.pattern}$")]


class MessageForm(BaseModel):
    """What one side tells the other: closed, unchangeable and strict."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    what: ClassVar[str] = "The message"
    """How errors name it."""

    def to_values(self) -> dict[str, JsonValue]:
        """Return the JSON values that travel: those that were given, without defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def read(cls, values: Mapping[str, JsonValue]) -> Self:
        """Return what the other side told.

        Raises
        ------
        WireError
            With the value found and what is allowed.
        """
        with explained(cls, WireError):
            try:
                return cls.model_validate(values)
            except RecursionError:
                raise WireError(f"{cls.what} is nested too deeply to be read.") from None

    @classmethod
    def fits(cls, values: Mapping[str, JsonValue]) -> bool:
        """Return whether values that arrived can be read as this class."""
        try:
            cls.model_validate(values)
        except (ValidationError, RecursionError):
            return False
        return True


@contextmanager
def explained(form: type[MessageForm], error: type[FedmedError]) -> Iterator[None]:
    """Turn what pydantic says of a class into one sentence for the staff."""
    try:
        yield
    except ValidationError as found:
        raise error(explain(form, found)) from None


def explain(form: type[MessageForm], error: ValidationError) -> str:
    """Return the first thing that does not fit as a sentence: the field, the value found, what is allowed.

    Parameters
    ----------
    form : type
        The class that was to be made.
    error : ValidationError
        Of it. Whatever it quotes came from the other side and is tamed.
    """
    first = error.errors(include_url=False)[0]
    place, value = first["loc"], first["input"]
    allowed = _find_allowed(form, place)
    if allowed.endswith("."):
        return allowed
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = tame(".".join(map(str, place)), 60)
    if first["type"] == "extra_forbidden":
        return f"{form.what} holds '{name}', which is not known here. {SAME_VERSION}"
    if first["type"] == "missing":
        return f"{form.what} lacks '{name}'. {SAME_VERSION}"
    text = f"{form.what}'s '{name}' is {tame(repr(value), 100)}"
    return f"{text}. Allowed: {allowed}." if allowed else f"{text}, which it cannot be. {SAME_VERSION}"


def _find_allowed(form: type[MessageForm], place: tuple[int | str, ...]) -> str:
    """Return what the innermost described field on the way to a place says."""
    allowed, inside = "", [form]
    for key in place:
        field = next(
            (one.model_fields[key] for one in inside if isinstance(key, str) and key in one.model_fields), None
        )
        if field is None:
            break
        allowed = field.description or allowed
        options = (field.annotation, *get_args(field.annotation))
        inside = [option for option in options if isinstance(option, type) and issubclass(option, MessageForm)]
    return allowed
