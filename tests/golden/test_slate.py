"""One whole slate, pinned: ids, order, parts and sentences of one user of the small world.

A change of the formula, the fold-in, the text mean or the wording shows here. If it is meant, write the file again with
``WRITE_GOLDEN=1`` and read the difference before committing it.
"""

import json
import os
from pathlib import Path

import pytest

from tasks.domain.explanations import phrase_reasons
from tasks.recommend import recommend_to_user

PINNED = Path(__file__).with_name("slate_of_u00.json")


def test_the_pinned_slate(small_world):
    slate = recommend_to_user(small_world.resources, "u00", k=6, explain=True)
    found = {
        "version": slate.version,
        "source": slate.source,
        "alpha": round(slate.alpha, 3),
        "beta": round(slate.beta, 3),
        "n_history": slate.n_history,
        "items": [
            {
                "rank": item.rank,
                "item_id": item.item_id,
                "title": item.title,
                "parts": [round(part, 3) for part in (item.text_part, item.factors_part, item.prior_part)],
                "sentence": phrase_reasons(item),
            }
            for item in slate.items
        ],
    }
    if os.environ.get("WRITE_GOLDEN"):
        PINNED.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    pinned = json.loads(PINNED.read_text())
    for item, expected in zip(found["items"], pinned["items"], strict=True):
        assert item.pop("parts") == pytest.approx(expected.pop("parts"), abs=2e-3)
    assert found == pinned
