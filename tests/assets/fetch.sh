#!/bin/sh
# Fetches the real models and data that tests and benches use, and makes the exports from them.
# `fetch.sh --help` lists the switches; the work is in fetch.py.
exec python3 "$(dirname "$0")/fetch.py" "$@"
