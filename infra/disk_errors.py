"""What a disk refuses, told so that an operator knows what to do. It knows nothing of what is written there."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.domain.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL_SIGNS = ("no space left on device", "disk quota exceeded", "file too large", "disk is full")
_CLOSED_SIGNS = ("read-only file system", "readonly database", "permission denied", "operation not permitted")
_OTHER_SIGNS = ("disk i/o error",)  # SQLite's words for anything else that a write met

_FREE_SPACE = (
    "The disk is full, or what this user may have of it. What was stored before is whole: make room, then run it again."
)
_MAY_WRITE = (
    "What was stored before is whole. Look whether the disk is mounted for writing and this user may write there "
    "(NEARLINE_HOME names the folder of the state), then run it again."
)
_LOOK = "What was stored before is whole. Look whether the disk is full, or is failing, then run it again."


def disk_advice(text: str) -> str | None:
    """What to do about a message of the operating system or of a storage engine; None if it is not about the disk."""
    text = text.lower()
    for signs, advice in ((_FULL_SIGNS, _FREE_SPACE), (_CLOSED_SIGNS, _MAY_WRITE), (_OTHER_SIGNS, _LOOK)):
        if any(sign in text for sign in signs):
            return advice
    return None


def storage_error(attempt: str, error: OSError) -> StorageError | None:
    """The error for something that a full disk or a folder closed to writing refused; None for any other reason."""
    if error.errno not in _FULL + _CLOSED:
        return None
    advice = _FREE_SPACE if error.errno in _FULL else _MAY_WRITE
    where = f" ({error.filename})" if error.filename else ""
    return StorageError(f"{attempt} failed: {error.strerror}{where}. {advice}")


@contextmanager
def writing(attempt: str) -> Iterator[None]:
    """Translates what the disk refuses inside into StorageError; ``attempt`` begins its message."""
    try:
        yield
    except OSError as error:
        if (found := storage_error(attempt, error)) is not None:
            raise found from error
        raise
