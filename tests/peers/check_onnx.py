"""Checks ONNX files with onnx.checker, shape inference included. Exits 1 when one of them is not valid.

usage: check_onnx.py MODEL...

The checker gets paths, not bytes, so files over 2 GB and external data work too.
"""

import sys

import onnx


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    results = [check(path) for path in sys.argv[1:]]
    sys.exit(0 if all(results) else 1)


def check(path):
    """Prints the verdict on one file and returns whether it is valid."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # The checker raises several unrelated types.
        print(f"{path}: {type(error).__name__}: {error}")
        return False
    print(f"{path}: valid")
    return True


if __name__ == "__main__":
    main()
