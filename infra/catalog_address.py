"""The address of a PostgreSQL database as a URL. What is raised here never repeats the URL: it may hold a password."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

_PARAMETERS = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "channel_binding",
    "target_session_attrs",
    "passfile",
)
_FORM = "postgresql://user:password@host:5432/database, with signs such as @ or / in the password as %40 or %2F"


@dataclass(frozen=True)
class CatalogAddress:
    """Where the database is and who asks; ``parameters`` are libpq's, none of them secret."""

    host: str
    port: int
    database: str
    user: str
    password: str | None = field(repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_catalog_url(url: str) -> CatalogAddress:
    """Take a URL apart. Raises ValueError that says what is allowed and repeats nothing of what came."""
    try:
        parts = urlsplit(url)
        port = parts.port or 5432
    except ValueError:
        raise ValueError(f"it must have the form {_FORM}") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError(f"it must begin with postgresql://, and have the form {_FORM}")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    host = given.pop("host", None) or parts.hostname  # a folder with a socket has no other place
    database = unquote(parts.path.removeprefix("/"))
    if not (host and database and parts.username) or "/" in parts.path[1:]:
        raise ValueError(f"it must name a user, a host and a database: {_FORM}")
    if parts.fragment or any(name not in _PARAMETERS for name in given):
        raise ValueError(f"after a ? it may have host (a folder with a socket) and {', '.join(_PARAMETERS)}: {_FORM}")
    password = None if parts.password is None else unquote(parts.password)
    return CatalogAddress(host, port, database, unquote(parts.username), password, given)
