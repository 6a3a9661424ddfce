"""What tests of publication, kills and maintenance share."""

import numpy as np
import pytest

from tasks.projection import load_projection


@pytest.fixture
def assert_whole():
    """``assert_whole(world, version)``: it serves, and the index holds what the warehouse holds, every point."""
    return _assert_whole


def _assert_whole(world, version):
    """The index holds what the warehouse holds, every point of it."""
    with world.resources.warehouse(read_only=True) as warehouse:
        projection = load_projection(warehouse, version)
    with world.resources.index() as index:
        assert index.serving_version() == version
        assert index.count(version) == (len(projection.items), len(projection.users))
        items = index.items(version, [payload.item_id for payload in projection.item_payloads])
        users = index.users(version, [payload.user_id for payload in projection.user_payloads])
    for payload, vector in zip(projection.item_payloads, projection.items, strict=True):
        assert items[payload.item_id][0] == payload
        np.testing.assert_array_equal(items[payload.item_id][1], vector)
    for payload, vector in zip(projection.user_payloads, projection.users, strict=True):
        assert users[payload.user_id][0] == payload
        np.testing.assert_allclose(users[payload.user_id][1], vector, atol=1e-6)
