"""Each flow once on real components, one that fails and resumes, and gates that stop."""

import json
from datetime import timedelta

import pytest

import flows.cli
import tasks.publish
from flows.backfill import backfill
from flows.daily_batch import daily_batch
from flows.maintenance import maintenance
from flows.nearline import nearline
from tasks.domain.errors import GateError, InputError
from tasks.recommend import recommend_to_user
from tasks.status import load_serving_version
from tests.conftest import NOW
from tests.flows.conftest import hashing_resources, write

pytestmark = pytest.mark.server


def like(world, user_id, item_id):
    """An event an hour after all others."""
    world.add_events(world.event(user_id, item_id, at=NOW + timedelta(hours=1)))


def read(resources, sql):
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql).to_pylist()


def test_the_daily_batch_publishes_and_leaves_artifacts_and_an_event(first_batch, api):
    resources, summary = first_batch.resources, first_batch.summary
    assert summary.outcome == "Published"
    assert load_serving_version(resources) == summary.version
    assert [receipt.n_out for receipt in summary.receipts if receipt.stage == "import"] == [60, 960]
    assert {event.kind for event in first_batch.told} == {"started", "progress", "finished"}
    assert read(resources, "select count(*) as n from mart_recommendations")[0]["n"] == 80 * 5

    run = api.run_of("daily_batch", f"Published: {summary.message}")
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Completed")
    assert summary.message == f"{summary.version} serves 60 items to 80 users."
    checks = json.loads(api.artifact("data-quality", run["id"]))
    assert {check["gate"] for check in checks} >= {"transform", "embed", "quality", "train", "publish", "slates"}
    assert not [check for check in checks if check["result"] == "STOP"]
    assert summary.version in api.artifact("publication", run["id"])
    metrics = json.loads(api.artifact("model-quality", run["id"]))
    assert {"fused", "popularity", "text", "factors"} <= {metric["policy"] for metric in metrics}
    assert metrics[0]["metric"] == "ndcg_at_10"
    stages = json.loads(api.artifact("stages", run["id"]))
    assert [stage["stage"] for stage in stages][-2:] == ["write_slates", "check_gate slates"]
    published = api.events("nearline.version.published", of_run=run["id"])[0]
    assert published["resource"]["prefect.resource.id"] == f"nearline.version.{summary.version}"
    assert published["payload"]["n_items"] == 60


def test_a_second_batch_over_the_same_files_changes_nothing(batched):
    again = daily_batch(**batched.files)
    assert again.outcome == "Unchanged"
    assert batched.summary.version in again.message
    assert load_serving_version(batched.resources) == batched.summary.version
    assert all(receipt.reused for receipt in again.receipts)


def test_a_batch_that_died_before_the_switch_resumes_without_embedding_again(batched, monkeypatch, tmp_path):
    resources, first = batched.resources, batched.summary.version
    new = write(tmp_path / "new.csv", ("item_id", "title"), [("i90", "a new robot film")])

    def die(*_arguments):
        raise RuntimeError("the machine went away")

    with monkeypatch.context() as broken:
        broken.setattr(tasks.publish, "_switch", die)
        with pytest.raises(RuntimeError, match="went away"):
            daily_batch(items=(new,))
    assert load_serving_version(resources) == first
    assert recommend_to_user(resources, "u00").version == first
    encoded = (resources.home / "encoded.log").read_text()
    assert len(encoded.splitlines()) > 60

    summary = daily_batch(items=(new,))
    assert summary.outcome == "Published"
    assert load_serving_version(resources) == summary.version != first
    assert (resources.home / "encoded.log").read_text() == encoded
    found = read(resources, "select version, count(*) as n from item_factors group by version order by version")
    assert found[-1] == {"version": summary.version, "n": 61}


def test_a_gate_before_the_switch_leaves_the_old_version_serving_and_says_what_to_do(batched, run_on, api, tmp_path):
    resources = run_on(hashing_resources(batched.resources.home, gates={"min_text_coverage": 1.0}))
    nameless = write(tmp_path / "nameless.csv", ("item_id", "title"), [("i91", "")])
    with pytest.raises(GateError, match="What to do"):
        daily_batch(items=(nameless,))

    assert load_serving_version(resources) == batched.summary.version
    states = read(resources, "select version, state from model_versions order by version")
    assert [row["state"] for row in states] == ["published", "rejected"]
    run, stopped = stopped_run(api)
    assert {check["gate"] for check in stopped} == {"publish"}
    event = api.events("nearline.gate.stopped", of_run=run["id"])[0]
    assert event["resource"]["prefect.resource.id"] == "nearline.gate.publish"
    assert event["payload"]["flow"] == "daily_batch"
    stages = json.loads(api.artifact("stages", run["id"]))
    assert (stages[-1]["stage"], stages[-1]["result"]) == ("publish_version", "failed")


