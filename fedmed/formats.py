"""Numbers of the formats in which things are stored and sent.

What has no number was written before there were any, and is of format 1. A format's number rises when what is written
could be misread by an older version; a reader says which numbers it opens and refuses others in one line.
Checkpoints, artefacts and native kernels have their numbers where they are written.
"""

from dataclasses import dataclass

from fedmed.errors import FormatError
from fedmed.versions import SOFTWARE, find_version


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes
    ----------
    what : str
        What is in it, for messages.
    number : int
        What this version writes.
    oldest : int
        The oldest that it opens.
    """

    what: str
    number: int
    oldest: int = 1

    def check(self, found: object, where: object) -> int:
        """Return a number that was found, 1 for None.

        Parameters
        ----------
        found : object
            As it was read; from outside, so it may be anything. Text of digits counts as a number.
        where : object
            The file, or who has sent it.

        Raises
        ------
        FormatError
            If this version does not open it.
        """
        text = str(1 if found is None else found)
        is_known = text.isdecimal() and self.oldest <= int(text[:9]) <= self.number and not isinstance(found, bool)
        if is_known:
            return int(text)
        allowed = str(self.number) if self.oldest == self.number else f"{self.oldest} to {self.number}"
        raise FormatError(
            f"{self.what} of {where} has the format {text[:40]!r}; fedmed {find_version(SOFTWARE)} opens {allowed}. "
            "Install the version of fedmed that wrote it"
            f"{', or ask the coordinating site for one of this version' if self.what == 'The kit' else ''}."
        )


MESSAGE = Format("The message", 1)
"""JSON and tensors of a request or report."""
TABLES = Format("The evaluation tables", 3)
"""Counts that a site tells; those of format 1 have no number, and 3 knows patients, areas and other wrong answers."""
SITE_STATE = Format("The state", 1)
"""What a site keeps between rounds."""
KIT = Format("The kit", 1)
"""``client.yaml`` and the files beside it, as ``--provision`` makes them."""
APPROVALS = Format("The list of approved plans", 1)
"""``approved_plans.json`` of a site."""
LEDGER = Format("The ledger of a run", 1)
"""``ledger.json`` of a run at a site."""
SITE_LIST = Format("The list of sites", 1)
"""``sites.json`` of the coordinating site."""
REPORT = Format("The report", 1)
"""``report.json``."""
RUN_FOLDER = Format("The run folder", 1)
"""Names and contents of a run's files; the number is in ``environment.json``."""
FIGURES = Format("The list of figures", 1)
"""``figures.json`` of a site: what it has told of the rounds' models."""
OPERATING_POINT = Format("The operating point", 1)
"""``tables/operating_point.json`` of a run."""
LEFT_OUT = Format("The list of who is left out", 1)
"""``left_out.json`` of a site."""
AUDIT_LOG = Format("The audit log", 3)
"""Lines of ``audit.jsonl``; those of format 1 have no number, and all may stand in one log. Since 3 an entry
``received`` holds the request, and the oldest lines may have been deleted."""
SIGNED_REQUEST = Format("The signature of a request", 2, oldest=2)
"""What a site signs with each request; of format 1 it was the time alone."""
