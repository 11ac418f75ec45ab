"""Makes bert-base.onnx: BERT-base with random weights (438 MB), for measuring what depends on size alone.

usage: make_bert_base.py OUT

TorchScript, opset 17; inputs input_ids and attention_mask (int64 [batch, sequence]), outputs last_hidden_state and
pooler_output. The seed is fixed.
"""

import sys
import warnings
from pathlib import Path

import onnx
import torch
import transformers


class Encoder(transformers.BertModel):
    """BERT that takes two inputs and returns a tuple; a subclass, so that module paths stay as they are."""

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask).to_tuple()


def make_parameters_distinct(model):
    """Adds noise to the biases and scales, which start out equal and which the exporter would merge into one."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.02)


def main():
    path = Path(sys.argv[1]) / "bert-base.onnx"
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = Encoder(transformers.BertConfig()).eval()
    make_parameters_distinct(model)
    ids = torch.randint(1000, 20000, (2, 12))
    both = {0: "batch", 1: "sequence"}
    with torch.no_grad():
        torch.onnx.export(
            model, (ids, torch.ones_like(ids)), path, dynamo=False, opset_version=17,
            input_names=["input_ids", "attention_mask"], output_names=["last_hidden_state", "pooler_output"],
            dynamic_axes={"input_ids": both, "attention_mask": both, "last_hidden_state": both,
                          "pooler_output": {0: "batch"}})
    onnx.checker.check_model(str(path), full_check=True)
    print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
