"""Times models in ONNX Runtime, one thread, by turns: ort_clock.py ROUNDS '{"input": shape}' MODEL.onnx...

Prints a line of JSON: the median milliseconds of each model. Inputs are normally distributed, from one seed, or all 1 where they are integers.
"""

import json
import sys
import time

import numpy as np
import onnxruntime as ort

rounds, shapes, models = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
sessions = [ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for model in models]
rng = np.random.default_rng(0)
integers = {value.name for value in sessions[0].get_inputs() if "int64" in value.type}
feed = {
    name: np.ones(shape, np.int64) if name in integers else rng.standard_normal(shape).astype(np.float32)
    for name, shape in shapes.items()
}
times = [[] for _ in models]
for _ in range(rounds):
    for session, own in zip(sessions, times):
        start = time.perf_counter()
        session.run(None, feed)
        own.append(time.perf_counter() - start)
print(json.dumps({"ms": [1e3 * float(np.median(own[2:])) for own in times], "version": ort.__version__}))
