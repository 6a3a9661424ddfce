"""Ctrl-C and SIGTERM as an orderly end. It knows nothing of what ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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
