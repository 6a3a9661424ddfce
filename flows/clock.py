"""The clock. Only flows and the command line read it; everything below is given the time."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)
