"""Flows of the team's shape in a process of its own: ``python -m tests.team.flows_process``.

Each line of stdin is a flow with its parameters as JSON, each line of stdout how it ended. Everything else comes from
the environment, as on a worker.
"""

import json
import sys

from infra.prefect_server import prepare_prefect
from infra.settings import load_settings

settings = load_settings(factors={"n_factors": 8})
prepare_prefect(settings, quiet=True)


def main():
    from flows.daily_batch import daily_batch
    from flows.nearline import nearline
    from flows.run_context import share_resources
    from tests.fakes.hashing import HashingResources

    flows = {"daily_batch": daily_batch, "nearline": nearline}
    with share_resources(HashingResources(settings)):
        for line in sys.stdin:
            flow, parameters = json.loads(line)
            sys.stdout.write(f"{json.dumps(flows[flow](**parameters).outcome)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
