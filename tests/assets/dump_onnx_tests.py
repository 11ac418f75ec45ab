"""Writes the tests that the onnx wheel carries as files: OUT/KIND/NAME/model.onnx and io.npz.

usage: dump_onnx_tests.py OUT

KIND is `node` (made in memory by the wheel, one operator each), `pytorch-converted`, `pytorch-operator`, `simple`, or
`light` (nine image classifiers whose weights come from ConstantOfShape). io.npz has one array per graph input,
`in_<name>`, and per graph output, `out_<name>`. Of the types that NumPy lacks, bfloat16 is widened to float32, and 8-bit
floats and narrower types are one byte per element: the model says which type it wants. A test with strings, sequences or
optionals gets a file `skip` that says so instead of io.npz. tolerance.txt has the test's relative and absolute
tolerance.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx.backend.test.loader import DATA_DIR, load_model_tests
from onnx.backend.test.runner import Runner

# Beginnings of the names of the types of at most 8 bits that NumPy lacks; in memory each element has a byte.
NARROW = ("float8", "float4", "int4", "uint4", "int2", "uint2")
FILE_KINDS = ("pytorch-converted", "pytorch-operator", "simple")


class NotNumeric(Exception):
    """A value that an .npz file cannot hold."""


def main():
    out = Path(sys.argv[1])
    for kind, tests in (("node", node_tests()), *((k, file_tests(k)) for k in FILE_KINDS), ("light", light_tests())):
        counts = [write_test(out / kind / name, *test) for name, *test in tests]
        print(f"{kind}: {len(counts)} tests, {counts.count(False)} of them not numeric")


def node_tests():
    """Yields (name, model, inputs, outputs, tolerance) of the tests made in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tests = load_model_tests(kind="node")
    for test in tests:
        inputs, outputs = test.data_sets[0]
        yield test.name, test.model, inputs, outputs, (test.rtol, test.atol)


def file_tests(kind):
    """Like `node_tests`, for a kind whose models and tensors are files in the wheel."""
    for test in sorted(load_model_tests(kind=kind), key=lambda t: t.name):
        folder = Path(test.model_dir)
        model = onnx.load(folder / "model.onnx")
        data = folder / "test_data_set_0"
        inputs = read_values(data, "input", model.graph.input)
        outputs = read_values(data, "output", model.graph.output)
        yield test.name, model, inputs, outputs, (test.rtol, test.atol)


def read_values(folder, prefix, infos):
    """Reads `input_0.pb`, `input_1.pb`, … as tensors; a value of another type stays None."""
    values = []
    for i in range(len(list(folder.glob(f"{prefix}_*.pb")))):
        is_tensor = infos[i].type.WhichOneof("value") == "tensor_type"
        data = (folder / f"{prefix}_{i}.pb").read_bytes()
        values.append(onnx.TensorProto.FromString(data) if is_tensor else None)
    return values


def light_tests():
    """Like `node_tests`, for the light models: the input is the ramp that their recorded outputs were made with."""
    for test in sorted(load_model_tests(kind="real"), key=lambda t: t.name):
        name = Path(test.url).stem
        model = onnx.load(Path(DATA_DIR) / "light" / f"{name}.onnx")
        inputs = [Runner.generate_dummy_data(info, name=name) for info in real_inputs(model.graph)]
        output = Path(DATA_DIR) / "light" / f"{name}_output_0.pb"
        yield name, model, inputs, [onnx.TensorProto.FromString(output.read_bytes())], (test.rtol, test.atol)


def real_inputs(graph):
    """The graph inputs that are not also initializers."""
    initializers = {i.name for i in graph.initializer}
    return [i for i in graph.input if i.name not in initializers]


def write_test(folder, model, inputs, outputs, tolerance):
    """Writes one test and returns whether it is numeric."""
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "tolerance.txt").write_text(f"{tolerance[0]} {tolerance[1]}\n")
    fed = real_inputs(model.graph) if len(inputs) != len(model.graph.input) else model.graph.input
    try:
        arrays = {f"in_{info.name}": to_numeric(v) for info, v in zip(fed, inputs, strict=True)}
        arrays |= {f"out_{info.name}": to_numeric(v) for info, v in zip(model.graph.output, outputs, strict=True)}
    except NotNumeric as why:
        (folder / "skip").write_text(f"{why}\n")
        return False
    np.savez(folder / "io.npz", **arrays)
    return True


def to_numeric(value):
    """The value as a row-major array of a type that an .npz file can hold."""
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if not isinstance(value, (np.ndarray, np.generic)):
        raise NotNumeric(f"a value is no tensor but {type(value).__name__}")
    if value.dtype.name == "bfloat16":
        value = value.astype(np.float32)
    if value.dtype.name.startswith(NARROW):
        value = value.view(np.uint8)
    if value.dtype.kind not in "biufc":
        raise NotNumeric(f"a tensor has elements of type {value.dtype.name}")
    return np.asarray(value, order="C")


if __name__ == "__main__":
    main()
