"""Runs many models once each under ONNX Runtime, in one process.

usage: ort_run_many.py FOLDER

For every NAME.onnx in FOLDER, reads NAME.in.npz (one array per graph input) and writes NAME.out.npz (one per graph output). Ends
with the models that ONNX Runtime refuses, and exits 1 if there are any.
"""

import sys
from pathlib import Path

import numpy as np

from ort_run import feeds_from, open_session, run


def main():
    refused = []
    for model in sorted(Path(sys.argv[1]).glob("*.onnx")):
        try:
            session = open_session(str(model))
            outputs = run(session, feeds_from(session, np.load(model.with_suffix(".in.npz"))))
        except Exception as error:  # ONNX Runtime raises many kinds.
            refused.append(f"{model.name}: {str(error).splitlines()[0]}")
            continue
        np.savez(model.with_suffix(".out.npz"), **outputs)
    sys.exit("\n".join(refused) or None)


if __name__ == "__main__":
    main()
