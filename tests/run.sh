#!/usr/bin/env bash
# Sets up what the tests need (models, data, a Python environment with the peers) and runs them all.
# usage: tests/run.sh [arguments for the test runner]
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/sartor/target}"
tests/assets/venv.sh
tests/assets/venv.sh ort-training
tests/assets/fetch.sh --big
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --no-fail-fast "$@"
else
    cargo test --workspace --no-fail-fast "$@"
fi
