"""Training steps of PyTorch (with PEFT for adapters): the peer of Sartor's training steps.

usage: torch_step.py WORKLOAD ASSETS [--threads N] [--batch N] [--sequence N] [--steps N] [--channels-last] [--bf16]

| workload         | what                                                                                  |
|------------------|---------------------------------------------------------------------------------------|
| minilm-lora      | MiniLM-L6, a classifier on the first token; LoRA, AdamW                               |
| bert-base-lora   | BERT-base, the same                                                                   |
| smollm2-lora     | SmolLM2-135M, the next token of every position; LoRA, AdamW                           |
| resnet20, resnet32 | CIFAR ResNets, all parameters, SGD with momentum, BatchNorm in training mode        |
| mobilenet-v2     | MobileNetV2, the same, on images of 224 × 224                                         |

LoRA has rank 8 on the query and value projections. Random tokens or images, no dropout, float32 unless `--bf16`.
`--channels-last` stores images and weights of convolutions in that order. Prints one line of JSON with samples per
second, the median step in milliseconds, the first and last loss, and the peak resident set in MiB of the steps alone.
"""

import argparse
from pathlib import Path

import torch

import measure
import models

BERT_TARGETS, LLAMA_TARGETS = ["query", "value"], ["q_proj", "v_proj"]


def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    models.quiet()
    model, batch, optimizer = WORKLOADS[options.workload](options)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
        batch = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in batch]
    measure.report({
        "bench": "torch_step", "workload": options.workload, "peer": f"PyTorch {torch.__version__}",
        "precision": "bf16" if options.bf16 else "f32",
        "layout": "channels_last" if options.channels_last else "contiguous",
        **measure.time_steps(lambda: step(model, batch, optimizer, options.bf16), options),
    })


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("assets", type=Path)
    measure.add_step_options(parser)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


# --- Workloads: each gives a module from a batch to the loss, the batch, and the optimizer ---------------------------

def minilm_lora(options):
    return bert_lora(models.minilm_classifier(options.assets), options)


def bert_base_lora(options):
    return bert_lora(models.bert_base_classifier(options.assets), options)


def bert_lora(model, options):
    model = models.with_lora(model, "SEQ_CLS", BERT_TARGETS)
    ids = random_ids(options)
    batch = [ids, torch.ones_like(ids), torch.randint(0, 2, (options.batch,))]
    return for_training(OwnLoss(model), batch)


def smollm2_lora(options):
    model = models.with_lora(models.smollm2(options.assets), "CAUSAL_LM", LLAMA_TARGETS)
    model.config.use_cache = False
    ids = random_ids(options)
    return for_training(OwnLoss(model), [ids, torch.ones_like(ids), ids])


def resnet20(options):
    return images(models.resnet20(options.assets), 32, 10, options)


def resnet32(options):
    return images(models.resnet32(options.assets), 32, 10, options)


def mobilenet_v2(options):
    return images(models.mobilenet_v2(options.assets), 224, 1000, options)


def images(model, size, classes, options):
    torch.manual_seed(1)
    batch = [torch.randn(options.batch, 3, size, size), torch.randint(0, classes, (options.batch,))]
    return for_training(ImageLoss(model), batch)


WORKLOADS = {
    "minilm-lora": minilm_lora, "bert-base-lora": bert_base_lora, "smollm2-lora": smollm2_lora,
    "resnet20": resnet20, "resnet32": resnet32, "mobilenet-v2": mobilenet_v2,
}


def random_ids(options):
    torch.manual_seed(1)
    return torch.randint(1000, 20000, (options.batch, options.sequence))


class OwnLoss(torch.nn.Module):
    """The loss that a transformers model computes by itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask, labels):
        return self.model(input_ids=ids, attention_mask=mask, labels=labels).loss


class ImageLoss(torch.nn.Module):
    """Cross-entropy of an image classifier."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels, labels):
        return torch.nn.functional.cross_entropy(self.model(pixels), labels)


def for_training(model, batch):
    """AdamW for adapters and SGD with momentum for whole networks, over what is trained."""
    models.without_dropout(model.train())
    trained = [p for p in model.parameters() if p.requires_grad]
    if isinstance(model, ImageLoss):
        return model, batch, torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    return model, batch, torch.optim.AdamW(trained, lr=1e-3)


def step(model, batch, optimizer, bf16):
    """One step; returns the loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(*batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


if __name__ == "__main__":
    main()
