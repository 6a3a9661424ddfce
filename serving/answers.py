"""Records as JSON. It knows nothing of HTTP.

Plain dictionaries: building a model for each of five hundred items would take longer than finding them.
"""

import json
from typing import Any

from tasks.domain.online import BelievedProfile, ErasureReceipt, Health, IntakeReceipt
from tasks.domain.records import Because, Recommendation, Slate

DIGITS = 6


def json_bytes(document: object) -> bytes:
    """UTF-8. Raises ValueError for a number that is not finite: JSON has none."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def slate_answer(slate: Slate) -> dict[str, Any]:
    """See ``SlateAnswer``."""
    return {
        "items": [_item(item) for item in slate.items],
        "user_id": slate.user_id,
        "source": slate.source,
        "version": slate.version,
        "alpha": _number(slate.alpha),
        "beta": _number(slate.beta),
        "n_history": int(slate.n_history),
        "as_of_snapshot": None if slate.as_of_snapshot is None else int(slate.as_of_snapshot),
        "pending_events": int(slate.n_pending_events),
        "stale_seconds": _number(slate.stale_seconds),
        "fallbacks": list(slate.fallbacks),
        "note": slate.note,
    }


def receipt_answer(receipt: IntakeReceipt) -> dict[str, Any]:
    """See ``ReceiptAnswer``."""
    return {
        "receipt_id": receipt.receipt_id,
        "accepted": int(receipt.n_accepted),
        "duplicates": int(receipt.n_duplicates),
        "rejected": [{"index": int(row.index), "reason": row.reason} for row in receipt.rejected],
        "snapshot": int(receipt.snapshot),
    }


def profile_answer(profile: BelievedProfile) -> dict[str, Any]:
    """See ``ProfileAnswer``."""
    return {
        "user_id": profile.user_id,
        "version": profile.version,
        "n_history": int(profile.n_history),
        "alpha": _number(profile.alpha),
        "beta": _number(profile.beta),
        "drift": _number(profile.drift),
        "as_of_snapshot": int(profile.as_of_snapshot),
        "pending_events": int(profile.n_pending_events),
        "categories": [{"category": name, "share": _number(share)} for name, share in profile.categories],
        "evidence": [
            {
                "kind": piece.kind,
                "label": piece.label,
                "item_id": piece.item_id,
                "weight": _number(piece.weight),
                "at": piece.at.isoformat() if piece.at else None,
            }
            for piece in profile.evidence
        ],
        "n_evidence": int(profile.n_evidence),
        "note": profile.note,
    }


def health_answer(health: Health) -> dict[str, Any]:
    """See ``HealthAnswer``."""
    return {
        "state": health.state,
        "version": health.version,
        "problems": [{"name": one.name, "text": one.text, "advice": one.advice} for one in health.problems],
        "watermark": None if health.watermark is None else int(health.watermark),
        "waiting_events": int(health.n_waiting_events),
        "oldest_waiting_seconds": _number(health.oldest_waiting_seconds),
        "index": health.index,
    }


def erasure_answer(receipt: ErasureReceipt) -> dict[str, Any]:
    """See ``ErasureAnswer``."""
    return {
        "erasure_id": receipt.erasure_id,
        "user": receipt.user,
        "erased_at": receipt.erased_at.isoformat(),
        "removed": [
            {"place": row.place, "removed": int(row.n_removed), "left": int(row.n_left)} for row in receipt.removed
        ],
        "expired_snapshots": int(receipt.n_expired_snapshots),
        "deleted_files": int(receipt.n_deleted_files),
        "remains": list(receipt.remains),
        "is_complete": bool(receipt.is_complete),
    }


def _item(item: Recommendation) -> dict[str, Any]:
    return {
        "rank": int(item.rank),
        "item_id": item.item_id,
        "title": item.title,
        "categories": list(item.categories),
        "score": _number(item.score),
        "parts": {
            "text": _number(item.text_part),
            "factors": _number(item.factors_part),
            "prior": _number(item.prior_part),
            "boost": _number(item.boost_part),
            "neighbours": _number(item.neighbours_part),
        },
        "because": [_reason(reason) for reason in item.because],
    }


def _reason(reason: Because) -> dict[str, Any]:
    return {
        "kind": reason.kind,
        "label": reason.label,
        "item_id": reason.item_id,
        "contribution": _number(reason.contribution),
        "share": _number(reason.share),
    }


def _number(value: float) -> float:
    return round(float(value), DIGITS)
