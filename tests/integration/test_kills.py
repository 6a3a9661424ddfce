"""Some of the kills of ``python -m benchmarks.kills``, which has all of them."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = ("daily_batch", "nearline")


def test_a_kill_in_the_middle_of_a_command_leaves_the_books_right():
    chosen = ["--only", *COMMANDS, "--sample", "1", "--seed", "9", "--pairs", "0", "--jobs", "1", "--json"]
    command = [sys.executable, "-m", "benchmarks.kills", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] == []
    assert {name: about["kills"] for name, about in report["commands"].items()} == dict.fromkeys(COMMANDS, 1)
