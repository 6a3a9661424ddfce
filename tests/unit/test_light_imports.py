"""A refresh and a request load no language model and no validation engine."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "great_expectations", "distributed", "prefect", "qdrant_client")


def test_serving_functions_import_nothing_heavy():
    program = (
        "import sys, tasks.arrivals, tasks.refresh, tasks.recommend, tasks.slates\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
