import numpy as np
import pytest

from tasks.domain.histories import InteractionLog, TextLog, build_histories, select_users, truncate_histories
from tasks.domain.splits import split_global_time, split_user_tail


def log_of(*rows, n_users=3, n_items=6):
    """``rows`` are (user, item, weight, last_at)."""
    user, item, weight, last_at = (np.array(column) for column in zip(*rows, strict=True))
    return InteractionLog(user, item, weight.astype(np.float32), last_at, n_users, n_items)


def texts_of(*rows):
    """``rows`` are (user, written_at), each with a vector of its position."""
    user, written_at = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    vectors = np.arange(len(rows), dtype=np.float32)[:, None] + 1
    return TextLog(
        vectors, user, np.ones(len(rows), np.float32), written_at, tuple(f"text {n}" for n in range(len(rows)))
    )


NO_TEXTS = TextLog(np.zeros((0, 1), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))
# user 0 meets 4, then 2 (seen only), then 0 and 1 at once; user 2 meets 5
LOG = log_of((0, 4, 1, 10), (0, 1, 1, 30), (0, 0, 1, 30), (0, 2, 0, 20), (2, 5, -1, 15))


def test_ages_count_back_from_the_newest_and_ties_go_by_item():
    histories = build_histories(LOG, NO_TEXTS, ["a", "b", "c"])
    assert histories.ages.toarray()[0].tolist() == [0, 1, 2, 0, 3, 0]
    assert histories.interactions.indices.tolist() == [0, 1, 2, 4, 5]
    assert histories.interactions.data.tolist() == [1, 1, 0, 1, -1]
    assert np.array_equal(histories.ages.indptr, histories.interactions.indptr)


def test_a_text_is_as_old_as_the_interactions_after_it():
    histories = build_histories(LOG, texts_of((0, 5), (0, 20), (0, 99), (1, 7)), ["a", "b", "c"])
    assert histories.text_age.tolist() == [4, 2, 0, 0]
    assert histories.text_labels[3] == "text 3"


def test_a_history_cut_short_keeps_the_newest_likes_and_what_lies_between():
    histories = build_histories(LOG, texts_of((0, 5)), ["a", "b", "c"])
    cut = truncate_histories(histories, np.array([2, 2, 2]))
    assert cut.interactions.toarray()[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert cut.interactions.indices.tolist() == [0, 1, 5]  # user 2 disliked something, and liked nothing
    assert cut.ages.data.tolist() == [0, 1, 0]
    assert len(cut.texts) == 0
    assert truncate_histories(histories, np.array([3, 0, 0])).interactions.indices.tolist() == [0, 1, 2, 4]


def test_chosen_users_keep_their_rows_and_their_texts():
    histories = build_histories(LOG, texts_of((0, 5), (1, 6), (2, 7)), ["a", "b", "c"])
    chosen = select_users(histories, np.array([0, 2]))
    assert chosen.user_ids == ("a", "c")
    assert chosen.text_user.tolist() == [0, 1]
    assert chosen.texts.ravel().tolist() == [1, 3]
    assert chosen.text_labels == ("text 0", "text 2")
    assert chosen.interactions[1].indices.tolist() == [5]


def test_user_tail_holds_out_the_last_fifth_of_each_user():
    rows = [(0, item, 1, 10 * item) for item in range(10)] + [(1, item, 1, 5) for item in range(4)]
    log = log_of(*rows, n_users=2, n_items=10)
    split = split_user_tail(log, texts_of((0, 79), (0, 80), (1, 500)))
    assert sorted(zip(split.test.user, split.test.item, strict=True)) == [(0, 8), (0, 9)]  # a fifth of four is none
    assert len(split.train.user) == 12
    assert split.texts.written_at.tolist() == [79, 500]


def test_user_tail_breaks_ties_by_item():
    split = split_user_tail(log_of(*[(0, item, 1, 7) for item in (4, 3, 2, 1, 0)]), NO_TEXTS)
    assert split.test.item.tolist() == [4]


def test_global_time_cuts_at_one_moment():
    rows = [(user, item, 1, 10 * item + user) for user in range(3) for item in range(6)]
    split = split_global_time(log_of(*rows), texts_of((0, 0), (0, 10_000)))
    assert split.train.last_at.max() < split.test.last_at.min()
    assert len(split.test.user) == 3
    assert split.texts.written_at.tolist() == [0]


def test_interactions_at_the_moment_of_the_cut_stay_in_training():
    split = split_global_time(log_of(*[(0, item, 1, 1) for item in range(6)]), NO_TEXTS)
    assert len(split.test.user) == 0


@pytest.mark.parametrize("split", [split_user_tail, split_global_time])
def test_an_empty_log_splits_into_empty_parts(split):
    empty = InteractionLog(*(np.zeros(0, np.int64),) * 2, np.zeros(0, np.float32), np.zeros(0, np.int64), 2, 3)
    parts = split(empty, texts_of((0, 5)))
    assert len(parts.train.user) == len(parts.test.user) == 0
    assert len(parts.texts.user) == 1
    assert parts.train.matrix().shape == (2, 3)
