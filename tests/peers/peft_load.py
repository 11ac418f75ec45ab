"""Loads an adapter folder with PEFT and compares what the adapted model computes. Exits 1 when it differs.

usage: peft_load.py ADAPTER_DIR MINILM_DIR INPUTS.npz EXPECTED.npz [--tolerance T]

ADAPTER_DIR has adapter_config.json and adapter_model.safetensors. INPUTS.npz has `input_ids` and `attention_mask`,
EXPECTED.npz has `sentence_embedding`: the mean of the last hidden state over the positions whose mask is 1. The default
tolerance is 1e-4, absolute. PEFT only warns about tensors that it cannot place, so every tensor of the file must be
found again, with the same values, in the loaded model; and the adapter must change the result.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import peft
import safetensors.torch
import torch
import transformers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("adapter_dir", "minilm_dir", "inputs", "expected"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokens = {name: torch.from_numpy(np.load(options.inputs)[name]) for name in ("input_ids", "attention_mask")}
    expected = np.load(options.expected)["sentence_embedding"]
    base = transformers.AutoModel.from_pretrained(options.minilm_dir).eval()
    plain = sentence_embedding(base, tokens)
    model = peft.PeftModel.from_pretrained(base, options.adapter_dir).eval()
    problems = unplaced_tensors(model, options.adapter_dir)
    adapted = sentence_embedding(model, tokens)
    problems += differences(plain, adapted, expected, options.tolerance)
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


@torch.no_grad()
def sentence_embedding(model, tokens):
    """The masked mean of the last hidden state, [batch, 384]."""
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).float()
    return ((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)).numpy()


def unplaced_tensors(model, folder):
    """Names the tensors that the file and the loaded adapter do not share."""
    saved = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(model)
    problems = [f"{name}: in the file, but PEFT did not load it" for name in saved.keys() - loaded.keys()]
    problems += [f"{name}: PEFT expects it, but the file lacks it" for name in loaded.keys() - saved.keys()]
    problems += [f"{name}: loaded with other values" for name in saved.keys() & loaded.keys()
                 if not torch.equal(saved[name].float(), loaded[name].float())]
    print(f"{len(saved)} adapter tensors in the file, {len(problems)} problems")
    return sorted(problems)


def differences(plain, adapted, expected, tolerance):
    """Says what is wrong with the result, if anything."""
    if adapted.shape != expected.shape:
        return [f"sentence_embedding: PEFT gives {list(adapted.shape)}, expected {list(expected.shape)}"]
    change, error = (float(np.abs(adapted - other).max()) for other in (plain, expected))
    print(f"sentence_embedding: max abs diff {error:g}; the adapter changes it by {change:g}")
    problems = [] if error <= tolerance else [f"sentence_embedding: differs by {error:g}, more than {tolerance:g}"]
    return problems if change > 0 else [*problems, "the adapter changes nothing"]


if __name__ == "__main__":
    main()
