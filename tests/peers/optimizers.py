"""Trains a small network with optimizers of PyTorch and other packages and writes the weights after every step.

usage: optimizers.py PROBLEM.npz CASES.json TRAJECTORIES.npz

PROBLEM has the initial weights `layer.0.W`, `layer.0.b`, `layer.1.W`, `layer.1.b` of y = tanh(x·W + b)·W + b and, for each
step, a batch: `x` [steps, batch, in] and `label` [steps, batch]. The loss is the mean cross-entropy; the weights' type is
that of the computation.

CASES is a list of {"name", "optimizer": "module.Class", "options": {...}, "rates": [...], "factors": {parameter: factor}}: the
class, its arguments, the learning rate of each step, and factors on the rate of single parameters (optimizers with a
`layer_scale` get them as that).

TRAJECTORIES has an array `CASE/PARAMETER` [steps, ...] for each: what an evaluation after that step would use.
"""

import importlib
import json
import sys

import numpy as np
import torch

PARAMETERS = ("layer.0.W", "layer.0.b", "layer.1.W", "layer.1.b")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    problem = dict(np.load(sys.argv[1]))
    with open(sys.argv[2]) as file:
        cases = json.load(file)
    arrays = {}
    for case in cases:
        for parameter, trajectory in train(problem, case).items():
            arrays[f"{case['name']}/{parameter}"] = np.stack(trajectory)
    np.savez(sys.argv[3], **arrays)


def train(problem, case):
    """Returns the values of each parameter after each step."""
    weights = {name: torch.tensor(problem[name], requires_grad=True) for name in PARAMETERS}
    optimizer = new_optimizer(weights, case)
    trajectories = {name: [] for name in PARAMETERS}
    for x, label, rate in zip(problem["x"], problem["label"], case["rates"], strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        optimizer.zero_grad()
        loss_of(weights, torch.tensor(x), torch.tensor(label)).backward()
        optimizer.step()
        for name, value in evaluated(optimizer, weights).items():
            trajectories[name].append(value)
    return trajectories


def new_optimizer(weights, case):
    module, name = case["optimizer"].rsplit(".", 1)
    make = getattr(importlib.import_module(module), name)
    factors = case["factors"]
    groups = [{"params": [weights[name] for name in PARAMETERS if name not in factors], "rate_factor": 1.0}]
    groups += [{"params": [weights[name]], "rate_factor": factor} for name, factor in factors.items()]
    optimizer = make(groups, lr=max(case["rates"]), **case["options"])
    for group in optimizer.param_groups:
        if "layer_scale" in group:
            group["layer_scale"], group["rate_factor"] = group["rate_factor"], 1.0
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def loss_of(weights, x, label):
    hidden = torch.tanh(x @ weights["layer.0.W"] + weights["layer.0.b"])
    return torch.nn.functional.cross_entropy(hidden @ weights["layer.1.W"] + weights["layer.1.b"], label)


def evaluated(optimizer, weights):
    """The weights as NumPy arrays, as they are in evaluation mode."""
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    values = {name: weight.detach().numpy().copy() for name, weight in weights.items()}
    if hasattr(optimizer, "eval"):
        # Switching back by the package would round once more.
        optimizer.train()
        for name, weight in weights.items():
            weight.data.copy_(before[name])
    return values


if __name__ == "__main__":
    main()
