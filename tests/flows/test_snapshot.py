"""The list of every flow, parameter, task, schedule and model, so that a lost one shows.

After a change that is meant: ``python -m tests.flows.test_snapshot`` writes the list anew.
"""

import json
from pathlib import Path

import yaml

SNAPSHOT = Path(__file__).with_name("snapshot.json")


def describe():
    from prefect import Task

    import tasks.prefect_tasks
    from flows.backfill import backfill
    from flows.commands.running import FLOWS
    from flows.daily_batch import daily_batch
    from flows.deployments import deployments_file
    from flows.maintenance import maintenance
    from flows.nearline import nearline
    from flows.run_report import ARTIFACTS, EVENTS
    from flows.tune_factors import tune_factors
    from tasks.transform import MODELS
    from warehouse.catalog import contracts

    flows = (daily_batch, nearline, backfill, maintenance, tune_factors)
    assert tuple(flow.name for flow in flows) == FLOWS
    deployments = yaml.safe_load(deployments_file().read_text())["deployments"]
    return {
        "flows": {flow.name: sorted(flow.parameters.properties) for flow in flows},
        "tasks": sorted(task.name for task in vars(tasks.prefect_tasks).values() if isinstance(task, Task)),
        "deployments": {
            deployment["name"]: {
                "entrypoint": deployment["entrypoint"],
                "schedules": [
                    {name: str(value) for name, value in schedule.items()} for schedule in deployment["schedules"]
                ],
                "limit": deployment["concurrency_limit"],
            }
            for deployment in deployments
        },
        "artifacts": sorted(ARTIFACTS),
        "events": sorted(EVENTS),
        "models": list(MODELS),
        "tables": sorted(contracts()),
    }


def test_nothing_was_lost_and_nothing_came_unseen():
    assert describe() == json.loads(SNAPSHOT.read_text())


def test_the_pages_name_every_flow_parameter_artifact_and_event():
    found = describe()
    page = (Path(__file__).parents[2] / "docs" / "flows.md").read_text()
    parameters = [name for names in found["flows"].values() for name in names]
    wanted = [*found["flows"], *parameters, *found["artifacts"], *found["events"]]
    assert [name for name in wanted if f"`{name}`" not in page] == []


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(describe(), indent=2) + "\n")