def test_a_file_that_is_mostly_wrong_stops_the_batch_at_its_first_gate(batched, api, tmp_path):
    header = ("user_id", "item_id", "event_type", "occurred_at")
    rows = [("u01", "i01", "like", "yesterday, I think")] * 9
    with pytest.raises(GateError, match="quarantine"):
        daily_batch(events=(write(tmp_path / "wrong.csv", header, rows),))
    _, stopped = stopped_run(api)
    assert [check["gate"] for check in stopped] == ["ingest"]
    assert load_serving_version(batched.resources) == batched.summary.version


def stopped_run(api):
    """The last batch, which must have failed, and its checks that stopped it."""
    run = api.last_run("daily_batch")
    assert run["state_type"] == "FAILED"
    assert "What to do" in run["state"]["message"]
    stopped = [check for check in json.loads(api.artifact("data-quality", run["id"])) if check["result"] == "STOP"]
    assert stopped
    assert all(check["what to do"] for check in stopped)
    return run, stopped


def test_nearline_serves_what_happened_since(small_world, run_on, api):
    resources = run_on(small_world.resources)
    before = recommend_to_user(resources, "u01", k=3)
    liked = before.items[0].item_id
    like(small_world, "u01", liked)

    summary = nearline()
    assert summary.outcome == "Refreshed"
    assert [(r.stage, r.n_in, r.n_out) for r in summary.receipts] == [("refresh", 1, 1)]
    assert liked not in {item.item_id for item in recommend_to_user(resources, "u01", k=3).items}
    run = api.last_run("nearline")
    assert run["state"]["message"].startswith("Refreshed: 1 users from 1 events, lag p95 ")
    assert "version:v1" in run["tags"]
    (row,) = json.loads(api.artifact("nearline-refresh", run["id"]))
    assert (row["users"], row["events"]) == (1, 1)
    assert api.events("nearline.refresh.completed", of_run=run["id"])

    assert nearline().outcome == "Skipped"


def test_nearline_before_the_first_publication_has_nothing_to_do(home):
    summary = nearline()
    assert (summary.outcome, summary.version) == ("Skipped", None)
    assert "daily_batch" in summary.message


def test_backfill_recomputes_users_by_name_and_by_day(small_world, run_on):
    resources = run_on(small_world.resources)
    like(small_world, "u05", "i03")
    summary = backfill(users=("u05",), slate_length=3)
    assert (summary.outcome, summary.message) == ("Backfilled", "1 users in v1.")
    assert read(resources, "select max(rank) as n from mart_recommendations where user_id = 'u05'")[0]["n"] == 3
    assert "1 users were named" in summary.receipts[0].note
    day = NOW.date().isoformat()
    assert backfill(from_date=day, to_date=day, slate_length=3).message == "30 users in v1."


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"users": ("u01",), "from_date": "2026-01-01"}, "users and dates"),
        ({"from_date": "2026-02-01", "to_date": "2026-01-01"}, "Swap the two"),
        ({"to_date": "1999-01-01"}, "nobody has an event"),
    ],
)
def test_backfill_refuses_what_means_nothing(small_world, run_on, parameters, message):
    run_on(small_world.resources)
    with pytest.raises(InputError, match=message):
        backfill(**parameters)


def test_maintenance_tidies_and_keeps_what_serves(small_world, run_on, api):
    resources = run_on(small_world.resources)
    before = recommend_to_user(resources, "u02")
    summary = maintenance(keep_days=1)
    assert summary.outcome == "Tidied"
    assert recommend_to_user(resources, "u02") == before
    run = api.last_run("maintenance")
    assert len(json.loads(api.artifact("maintenance", run["id"]))) == len(summary.receipts)


def test_a_rollback_on_the_command_line_is_announced(two_versions, run_on, api, monkeypatch, capsys):
    resources = run_on(two_versions.resources)
    monkeypatch.setattr("sys.argv", ["nearline", "rollback"])
    with pytest.raises(SystemExit, match="0"):
        flows.cli.main()
    assert "v1 serves again" in capsys.readouterr().out
    assert load_serving_version(resources) == "v1"
    event = api.events("nearline.version.rolled_back")[0]
    assert event["resource"]["prefect.resource.id"] == "nearline.version.v1"


def test_relative_paths_are_refused_because_a_worker_runs_anywhere(home):
    with pytest.raises(InputError, match="must be absolute"):
        daily_batch(items=("items.csv",))
