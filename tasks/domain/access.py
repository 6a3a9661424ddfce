"""Who may ask for what: API keys with scopes, and pseudonyms for users. It knows nothing of HTTP or of files.

A key is ``nl_<id>_<secret>``. The secret has 256 random bits, so its plain SHA-256 is kept: nobody can try that many.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

from tasks.domain.errors import InputError

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_KEY = re.compile(r"nl_([0-9a-f]{8})_([0-9a-f]{64})")
_PSEUDONYM_LENGTH = 16
_MAX_NAME = 100


@dataclass(frozen=True)
class ApiKey:
    """A key as it is stored: ``secret_hash`` is the SHA-256 of its secret, in hexadecimal digits.

    A scope contains no other: ``admin`` alone does not read. ``expires_at`` None: never.
    """

    key_id: str
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    secret_hash: str = field(repr=False)
    expires_at: datetime | None = None

    def has_expired(self, now: datetime) -> bool:
        """Whether it is past its time."""
        return self.expires_at is not None and now >= self.expires_at


def make_key(
    name: str, scopes: Collection[str], now: datetime, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key, and its text, which is nowhere else. Raises InputError for a name or scopes that cannot be."""
    if not 1 <= len(name) <= _MAX_NAME or not name.isprintable() or name != name.strip():
        raise InputError(
            f"An API key cannot be called {name!r}. A name has 1 to {_MAX_NAME} printable characters, and no space at "
            "its ends: say who uses the key, such as 'web shop'."
        )
    if expires_at is not None and expires_at <= now:
        raise InputError(f"The API key {name!r} would have expired at {expires_at:%Y-%m-%d %H:%M}. Name a later time.")
    key_id, secret = secrets.token_hex(4), secrets.token_hex(32)
    key = ApiKey(key_id, name, _checked(scopes), now, _hash(secret), expires_at)
    return key, f"nl_{key_id}_{secret}"


def split_key(text: str) -> tuple[str, str] | None:
    """Id and secret of a key's text, or None if it is none."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


def opens(key: ApiKey, secret: str) -> bool:
    """Whether this is the key's secret; takes as long for a wrong one."""
    return hmac.compare_digest(key.secret_hash, _hash(secret))


def pseudonym(salt: bytes, user_id: str) -> str:
    """What stands for a user in logs, receipts and prompts: 16 hexadecimal digits of an HMAC-SHA-256.

    The same user gets the same one as long as the salt is kept; without the salt nobody can test a guess.
    """
    return hmac.new(salt, user_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_PSEUDONYM_LENGTH]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _checked(scopes: Collection[str]) -> frozenset[Scope]:
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        named = ", ".join(unknown) or "none"
        raise InputError(f"An API key was asked for with the scopes {named}. Name one or more of {', '.join(SCOPES)}.")
    return frozenset(scope for scope in SCOPES if scope in scopes)
