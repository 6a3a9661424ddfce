"""API keys and the salt of pseudonyms in ``<home>/serving``, which only their user can read. It knows nothing of HTTP.

A service that runs sees a change within a second: it compares the file's identity before it believes what it has in
memory.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock

from tasks.domain.access import ApiKey, make_key, opens, split_key
from tasks.domain.errors import NotFoundError, TerminalError

FOLDER, KEYS_FILE, SALT_FILE = "serving", "keys.json", "salt"
LOOK_SECONDS = 0.5
_SALT_BYTES = 32


class KeyStore:
    """The keys of a home; many threads and processes may use one file."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = home / FOLDER
        self._file = self._folder / KEYS_FILE
        self._clock = clock
        self._reading = Lock()
        self._looked_at = float("-inf")
        self._identity: tuple[int, int, int] | None = None
        self._keys: dict[str, ApiKey] = {}

    def find(self, text: str, now: datetime) -> ApiKey | None:
        """The key whose text this is, if it has not expired or been revoked. Costs a few microseconds."""
        parts = split_key(text)
        if parts is None:
            return None
        self._look()
        key = self._keys.get(parts[0])
        return key if key is not None and opens(key, parts[1]) and not key.has_expired(now) else None

    def list(self) -> list[ApiKey]:
        """All keys, the oldest first; expired ones too."""
        return sorted(self._read().values(), key=lambda key: (key.created_at, key.key_id))

    def create(
        self, name: str, scopes: Collection[str], *, now: datetime, expires_at: datetime | None = None
    ) -> tuple[ApiKey, str]:
        """Store a new key and return it with its text, which cannot be had again. Several may have one name."""
        key, text = make_key(name, scopes, now, expires_at)
        with self._changing() as keys:
            keys[key.key_id] = key
        return key, text

    def revoke(self, key_id: str) -> ApiKey:
        """Remove a key. Raises NotFoundError."""
        with self._changing() as keys:
            if key_id not in keys:
                known = ", ".join(keys) or "none"
                raise NotFoundError(f"There is no API key {key_id!r}. Keys: {known}. See: nearline keys list.")
            return keys.pop(key_id)

    def _look(self) -> None:
        if self._clock() - self._looked_at < LOOK_SECONDS:
            return
        with self._reading:
            self._looked_at = self._clock()
            identity = self._identify()
            if identity != self._identity:
                self._keys, self._identity = self._read(), identity

    def _identify(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> dict[str, ApiKey]:
        try:
            document = json.loads(self._file.read_bytes())
            return {row["key_id"]: _from_row(row) for row in document["keys"]}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise TerminalError(
                f"The API keys in {self._file} cannot be read ({type(error).__name__}). Put back a copy, or delete the "
                "file and make new keys: nearline keys create NAME."
            ) from None

    @contextmanager
    def _changing(self) -> Iterator[dict[str, ApiKey]]:
        """What is stored, to be changed; it is written when the block ends without an error."""
        make_private_folder(self._folder)
        with FileLock(self._folder / f"{KEYS_FILE}.lock", mode=0o600):
            keys = self._read()
            yield keys
            text = json.dumps({"keys": [_as_row(key) for key in keys.values()]}, indent=2)
            write_private(self._file, text.encode())


def load_salt(home: Path) -> bytes:
    """The salt of this home's pseudonyms; made at the first call."""
    file = home / FOLDER / SALT_FILE
    with suppress(FileNotFoundError):
        return file.read_bytes()
    make_private_folder(file.parent)
    fresh = file.with_name(f"{SALT_FILE}.{secrets.token_hex(4)}")
    _write_new(fresh, secrets.token_bytes(_SALT_BYTES))
    with suppress(FileExistsError):  # another process was faster: its salt counts
        os.link(fresh, file)
    fresh.unlink()
    return file.read_bytes()


def write_private(file: Path, content: bytes) -> None:
    """Replace a file in one step by one that only its user can read."""
    fresh = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    _write_new(fresh, content)
    fresh.replace(file)


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its user can enter."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _write_new(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _as_row(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "secret_hash": key.secret_hash,
    }


def _from_row(row: Any) -> ApiKey:
    expires_at = datetime.fromisoformat(row["expires_at"]) if row["expires_at"] else None
    created_at = datetime.fromisoformat(row["created_at"])
    return ApiKey(row["key_id"], row["name"], frozenset(row["scopes"]), created_at, row["secret_hash"], expires_at)
