"""What becomes of an answer that cannot be read."""

from typing import cast

import pytest
from flwr.app import Message

from fedmed.errors import WireError
from server.rounds.exchange import Answer, open_answer

MESSAGE = cast(Message, object())


def test_an_answer_is_a_value_or_a_problem() -> None:
    assert open_answer(Answer("a", MESSAGE, None, 0.0), lambda message: message is MESSAGE) == (True, None)
    assert open_answer(Answer("a", None, "it fell asleep", 0.0), lambda _: 1) == (None, "it fell asleep")
    assert open_answer(Answer("a", None, None, 0.0), lambda _: 1) == (None, "no reason given")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WireError("It is of another model."), "It is of another model."),
        (KeyError("x"), "its answer is malformed (KeyError); the site and the server must have the same versions"),
        (RecursionError(), "its answer is malformed (RecursionError)"),
    ],
)
def test_what_a_site_made_up_does_not_end_the_run(error: Exception, words: str) -> None:
    def read(message: Message) -> int:
        raise error

    value, problem = open_answer(Answer("a", MESSAGE, None, 0.0), read)
    assert value is None
    assert problem is not None
    assert problem.startswith(words)


def test_an_error_of_our_own_is_not_hidden() -> None:
    def read(message: Message) -> int:
        raise NotADirectoryError

    with pytest.raises(NotADirectoryError):
        open_answer(Answer("a", MESSAGE, None, 0.0), read)
