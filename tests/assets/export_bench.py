"""Exports the models that only the measurements use, and checks each export.

usage: export_bench.py (bert-base-classifier | bert-base-static | smollm2 | cifar-resnets | resnet50) ASSETS OUT

| file                                | what                                                  | opset |
|-------------------------------------|-------------------------------------------------------|-------|
| bert-base-classifier-ts14.onnx      | BERT-base for two classes, random weights             | 14    |
| bert-base-classifier-lora-ts14.onnx | the same with PEFT's adapters, for ONNX Runtime       | 14    |
| bert-base-static.onnx               | bert-base.onnx with batch 1 and sequence 128 fixed    | 17    |
| smollm2-135m-ts17.onnx, .onnx.data  | SmolLM2-135M-Instruct, float32 weights beside it      | 17    |
| resnet20-ts17.onnx, resnet32-ts17.onnx | ResNets for CIFAR, random weights                  | 17    |
| resnet50-ts17.onnx                  | torchvision's ResNet-50, random weights               | 17    |

All are made by TorchScript, in evaluation mode; images keep BatchNormalization. Token models take input_ids and
attention_mask (int64 [batch, sequence]) and give logits: [batch, 2], of SmolLM2 [batch, sequence, 49152]. Image models
take pixel_values (float [batch, 3, 32, 32], of ResNet-50 [batch, 3, 224, 224]) and give logits [batch, 10] or
[batch, 1000]. The models are those of `benches/peers/models.py`. An export counts only if onnx.checker passes it fully
and ONNX Runtime agrees with PyTorch on shapes other than the traced one.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from export import token_batch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benches/peers"))
import models  # noqa: E402

# The largest difference from PyTorch, as a share of the largest output.
TOLERANCE = 1e-4
TOKENS = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
IMAGES = {"pixel_values": {0: "batch"}}
# PRESERVE keeps the model in evaluation mode but does not fuse BatchNormalization into Conv.
UNFUSED = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}


def main():
    what, assets, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    models.quiet()
    {"bert-base-classifier": export_bert, "bert-base-static": fix_shapes, "smollm2": export_smollm2,
     "cifar-resnets": export_cifar_resnets, "resnet50": export_resnet50}[what](assets, out)


def export_bert(assets, out):
    """Writes BERT-base with a classifier, without and with adapters; both compute the same, since B is zero."""
    plain = with_two_inputs(models.bert_base_classifier(assets))
    export(plain, TOKENS, token_batch(2, 12), out / "bert-base-classifier-ts14.onnx", 14)
    check(plain, [token_batch(2, 12), token_batch(3, 64)], out / "bert-base-classifier-ts14.onnx")
    # Only the unfused export leaves each parameter its name, and so its role in training.
    adapted = models.with_lora(plain, None, ["query", "value"])
    path = out / "bert-base-classifier-lora-ts14.onnx"
    export(adapted, TOKENS, token_batch(2, 12), path, 14, **UNFUSED)
    check(adapted, [token_batch(2, 12), token_batch(3, 64)], path)


def export_smollm2(assets, out):
    """Writes SmolLM2 with its weights in a second file; the head shares the embedding's."""
    model = with_two_inputs(models.smollm2(assets), use_cache=False)
    path = out / "smollm2-135m-ts17.onnx"
    export(model, TOKENS, token_batch(2, 12), path, 17, logits={0: "batch", 1: "sequence"}, **UNFUSED)
    graph = onnx.load(path)
    path.unlink()
    onnx.save_model(graph, path, save_as_external_data=True, location=f"{path.name}.data")
    check(model, [token_batch(2, 12), token_batch(1, 7), token_batch(3, 64)], path)


def export_cifar_resnets(assets, out):
    """Writes ResNet-20 and ResNet-32 for images of CIFAR's size."""
    for make in (models.resnet20, models.resnet32):
        model, path = make(assets), out / f"{make.__name__}-ts17.onnx"
        export(model, IMAGES, (torch.randn(2, 3, 32, 32),), path, 17, **UNFUSED)
        check(model, [(torch.randn(3, 3, 32, 32),)], path)


def export_resnet50(assets, out):
    """Writes ResNet-50."""
    model, path = models.resnet50(assets), out / "resnet50-ts17.onnx"
    export(model, IMAGES, (torch.randn(2, 3, 224, 224),), path, 17, **UNFUSED)
    check(model, [(torch.randn(1, 3, 224, 224),)], path)


def fix_shapes(assets, out):
    """Writes bert-base.onnx with numbers in place of its symbolic dimensions."""
    sizes = {"batch": 1, "sequence": 128}
    model = onnx.load(assets / "bert-base.onnx")
    for info in (*model.graph.input, *model.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    # What the exporter noted about values inside names dimensions that are gone.
    del model.graph.value_info[:]
    path = out / "bert-base-static.onnx"
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    print(f"{path.name}: {sizes}")


def with_two_inputs(model, **options):
    """Gives a transformers model a forward from ids and mask to logits, without changing the paths of its modules."""
    kind = type(model)

    class TwoInputs(kind):
        def forward(self, input_ids, attention_mask):
            return kind.forward(self, input_ids=input_ids, attention_mask=attention_mask, **options).logits

    model.__class__ = TwoInputs
    return model


def export(model, inputs, example, path, opset, logits=None, **options):
    """One export by tracing. `inputs`: names and dynamic axes; `logits`: the output's dynamic axes."""
    axes = {**inputs, "logits": logits or {0: "batch"}}
    with torch.no_grad():
        torch.onnx.export(model, example, path, dynamo=False, opset_version=opset, input_names=list(inputs),
                          output_names=["logits"], dynamic_axes=axes, **options)


def check(model, batches, path):
    """Ends with an error unless the file is valid ONNX and ONNX Runtime computes what PyTorch does."""
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    worst = max(difference(model, session, names, batch) for batch in batches)
    print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB, differs from PyTorch by {worst:.1e} of the largest output")
    if not worst < TOLERANCE:
        sys.exit(f"{path.name}: differs from PyTorch by {worst:.1e}, more than {TOLERANCE}")


def difference(model, session, names, batch):
    """The largest difference between ONNX Runtime's and PyTorch's logits over the largest logit."""
    with torch.no_grad():
        expected = model(*batch).numpy()
    found, = session.run(None, {n: t.numpy() for n, t in zip(names, batch, strict=True)})
    return float(np.abs(expected - found).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
