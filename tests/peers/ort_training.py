"""Trains from the artifacts of `sartor export --ort-training` with onnxruntime-training.

usage: ort_training.py FOLDER…

A folder holds the four artifacts, `rate.txt`, and `batches.npz` with an array `[steps, …]` for every input of the eval model that is no parameter.
Written to it: `after.npz` with `loss`, the loss of every step, `eval`, the loss of the last batch after them all, `outputs`, how many outputs the eval
model has, and every parameter (`p/NAME`); or `error.txt`.
"""

import sys
import traceback
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import SessionOptions
from onnxruntime.training.api import CheckpointState, Module, Optimizer


def first(found):
    return np.asarray(found[0] if isinstance(found, (list, tuple)) else found).item()


def train(folder):
    state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    options = SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    models = [str(folder / f"{name}_model.onnx") for name in ("training", "eval", "optimizer")]
    module = Module(models[0], state, models[1], session_options=options)
    optimizer = Optimizer(models[2], module)
    optimizer.set_learning_rate(float((folder / "rate.txt").read_text()))
    data = np.load(folder / "batches.npz")
    graph = onnx.load(models[1]).graph
    params = {name for name, _ in state.parameters}
    inputs = [i.name for i in graph.input if i.name not in params]
    losses = []
    for step in range(len(data[inputs[0]])):
        module.train()
        losses.append(first(module(*[data[name][step] for name in inputs])))
        optimizer.step()
        module.lazy_reset_grad()
    module.eval()
    last = first(module(*[data[name][-1] for name in inputs]))
    values = {f"p/{name}": parameter.data for name, parameter in state.parameters}
    np.savez(folder / "after.npz", loss=np.array(losses), eval=np.array(last), outputs=np.array(len(graph.output)), **values)


for argument in sys.argv[1:]:
    try:
        train(Path(argument))
    except Exception:
        Path(argument, "error.txt").write_text(traceback.format_exc())
