"""Compares the outputs of two models under ONNX Runtime, bit for bit. Exits 1 when they differ.

usage: compare_ort.py A.onnx B.onnx [--inputs X.npz | --random SEED] [--dim NAME=SIZE]... [--tolerance T]
                      [--no-optimize]

Outputs are matched by name where both models have the same names, else by position. For each it prints the largest
absolute difference. `--tolerance` accepts differences up to T instead of none. `--no-optimize` switches off ONNX
Runtime's own graph optimizations, which may turn equal arithmetic into different fusions.

Without `--inputs`, inputs are random (seed 0 unless given): float arrays are normal, `input_ids` are from 1 to 999,
`attention_mask` is 1, other integers are 0 or 1. A dynamic axis gets 2 elements when it is the first one and, after it,
64 in an input of rank 4 and 9 in any other; `--dim` sets one by its name. Axes of one name get one size.
"""

import argparse
import sys

import numpy as np

from ort_run import feeds_from, open_session, run

FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
INTEGERS = {f"tensor({name})": np.dtype(name) for name in
            ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}


def main():
    options = parse_options()
    sessions = [open_session(path, not options.no_optimize) for path in (options.a, options.b)]
    if options.inputs:
        arrays = np.load(options.inputs)
    else:
        arrays = random_arrays(sessions, np.random.default_rng(options.random), dict(options.dim))
    a, b = (run(session, feeds_from(session, arrays)) for session in sessions)
    results = [compare(*pair, options.tolerance) for pair in pair_outputs(a, b)]
    sys.exit(0 if results and all(results) else 1)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a")
    parser.add_argument("b")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--inputs")
    source.add_argument("--random", type=int, default=0)
    parser.add_argument("--dim", type=named_size, action="append", default=[])
    parser.add_argument("--tolerance", type=float, default=None)
    parser.add_argument("--no-optimize", action="store_true")
    return parser.parse_args()


def named_size(text):
    """`batch=3` as ("batch", 3)."""
    name, size = text.rsplit("=", 1)
    return name, int(size)


def random_arrays(sessions, generator, sizes):
    """Random arrays for every input that one of the sessions has."""
    arrays = {}
    for info in (i for session in sessions for i in session.get_inputs()):
        if info.name not in arrays:
            arrays[info.name] = random_array(info, concrete_shape(info.shape, sizes), generator)
    return arrays


def concrete_shape(shape, sizes):
    """The shape with a size for each dynamic axis; a new name's size is remembered in `sizes`."""
    concrete = []
    for axis, dim in enumerate(shape):
        default = 2 if axis == 0 else 64 if len(shape) == 4 else 9
        if isinstance(dim, int) and dim >= 0:
            concrete.append(dim)
        elif isinstance(dim, str) and dim != "?":
            concrete.append(sizes.setdefault(dim, default))
        else:
            concrete.append(default)
    return concrete


def random_array(info, shape, generator):
    """A random array for one input, with values that make sense for its name and type."""
    if info.type in FLOATS:
        return np.asarray(generator.standard_normal(shape)).astype(FLOATS[info.type])
    if info.type not in INTEGERS:
        sys.exit(f"input {info.name}: cannot make random values of {info.type}; use --inputs")
    if info.name == "attention_mask":
        values = np.ones(shape)
    elif info.name == "input_ids":
        values = generator.integers(1, 1000, shape)
    else:
        values = generator.integers(0, 2, shape)
    return np.asarray(values).astype(INTEGERS[info.type])


def pair_outputs(a, b):
    """Yields (name, array of A, array of B)."""
    if len(a) != len(b):
        sys.exit(f"A has the outputs {', '.join(a)}, B has {', '.join(b)}")
    if a.keys() == b.keys():
        return [(name, a[name], b[name]) for name in a]
    return [(f"{m} / {n}", a[m], b[n]) for m, n in zip(a, b, strict=True)]


def compare(name, a, b, tolerance):
    """Prints how two arrays differ and returns whether they are equal enough."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        print(f"{name}: A is {a.dtype}{list(a.shape)}, B is {b.dtype}{list(b.shape)}")
        return False
    difference = largest_difference(a, b)
    equal = np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    print(f"{name}: {a.dtype}{list(a.shape)}, max abs diff {difference:g}, {'bit-equal' if equal else 'not bit-equal'}")
    return equal or (tolerance is not None and difference <= tolerance)


def largest_difference(a, b):
    """The largest absolute difference; where only one side is NaN, or infinities differ, it is infinite."""
    if a.size == 0:
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        distance = np.where(same, 0.0, np.abs(x - y))
    return float(np.nan_to_num(distance, nan=np.inf, posinf=np.inf).max())


if __name__ == "__main__":
    main()
