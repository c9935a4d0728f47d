"""Errors that a person can act on.

Every foreseeable failure raises one of these. The commands print the message as it is and end with a non-zero exit
code; ``--debug`` adds the traceback. A message says what was found, where, what is allowed and what to do.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class FedmedError(Exception):
    """Base of all foreseeable failures; its text is meant for the person at the keyboard."""

    shareable: ClassVar[bool] = False
    """Whether the text may be told to the other side: it never names an image, a patient, a file or a path."""
    told: ClassVar[str | None] = None
    """What the other side is told in place of a text that is not shareable."""


class ConfigError(FedmedError):
    """A setting is missing, unknown or has a value that is not allowed."""


class ExtensionError(ConfigError):
    """Code that is named by its import path is not installed, differs from what is wanted, or is not allowed."""

    shareable = True  # it speaks of names, versions and hashes of code


class ExtensionFailedError(ConfigError):
    """Code that is named by its import path has ended with an error, whose text may hold anything."""


class DataError(FedmedError):
    """Images or labels cannot be used as they are."""


class DataSettingsError(DataError):
    """A site's settings of its data do not suit the study. The text may name columns, so others are told less."""

    told = (
        "its data settings (data in the site's client.yaml) do not suit the study and were refused at the site itself; "
        "the site's log has the line with what to write, and flower-client --check shows it there"
    )


class FormatError(FedmedError):
    """Something was written in a format that this version does not open."""

    shareable = True


class RunFolderError(FedmedError):
    """A run folder exists already, is missing, or does not belong to this command."""


class CheckpointError(FedmedError):
    """No checkpoint can be read, or it does not fit the model."""


class ReparameterizationError(FedmedError):
    """A model cannot be brought to its deploy form exactly, or its two forms do not agree within tolerance."""


class FederationError(FedmedError):
    """The round loop cannot go on, for example because too few sites answered."""


class PolicyError(FedmedError):
    """A request goes beyond what the site allows."""

    shareable = True


class KeyFileError(FedmedError):
    """A key, certificate or signature is missing, damaged, expired or readable by others."""


class ConnectionRefusedByServerError(FedmedError):
    """The other side cannot be reached, cannot prove who it is, or does not know this site."""


class ProcessError(FedmedError):
    """A process of our own could not be started or does not stay up."""


class TeacherUnavailableError(FedmedError):
    """A pre-trained teacher is not here, is not the file it should be, or does not fit its network."""


class FourierPromptError(FedmedError):
    """A Fourier prompt has nothing to learn from, for example because the teacher has no BatchNorm."""

    shareable = True  # it speaks of what the plan names


class ProxyDataUnavailableError(FedmedError):
    """The server has no unlabelled images to distil a compact student on."""


def tame(text: str, most: int = 500) -> str:
    """Return a text that came from the other side fit for a terminal, a log or a page: printable, and not too long.

    Parameters
    ----------
    text : str
        Anything.
    most : int
        Letters that are kept.
    """
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return shown if len(shown) <= most else shown[:most] + "…"


def suggest_nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest allowed word, or an empty string.

    Parameters
    ----------
    word : str
        What was found.
    allowed : iterable of str
        What would have been right.
    """
    matches = difflib.get_close_matches(word, sorted(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


class WireError(FedmedError):
    """A message does not have the form that was agreed."""

    shareable = True


class TrainingError(FedmedError):
    """Local training cannot go on, for example because the loss is no longer a number."""

    shareable = True


def describe_error(error: BaseException) -> str:
    """Say what happened in words that may leave the site: only some of our own errors surely hold nothing private.

    Of other people's errors the class is told, which helps; the class of ours says no more than the sentence.
    """
    lines = str(error).splitlines()
    if not isinstance(error, FedmedError):
        return f"the site's program failed ({type(error).__name__}); the site's log says more"
    if error.shareable and lines:
        return lines[0]
    if error.told is not None:
        return error.told
    return "the site could not do this; the site's log says why"
