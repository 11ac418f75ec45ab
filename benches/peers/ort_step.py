"""LoRA training steps of ONNX Runtime for training (its on-device API): a peer of Sartor's training steps.

usage: ort_step.py MODEL.onnx [--threads N] [--batch N] [--sequence N] [--steps N]

MODEL.onnx is a classifier of tokens with adapters in the graph, as `bert-base-classifier-lora-ts14.onnx`: trained is
what is named `lora_…` or `classifier`. AdamW, random tokens, float32. Runs in the environment of
`tests/assets/venv.sh ort-training`. Prints a line for people and then one JSON line, as torch_step.py does.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.training import artifacts
from onnxruntime.training.api import CheckpointState, Module, Optimizer

WARM_UP = 2


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        make_artifacts(options.model, folder)
        seconds, losses = time_steps(Path(folder), options)
    median = statistics.median(seconds[WARM_UP:])
    numbers = {
        "bench": "ort_step", "threads": options.threads, "batch": options.batch, "sequence": options.sequence,
        "peer": f"onnxruntime-training {onnxruntime.__version__}",
        "samples_per_s": options.batch / median, "ms_per_step": median * 1e3, "peak_mib": peak_mib(),
        "first_loss": losses[0], "last_loss": losses[-1],
    }
    print("{peer}, threads={threads} batch={batch}: {samples_per_s:.2f} samples/s, {ms_per_step:.0f} ms/step, "
          "peak {peak_mib:.0f} MiB".format(**numbers))
    print(json.dumps(numbers), flush=True)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for name, default in (("threads", 2), ("batch", 16), ("sequence", 128), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()
