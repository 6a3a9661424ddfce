"""SIGKILL after the fit: the serving version stays whole, and the next run finishes without embedding again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.embed import embed_items
from tasks.evaluate import evaluate_version
from tasks.publish import publish_version
from tasks.recommend import recommend_to_user
from tasks.train import learn_version, plan_version, refit_version
from tasks.transform import build_models

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal, sys
from datetime import datetime
from pathlib import Path

from infra.settings import load_settings
from tasks.embed import embed_items
from tasks.train import learn_version, plan_version, refit_version
from tasks.transform import build_models
from tests.conftest import SmallResources

now = datetime.fromisoformat(sys.argv[2])
resources = SmallResources(load_settings(home=Path(sys.argv[1])))
build_models(resources, now=now)
assert not embed_items(resources, now=now).reused, "there was nothing to embed"
plan = plan_version(resources, now=now)
learn_version(resources, plan, now=now)
if sys.argv[3] == "refit":
    refit_version(resources, plan, now=now)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["learned", "refit"])
def test_a_kill_after_the_fit(two_versions, moment):
    world, resources = two_versions, two_versions.resources
    before = recommend_to_user(resources, "u03", k=5)
    world.add_items(("i50", "A new robot film", True))
    world.add_events(world.event("u03", "i50"), world.event("u05", "i50"))

    arguments = [str(resources.home), world.tick().isoformat(), moment]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr

    with resources.index() as index:
        assert index.serving_version() == "v2"
    assert recommend_to_user(resources, "u03", k=5).version == before.version

    build_models(resources, now=world.tick())
    assert embed_items(resources, now=world.tick()).reused, "what was embedded was embedded again"
    plan = plan_version(resources, now=world.tick())
    learn_version(resources, plan, now=world.tick())
    evaluate_version(resources, plan, now=world.tick())
    refit_version(resources, plan, now=world.tick())
    publish_version(resources, plan.version, now=world.tick())

    slate = recommend_to_user(resources, "u07", k=40)
    assert slate.version == plan.version
    assert "i50" in {item.item_id for item in slate.items}
