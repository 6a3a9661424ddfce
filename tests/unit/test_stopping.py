"""Signals end a context in order, once."""

import signal

import pytest

from flows.stopping import StopRequested, pauses_until_stopped, stop_on_signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """Signals that reach nobody else than the test; gives the handlers that must be back in the end."""
    before = {number: signal.getsignal(number) for number in BOTH}
    for number in BOTH:
        signal.signal(number, unexpected)
    yield
    found = {number: signal.getsignal(number) for number in BOTH}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert found == dict.fromkeys(BOTH, unexpected)


def unexpected(number, _frame):
    raise AssertionError(f"signal {number} left the context")


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_ends_the_context_and_nothing_after_it_inside(number):
    done = []
    with stop_on_signals():
        try:
            signal.raise_signal(number)
            done.append("went on")
        finally:
            done.append("closed")
    assert done == ["closed"]


@pytest.mark.parametrize("again", BOTH)
def test_what_closes_is_not_disturbed_by_a_second_signal(again):
    done = []
    with stop_on_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(again)
            done.append("closed")
    assert done == ["closed"]


def test_who_catches_it_goes_on_and_later_signals_are_ignored():
    """uvicorn ends by itself, and raises the signals that it saw again, one after the other."""
    done = []
    with stop_on_signals():
        try:
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
        except StopRequested:
            signal.raise_signal(signal.SIGTERM)
            done.append("ended in order")
    assert done == ["ended in order"]


def test_only_the_named_signals_are_taken():
    with stop_on_signals(signal.SIGTERM):
        with pytest.raises(AssertionError, match="left the context"):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on")


def test_errors_pass():
    with pytest.raises(KeyError), stop_on_signals():
        raise KeyError


def test_a_signal_between_two_pauses_ends_the_next_one_and_interrupts_nothing() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pauses_until_stopped() as goes_on:
        assert goes_on(0.01)
        signal.raise_signal(signal.SIGINT)
        assert not goes_on(60)
        with pytest.raises(AssertionError, match="left the context"):
            signal.raise_signal(signal.SIGINT)
            goes_on(60)
    assert signal.getsignal(signal.SIGINT) is handler
