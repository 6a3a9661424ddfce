"""What can keep the online side from being whole, each with its name. It knows nothing of how that is found out."""

from tasks.domain.errors import TransientError, WarehouseBusyError
from tasks.domain.online import Problem


def nothing_published(is_serving: bool, problem: Exception | None) -> Problem | None:
    """``nothing_published``: there is nothing to serve yet, and not because something failed."""
    if is_serving or problem is not None:
        return None
    return Problem(
        "nothing_published",
        "No model version is published yet, so there is nothing to recommend from.",
        "Import items and events, then: nearline run daily_batch.",
    )


def index_away(why: str, is_serving: bool) -> Problem | None:
    """``index_away``: the vector index did not answer, for ``why``; empty if it did."""
    if not why:
        return None
    stays = "What serves stays as it is" if is_serving else "What was published last is served, if there is such"
    return Problem(
        "index_away",
        f"The vector index did not answer ({why}). {stays}, and publications are not followed.",
        "Look whether `nearline up` or the Qdrant server runs.",
    )


def following_failed(error: Exception | None) -> Problem | None:
    """``warehouse_busy`` while it is locked, ``follower_failed`` for anything else."""
    if error is None:
        return None
    if isinstance(error, WarehouseBusyError):
        return Problem(
            "warehouse_busy",
            "The warehouse stayed locked for too long. Answers may miss the newest events and versions.",
            "Let the other job finish.",
        )
    retried = " It is tried again." if isinstance(error, TransientError) else ""
    return Problem(
        "follower_failed",
        f"Following the warehouse failed ({type(error).__name__}).{retried} Answers come from the last good state.",
        "The log of the service has the error.",
    )


def refresh_stalled(seconds: float) -> Problem:
    """``refresh_stalled``: the oldest event that no stored profile holds has waited for so long."""
    return Problem(
        "refresh_stalled",
        f"The oldest event that no stored profile holds has waited for {seconds:.0f} s.",
        "Look at the runs of the deployment nearline; `nearline run nearline` refreshes now.",
    )


def intake_overloaded() -> Problem:
    """``intake_overloaded``: rows were refused, since too many wait."""
    return Problem(
        "intake_overloaded",
        "Rows were refused, since too many wait to be written.",
        "Send them again later, or slower; NEARLINE_SERVICE__MAX_WAITING_ROWS lets more wait.",
    )
