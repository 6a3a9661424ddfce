"""``nearline keys``: API keys of the HTTP service. It knows nothing of that; a running one sees every change."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from rich.table import Table
from rich.text import Text

from infra.key_store import KeyStore
from infra.settings import Settings
from tasks.domain.access import ApiKey


def create_key(
    settings: Settings, name: str, scopes: Sequence[str], days: int | None, now: datetime
) -> tuple[ApiKey, str]:
    """A new key and its text, which is shown once and stored nowhere. Raises InputError."""
    expires_at = now + timedelta(days=days) if days is not None else None
    return KeyStore(settings.home).create(name, scopes, now=now, expires_at=expires_at)


def list_keys(settings: Settings) -> list[ApiKey]:
    """All keys, the oldest first."""
    return KeyStore(settings.home).list()


def revoke_key(settings: Settings, key_id: str) -> ApiKey:
    """Remove a key. Raises NotFoundError."""
    return KeyStore(settings.home).revoke(key_id)


def key_document(key: ApiKey) -> dict[str, object]:
    """A key for programs, without its hash."""
    return {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }


def keys_table(keys: Sequence[ApiKey], now: datetime) -> Table:
    """Keys for people."""
    table = Table(box=None, header_style="dim")
    for name in ("id", "name", "scopes", "made", "until"):
        table.add_column(name)
    for key in keys:
        until = f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "it is revoked"
        until += " (over)" if key.has_expired(now) else ""
        made = f"{key.created_at:%Y-%m-%d %H:%M}"
        table.add_row(key.key_id, Text(key.name), ", ".join(sorted(key.scopes)), made, until)
    return table
