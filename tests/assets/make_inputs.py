"""Makes ppocr_cls_input.npz: one line of text as PP-OCR's direction classifier wants it, x [1, 3, 48, 192], noise.

usage: make_inputs.py OUT

The model leaves the size of its images open without giving the dimensions names. The seed is fixed.
"""

import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    image = np.random.default_rng(0).standard_normal((1, 3, 48, 192), dtype=np.float32)
    np.savez(Path(sys.argv[1]) / "ppocr_cls_input.npz", x=image)
