"""Times models in ONNX Runtime, one thread, by turns of so many runs: ort_clock.py ROUNDS TURN '{"input": shape}' MODEL.onnx...

The first two runs of a turn do not count. Prints a line of JSON: the median milliseconds of each model. Inputs are normally distributed, from one seed, or all 1 where they are integers.
"""

import json
import sys
import time

import numpy as np
import onnxruntime as ort

rounds, turn, shapes, models = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]
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
for done in range(0, rounds, turn):
    for session, own in zip(sessions, times):
        for run in range(min(turn, rounds - done) + 2):
            start = time.perf_counter()
            session.run(None, feed)
            if run >= 2:
                own.append(time.perf_counter() - start)
print(json.dumps({"ms": [1e3 * float(np.median(own)) for own in times], "version": ort.__version__}))
