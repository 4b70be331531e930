#!/usr/bin/env bash
# Runs tests with the oldest dependencies that pyproject.toml allows, in an environment of its own.
#   bash tools/min_versions.sh [pytest arguments]      (default: everything but the nightly tests)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/uv"
"$folder/uv/bin/pip" install -q uv
"$folder/uv/bin/uv" venv -q --seed --python python3 "$folder/venv"
"$folder/uv/bin/uv" pip install -q --python "$folder/venv/bin/python" \
  --resolution lowest-direct -e '.[test]'
"$folder/uv/bin/uv" pip list --python "$folder/venv/bin/python"
"$folder/venv/bin/python" -m pytest "$@"
