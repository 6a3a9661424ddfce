"""The command line as people and programs use it, on the small world."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flows.cli
from tasks.domain.errors import GateError, InputError, NearlineError, NotFoundError, SettingsError, TransientError

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(command.name or command.callback.__name__ for command in flows.cli.app.registered_commands)


@pytest.fixture
def nearline(monkeypatch, capsys, tmp_path):
    """Run ``nearline ...`` in this process; returns the exit code, stdout and stderr."""
    monkeypatch.setenv("NEARLINE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nearline", *arguments])
        try:
            code = flows.cli.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def served(nearline, small_world, monkeypatch):
    """The same on the small world's home."""
    monkeypatch.setenv("NEARLINE_HOME", str(small_world.resources.home))
    return nearline


def test_help_shows_every_command(nearline):
    code, out, _ = nearline("--help")
    assert code == 0
    for command in COMMANDS:
        assert re.search(rf"^│ {command} ", out, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(nearline, command):
    code, out, _ = nearline(command, "--help")
    assert code == 0
    assert len(out) > 300


def test_nothing_heavy_is_imported_before_a_command_needs_it():
    heavy = {"prefect", "duckdb", "numpy", "pyarrow", "torch", "pydantic", "qdrant_client", "great_expectations"}
    program = f"import sys, flows.cli; sys.exit(', '.join(sorted({heavy!r} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_that_of_the_package(nearline):
    code, out, _ = nearline("--version")
    assert code == 0
    assert re.fullmatch(r"nearline \d+\.\d+\.\d+\n", out)


def test_the_page_names_every_command_and_option():
    page = (ROOT / "docs" / "cli.md").read_text()
    for command in flows.cli.app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"## nearline {name}" in page, name
    modules = [ROOT / "flows" / "cli.py", *(ROOT / "flows" / "commands").glob("*.py")]
    options = {option for module in modules for option in re.findall(r'"(--[a-z-]+)"', module.read_text())}
    missing = [option for option in options if f"{option}" not in page]
    assert not missing


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError, 2), (SettingsError, 2), (NotFoundError, 2), (GateError, 1), (TransientError, 1), (NearlineError, 1)],
)
def test_our_errors_are_a_message_and_a_code_and_no_traceback(nearline, monkeypatch, error, code):
    def fail():
        raise error("Nothing [bold]works[/bold] today. Come back tomorrow.")

    monkeypatch.setattr("infra.settings.load_settings", fail)
    found, out, err = nearline("settings")
    assert (found, out) == (code, "")
    assert err == "Nothing [bold]works[/bold] today. Come back tomorrow.\n"


def test_a_wrong_setting_is_named(nearline, monkeypatch):
    monkeypatch.setenv("NEARLINE_INDEX__KEEP_VERSIONS", "1")
    code, _, err = nearline("settings")
    assert code == 2
    assert "index.keep_versions" in err


def test_settings_as_json_name_their_sources(nearline, tmp_path):
    code, out, _ = nearline("settings", "--json")
    found = {setting["name"]: setting for setting in json.loads(out)}
    assert code == 0
    assert found["home"] == {"name": "home", "value": str(tmp_path / "empty"), "source": "NEARLINE_HOME"}


def test_status_of_an_empty_home_says_what_to_do_first(nearline):
    code, out, _ = nearline("status")
    assert code == 0
    assert "nearline import items PATH" in out


