"""Loads a model version and histories from the warehouse. It knows nothing of Prefect, the index or the encoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.errors import NotFoundError
from tasks.domain.factor_model import weigh_items
from tasks.domain.features import NO_FEATURES, Attributes, FeatureSpace, parse_attributes
from tasks.domain.histories import InteractionLog, TextLog, build_histories
from tasks.domain.ports import Reader, Warehouse
from tasks.domain.profiles import Histories, ItemSpace, Profiles, Recipe
from tasks.domain.records import EventType
from tasks.domain.vectors import matrix_from_lists
from warehouse.catalog import model_sql, query_sql

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelVersion:
    """One row of ``model_versions``, with what is needed to serve it. ``text_map`` is (text_width, n_factors), and
    ``user_map``, from the columns of ``user_space``, (width, n_factors); None where the version knows no attributes.
    ``item_map`` and ``item_space`` are the same for what is known of items beside their text."""

    version: str
    state: str
    encoder_id: str
    template_version: str
    text_width: int
    n_factors: int
    training_snapshot: int
    recipe: Recipe
    text_map: Floats
    user_map: Floats | None
    user_space: FeatureSpace
    item_map: Floats | None = None
    item_space: FeatureSpace = NO_FEATURES


def load_version(warehouse: Warehouse, version: str) -> ModelVersion:
    """Raises NotFoundError with the versions there are."""
    rows = warehouse.read(query_sql("model_version"), {"version": version}).to_pylist()
    if not rows:
        known = warehouse.read(query_sql("model_version_names"))["version"].to_pylist()
        raise NotFoundError(
            f"Model version {version!r} does not exist. Known: {', '.join(known) or 'none'}."
            " Run the daily batch to train one."
        )
    row = rows[0]
    shape = (row["text_width"], row["n_factors"])
    text_map = np.zeros(shape) if row["text_map"] is None else np.array(row["text_map"]).reshape(shape)
    return ModelVersion(
        version=version,
        state=row["state"],
        encoder_id=row["encoder_id"],
        template_version=row["template_version"],
        text_width=row["text_width"],
        n_factors=row["n_factors"],
        training_snapshot=row["training_snapshot"],
        recipe=Recipe.from_json(row["recipe"], row["fusion"]),
        text_map=text_map.astype(np.float32),
        user_map=_feature_map(row, "user_map"),
        user_space=FeatureSpace.from_json(row.get("user_features")),
        item_map=_feature_map(row, "item_map"),
        item_space=FeatureSpace.from_json(row.get("item_features")),
    )


def load_item_space(warehouse: Warehouse, version: str) -> ItemSpace:
    """Items of a version: factors and prior from ``item_factors``, text from ``item_embeddings`` by content hash.

    Raises NotFoundError for an unknown version.
    """
    model = load_version(warehouse, version)
    rows = warehouse.read(query_sql("items_of_version"), {"version": version})
    n_likes = rows["n_interactions"].to_numpy()
    return ItemSpace(
        item_ids=tuple(rows["item_id"].to_pylist()),
        text=text_matrix(rows["embedding"], model.text_width),
        factors=matrix_from_lists(rows["factors"], model.n_factors),
        prior=rows["prior"].to_numpy().astype(np.float32),
        text_map=model.text_map,
        weights=weigh_items(
            n_likes,
            model.recipe.factor_parameters,
            rows["exposure"].to_numpy(),
            fitted=~rows["is_added"].to_numpy().astype(bool),
        ),
        user_map=model.user_map,
        user_space=model.user_space,
        item_map=model.item_map,
    )


class HistoryRows(NamedTuple):
    """What users did and told of themselves up to one snapshot, as tables: ``fct_interactions`` (user_id, item_id,
    weight, last_at), ``int_user_texts`` and ``stg_users``."""

    interactions: pa.Table
    texts: pa.Table
    users: pa.Table

    def known_users(self) -> list[str]:
        """Everyone who did or told something, by id."""
        return sorted({user_id for table in self for user_id in table["user_id"].unique().to_pylist()})


def load_history_rows(
    warehouse: Warehouse,
    event_types: Iterable[EventType],
    half_life_days: float,
    snapshot: int,
    user_ids: Sequence[str] | None = None,
) -> HistoryRows:
    """Run the SQL models over ``raw_events`` and ``raw_users`` AT ``snapshot``, for the given (or all) users.

    Batch and refresh share this: only the rows that go in differ. A user's rows come with every other row of the same
    events, so that a correction or a retraction acts however it was sent.
    """
    with warehouse.at(snapshot) as past:
        raw = {} if user_ids is None else load_raw_rows(past, user_ids)
        return build_history_rows(past, raw, event_types, half_life_days, user_ids)


def load_raw_rows(reader: Reader, user_ids: Iterable[str]) -> dict[str, pa.Table]:
    """``raw_events`` and ``raw_users`` of the given users, with every row of others for the same events.

    ``raw_events`` is read twice: the users' rows whole, then ids alone, to see whether others share an event.
    """
    wanted = {"wanted_users": pa.table({"user_id": pa.array(sorted(set(user_ids)), pa.string())})}
    events = reader.read(query_sql("raw_events_of_users"), shadows=wanted)
    users = reader.read(query_sql("raw_users_of_users"), shadows=wanted)
    shared = reader.read(query_sql("shared_events"), shadows={**wanted, "own_events": events.select(["event_id"])})
    if shared.num_rows:
        others = reader.read(query_sql("raw_events_of_others"), shadows={**wanted, "shared_events": shared})
        events = pa.concat_tables([events, others])
    return {"raw_events": events, "raw_users": users}


def build_history_rows(
    reader: Reader,
    raw: Mapping[str, pa.Table],
    event_types: Iterable[EventType],
    half_life_days: float,
    user_ids: Sequence[str] | None = None,
) -> HistoryRows:
    """Run the SQL models over the tables of ``raw``, and over those of ``reader`` where ``raw`` has none.

    The models read ``raw_events``, ``raw_users`` and ``stg_items``. Rows of others than the given (or all) users are
    left out.
    """
    shadows = {**raw, "event_types": event_type_rows(event_types)}
    models = ("fct_interactions", "int_user_texts")
    if "raw_events" in raw:
        shadows["stg_events"] = reader.read(model_sql("stg_events"), shadows=shadows)
        interactions_sql, texts_sql = (model_sql(model) for model in models)
    else:
        interactions_sql, texts_sql = (_over_all_events(model) for model in models)
    sql = f"select user_id, item_id, weight, last_at from ({interactions_sql})"  # noqa: S608 - our own models
    interactions = reader.read(sql, {"half_life_days": half_life_days}, shadows)
    texts = reader.read(texts_sql, shadows=shadows)
    found = HistoryRows(interactions, texts, reader.read(model_sql("stg_users"), shadows=shadows))
    if user_ids is not None:
        chosen = pa.array(sorted(set(user_ids)), pa.string())
        found = HistoryRows(*(_only_users(table, chosen) for table in found))
    return found


def _over_all_events(model: str) -> str:
    """The SQL of a model over ``stg_events`` that are made on the way, so that the engine need not keep all of them."""
    return f"with stg_events as ({model_sql('stg_events')})\nselect * from ({model_sql(model)})"


def load_histories(
    warehouse: Warehouse,
    version: ModelVersion,
    items: ItemSpace,
    snapshot: int,
    user_ids: Sequence[str] | None = None,
) -> tuple[Histories, int]:
    """Histories of the given (or all) users from ``raw_events`` AT ``snapshot``, through the same SQL as the batch.

    Event types and half-life are those that the version was trained with. Returns the histories, in the order of
    ``user_ids`` (all users: everyone of whom anything is known, by id), with the number of user texts that have no
    embedding yet (they are left out). Interactions with items that the version does not know are left out.
    """
    recipe = version.recipe
    rows = load_history_rows(warehouse, recipe.event_types, recipe.interaction_half_life_days, snapshot, user_ids)
    embeddings = load_text_embeddings(warehouse, rows.texts["content_hash"], version.encoder_id, version.text_width)
    return encode_histories(rows, version, items, rows.known_users() if user_ids is None else user_ids, embeddings)


def encode_histories(
    rows: HistoryRows,
    version: ModelVersion,
    items: ItemSpace,
    user_ids: Sequence[str],
    embeddings: dict[str, Floats],
) -> tuple[Histories, int]:
    """Rows as histories, in the order of ``user_ids``, with the number of their texts that have no embedding in
    ``embeddings`` (by content hash); these are left out, and so are items that the version does not know."""
    log, texts, n_missing = encode_rows(rows, items.item_ids, user_ids, embeddings, version.text_width)
    if version.user_map is not None:
        log = replace(log, user_features=version.user_space.encode(attributes_of(rows, user_ids)))
    return build_histories(log, texts, user_ids), n_missing


def encode_rows(
    rows: HistoryRows,
    item_ids: Sequence[str],
    user_ids: Sequence[str],
    embeddings: dict[str, Floats],
    text_width: int,
) -> tuple[InteractionLog, TextLog, int]:
    """Rows as logs over dense indices; rows of other users and items are left out.

    The number is that of user texts without an embedding in ``embeddings`` (by content hash); they are left out too.
    """
    table = rows.interactions
    user, item = _positions(table["user_id"], user_ids), _positions(table["item_id"], item_ids)
    known = (user >= 0) & (item >= 0)
    weight = table["weight"].to_numpy().astype(np.float32)
    last_at = table["last_at"].cast(pa.int64()).to_numpy()
    log = InteractionLog(user, item, weight, last_at, len(user_ids), len(item_ids)).select(known)
    texts, n_missing = _encode_texts(rows.texts, user_ids, embeddings, text_width)
    return log, texts, n_missing


def attributes_of(rows: HistoryRows, user_ids: Sequence[str]) -> list[Attributes]:
    """What each of the users told of themselves, in the order of ``user_ids``."""
    told = dict(zip(rows.users["user_id"].to_pylist(), rows.users["attributes"].to_pylist(), strict=True))
    return [parse_attributes(told.get(user_id)) for user_id in user_ids]


def load_profiles(warehouse: Warehouse, version: str, user_ids: Sequence[str] | None = None) -> Profiles:
    """Stored profiles of the given (or all) users, sorted by id; users without one are left out."""
    model = load_version(warehouse, version)
    if user_ids is None:
        rows = warehouse.read(query_sql("profiles_of_version"), {"version": version})
    else:
        wanted = pa.table({"user_id": pa.array(sorted(set(user_ids)), pa.string())})
        rows = warehouse.read(query_sql("profiles_of_users"), {"version": version}, {"wanted_users": wanted})
    return Profiles(
        user_ids=tuple(rows["user_id"].to_pylist()),
        text=matrix_from_lists(rows["text_embedding"], model.text_width),
        factors=matrix_from_lists(rows["factors"], model.n_factors),
        n_history=rows["n_history"].to_numpy().astype(np.int64),
        alpha=rows["alpha"].to_numpy().astype(np.float32),
        beta=rows["beta"].to_numpy().astype(np.float32),
        drift=rows["drift"].to_numpy().astype(np.float32),
    )


def load_text_embeddings(
    warehouse: Warehouse, content_hashes: pa.ChunkedArray, encoder_id: str, width: int
) -> dict[str, Floats]:
    """Embeddings (width,) of user texts by content hash; texts that are not embedded yet are left out."""
    if len(content_hashes) == 0:
        return {}
    wanted = pa.table({"content_hash": content_hashes.unique()})
    rows = warehouse.read(query_sql("text_embeddings_of"), {"encoder_id": encoder_id}, {"wanted_texts": wanted})
    vectors = matrix_from_lists(rows["embedding"], width)
    return dict(zip(rows["content_hash"].to_pylist(), vectors, strict=True))


def text_matrix(column: pa.ChunkedArray, width: int) -> Floats:
    """Embeddings (n, width) of a column of lists, with rows of zeros for nulls."""
    present = column.is_valid().to_numpy(zero_copy_only=False) if len(column) else np.zeros(0, bool)
    matrix = np.zeros((len(column), width), np.float32)
    matrix[present] = matrix_from_lists(column.drop_null(), width)
    return matrix


def event_type_rows(event_types: Iterable[EventType]) -> pa.Table:
    """The table ``event_types`` that the SQL models read: name, effect, weight, threshold, dislike_below."""
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("effect", pa.string()),
            ("weight", pa.float64()),
            ("threshold", pa.float64()),
            ("dislike_below", pa.float64()),
        ]
    )
    return pa.Table.from_pylist([asdict(event_type) for event_type in event_types], schema=schema)


def _encode_texts(
    table: pa.Table, user_ids: Sequence[str], embeddings: dict[str, Floats], width: int
) -> tuple[TextLog, int]:
    table = table.sort_by("event_id")
    user = _positions(table["user_id"], user_ids)
    hashes = table["content_hash"].to_pylist()
    written_at = table["occurred_at"].cast(pa.int64()).to_numpy()
    found = np.array([content_hash in embeddings for content_hash in hashes], bool)
    known = np.flatnonzero((user >= 0) & found)
    known = known[np.lexsort((known, written_at[known], user[known]))]
    vectors = np.array([embeddings[hashes[row]] for row in known], np.float32).reshape(len(known), width)
    weight = table["weight"].to_numpy().astype(np.float32)[known]
    labels = tuple(table["text"].take(pa.array(known, pa.int64())).to_pylist())
    return TextLog(vectors, user[known], weight, written_at[known], labels), int(((user >= 0) & ~found).sum())


def _positions(column: pa.ChunkedArray, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Position of each value in ``ids``, -1 where it is not there."""
    known = pa.array(ids, pa.string())
    found = pc.index_in(column, value_set=known)
    return np.asarray(found.fill_null(-1).to_numpy(), np.int64)


def _feature_map(row: Mapping[str, Any], column: str) -> Floats | None:
    """(width, n_factors), or None where the version has none."""
    return None if row.get(column) is None else np.array(row[column], np.float32).reshape(-1, row["n_factors"])


def _only_users(table: pa.Table, user_ids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["user_id"], value_set=user_ids))
