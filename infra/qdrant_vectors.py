"""How Qdrant keeps and searches vectors, from the settings. It knows nothing of a connection.

A graph is built over levelled vectors: a column is added to items so that all have one norm, and products with queries,
whose column is 0, stay what they are (Bachrach et al. 2014, "Speeding up the Xbox recommender system using a Euclidean
transformation for inner-product spaces"). Over fused vectors as they are a graph finds a small part of what it should:
docs/publishing.md has the numbers.
"""

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from infra.settings import IndexSettings

Floats = npt.NDArray[np.float32]

ITEM_VECTOR, LEVEL_VECTOR, USER_VECTOR = "fused", "level", "query"
EF_CONSTRUCT = 200
OVERSAMPLING = {"scalar": 16.0, "binary": 16.0, "turbo": 4.0}
"""Candidates for each item asked for that are scored again with the vectors themselves (measured: see the page)."""
SCALAR_QUANTILE = 0.99


def item_vectors(settings: IndexSettings, width: int) -> dict[str, models.VectorParams]:
    """Items are searched. Quantized vectors are held in memory, and the others then wait on disk to score again."""
    has_graph, is_quantized = settings.hnsw_m > 0, settings.quantization != "none"
    parameters = models.VectorParams(
        size=width + has_graph,
        distance=models.Distance.DOT,
        datatype=models.Datatype(settings.vector_type),
        hnsw_config=models.HnswConfigDiff(m=settings.hnsw_m, ef_construct=EF_CONSTRUCT if has_graph else None),
        quantization_config=_quantization(settings),
        on_disk=True if is_quantized else None,
    )
    return {LEVEL_VECTOR if has_graph else ITEM_VECTOR: parameters}


def user_vectors(settings: IndexSettings, width: int) -> dict[str, models.VectorParams]:
    """Users are only read by id: a graph over their vectors would be work for nothing."""
    parameters = models.VectorParams(
        size=width,
        distance=models.Distance.DOT,
        datatype=models.Datatype(settings.vector_type),
        hnsw_config=models.HnswConfigDiff(m=0),
    )
    return {USER_VECTOR: parameters}


def plain_vectors(name: str, width: int) -> dict[str, models.VectorParams]:
    """For local mode, which keeps 32-bit floats and searches exactly, whatever it is told."""
    return {name: models.VectorParams(size=width, distance=models.Distance.DOT)}


def search_params(settings: IndexSettings) -> models.SearchParams | None:
    """None where there is nothing to say."""
    if settings.hnsw_m == 0 and settings.quantization == "none":
        return None
    again = OVERSAMPLING.get(settings.quantization)
    return models.SearchParams(
        hnsw_ef=settings.hnsw_ef if settings.hnsw_m else None,
        quantization=models.QuantizationSearchParams(rescore=True, oversampling=again) if again else None,
    )


def level(vectors: Floats, norm: float | None) -> Floats:
    """``vectors`` (n, width) with one more column, so that each has the norm ``norm`` (None: the largest of theirs).

    A longer vector gets 0 there: products with it are right, and the graph finds it no worse than the longest.
    """
    squares = (vectors.astype(np.float64) ** 2).sum(axis=1)
    square = squares.max(initial=0.0) if norm is None else norm**2
    return np.column_stack([vectors, np.sqrt(np.maximum(square - squares, 0.0))]).astype(np.float32)


def _quantization(settings: IndexSettings) -> models.QuantizationConfig | None:
    if settings.quantization == "scalar":
        int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=SCALAR_QUANTILE, always_ram=True)
        return models.ScalarQuantization(scalar=int8)
    if settings.quantization == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    if settings.quantization == "turbo":
        bits = models.TurboQuantBitSize.BITS4
        return models.TurboQuantization(turbo=models.TurboQuantQuantizationConfig(bits=bits, always_ram=True))
    return None
