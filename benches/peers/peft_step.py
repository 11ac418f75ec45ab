"""One LoRA training step of PyTorch + PEFT on MiniLM-L6: the peer of Sartor's training step.

usage: peft_step.py MODEL_DIR [--threads N] [--batch N] [--sequence N] [--steps N] [--bf16]

Rank 8 on query and value, AdamW, random tokens, no dropout. Prints a line for people and then one JSON line with
samples per second, the median step in milliseconds and the peak resident set in MiB. The first two steps do not count.
"""

import argparse
import json
import resource
import statistics
import time
import warnings

import peft
import torch
import transformers

WARM_UP = 2


def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    seconds = time_steps(make_model(options.model_dir), options)
    median = statistics.median(seconds[WARM_UP:])
    numbers = {
        "bench": "peft_step", "threads": options.threads, "batch": options.batch, "sequence": options.sequence,
        "precision": "bf16" if options.bf16 else "f32", "torch": torch.__version__,
        "samples_per_s": options.batch / median, "ms_per_step": median * 1e3,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print("peft minilm threads={threads} batch={batch} seq={sequence} {precision}: {samples_per_s:.2f} samples/s, "
          "{ms_per_step:.0f} ms/step, peak {peak_mib:.0f} MiB".format(**numbers))
    print(json.dumps(numbers), flush=True)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    for name, default in (("threads", 2), ("batch", 16), ("sequence", 128), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def make_model(folder):
    """MiniLM-L6 with a classifier for two classes and LoRA on query and value, in training mode without dropout."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = peft.get_peft_model(model, peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"], lora_dropout=0.0))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def time_steps(model, options):
    """Runs the steps and returns the seconds that each took."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(1000, 20000, (options.batch, options.sequence))
    mask, labels = torch.ones_like(ids), torch.randint(0, 2, (options.batch,))
    seconds = []
    for _ in range(options.steps + WARM_UP):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
