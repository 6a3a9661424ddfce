"""Slips in the settings file and the environment: named, with what was meant, and never the value of a secret."""

import pytest

from infra.settings import load_settings
from tasks.domain.errors import SettingsError

SLIPS = {
    "a misspelt setting": ('[index]\nulr = "http://x"', "index.ulr is no setting. Did you mean index.url?"),
    "a misspelt section": ('[indx]\nurl = "x"', "indx is no setting. Did you mean index?"),
    "a setting that there is not": ("quite_other = 1", "quite_other is no setting."),
    "text for a number": ('[index]\ntimeout_seconds = "soon"', "index.timeout_seconds: Input should be a valid number"),
    "out of range": ("[index]\nkeep_versions = 1", "index.keep_versions: Input should be greater than or equal to 2"),
    "no such effect": ('[event_types.poke]\neffect = "god"', "event_types.poke.effect: Input should be 'positive'"),
    "no TOML": ("[index\nurl = 1", "is not TOML"),
    "another encoding": ("home = 'x'".encode("utf-16"), "is not TOML"),
}


@pytest.fixture
def write(monkeypatch, tmp_path):
    """Write ``nearline.toml`` of the home that the environment names."""
    monkeypatch.setenv("NEARLINE_HOME", str(tmp_path))

    def write(content):
        (tmp_path / "nearline.toml").write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


@pytest.mark.parametrize(("content", "words"), SLIPS.values(), ids=SLIPS.keys())
def test_a_slip_in_the_settings_file_is_named(write, content, words):
    write(content)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert words in str(raised.value)
    assert "nearline.toml" in str(raised.value)
    assert "docs/settings.md" in str(raised.value)


@pytest.mark.parametrize("line", ['api_kye = "hush"', "api_key = ['hush']"])
def test_the_value_of_a_secret_is_never_told(write, line):
    write(f"[index]\n{line}")
    with pytest.raises(SettingsError, match=r"index\.api_") as raised:
        load_settings()
    assert "hush" not in str(raised.value)


def test_a_slip_in_the_environment_is_named(write, monkeypatch):
    monkeypatch.setenv("NEARLINE_INDEX__ULR", "http://x")
    with pytest.raises(SettingsError, match="Did you mean NEARLINE_INDEX__URL"):
        load_settings()
