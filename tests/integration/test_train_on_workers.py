"""A version that Dask workers fitted is the version that threads fit."""

from dataclasses import replace

import pytest

from infra.settings import ComputeSettings
from tasks.train import learn_version, plan_version, refit_version

pytestmark = pytest.mark.server
FITTED = "select * from {} where version = '{}' order by all"


def fitted(world, resources, plan):
    """Factors of items and users after a refit."""
    refit_version(resources, plan, now=world.tick())
    with resources.warehouse(read_only=True) as warehouse:
        return [warehouse.read(FITTED.format(table, plan.version)) for table in ("item_factors", "user_factors")]


def test_workers_and_threads_fit_the_same_version(small_world):
    resources = small_world.resources
    compute = ComputeSettings(n_workers=1, factor_solver="workers")
    on_workers = replace(resources, settings=resources.settings.model_copy(update={"compute": compute}))
    plan = plan_version(resources, now=small_world.tick())
    learn_version(resources, plan, now=small_world.tick())
    items, users = fitted(small_world, resources, plan)
    assert fitted(small_world, on_workers, plan) == [items, users]
    assert items.num_rows and users.num_rows
    assert not list((resources.home / "staging" / "factors").iterdir())
