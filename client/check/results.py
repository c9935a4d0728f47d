"""How a check ends."""

AGAIN = "Correct this, then run --check again."


class CheckFailedError(Exception):
    """Ends a check as failed.

    Parameters
    ----------
    found : str
        What was found, and what is allowed.
    advice : str
        What to do.
    """

    def __init__(self, found: str, advice: str = AGAIN) -> None:
        super().__init__(found)
        self.found, self.advice = found, advice
