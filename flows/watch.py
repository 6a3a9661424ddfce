"""A folder that is watched: files that appear in it are imported. It moves and deletes nothing.

It knows nothing of how rows are checked or stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tasks.domain.errors import InputError, NearlineError, TransientError
from tasks.domain.mappings import SourceKind
from tasks.domain.ports import Resources
from tasks.domain.records import Receipt
from tasks.ingest import import_files

Version = tuple[int, int]
"""Size in bytes and time of the last change in ns: what a file was when it was last looked at."""


@dataclass
class FolderWatch:
    """Knows which files of a folder were dealt with, as what they were then.

    ``look`` is to be called again and again; a file is imported once it is the same at two looks in a row, so that one
    that is still being written is left alone. A file that changes is imported again. What was imported before the start
    is recognised by its content.
    """

    resources: Resources
    kind: SourceKind
    folder: Path
    clock: Callable[[], datetime]
    mapping: Mapping[str, str] | None = None
    max_quarantined_share: float = 0.1
    _seen: dict[Path, Version] = field(default_factory=dict)
    _done: dict[Path, Version] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder} cannot be watched: there is no such folder. Make it, or import a file: nearline import."
            )

    def look(self, report: Callable[[Path, Receipt | NearlineError], None]) -> None:
        """Import what is new and at rest; ``report`` gets each file's receipt, or the error that it has.

        A file with an error is reported once, and again when it has changed. One that met a TransientError is tried
        again at the next look.
        """
        seen = {path: version for path in self._files() if (version := _version(path))}
        ready = [path for path, version in seen.items() if self._seen.get(path) == version != self._done.get(path)]
        self._seen = seen
        self._done = {path: version for path, version in self._done.items() if path in seen}
        for path in ready:
            result = self._import(path)
            if not isinstance(result, TransientError):
                self._done[path] = seen[path]
            report(path, result)

    def _files(self) -> list[Path]:
        try:
            return self.resources.source_files().find([self.folder])
        except (InputError, OSError):  # empty, or away for the moment
            return []

    def _import(self, path: Path) -> Receipt | NearlineError:
        share = self.max_quarantined_share
        try:
            return import_files(
                self.resources, self.kind, [path], now=self.clock(), mapping=self.mapping, max_quarantined_share=share
            )[0]
        except NearlineError as error:
            return error
        except OSError as error:
            return InputError(f"{path} cannot be read: {error.strerror or error}. See who may read it.")


def _version(path: Path) -> Version | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
