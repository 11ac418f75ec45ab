"""LoRA with PyTorch + PEFT on the movie task: the accuracy that a COLA run of Sartor must reach.

usage: peft_sentiment.py MODEL_DIR MOVIE_DIR [--seed N] [--lr X] [--links N] [--threads N]

MODEL_DIR is MiniLM-L6, MOVIE_DIR has train.tsv, val.tsv and test.tsv (header `text<TAB>label`). The classifier is one
linear layer on the masked mean of the last hidden state. Six epochs in batches of 8, linear decay of the learning rate.
With more than one link, at equal distances the adapter is merged, a new one starts and so does the optimizer: the chain
of LoRA. Prints a line for people and then one JSON line with the accuracies after the last step.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import peft
import torch
import transformers

EPOCHS, BATCH, MAX_TOKENS = 6, 8, 64


def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = {split: read_rows(options.movie_dir / f"{split}.tsv") for split in ("train", "val", "test")}
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model_dir)
    net = Classifier(peft.get_peft_model(transformers.AutoModel.from_pretrained(options.model_dir), lora_config()))
    without_dropout(net)
    start = time.perf_counter()
    loss = train(net, tokenizer, rows["train"], options)
    numbers = {
        "bench": "peft_sentiment", "seed": options.seed, "lr": options.lr, "links": options.links,
        "threads": options.threads, "torch": torch.__version__, "peft": peft.__version__,
        "train_s": time.perf_counter() - start, "last_loss": loss,
        "val_accuracy": accuracy(net, tokenizer, rows["val"]), "test_accuracy": accuracy(net, tokenizer, rows["test"]),
    }
    print("seed {seed} lr {lr} links {links}: val {val_accuracy:.4f} test {test_accuracy:.4f} loss {last_loss:.3f} "
          "{train_s:.0f}s".format(**numbers))
    print(json.dumps(numbers), flush=True)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("movie_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--links", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def read_rows(file):
    """The (text, label) pairs of a split, in the file's order."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [(text, int(label)) for text, label in (line.rsplit("\t", 1) for line in lines[1:] if line)]


class Classifier(torch.nn.Module):
    """An encoder with masked mean pooling and a linear head for two classes."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(384, 2)

    def forward(self, tokens):
        hidden = self.encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        return self.head((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9))


def lora_config():
    return peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], lora_dropout=0.0)


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def train(net, tokenizer, rows, options):
    """Trains in place and returns the last step's loss."""
    generator = torch.Generator().manual_seed(options.seed)
    steps = EPOCHS * -(-len(rows) // BATCH)
    knots = [steps * k // options.links for k in range(1, options.links)]
    optimizer = new_optimizer(net, options.lr)
    step = 0
    net.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for tokens, labels in batches(tokenizer, rows, order, BATCH):
            if step in knots:
                net.encoder = peft.get_peft_model(net.encoder.merge_and_unload(), lora_config())
                optimizer = new_optimizer(net, options.lr)
            for group in optimizer.param_groups:
                group["lr"] = options.lr * (1 - step / steps)
            loss = torch.nn.functional.cross_entropy(net(tokens), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return loss.item()


def new_optimizer(net, lr):
    return torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)


def batches(tokenizer, rows, order, size):
    """Yields (tokens, labels) of the rows in this order, each batch padded to its longest row."""
    for start in range(0, len(order), size):
        part = [rows[i] for i in order[start:start + size]]
        tokens = tokenizer([text for text, _ in part], padding=True, truncation=True, max_length=MAX_TOKENS,
                           return_tensors="pt")
        yield tokens, torch.tensor([label for _, label in part])


@torch.no_grad()
def accuracy(net, tokenizer, rows):
    """The share of rows whose label the net gives."""
    net.eval()
    hits = sum((net(tokens).argmax(1) == labels).sum().item()
               for tokens, labels in batches(tokenizer, rows, range(len(rows)), 50))
    return hits / len(rows)


if __name__ == "__main__":
    main()
