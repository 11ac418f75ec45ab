#!/bin/sh
# Makes or reuses a Python environment of the peers and prints its interpreter's path.
#
# usage: PY=$(tests/assets/venv.sh [bench | ort-training])
#
# without argument  ONNX Runtime, PyTorch, PEFT: requirements.txt, at ${SARTOR_VENV:-$HOME/.cache/sartor/venv}
# bench             the same environment with what only measurements need: requirements-bench.txt
# ort-training      ONNX Runtime for training: requirements-ort-training.txt, at the same path with -ort-training; it finds PyTorch in the first one
#
# A stamp with the hash of the requirements makes a second call return at once; a changed requirement brings the
# environment up to date in place.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=${SARTOR_VENV:-$HOME/.cache/sartor/venv}
constraints=$here/constraints.txt

hash_of() {
    cat "$@" | sha256sum | cut -d' ' -f1
}

# up_to_date VENV STAMP HASH
up_to_date() {
    [ -x "$1/bin/python" ] && [ "$(cat "$1/$2" 2>/dev/null)" = "$3" ]
}

# install VENV FILE: the pins of a file of requirements.
install() {
    [ -x "$1/bin/python" ] || python3 -m venv "$1"
    # ONNX and ONNX Runtime are small and serve most checks, so they come first.
    if [ "$2" = requirements.txt ]; then
        "$1/bin/python" -m pip install --quiet --no-cache-dir -c "$constraints" numpy onnx onnxruntime
    fi
    case $2 in
    # Its pins are all it needs; what they depend on would be PyTorch once more.
    requirements-ort-training.txt) set -- "$1" "$2" --no-deps ;;
    *) set -- "$1" "$2" ;;
    esac
    "$1/bin/python" -m pip install --quiet --no-cache-dir ${3:-} -r "$here/$2"
}

# ensure VENV STAMP FILE: the environment has the pins of the file.
ensure() {
    want=$(hash_of "$here/$3" "$constraints")
    up_to_date "$1" "$2" "$want" && return
    echo "venv.sh: installing $here/$3 into $1" >&2
    mkdir -p "$(dirname "$1")"
    exec 9>"$1.lock"
    flock 9
    up_to_date "$1" "$2" "$want" && return
    rm -f "$1/$2"
    install "$1" "$3" >&2
    echo "$want" >"$1/$2"
}

case ${1:-} in
'') ensure "$venv" .sartor-requirements requirements.txt ;;
bench)
    ensure "$venv" .sartor-requirements requirements.txt
    ensure "$venv" .sartor-requirements-bench requirements-bench.txt
    ;;
ort-training)
    ensure "$venv" .sartor-requirements requirements.txt
    first=$venv
    venv=$venv-ort-training
    ensure "$venv" .sartor-requirements requirements-ort-training.txt
    # What this environment lacks is looked for in the first one, behind its own.
    packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$first/bin/python" -c "$packages" >"$("$venv/bin/python" -c "$packages")/sartor-first.pth"
    ;;
*)
    echo "venv.sh: unknown environment \"$1\": bench or ort-training" >&2
    exit 2
    ;;
esac
echo "$venv/bin/python"
