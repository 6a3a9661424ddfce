#!/usr/bin/env bash
# Builds the wheel, installs it in an empty environment outside the repository, imports the five packages and reads one
# SQL model and every contract. The packages import without their heavy dependencies, so only pyyaml is installed.
set -euo pipefail
python=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m build --wheel --no-isolation --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; exit 1; }
"$python" -m venv "$scratch/empty"
"$scratch/empty/bin/python" -m pip install --quiet --constraint constraints.txt pyyaml
"$scratch/empty/bin/python" -m pip install --quiet --no-deps "$scratch"/dist/*.whl
cd "$scratch"
"$scratch/empty/bin/python" - <<'PY'
import sys

import flows, infra, serving, tasks, warehouse
from warehouse import catalog

for package in (flows, infra, serving, tasks, warehouse):
    assert package.__file__.startswith(sys.prefix), package.__file__
assert "select" in catalog.model_sql("stg_events")
print(f"wheel: five packages import, {len(catalog.contracts())} contracts read")
PY
