#!/bin/sh
# Makes or reuses the Python environment of the peers (ONNX Runtime, PyTorch, PEFT) and prints its interpreter's path.
#
# usage: PY=$(tests/assets/venv.sh)
# It lives at ${SARTOR_VENV:-$HOME/.cache/sartor/venv}. A stamp with the hash of the requirements makes a second call
# return at once; a changed requirement brings the environment up to date in place.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=${SARTOR_VENV:-$HOME/.cache/sartor/venv}
stamp=$venv/.sartor-requirements
want=$(cat "$here/requirements.txt" "$here/constraints.txt" | sha256sum | cut -d' ' -f1)

up_to_date() {
    [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]
}

install_pins() {
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    rm -f "$stamp"
    # ONNX and ONNX Runtime are small and serve most checks, so they come first.
    "$venv/bin/python" -m pip install --quiet --no-cache-dir -c "$here/constraints.txt" numpy onnx onnxruntime
    "$venv/bin/python" -m pip install --quiet --no-cache-dir -r "$here/requirements.txt"
    echo "$want" >"$stamp"
}

if ! up_to_date; then
    echo "venv.sh: installing $here/requirements.txt into $venv" >&2
    mkdir -p "$(dirname "$venv")"
    exec 9>"$venv.lock"
    flock 9
    up_to_date || install_pins >&2
fi
echo "$venv/bin/python"
