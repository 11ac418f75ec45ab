"""Exports the fetched PyTorch models to ONNX the ways people do, and checks each export.

usage: export.py (minilm-l6 | minilm-l6-classifier | mobilenet-v2) ASSETS OUT

| file                           | exporter                               | opset |
|--------------------------------|----------------------------------------|-------|
| minilm-l6-ts17.onnx            | TorchScript                            | 17    |
| minilm-l6-dynamo20.onnx        | dynamo                                 | 20    |
| minilm-l6-classifier-ts17.onnx | TorchScript                            | 17    |
| mobilenetv2-ts17.onnx          | TorchScript, keeps BatchNormalization  | 17    |
| mobilenetv2-dynamo20.onnx      | dynamo (fuses BatchNormalization)      | 20    |

MiniLM-L6: input_ids, attention_mask (int64 [batch, sequence]) -> last_hidden_state [batch, sequence, 384],
sentence_embedding [batch, 384]. The classifier: the same encoder under BertForSequenceClassification, as people fine-tune it
(the first token, pooler, a new classifier for two classes) -> logits [batch, 2]. MobileNetV2: pixel_values (float [batch, 3, 224, 224]) -> logits [batch, 1000].

sentence_embedding is the mean of last_hidden_state over the positions whose mask is 1. The module paths in the exports
are those of the model itself (`/encoder/layer.0/attention/self/query/MatMul`), with no prefix of a wrapper. An export
counts only if onnx.checker passes it fully and ONNX Runtime agrees with PyTorch on shapes other than the traced one.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
import transformers

TOLERANCE = 1e-4


def main():
    what, assets, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    {"minilm-l6": export_minilm, "minilm-l6-classifier": export_classifier, "mobilenet-v2": export_mobilenet}[what](assets, out)


def export_minilm(assets, out):
    """Writes both exports of MiniLM-L6 with masked mean pooling in the graph."""
    model = transformers.AutoModel.from_pretrained(assets / "minilm-l6", add_pooling_layer=False).eval()
    model = with_mean_pooling(model)
    names = {
        "input_names": ["input_ids", "attention_mask"],
        "output_names": ["last_hidden_state", "sentence_embedding"],
    }
    both = {0: "batch", 1: "sequence"}
    example = token_batch(2, 12)
    export_torchscript(model, example, out / "minilm-l6-ts17.onnx", **names, dynamic_axes={
        "input_ids": both, "attention_mask": both, "last_hidden_state": both, "sentence_embedding": {0: "batch"}})
    export_dynamo(model, example, out / "minilm-l6-dynamo20.onnx", **names, dynamic_shapes=(both, both))
    for file in ("minilm-l6-ts17.onnx", "minilm-l6-dynamo20.onnx"):
        check(model, [example, token_batch(1, 7), token_batch(3, 64)], out / file)


def export_classifier(assets, out):
    """Writes MiniLM-L6 with a classifier on the first token."""

    class Classifier(transformers.BertForSequenceClassification):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask).logits

    model = Classifier.from_pretrained(assets / "minilm-l6", num_labels=2).eval()
    both = {0: "batch", 1: "sequence"}
    example = token_batch(2, 12)
    path = out / "minilm-l6-classifier-ts17.onnx"
    export_torchscript(model, example, path, input_names=["input_ids", "attention_mask"], output_names=["logits"],
                       dynamic_axes={"input_ids": both, "attention_mask": both, "logits": {0: "batch"}})
    check(model, [example, token_batch(1, 7), token_batch(3, 64)], path)


def with_mean_pooling(model):
    """Gives a transformers model a forward that also pools, without changing the paths of its modules."""
    kind = type(model)

    class MeanPooled(kind):
        def forward(self, input_ids, attention_mask):
            hidden = kind.forward(self, input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return hidden, (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)

    model.__class__ = MeanPooled
    return model


def token_batch(batch, sequence):
    """Random token ids and a mask whose rows have different lengths."""
    ids = torch.randint(1000, 20000, (batch, sequence))
    lengths = sequence - torch.arange(batch) * (sequence // (2 * batch))
    return ids, (torch.arange(sequence) < lengths.unsqueeze(1)).long()


def export_mobilenet(assets, out):
    """Writes both exports of MobileNetV2."""
    model = torchvision.models.mobilenet_v2().eval()
    model.load_state_dict(torch.load(assets / "mobilenet_v2.pth", weights_only=True))
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    example = (torch.randn(2, 3, 224, 224),)
    batch = {0: "batch"}
    # PRESERVE keeps the model in evaluation mode but does not fuse BatchNormalization into Conv.
    export_torchscript(model, example, out / "mobilenetv2-ts17.onnx", **names,
                       do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
                       dynamic_axes={"pixel_values": batch, "logits": batch})
    export_dynamo(model, example, out / "mobilenetv2-dynamo20.onnx", **names, dynamic_shapes=(batch,))
    for file in ("mobilenetv2-ts17.onnx", "mobilenetv2-dynamo20.onnx"):
        check(model, [example, (torch.randn(1, 3, 224, 224),)], out / file)


def export_torchscript(model, example, path, **options):
    """One export by tracing, opset 17."""
    with torch.no_grad():
        torch.onnx.export(model, example, path, dynamo=False, opset_version=17, **options)


def export_dynamo(model, example, path, **options):
    """One export by torch.export, opset 20, weights inside the file."""
    with torch.no_grad():
        torch.onnx.export(model, example, path, dynamo=True, opset_version=20, external_data=False,
                          verbose=False, **options)


def check(model, batches, path):
    """Ends with an error unless the file is valid ONNX and ONNX Runtime computes what PyTorch does."""
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    worst = 0.0
    for batch in batches:
        with torch.no_grad():
            expected = model(*batch)
        expected = [expected] if isinstance(expected, torch.Tensor) else expected
        found = session.run(None, {n: t.numpy() for n, t in zip(names, batch, strict=True)})
        for e, f in zip(expected, found, strict=True):
            worst = max(worst, float(np.abs(e.numpy() - f).max()))
    opset = onnx.load(path).opset_import[0].version
    print(f"{path.name}: opset {opset}, inputs {names}, differs from PyTorch by {worst:.1e}")
    if not worst < TOLERANCE:
        sys.exit(f"{path.name}: differs from PyTorch by {worst:.1e}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
