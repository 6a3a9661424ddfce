"""Ctrl-C and SIGTERM as an orderly end. It knows nothing of what ends."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType


class StopRequested(BaseException):
    """Somebody asked this process to end."""


@contextmanager
def stop_on_signals(*numbers: signal.Signals) -> Iterator[None]:
    """A context that the first of these signals ends (SIGINT and SIGTERM if none is named), as if it were done.

    Inside, the signal raises StopRequested in the main thread, where the context must be entered. While what is inside
    closes, further signals change nothing; the handlers of before are back afterwards.
    """
    wanted = numbers or (signal.SIGINT, signal.SIGTERM)

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in wanted:
            signal.signal(number, signal.SIG_IGN)
        raise StopRequested

    before = {number: signal.getsignal(number) for number in wanted}
    try:
        for number in wanted:
            signal.signal(number, stop)
        yield
    except StopRequested:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def pauses_until_stopped() -> Iterator[Callable[[float], bool]]:
    """Yields a function that pauses for some seconds and says whether to go on; a SIGINT or SIGTERM ends the pause.

    What runs between two pauses is not interrupted by the first signal. A second one does what it did before the
    context, which must be entered in the main thread; the handlers of before are back afterwards.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    asked: SimpleQueue[int] = SimpleQueue()  # a handler may put into it at any moment

    def stop(received: int, _frame: FrameType | None) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.put(received)

    def goes_on(seconds: float) -> bool:
        try:
            asked.get(timeout=seconds)
        except Empty:
            return True
        return False

    try:
        for number in numbers:
            signal.signal(number, stop)
        yield goes_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
