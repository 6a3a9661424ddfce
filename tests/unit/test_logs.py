"""Log lines as JSON: what they hold, and what is kept out of them."""

import io
import json
import logging
from datetime import datetime

import pytest
import yaml

from infra.logs import PREFECT_CONFIG, console_handler

SECRET = "u-4711"


@pytest.fixture
def line():
    """``line(logger, level, message, ...)``: the JSON object of one line."""

    def write(name, level, message, *arguments, **options):
        handler, stream = console_handler("json"), io.StringIO()
        handler.setStream(stream)
        record = logging.getLogger(name).makeRecord(
            name, level, __file__, 1, message, arguments, options.get("exc_info")
        )
        handler.handle(record)
        return json.loads(stream.getvalue())

    return write


def raised():
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(f"no user {SECRET}") from error
    except ValueError as error:
        return type(error), error, error.__traceback__


def test_a_line_has_its_time_and_the_fields_of_its_message(line):
    found = line("tasks.train", logging.INFO, "refit_version version=%s items=%d seconds=%.2f", "v1", 40, 1.25)
    assert datetime.fromisoformat(found.pop("time")).utcoffset().total_seconds() == 0
    assert found == {
        "level": "INFO",
        "logger": "tasks.train",
        "message": "refit_version version=v1 items=40 seconds=1.25",
        "model_version_id": "v1",
        "items": 40,
        "duration_seconds": 1.25,
    }


def test_a_request_has_its_template_and_its_seconds(line):
    message = "request method=GET route=/v1/users/{user_id}/profile status=200 ms=12.5 key=k request_id=abc"
    found = line("serving.door", logging.INFO, message)
    assert (found["route"], found["status"], found["duration_seconds"]) == ("/v1/users/{user_id}/profile", 200, 0.0125)


def test_a_field_never_takes_the_place_of_the_line_s_own(line):
    assert line("tasks.x", logging.INFO, "x level=3 time=4 note='two words'")["level"] == "INFO"
    assert line("tasks.x", logging.INFO, "x note='two words'")["note"] == "two words"
    assert "rows" not in line("foreign.package", logging.WARNING, "x rows=3")


def test_an_error_is_told_by_its_types_and_places(line):
    found = line("tasks.intake", logging.ERROR, "intake failed", exc_info=raised())
    assert found["error"] == "ValueError"
    assert "in raised" in found["trace"]
    assert found["trace"].index("KeyError") < found["trace"].index("ValueError")
    assert SECRET not in str(found)


def test_text_lines_hold_no_message_of_an_error_either():
    handler, stream = console_handler("text"), io.StringIO()
    handler.setStream(stream)
    record = logging.getLogger("x").makeRecord("x", logging.ERROR, __file__, 1, "failed: %s", (raised()[1],), raised())
    handler.handle(record)
    assert "failed: ValueError" in stream.getvalue()
    assert "in raised" in stream.getvalue()
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize(
    ("level", "message", "kept"),
    [
        (logging.INFO, f"Finished in state Failed('no user {SECRET}')", "Finished in state Failed"),
        (logging.ERROR, f"Task run failed with exception: X('{SECRET} (b)') - Retries are exhausted", "X - Retries"),
        (logging.ERROR, f"Crash detected! {SECRET}", "Crash detected!"),
        (logging.INFO, "Finished in state Completed('Published: v1 serves 3 items.')", "v1 serves 3 items."),
    ],
)
def test_prefect_s_lines_lose_the_reason_of_a_failure(line, level, message, kept):
    found = line("prefect.flow_runs", level, message)["message"]
    assert kept in found
    assert SECRET not in found


def test_prefect_s_configuration_has_every_logger_of_prefect_s_own():
    from prefect.logging.configuration import DEFAULT_LOGGING_SETTINGS_PATH

    ours, theirs = (yaml.safe_load(path.read_text()) for path in (PREFECT_CONFIG, DEFAULT_LOGGING_SETTINGS_PATH))
    assert set(ours["loggers"]) == set(theirs["loggers"])
    for name, logger in theirs["loggers"].items():
        assert ours["loggers"][name]["level"] == logger["level"]
    filtered = {name for name, handler in ours["handlers"].items() if handler.get("filters") == ["without_values"]}
    assert filtered | {"console"} == set(ours["handlers"])
