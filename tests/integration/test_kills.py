"""Some of the kills of ``python -m benchmarks.kills``, which has all of them."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.support.killed_runs import COMMANDS

ROOT = Path(__file__).parents[2]


def test_a_kill_in_the_middle_of_every_command_leaves_the_books_right():
    command = [sys.executable, "-m", "benchmarks.kills", "--sample", "1", "--seed", "9", "--pairs", "0", "--jobs", "1"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] == []
    assert {name: about["kills"] for name, about in report["commands"].items()} == dict.fromkeys(COMMANDS, 1)
