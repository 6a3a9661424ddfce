"""The one policy of all tasks: what is retried, what is handed over, what is told."""

import pytest
from prefect import flow
from prefect.cache_policies import NO_CACHE

import tasks.prefect_tasks
from tasks.domain.errors import GateError, IndexUnavailableError, TransientError, WarehouseBusyError
from tasks.domain.records import Receipt
from tasks.prefect_tasks import as_task
from tasks.progress import watch_stages

pytestmark = pytest.mark.server


@pytest.fixture
def at_once(monkeypatch):
    """Retries without their delays."""
    monkeypatch.setattr(tasks.prefect_tasks, "RETRY_DELAYS_SECONDS", [0.0, 0.0, 0.0])


def run_in_flow(work):
    @flow(persist_result=False)
    def around():
        return work()

    return around()


@pytest.mark.parametrize("error", [TransientError, WarehouseBusyError, IndexUnavailableError])
def test_a_transient_error_is_tried_again(prefect_server, at_once, error):
    tries = []

    def sometimes(_resources):
        tries.append(1)
        if len(tries) < 3:
            raise error("not now")
        return Receipt("s", 1, 1, "here", 0.0)

    assert run_in_flow(lambda: as_task(sometimes)(object())).stage == "s"
    assert len(tries) == 3


@pytest.mark.parametrize("error", [GateError, ValueError])
def test_any_other_error_is_not(prefect_server, at_once, error):
    tries = []

    def never(_resources):
        tries.append(1)
        raise error("transient, says the message")

    with pytest.raises(error):
        run_in_flow(lambda: as_task(never)(object()))
    assert len(tries) == 1


def test_resources_are_the_same_object_and_are_never_pickled(prefect_server):
    class Unpicklable:
        def __reduce__(self):
            raise AssertionError("pickled")

        def __hash__(self):
            raise AssertionError("hashed")

    given, seen = Unpicklable(), []
    run_in_flow(lambda: as_task(lambda resources: seen.append(resources))(given))
    assert seen[0] is given


def test_whoever_watches_is_told_of_start_end_and_failure(prefect_server, at_once):
    def fine(_resources, *, gate):
        return [Receipt("a", 1, 2, "here", 0.1), Receipt("b", 1, 2, "there", 0.1)]

    def broken(_resources):
        raise GateError("No.\nReally not.")

    told = []
    with watch_stages(told.append):
        run_in_flow(lambda: as_task(fine, run_name="fine {gate}")(object(), gate="g"))
        with pytest.raises(GateError):
            run_in_flow(lambda: as_task(broken)(object()))
    assert [(event.stage, event.kind) for event in told] == [
        ("fine g", "started"),
        ("fine g", "finished"),
        ("broken", "started"),
        ("broken", "failed"),
    ]
    assert [receipt.stage for receipt in told[1].receipts] == ["a", "b"]
    assert told[-1].note == "No.\nReally not."


def test_every_task_states_the_policy():
    from prefect import Task

    found = [value for value in vars(tasks.prefect_tasks).values() if isinstance(value, Task)]
    assert len(found) > 10
    for task in found:
        assert task.cache_policy == NO_CACHE, task.name
        assert task.persist_result is False, task.name
        assert task.retries == 3, task.name
        assert task.retry_condition_fn is tasks.prefect_tasks.is_transient, task.name
        assert task.description, task.name
