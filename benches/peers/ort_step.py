"""LoRA training steps of ONNX Runtime for training (its on-device API): a peer of Sartor's training steps.

usage: ort_step.py MODEL.onnx [--threads N] [--batch N] [--sequence N] [--steps N]

MODEL.onnx is a classifier of tokens with adapters in the graph, as `bert-base-classifier-lora-ts14.onnx`: trained is
what is named `lora_…` or `classifier`. AdamW, random tokens, float32. Runs in the environment of
`tests/assets/venv.sh ort-training`. Prints one line of JSON, as torch_step.py does.
"""

import argparse
import multiprocessing
import tempfile
from pathlib import Path

import measure
import numpy as np
import onnx
import onnxruntime


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: its memory is not that of training.
        maker = multiprocessing.get_context("spawn").Process(target=make_artifacts, args=(options.model, folder))
        maker.start()
        maker.join()
        step = load_step(Path(folder), options)
        numbers = measure.time_steps(step, options)
    measure.report({"bench": "ort_step", "peer": f"onnxruntime-training {onnxruntime.__version__}", **numbers})


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    measure.add_step_options(parser)
    return parser.parse_args()


def make_artifacts(path, folder):
    """Writes the training model, the optimizer model and the checkpoint into the folder."""
    from onnxruntime.training import artifacts

    model = onnx.load(path)
    names = [i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT]
    trained = {n for n in names if "lora_" in n or "classifier" in n}
    fold_transposes(model.graph, trained)
    frozen = [i.name for i in model.graph.initializer if i.name in names and i.name not in trained]
    artifacts.generate_artifacts(
        model, requires_grad=sorted(trained), frozen_params=frozen, loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.AdamW, artifact_directory=folder)


def fold_transposes(graph, trained):
    """Stores frozen weights as the products read them, which the unfused export does not."""
    weights = {i.name: i for i in graph.initializer if i.name not in trained}
    for node in [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in weights]:
        permutation = next(a.ints for a in node.attribute if a.name == "perm")
        array = onnx.numpy_helper.to_array(weights[node.input[0]]).transpose(permutation)
        graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), node.output[0]))
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in read]:
        graph.initializer.remove(initializer)


def load_step(folder, options):
    """A function that does one step on random tokens and returns the loss."""
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    state = CheckpointState.load_checkpoint(folder / "checkpoint")
    module = Module(folder / "training_model.onnx", state, device="cpu", session_options=session_options)
    optimizer = Optimizer(folder / "optimizer_model.onnx", module)
    draw = np.random.default_rng(1)
    ids = draw.integers(1000, 20000, (options.batch, options.sequence))
    batch = [ids, np.ones_like(ids), draw.integers(0, 2, options.batch)]
    module.train()

    def step():
        loss = module(*batch)
        optimizer.step()
        module.lazy_reset_grad()
        return loss

    return step


if __name__ == "__main__":
    main()
