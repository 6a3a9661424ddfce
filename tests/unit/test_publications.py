"""Where a rollback goes, and which versions are kept."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.publications import Publication, kept_versions, stopped_serving_at, version_before

START = datetime(2026, 1, 1, tzinfo=UTC)


def _history(*switches: str) -> list[Publication]:
    """``"publish v2"`` and so on, an hour apart, each after the one before it."""
    history: list[Publication] = []
    for hour, switch in enumerate(switches):
        action, version = switch.split()
        previous = history[-1].version if history else None
        history.append(Publication(version, previous, action, START + timedelta(hours=hour)))
    return history


THREE = ("publish v1", "publish v2", "publish v3")


@pytest.mark.parametrize(
    ("switches", "version", "before"),
    [
        (THREE, "v3", "v2"),
        (THREE, "v1", None),
        (THREE, "v9", None),
        ((*THREE, "rollback v2"), "v2", "v1"),
        ((*THREE, "rollback v1", "publish v4"), "v4", "v1"),
        (("publish v1", "reconcile v2"), "v2", "v1"),
        (("publish v1", "publish v2", "rebuild v2"), "v2", "v1"),
    ],
)
def test_a_rollback_goes_to_what_served_before(switches, version, before):
    assert version_before(_history(*switches), version) == before


@pytest.mark.parametrize(
    ("switches", "serving", "kept"),
    [
        (THREE, "v3", ("v3", "v2")),
        ((*THREE, "rollback v1"), "v1", ("v1", "v3")),
        ((*THREE, "rollback v1", "publish v4"), "v4", ("v4", "v1")),
        (("publish v1",), "v1", ("v1",)),
        ((), "v1", ("v1",)),
    ],
)
def test_the_serving_version_and_where_one_can_go_are_kept(switches, serving, kept):
    assert kept_versions(_history(*switches), serving, 2) == kept


@given(
    st.lists(st.sampled_from([f"{a} v{n}" for a in ("publish", "rollback", "reconcile") for n in range(5)])), st.data()
)
def test_whatever_happened_the_serving_version_is_kept_and_none_twice(switches, data):
    history = _history(*switches)
    serving = data.draw(st.sampled_from([p.version for p in history] or ["v0"]))
    kept = kept_versions(history, serving, 3)

    assert kept[0] == serving
    assert len(kept) == len(set(kept)) <= 3


def test_when_a_version_stopped_serving():
    history = _history("publish v1", "publish v2", "rebuild v2", "rollback v1", "publish v3")

    assert stopped_serving_at(history, "v1") == START + timedelta(hours=4)
    assert stopped_serving_at(history, "v2") == START + timedelta(hours=3)
    assert stopped_serving_at(history, "v3") is None
    assert stopped_serving_at(history, "v9") is None