def test_status_as_json_has_what_serves_and_what_waits(served, small_world):
    small_world.add_events(small_world.event("u01", "i05"))
    code, out, _ = served("status", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["serving_version"] == "v1"
    assert found["n_waiting_events"] == 1
    assert "nearline run nearline" in found["next_step"]
    assert found["rows"]["raw_items"] == 40


def test_recommend_prints_a_slate_and_its_reasons(served):
    code, out, _ = served("recommend", "--user", "u01", "-k", "3", "--explain")
    assert code == 0
    assert "Because of" in out
    assert len(re.findall(r"^ +[123] ", out, re.MULTILINE)) == 3


def test_recommend_as_json_adds_up(served):
    _, out, _ = served("recommend", "--user", "u01", "-k", "3", "--json")
    slate = json.loads(out)
    assert [item["rank"] for item in slate["items"]] == [1, 2, 3]
    for item in slate["items"]:
        parts = item["text_part"] + item["factors_part"] + item["prior_part"]
        assert parts == pytest.approx(item["score"], abs=1e-4)


@pytest.mark.parametrize("arguments", [(), ("--user", "u01", "--text", "space"), ("--like", "i01", "--user", "u01")])
def test_recommend_needs_exactly_one_way_of_asking(served, arguments):
    code, _, err = served("recommend", *arguments)
    assert code == 2
    assert "one of --user, --text and --like" in err


def test_recommend_to_somebody_who_likes_items(served):
    _, out, _ = served("recommend", "--like", "i01", "--like", "i02", "--json", "-k", "2")
    found = {item["item_id"] for item in json.loads(out)["items"]}
    assert len(found) == 2
    assert not {"i01", "i02"} & found


def test_similar_items(served):
    code, out, _ = served("similar", "i03", "-k", "2", "--json")
    assert code == 0
    assert len(json.loads(out)["items"]) == 2


def test_sql_as_table_json_lines_and_csv(served):
    query = "select item_id, categories from stg_items order by item_id limit 2"
    _, table, _ = served("sql", query)
    assert "i00" in table
    assert "2 rows" in table
    _, lines, _ = served("sql", query, "--json")
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"item_id": "i00", "categories": []},
        {"item_id": "i01", "categories": []},
    ]
    _, text, _ = served("sql", query, "--csv")
    assert list(csv.reader(io.StringIO(text))) == [["item_id", "categories"], ["i00", "[]"], ["i01", "[]"]]


def test_sql_shows_a_part_and_says_so(served):
    _, out, _ = served("sql", "select item_id from stg_items", "--limit", "3")
    assert "40 rows, 3 of them shown" in out


@pytest.mark.parametrize("query", ["drop table stg_items", "delete from raw_events", "select * from nowhere", "selec"])
def test_sql_reads_only(served, query):
    code, _, err = served("sql", query)
    assert code == 2
    assert err
    assert served("sql", "select count(*) as n from stg_items", "--json")[1] == '{"n": 40}\n'


def test_text_of_the_data_is_never_markup(served, small_world):
    small_world.add_items(("i90", "[red]not red[/red] [/bold]", True))
    _, out, _ = served("sql", "select title from raw_items where item_id = 'i90'")
    assert "[red]not red[/red] [/bold]" in out


@pytest.fixture
def ratings(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating,timestamp\nu01,i05,4.5,1772366400\nu02,i06,2,1772366401\n")
    return path


def test_import_of_foreign_columns_is_refused_with_a_proposal(served, ratings):
    code, _, err = served("import", "events", str(ratings))
    assert code == 2
    assert "user_id: userId" in err


def test_import_proposes_a_mapping_that_it_then_takes(served, ratings, tmp_path):
    code, out, err = served("import", "events", str(ratings), "--dry-run")
    assert code == 0
    assert "becomes" in err
    mapping = tmp_path / "mapping.yml"
    mapping.write_text(out)
    code, out, _ = served("import", "events", str(ratings), "--mapping", str(mapping), "--json")
    assert code == 0
    assert [(receipt["n_in"], receipt["n_out"]) for receipt in json.loads(out)] == [(2, 2)]


def test_a_dry_run_imports_nothing(served, ratings):
    served("import", "events", str(ratings), "--dry-run")
    assert (
        served("sql", "select count(*) as n from raw_events where source = 'ratings.csv'", "--json")[1] == '{"n": 0}\n'
    )


def test_import_with_a_guess(served, ratings):
    code, out, _ = served("import", "events", str(ratings), "--guess", "--json")
    assert code == 0
    assert json.loads(out)[0]["n_out"] == 2


@pytest.mark.parametrize(
    ("name", "text"), [("m.txt", "a: b"), ("m.yml", "- a\n- b"), ("m.json", "{"), ("m.toml", "a = 1"), ("no.yml", None)]
)
def test_a_mapping_that_cannot_be_read_is_named(served, ratings, tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    code, _, err = served("import", "events", str(ratings), "--mapping", str(tmp_path / name))
    assert code == 2
    assert name in err


def test_rollback_with_nothing_to_go_back_to(served):
    code, _, err = served("rollback")
    assert code == 2
    assert "nothing to go back to" in err


def test_rollback_to_a_version_that_is_not_published(served):
    code, _, err = served("rollback", "v9")
    assert code == 2
    assert "'v9'" in err


def test_an_unknown_flow_is_refused_with_the_known_ones(nearline):
    code, _, err = nearline("run", "nightly")
    assert code == 2
    assert "daily_batch, nearline, backfill, maintenance" in err


def test_trigger_without_a_server_says_how_to_start_one(nearline):
    code, _, err = nearline("trigger", "nearline")
    assert code == 1
    assert "nearline up" in err
