"""Makes the data and the network of the experiment that chooses learning rates while training (`benches/src/bin/samuel.rs`).

usage: samuel_tasks.py (fashion | shift | news | cifar | network) ASSETS OUT

| what    | writes under OUT/samuel                                  | from                                       |
|---------|----------------------------------------------------------|--------------------------------------------|
| fashion | fashion-{train,val,test}-{images-idx3,labels-idx1}       | Fashion-MNIST: the first 20,000 training images, the next 5,000, all 10,000 test images |
| shift   | shift-{train-0,train-1,train-2,before,after}-{images-idx3,labels-idx1} | the same images, in two phases: see `make_shift` |
| news    | news-{train,val,test}.tsv                                | 20 Newsgroups, standard split: 2,000 and 500 of the training texts, 1,000 of the test texts |
| cifar   | cifar-{train,test}-{images-idx4,labels-idx1}             | CIFAR-10, complete                         |
| network | fashion-cnn-ts17.onnx, shift-cnn-ts17.onnx               | drawn from a fixed seed; trained briefly on 5,000 other images of Fashion-MNIST |

IDX files are not packed; images of CIFAR are [N, 32, 32, 3]. The network: pixel_values (float [batch, 1, 28, 28]) -> logits
[batch, 10], two convolutions with pooling, two linear layers, 105,866 parameters. It takes (x / 255 - 0.286) / 0.353.
"""

import csv
import gzip
import json
import random
import sys
import warnings
from pathlib import Path

import numpy as np

# Names of Fashion-MNIST's files and the rows of each of our splits.
FASHION = {"train": ("train", 0, 20_000), "val": ("train", 20_000, 25_000), "test": ("t10k", 0, 10_000),
           "other": ("train", 25_000, 30_000)}
NEWS = {"train": ("train", 0, 2_000), "val": ("train", 2_000, 2_500), "test": ("test", 0, 1_000)}
# Characters of a news text that are kept: more than 64 tokens.
NEWS_LENGTH = 500


def main():
    what, assets, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) / "samuel"
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    {"fashion": make_fashion, "shift": make_shift, "news": make_news, "cifar": make_cifar,
     "network": make_network}[what](assets, out)


def make_fashion(assets, out):
    for split in ("train", "val", "test"):
        write_split(out, f"fashion-{split}", *fashion(assets, split))


def make_shift(assets, out):
    """Writes examples in the order in which they are to be seen: 312 batches of 64 of a first phase, then of a second.

    First, images as the network (see `make_network`) knows them, four of five with a label drawn at random: a network that
    learns fast unlearns. Then the images turned by 90 degrees, with correct labels that are permuted: a network that
    learns slowly is too late. `before` is the first phase's validation data, `after` the second's test data, both
    with correct labels. There is a file for each seed, since the order is that of the file.
    """
    permutation = np.random.default_rng(100).permutation(10).astype(np.uint8)
    images, labels = fashion(assets, "train")
    for seed in range(3):
        draw = np.random.default_rng(seed)
        noisy = np.where(draw.random(len(labels)) < 0.8, draw.integers(0, 10, len(labels)), labels)
        first, second = (draw.permutation(len(labels))[:312 * 64] for _ in range(2))
        phases = np.concatenate([images[first], turned(images[second])])
        write_split(out, f"shift-train-{seed}", phases, np.concatenate([noisy[first], permutation[labels[second]]]))
    write_split(out, "shift-before", *fashion(assets, "val"))
    images, labels = fashion(assets, "test")
    write_split(out, "shift-after", turned(images), permutation[labels])


def turned(images):
    return np.rot90(images, axes=(1, 2))


def make_news(assets, out):
    """Writes tables with the columns text and label; a fixed seed draws the texts."""
    texts = {name: read_news(assets / f"news/20newsgroups-{name}.tab") for name in ("train", "test")}
    classes = sorted({label for label, _ in texts["train"]})
    for split, (source, start, end) in NEWS.items():
        rows = sorted(texts[source])
        random.Random(0).shuffle(rows)
        lines = [f"{text[:NEWS_LENGTH]}\t{classes.index(label)}\n" for label, text in rows[start:end]]
        (out / f"news-{split}.tsv").write_text("text\tlabel\n" + "".join(lines))


def read_news(path):
    """The (class, text) rows of one of Orange's tables: three lines of header, then one text a line."""
    csv.field_size_limit(1 << 30)
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if row][3:]
    return [(label, " ".join(text.split())) for label, text in rows]


def make_cifar(assets, out):
    from PIL import Image

    def images(name):
        return np.asarray(Image.open(assets / f"cifar10/{name}.png").convert("RGB")).reshape(10_000, 32, 32, 3)

    def labels(name):
        return np.array(json.loads((assets / f"cifar10/{name}_labels.json").read_text()), np.uint8)

    train = np.concatenate([images(f"data_batch_{i}") for i in range(1, 6)])
    write_split(out, "cifar-train", train, labels("train"))
    write_split(out, "cifar-test", images("test_batch"), labels("test"))


def make_network(assets, out):
    """Writes the network as it is drawn, and as it is after three epochs of SGD on 5,000 images."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = torch.nn
    model = layers.Sequential(
        layers.Conv2d(1, 16, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
        layers.Conv2d(16, 32, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
        layers.Flatten(), layers.Linear(32 * 7 * 7, 64), layers.ReLU(), layers.Linear(64, 10))
    export(model, out / "fashion-cnn-ts17.onnx")
    train(model, *fashion(assets, "other"), epochs=3, batch=64, rate=0.03)
    export(model, out / "shift-cnn-ts17.onnx")


def train(model, images, labels, epochs, batch, rate):
    """SGD with momentum 0.9, the rate falling to zero."""
    import torch

    x = (torch.from_numpy(images.astype(np.float32)).unsqueeze(1) / 255 - 0.286) / 0.353
    y = torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x)).split(batch)]
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / len(batches))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def export(model, path):
    """Writes a model by tracing and checks it."""
    import torch

    torch.onnx.export(model.eval(), (torch.zeros(2, 1, 28, 28),), path, dynamo=False, opset_version=17,
                      input_names=["pixel_values"], output_names=["logits"],
                      dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}})
    check(model, torch.randn(3, 1, 28, 28), path)
    model.train()


def check(model, batch, path):
    """Ends with an error unless the file is valid ONNX and ONNX Runtime computes what PyTorch does."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found, = session.run(None, {"pixel_values": batch.numpy()})
    difference = float(np.abs(found - model(batch).detach().numpy()).max())
    if not difference < 1e-5:
        sys.exit(f"{path.name}: differs from PyTorch by {difference:.1e}")


# --- Files ----------------------------------------------------------------------------------------------------------

def fashion(assets, split):
    """Images [N, 28, 28] and labels [N] of a split."""
    name, start, end = FASHION[split]
    folder = assets / "fashion-mnist"
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")[start:end]
    return images, read_idx(folder / f"{name}-labels-idx1-ubyte.gz")[start:end]


def read_idx(path):
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", data[3], 4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def write_split(out, name, images, labels):
    """Writes the two IDX files of a split."""
    if len(images) != len(labels):
        sys.exit(f"{name}: {len(images)} images, {len(labels)} labels")
    for kind, array in ((f"images-idx{images.ndim}", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (out / f"{name}-{kind}").write_bytes(header + np.ascontiguousarray(array, np.uint8).tobytes())


if __name__ == "__main__":
    main()
