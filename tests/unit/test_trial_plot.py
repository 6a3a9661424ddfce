"""The picture of a study is a well-formed one, whatever its trials are called."""

from xml.etree import ElementTree

import numpy as np

from tasks.domain.trial_plot import draw_trials
from tasks.domain.tuning import Trial

SVG = "{http://www.w3.org/2000/svg}"


def trial(number, mean, origin="search", error="", **parameters):
    values = None if mean is None else np.full(4, mean, np.float32)
    return Trial(number, origin, parameters, values, 1.0, error)


def drawn(trials, title="Study"):
    return ElementTree.fromstring(draw_trials(trials, title))


def test_every_measured_trial_is_a_dot_in_every_panel_and_a_failed_one_a_cross():
    trials = [
        trial(0, 0.1, "defaults", text_prior=1.0, text_ridge=0.001),
        trial(1, 0.2, text_prior=0.5, text_ridge=1.0),
        trial(2, None, error="<diverged> & lost", text_prior=0.1, text_ridge=2.0),
        trial(3, 0.15, "earlier", text_prior=0.0, text_ridge=0.1),
    ]
    picture = drawn(trials)
    titles = [title.text for title in picture.iter(f"{SVG}title")]
    assert [title for title in titles if "failed" not in title] == [
        "trial 0: 0.1000",
        "trial 3: 0.1500",
        "trial 1: 0.2000",
    ]
    assert (
        len([circle for circle in picture.iter(f"{SVG}circle") if circle.get("r") != "3" or circle.get("opacity")]) == 9
    )
    assert titles.count("trial 2 failed: <diverged> & lost") == 1
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert "text_prior" in texts
    assert "text_ridge (log)" in texts
    width, height = float(picture.get("width")), float(picture.get("height"))
    for circle in picture.iter(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx")) <= width
        assert 0 <= float(circle.get("cy")) <= height


def test_names_are_text_and_never_markup():
    picture = drawn([trial(0, 0.1, **{"event_types.<script>&.weight": 1.0})], "a < b & c")
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert "event_types.<script>&.weight (log)" in texts
    assert "a < b & c" in texts


def test_a_study_without_a_measured_trial_says_so():
    for trials in ([], [trial(0, None, error="no")]):
        assert "no trial was measured" in [text.text for text in drawn(trials).iter(f"{SVG}text")]


def test_one_trial_and_equal_values_are_drawn():
    assert drawn([trial(0, 0.1, a=1.0)]) is not None
    assert drawn([trial(n, 0.1, a=1.0) for n in range(3)]) is not None


def test_trials_that_went_wrong_do_not_press_the_others_into_a_line():
    means = [0.001, 0.18, 0.181, 0.182, 0.183]
    picture = drawn([trial(n, mean, a=float(n)) for n, mean in enumerate(means)])
    heights = {circle.get("cy") for circle in picture.iter(f"{SVG}circle") if circle.find(f"{SVG}title") is not None}
    assert len(heights) == 5
    assert max(map(float, heights)) - sorted(map(float, heights))[-2] > 20
