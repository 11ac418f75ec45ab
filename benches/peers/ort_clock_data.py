"""Times models in ONNX Runtime on examples, one thread, by turns of so many: ort_clock_data.py ROUNDS TURN LABEL INDEX.json MODEL.onnx...

INDEX.json says for every input the file of its bytes, its element type and the shapes of the examples; the one that is called LABEL is not fed. Prints a line of JSON: for each model the
milliseconds per example of every round, and the share of examples whose largest score is where the label says.
"""

import json
import sys
import time

import numpy as np
import onnxruntime as ort

rounds, many, label = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
index, models = json.load(open(sys.argv[4])), sys.argv[5:]
inputs = {}
for name, entry in index.items():
    flat, at, tensors = np.fromfile(entry["file"], entry["dtype"]), 0, []
    for shape in entry["shapes"]:
        size = int(np.prod(shape))
        tensors.append(flat[at : at + size].reshape(shape))
        at += size
    inputs[name] = tensors
labels = inputs.pop(label, None)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
sessions = [ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for model in models]
count = len(next(iter(inputs.values())))
times, right = [[] for _ in models], [0] * len(models)
for turn in range(rounds + 1):
    # The first examples are for warming up.
    examples = range(count if turn else min(4, count))
    seconds = [0.0] * len(models)
    for first in range(0, len(examples), many):
        for k, session in enumerate(sessions):
            for i in examples[first : first + many]:
                feed = {name: tensors[i] for name, tensors in inputs.items()}
                start = time.perf_counter()
                scores = session.run(None, feed)[0]
                seconds[k] += time.perf_counter() - start
                if turn == 1 and labels is not None:
                    right[k] += int(scores.reshape(-1).argmax() == labels[i].reshape(-1)[0])
    if turn:
        for own, spent in zip(times, seconds):
            own.append(1e3 * spent / count)
found = {"ms": times, "version": ort.__version__}
if labels is not None:
    found["right"] = [hits / count for hits in right]
print(json.dumps(found))
