"""Loads a model version and histories from the warehouse. It knows nothing of Prefect, the index or the encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.domain.ports import Warehouse
from tasks.domain.profiles import Histories, ItemSpace, Profiles, Recipe


@dataclass(frozen=True)
class ModelVersion:
    """One row of ``model_versions``, with what is needed to serve it."""

    version: str
    state: str
    encoder_id: str
    template_version: str
    text_width: int
    n_factors: int
    training_snapshot: int
    recipe: Recipe
    text_map: "Floats | None"  # (text_width, n_factors)


def load_version(warehouse: Warehouse, version: str) -> ModelVersion:
    """Raises NotFoundError with the versions there are."""
    raise NotImplementedError


def load_item_space(warehouse: Warehouse, version: str) -> ItemSpace:
    """Items of a version: factors and prior from ``item_factors``, text from ``item_embeddings`` by content hash."""
    raise NotImplementedError


def load_histories(
    warehouse: Warehouse,
    version: ModelVersion,
    items: ItemSpace,
    snapshot: int,
    user_ids: Sequence[str] | None = None,
) -> tuple[Histories, int]:
    """Histories of the given (or all) users from ``raw_events`` AT ``snapshot``, through the same SQL as the batch.

    Returns them with the number of user texts that have no embedding yet (they are left out). Interactions with
    items that the version does not know are left out.
    """
    raise NotImplementedError


def load_profiles(warehouse: Warehouse, version: str, user_ids: Sequence[str] | None = None) -> Profiles:
    """Stored profiles of the given (or all) users."""
    raise NotImplementedError
