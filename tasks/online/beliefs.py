"""What the platform believes of a user, and from what: their profile with the evidence behind it.

It knows nothing of HTTP or of how a history is loaded.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta

from tasks.domain.histories import build_histories
from tasks.domain.online import BelievedProfile, Evidence
from tasks.domain.profiles import Histories, compute_profiles
from tasks.model_state import HistoryRows
from tasks.online.asking import stored_log
from tasks.online.state import ServingState, UserView

MAX_EVIDENCE = 100
"""Evidence that is listed, the newest."""


def believe(state: ServingState, user: UserView, now: datetime) -> BelievedProfile:
    """The profile of a user, solved from everything they did up to this moment, and what it was made from.

    An item's positive weight is shared equally by its categories; shares are of all positive weight, so that items
    without a category leave them below 1 in all. Items that the version does not know, and texts that are not embedded
    yet, are no evidence; ``note`` counts them, and says how long ago (at ``now``, UTC) the newest evidence is.
    """
    rows = user.load_history()
    log, texts, n_missing = stored_log(state, user, rows)
    histories = build_histories(log, texts, [user.user_id])
    profile = compute_profiles(histories, state.items, state.model.recipe)
    dated = sorted([*_items(state, rows), *_texts(rows, set(histories.text_labels))], key=_newest_first)
    evidence = [*dated, *_attributes(state, histories)]
    return BelievedProfile(
        user_id=user.user_id,
        version=state.model.version,
        n_history=int(profile.n_history[0]),
        alpha=float(profile.alpha[0]),
        beta=float(profile.beta[0]),
        drift=float(profile.drift[0]),
        as_of_snapshot=user.as_of_snapshot,
        n_pending_events=user.n_pending_events,
        categories=_shares(state, histories),
        evidence=tuple(evidence[:MAX_EVIDENCE]),
        n_evidence=len(evidence),
        note=_note(dated, evidence, rows.interactions.num_rows - len(log.item), n_missing, now),
    )


def _items(state: ServingState, rows: HistoryRows) -> Iterator[Evidence]:
    columns = (rows.interactions[name].to_pylist() for name in ("item_id", "weight", "last_at"))
    for item_id, weight, last_at in zip(*columns, strict=True):
        row = state.items.index.get(item_id)
        if row is not None:
            yield Evidence("item", state.payloads[row].title or item_id, item_id, float(weight), last_at)


def _texts(rows: HistoryRows, embedded: Collection[str]) -> Iterator[Evidence]:
    columns = (rows.texts[name].to_pylist() for name in ("text", "weight", "occurred_at"))
    for text, weight, occurred_at in zip(*columns, strict=True):
        if text in embedded:
            yield Evidence("text", text, None, float(weight), occurred_at)


def _attributes(state: ServingState, histories: Histories) -> list[Evidence]:
    """What they told of themselves, as far as the version has learned from it, in one piece."""
    if histories.features is None:
        return []
    (told,) = state.model.user_space.describe(histories.features)
    return [Evidence("attribute", told, None, 1.0, None)] if told else []


def _newest_first(evidence: Evidence) -> tuple[float, str]:
    return -(evidence.at.timestamp() if evidence.at else 0.0), evidence.item_id or evidence.label


def _shares(state: ServingState, histories: Histories) -> tuple[tuple[str, float], ...]:
    """Categories with their shares, the largest first; equal ones by name."""
    liked = histories.interactions
    weights = {
        row: weight for row, weight in zip(liked.indices.tolist(), liked.data.tolist(), strict=True) if weight > 0
    }
    added: Counter[str] = Counter()
    for row, weight in weights.items():
        names = state.payloads[row].categories
        for name in names:
            added[name] += weight / len(names)
    total = sum(weights.values())
    return tuple((name, part / total) for name, part in sorted(added.items(), key=lambda share: (-share[1], share[0])))


def _note(
    dated: Sequence[Evidence], evidence: Sequence[Evidence], n_unknown: int, n_missing: int, now: datetime
) -> str:
    said = []
    if not evidence:
        said.append("nothing is known of this user yet")
    if dated and dated[0].at is not None:
        said.append(f"the newest of this is {_ago(now - dated[0].at)} old")
    if n_unknown:
        said.append(f"{n_unknown} more items were met that the version does not know yet")
    if n_missing:
        said.append(f"{n_missing} more texts were written that are not embedded yet")
    return "; ".join(said)


def _ago(age: timedelta) -> str:
    """In the largest unit of which there are two at least."""
    seconds = max(age.total_seconds(), 0.0)
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} seconds"
