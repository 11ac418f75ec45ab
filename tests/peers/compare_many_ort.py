"""Compares many pairs of models under ONNX Runtime, bit for bit. Exits 1 when any differ.

usage: compare_many_ort.py PAIRS.txt

Each line of PAIRS.txt is `ORIGINAL<TAB>WRITTEN<TAB>INPUTS.npz`. INPUTS.npz has the arrays of the ONNX suite: an input
named x stands as `in_x` (or as `x`). A model that ONNX Runtime cannot load is counted only if it refuses the original
too, with the reason printed. The last line says how many were bit-equal, and how many were refused.
"""

import sys
from pathlib import Path

import numpy as np

from compare_ort import compare, pair_outputs
from ort_run import feeds_from, open_session, run


def main():
    equal, refused, different = 0, 0, []
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        original, written, inputs = line.split("\t")
        print(original)
        try:
            session = open_session(original)
        except Exception as error:  # ONNX Runtime raises many kinds; what matters is that it refuses the original.
            print(f"  refused by ONNX Runtime: {str(error).splitlines()[0]}")
            refused += 1
            continue
        feeds = feeds_from(session, np.load(inputs))
        a, b = run(session, feeds), run(open_session(written), feeds)
        if all([compare(*pair, None) for pair in pair_outputs(a, b)]):
            equal += 1
        else:
            different.append(original)
    for path in different:
        print(f"different: {path}")
    print(f"bit-equal {equal}, refused {refused}, different {len(different)}")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
