"""Checks the training programs of ONNX files with onnx.checker. Exits 1 when one of them is not valid.

usage: check_training_info.py MODEL...

As the specification says, an algorithm is valid when the graph that joins it with the inference graph is.
"""

import sys

import onnx


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    results = [check(path) for path in sys.argv[1:]]
    sys.exit(0 if all(results) else 1)


def check(path):
    """Prints the verdict on each program of one file and returns whether all are valid and there is one."""
    model = onnx.load(path)
    infos = list(model.training_info)
    del model.training_info[:]
    return bool(infos) and all([check_program(model, info, path) for info in infos])


def check_program(model, info, path):
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    for field in ("node", "initializer", "input", "output", "value_info", "sparse_initializer"):
        getattr(joined.graph, field).extend(getattr(info.algorithm, field))
    names = {tensor.name for tensor in joined.graph.initializer}
    outputs = {value.name for value in joined.graph.output}
    try:
        onnx.checker.check_model(joined, full_check=True)
        for binding in info.update_binding:
            if binding.key not in names or binding.value not in outputs:
                raise ValueError(f"binding {binding.key} <- {binding.value} names what does not exist")
    except Exception as error:  # The checker raises several unrelated types.
        print(f"{path}: {info.algorithm.name}: {type(error).__name__}: {error}")
        return False
    print(f"{path}: {info.algorithm.name}: valid")
    return True


if __name__ == "__main__":
    main()
