"""Reads an ONNX file, optimises it with a peer of `sartor optimize`, and writes it.

usage: optimise.py (onnxscript | onnxsim | onnxslim) IN.onnx OUT.onnx
       optimise.py count IN.onnx

`count` only counts IN.onnx's nodes, by operator. Prints one line of JSON: seconds from reading to having written (the
start of Python and its imports left out), the peak resident set in MiB, and the numbers of nodes before and after,
those of subgraphs included and `Constant` left out. Runs in the environment of `tests/assets/venv.sh bench`.
"""

import collections
import importlib.metadata
import sys
import time

import measure
import onnx


def main():
    tool, source, *rest = sys.argv[1:]
    if tool == "count":
        operators = count(source)
        measure.report({"bench": "count", "nodes": sum(operators.values()), "operators": operators})
        return
    optimise = {"onnxscript": use_onnxscript, "onnxsim": use_onnxsim, "onnxslim": use_onnxslim}[tool]()
    target, = rest
    start = time.perf_counter()
    optimise(source, target)
    seconds, peak = time.perf_counter() - start, measure.peak_mib()
    before, after = (sum(count(file).values()) for file in (source, target))
    measure.report({"bench": "optimise", "peer": f"{tool} {importlib.metadata.version(tool)}", "seconds": seconds,
                    "peak_mib": peak, "nodes_before": before, "nodes": after})


# --- Tools: each imports what it needs and returns a function from file to file ------------------------------------

def use_onnxscript():
    import onnx_ir
    import onnxscript.optimizer

    def optimise(source, target):
        model = onnx_ir.load(source)
        onnxscript.optimizer.optimize(model)
        onnx_ir.save(model, target)

    return optimise


def use_onnxsim():
    import onnxsim

    def optimise(source, target):
        model, good = onnxsim.simplify(onnx.load(source), check_n=0)
        if not good:
            sys.exit("onnxsim says that its result is not valid")
        onnx.save(model, target)

    return optimise


def use_onnxslim():
    import onnxslim

    def optimise(source, target):
        onnxslim.slim(source, target)

    return optimise


# --- Counting -------------------------------------------------------------------------------------------------------

def count(file):
    """How often each operator but `Constant` stands in a file."""
    operators = collections.Counter()
    pending = [onnx.load(file, load_external_data=False).graph]
    while pending:
        for node in pending.pop().node:
            operators[node.op_type] += node.op_type != "Constant"
            pending += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return dict((+operators).most_common())


if __name__ == "__main__":
    main()
