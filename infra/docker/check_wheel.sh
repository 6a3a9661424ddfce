#!/usr/bin/env bash
# Builds the wheel, installs it (without its dependencies' downloads: they are seen through a path file) in an empty
# environment outside the repository, imports the five packages and reads one SQL model and one contract.
set -euo pipefail
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m build --wheel --no-isolation --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; exit 1; }
"$python" -m venv "$scratch/empty"
"$scratch/empty/bin/python" -m pip install --quiet --no-deps "$scratch"/dist/*.whl
# The dependencies are those of the project's environment; the packages under test are the wheel's.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cd "$scratch"
PYTHONPATH=$("$scratch/empty/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'):"$site" \
  "$scratch/empty/bin/python" - "$scratch" <<'PY'
import sys, flows, infra, serving, tasks, warehouse
from warehouse import catalog
for package in (flows, infra, serving, tasks, warehouse):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
assert "select" in catalog.model_sql("stg_events")
assert len(catalog.contracts()) > 20
print(f"wheel: five packages import, {len(catalog.contracts())} contracts read")
PY
