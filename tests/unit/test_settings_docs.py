"""Settings: their page, their sources, and slips of the pen."""

import pytest

from infra.settings import load_settings, setting_names, setting_source
from infra.settings_docs import PAGE, describe_settings, effective_settings, settings_page
from tasks.domain.errors import SettingsError


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARLINE_HOME", str(tmp_path))


def test_the_page_is_current():
    assert PAGE.read_text() == settings_page(), "run `make docs`"


def test_every_setting_is_described_and_has_a_variable():
    described = {setting.name: setting for setting in describe_settings()}
    assert list(described) and set(described) == set(setting_names())
    assert all(setting.description and setting.allowed for setting in described.values())
    assert described["index.url"].variable == "NEARLINE_INDEX__URL"
    assert described["encoder.max_tokens"].allowed == "at least 8 and at most 8192"
    assert described["encoder.precision"].allowed == "`auto`, `fp32`, `bf16`, `fp16`"


def test_the_source_of_a_value_is_named(tmp_path, monkeypatch):
    (tmp_path / "nearline.toml").write_text("[encoder]\nmax_tokens = 64\n[index]\ntimeout_seconds = 3\n")
    monkeypatch.setenv("NEARLINE_INDEX__TIMEOUT_SECONDS", "5")
    monkeypatch.setenv("NEARLINE_INDEX__API_KEY", "hunter2")
    found = {setting.name: setting for setting in effective_settings(load_settings())}
    assert found["encoder.max_tokens"].source == str(tmp_path / "nearline.toml")
    assert found["index.timeout_seconds"].value == "5.0"
    assert found["index.timeout_seconds"].source == "NEARLINE_INDEX__TIMEOUT_SECONDS"
    assert found["encoder.model"].source == "default"
    assert "hunter2" not in str(found)
    assert found["index.api_key"].value == "**********"


def test_a_whole_section_in_one_variable_is_its_source(monkeypatch):
    monkeypatch.setenv("NEARLINE_GATES", '{"max_row_drop": 0.4}')
    assert load_settings().gates.max_row_drop == 0.4
    assert setting_source("gates.max_row_drop") == "NEARLINE_GATES"


@pytest.mark.parametrize("variable", ["NEARLINE_INDEX_URL", "NEARLINE_HOMES", "NEARLINE_ENCODER__PRECISON"])
def test_a_slip_of_the_pen_is_no_silent_default(variable, monkeypatch):
    monkeypatch.setenv(variable, "x")
    with pytest.raises(SettingsError, match=f"{variable}, which is no setting. Did you mean NEARLINE_"):
        load_settings()


def test_event_types_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("NEARLINE_EVENT_TYPES__ADD_TO_CART__EFFECT", "positive")
    assert load_settings().all_event_types["add_to_cart"].effect == "positive"


def test_a_file_that_is_not_toml_is_named(tmp_path):
    (tmp_path / "nearline.toml").write_text("[encoder\n")
    with pytest.raises(SettingsError, match=r"nearline\.toml is not TOML"):
        load_settings()
