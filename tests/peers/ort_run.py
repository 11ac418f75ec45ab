"""Runs a model once under ONNX Runtime.

usage: ort_run.py MODEL IN.npz OUT.npz [--no-optimize]

IN.npz has one array per graph input, named `<name>` or `in_<name>`; an array that the model has no input for is
ignored. OUT.npz gets one array per graph output, named `<name>`. bfloat16 inputs cannot be fed. One thread, so that the
result is the same every time. `--no-optimize` switches ONNX Runtime's graph optimizations off.
"""

import argparse
import sys

import numpy as np
import onnxruntime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "inputs", "outputs"):
        parser.add_argument(name)
    parser.add_argument("--no-optimize", action="store_true")
    options = parser.parse_args()
    session = open_session(options.model, not options.no_optimize)
    np.savez(options.outputs, **run(session, feeds_from(session, np.load(options.inputs))))


def open_session(path, optimize=True):
    """A CPU session with one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    if not optimize:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def feeds_from(session, arrays):
    """The session's inputs out of named arrays; ends with the names of those that are missing."""
    feeds, missing = {}, []
    for name in (i.name for i in session.get_inputs()):
        key = next((k for k in (name, f"in_{name}") if k in arrays), None)
        if key is None:
            missing.append(name)
        else:
            feeds[name] = arrays[key]
    if missing:
        sys.exit(f"the inputs have no array for {', '.join(missing)}")
    return feeds


def run(session, feeds):
    """The session's outputs by name."""
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


if __name__ == "__main__":
    main()
