import pytest

from server.superlink.limits import ConcurrencyLimiter, ReplyTooLarge, TooManyRequests, UploadedBytes


def test_what_a_session_has_sent_is_bounded() -> None:
    uploaded = UploadedBytes()
    uploaded.add("a", 60, 100)
    uploaded.add("b", 100, 100)
    with pytest.raises(ReplyTooLarge):
        uploaded.add("a", 41, 100)
    uploaded.add("a", 40, 100)  # the refused ones are not counted
    uploaded.take_back("a", 10)
    uploaded.add("a", 10, 100)
    uploaded.add("own", 10**12, None)
    uploaded.forget("a")
    uploaded.add("a", 100, 100)
    uploaded.keep_only({"b"})
    assert len(uploaded) == 1
    uploaded.take_back("b", 100)
    uploaded.take_back("unknown", 1)
    assert len(uploaded) == 0


def test_sites_are_counted_apart_and_also_when_something_fails() -> None:
    limiter = ConcurrencyLimiter()
    with limiter.count(1, waits=True), limiter.count(1, waits=True):
        with pytest.raises(TooManyRequests), limiter.count(1, waits=True):
            raise AssertionError
        with limiter.count(1, waits=False), limiter.count(2, waits=True):
            pass
    with pytest.raises(ZeroDivisionError), limiter.count(1, waits=True):
        raise ZeroDivisionError
    assert not limiter._all
    assert not limiter._waiting
