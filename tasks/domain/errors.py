"""The exception tree. It knows nothing of the libraries whose errors adapters translate into it.

    NearlineError
    |-- TransientError             a retry may help; tasks retry on this type alone
    |   |-- WarehouseBusyError     another process held the catalog for too long
    |   |-- WarehouseUnavailableError  the server of the catalog did not answer
    |   |-- StorageError           the disk is full, or a folder cannot be written
    |   |-- IndexUnavailableError  the vector index did not answer
    |   |-- ComputeLostError       Dask workers were lost
    |   `-- OverloadedError        more came than can be written down in time
    `-- TerminalError              a retry does the same again
        |-- InputError             a file, a column or a parameter cannot be used
        |-- SettingsError          a setting is unknown or out of range
        |-- ModelMissingError      a language model cannot be found or is not whole
        |-- NotFoundError          an id, a version, a flow or a table that does not exist
        |-- MigrationNeededError   the warehouse has an older layout than this program needs
        |-- GateError              a gate stopped the flow
        `-- TrainingError          a fit diverged or has nothing to learn from

A message says what was attempted, what came, what was allowed, and what to do next.
"""


class NearlineError(Exception):
    """Every error that Nearline raises on purpose."""


class TransientError(NearlineError):
    """A retry may help."""


class TerminalError(NearlineError):
    """A retry would do the same again."""


class WarehouseBusyError(TransientError):
    """The warehouse's catalog stayed locked for longer than the wait that is allowed."""


class StorageError(TransientError):
    """The disk is full, or a folder or file of the state cannot be written. What was stored before is whole."""


class WarehouseUnavailableError(TransientError):
    """The server that holds the warehouse's catalog did not answer, or was lost on the way."""


class IndexUnavailableError(TransientError):
    """The vector index did not answer, or another process holds it and does not share it."""


class ComputeLostError(TransientError):
    """Workers were lost and the work they held could not be finished."""


class OverloadedError(TransientError):
    """More rows are waiting to be written than the settings allow; ``retry_after_seconds`` says when to come again."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class InputError(TerminalError):
    """Something that was given cannot be used."""


class SettingsError(TerminalError):
    """A setting is unknown, of the wrong type or out of its range."""


class ModelMissingError(TerminalError):
    """A language model's files are missing or are not the ones that were pinned."""


class NotFoundError(TerminalError):
    """Something was asked for by a name or id that does not exist."""


class MigrationNeededError(TerminalError):
    """The warehouse was written by an older program and has to be brought forward first: ``nearline migrate``."""


class GateError(TerminalError):
    """A gate stopped the flow; the serving version was not touched."""


class TrainingError(TerminalError):
    """A fit diverged, or there is nothing to learn from."""
