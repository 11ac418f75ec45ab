"""Makes small models of many kinds, as exporters write them, and checks each with onnx.checker and ONNX Runtime.

usage: make_zoo.py OUT

| file                 | like                                                                                         | opset |
|----------------------|----------------------------------------------------------------------------------------------|-------|
| segmenter-ts17       | encoder and decoder: ConvTranspose, Resize (linear, nearest), HardSwish, squeeze and excitation | 17 |
| prelu-ts13           | face networks: PRelu per channel, depthwise convolutions, a linear embedding                  | 13 |
| crnn-ts17            | text recognition: convolutions, two bidirectional LSTMs, log-softmax over time                | 17 |
| tagger-ts17          | embedding, GRU, a linear layer per token                                                      | 17 |
| encoder-ts17         | a small transformer encoder with mask                                                         | 17 |
| encoder-cast-int8    | the same with int8 weights behind Cast and Mul                                                | 17 |
| encoder-dynamic-int8 | the same through ONNX Runtime's dynamic quantisation (DynamicQuantizeLinear, MatMulInteger)   | 17 |
| cnn-qdq-int8         | a CNN through ONNX Runtime's static quantisation (QuantizeLinear, DequantizeLinear)           | 17 |
| detector-ts17        | one-stage detector: Split, Concat, pooling pyramid, nearest Resize, grid and distances decoded | 17 |
| nhwc-tf15            | tf2onnx: channels last between transposes, names of a Keras model, squeezed shapes            | 15 |
| keras-9              | keras2onnx: opset 9, BatchNormalization, Upsample, Transpose, Dense as MatMul and Add          | 9 |
| windows-ts17         | scripted PyTorch: chunk, split into an open number of pieces, unbind, lists, as sequences     | 17 |
| with-ort-dynamic-int8 | encoder-dynamic-int8 as ONNX Runtime writes it after its fusions: operators of com.microsoft  | 17 |

Weights are random with a fixed seed. NAME.npz beside each has inputs (`in_…`) and ONNX Runtime's outputs (`out_…`), at another
batch than the traced one where the model allows it.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import nn

RNG = np.random.default_rng(0)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    torch_models(out)
    cast_int8(out / "encoder-ts17.onnx", out / "encoder-cast-int8.onnx")
    quantize_dynamic(out / "encoder-ts17.onnx", out / "encoder-dynamic-int8.onnx", weight_type=QuantType.QInt8)
    static_int8(out / "prelu-ts13.onnx", out / "cnn-qdq-int8.onnx")
    onnx.save(channels_last(), out / "nhwc-tf15.onnx")
    onnx.save(old_keras(), out / "keras-9.onnx")
    fused(out / "encoder-dynamic-int8.onnx", out / "with-ort-dynamic-int8.onnx")
    for path in sorted(out.glob("*.onnx")):
        record(path)


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        return x * nn.functional.hardsigmoid(self.up(torch.relu(self.down(nn.functional.adaptive_avg_pool2d(x, 1)))))


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish(), SqueezeExcite(16))
        self.up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        a = self.stem(x)
        b = self.middle(a)
        wide = nn.functional.interpolate(b, scale_factor=2.0, mode="nearest")[:, :8]
        y = self.last(torch.cat([a + wide, self.up(b)], 1))
        return nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)


class Face(nn.Module):
    def __init__(self):
        super().__init__()
        block = lambda i, o, s, g: [nn.Conv2d(i, o, 3, s, 1, groups=g, bias=False), nn.BatchNorm2d(o), nn.PReLU(o)]
        self.body = nn.Sequential(*block(3, 8, 2, 1), *block(8, 8, 1, 8), *block(8, 16, 2, 1), *block(16, 16, 1, 16))
        self.embedding = nn.Linear(16 * 8 * 8, 24)

    def forward(self, x):
        return self.embedding(torch.flatten(self.body(x), 1))


class Crnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, 1, 1),
                                 nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d((8, 2)))
        self.rnn = nn.LSTM(16, 12, num_layers=2, bidirectional=True)
        self.head = nn.Linear(24, 11)

    def forward(self, x):
        steps = self.cnn(x).squeeze(2).permute(2, 0, 1)
        return nn.functional.log_softmax(self.head(self.rnn(steps)[0]), -1)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(20, 5)
        self.rnn = nn.GRU(16, 20, batch_first=True)

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0])


class Encoder(nn.Module):
    """Attention and MLP written out, as exporters see them."""

    def __init__(self, layers=2, wide=32, heads=4):
        super().__init__()
        self.embedding = nn.Embedding(100, wide)
        linear = lambda o=wide, i=wide: nn.Linear(i, o)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"query": linear(), "key": linear(), "value": linear(), "out": linear(), "up": linear(4 * wide),
                           "down": linear(wide, 4 * wide), "first": nn.LayerNorm(wide), "second": nn.LayerNorm(wide)})
            for _ in range(layers))
        self.heads, self.classifier = heads, nn.Linear(wide, 3)

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids)
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            split = lambda t: t.reshape(t.shape[0], t.shape[1], self.heads, -1).transpose(1, 2)
            q, k, v = (split(layer[name](x)) for name in ("query", "key", "value"))
            scores = q @ k.transpose(-1, -2) / (q.shape[-1] ** 0.5) + bias
            y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            x = layer["first"](x + layer["out"](y))
            x = layer["second"](x + layer["down"](nn.functional.gelu(layer["up"](x))))
        return self.classifier(x[:, 0])


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        conv = lambda i, o, k=3, s=1: nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.SiLU())
        self.stem, self.down, self.deep = conv(3, 8, 3, 2), conv(8, 16, 3, 2), conv(16, 16, 3, 2)
        self.split, self.inner, self.join = conv(16, 16, 1), conv(8, 8), conv(24, 16, 1)
        self.pyramid = conv(64, 16, 1)
        self.box, self.classes = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        fine = self.down(self.stem(x))
        a, b = self.split(self.deep(fine)).chunk(2, 1)
        deep = self.join(torch.cat([a, b, self.inner(b)], 1))
        pool = lambda t: nn.functional.max_pool2d(t, 5, 1, 2)
        p1 = pool(deep)
        p2 = pool(p1)
        deep = self.pyramid(torch.cat([deep, p1, p2, pool(p2)], 1))
        scales = [nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest") + fine, deep]
        boxes, scores = [], []
        for stride, level in zip((4, 8), scales):
            n, _, h, w = level.shape
            distances = self.box(level).reshape(n, 4, 4, h * w).softmax(2)
            distances = (distances * torch.arange(4, dtype=x.dtype).reshape(1, 1, 4, 1)).sum(2)
            ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            centres = torch.stack([xs, ys]).reshape(1, 2, -1).to(x.dtype) + 0.5
            low, high = centres - distances[:, :2], centres + distances[:, 2:]
            boxes.append(torch.cat([(low + high) / 2, high - low], 1) * stride)
            scores.append(self.classes(level).reshape(n, 3, -1).sigmoid())
        return torch.cat([torch.cat(boxes, 2), torch.cat(scores, 2)], 1)


@torch.jit.script
def glued(x: torch.Tensor):
    """A gate over halves of the channels, the first and the last window of the sequence, and the first two tokens."""
    halves = torch.chunk(x, 2, -1)
    gated = halves[0] * torch.sigmoid(halves[1])
    windows = torch.split(gated, 2, 1)
    tokens = gated.unbind(1)
    first = [tokens[0]]
    first.append(tokens[1])
    return torch.cat([windows[0].mean(1), windows[-1].mean(1)], -1) + torch.cat(first, -1)


class Chunks(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.out(glued(self.into(x)))


def torch_models(out):
    image, batch = torch.randn(2, 3, 32, 32), {0: "batch"}
    pixels = {0: "batch", 2: "height", 3: "width"}
    both = {0: "batch", 1: "sequence"}
    ids, mask = torch.randint(0, 50, (2, 7)), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    with torch.random.fork_rng():
        chunks = Chunks()
    rows = [
        ("segmenter-ts17", Segmenter(), (image,), ["pixels"], ["mask"], {"pixels": pixels, "mask": pixels}, 17),
        ("prelu-ts13", Face(), (image,), ["pixels"], ["embedding"], {"pixels": batch, "embedding": batch}, 13),
        ("crnn-ts17", Crnn(), (torch.randn(2, 1, 16, 40),), ["pixels"], ["steps"],
         {"pixels": {0: "batch", 3: "width"}, "steps": {0: "time", 1: "batch"}}, 17),
        ("tagger-ts17", Tagger(), (ids,), ["tokens"], ["tags"], {"tokens": both, "tags": both}, 17),
        ("encoder-ts17", Encoder(), (ids, mask), ["input_ids", "attention_mask"], ["logits"],
         {"input_ids": both, "attention_mask": both, "logits": batch}, 17),
        ("detector-ts17", Detector(), (torch.randn(1, 3, 64, 64),), ["images"], ["predictions"],
         {"images": pixels, "predictions": {0: "batch", 2: "anchors"}}, 17),
        ("windows-ts17", chunks, (torch.ones(2, 7, 6),), ["tokens"], ["scores"], {"tokens": both, "scores": batch}, 17),
    ]
    for name, model, example, inputs, outputs, axes, opset in rows:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        with torch.no_grad():
            torch.onnx.export(model.eval(), example, out / f"{name}.onnx", dynamo=False, opset_version=opset, input_names=inputs,
                              output_names=outputs, dynamic_axes=axes, do_constant_folding=False,
                              training=torch.onnx.TrainingMode.PRESERVE)


def cast_int8(source, target):
    """int8 weights with a scale per column, brought to float by Cast and Mul in front of every product."""
    model = onnx.load(source)
    graph, made, nodes = model.graph, [], []
    weights = {i.name: i for i in graph.initializer}
    readers = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    for node in list(graph.node):
        transposed = node.op_type == "Transpose" and node.input[0] in weights and readers[node.output[0]] == ["MatMul"]
        if not transposed and not (node.op_type == "MatMul" and node.input[1] in weights):
            nodes.append(node)
            continue
        name = node.input[0] if transposed else node.input[1]
        weight = numpy_helper.to_array(weights.pop(name))
        axis = 1 if transposed else 0
        scale = (np.abs(weight).max(axis, keepdims=True) / 127).astype(np.float32)
        rounded = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
        made += [numpy_helper.from_array(rounded, name + "_int8"), numpy_helper.from_array(scale, name + "_scale")]
        nodes += [helper.make_node("Cast", [name + "_int8"], [name + "_cast"], to=TensorProto.FLOAT),
                  helper.make_node("Mul", [name + "_cast", name + "_scale"], [name]), node]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*weights.values(), *made])
    onnx.save(model, target)


def fused(source, target):
    """What ONNX Runtime makes of a model for itself: DynamicQuantizeMatMul, SkipLayerNormalization, BiasGelu."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def static_int8(source, target):
    class Pictures(CalibrationDataReader):
        def __init__(self):
            self.rows = iter([{"pixels": RNG.normal(size=(4, 3, 32, 32)).astype(np.float32)} for _ in range(3)])

        def get_next(self):
            return next(self.rows, None)

    quantize_static(source, target, Pictures(), quant_format=QuantFormat.QDQ, per_channel=True)


def floats(*shape, spread=0.3):
    return RNG.normal(0, spread, shape).astype(np.float32)


def model_of(name, nodes, inputs, outputs, weights, opset, producer):
    graph = helper.make_graph(nodes, name, inputs, outputs, [numpy_helper.from_array(w, n) for n, w in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name=producer, ir_version=7 if opset > 9 else 4)


def channels_last():
    """A Keras network as tf2onnx writes it: NHWC outside, transposes around every block, reshapes by computed shapes."""
    base = "StatefulPartitionedCall/net"
    weights = {
        f"{base}/conv/Conv2D/ReadVariableOp:0": floats(8, 3, 3, 3), f"{base}/conv/bias:0": floats(8),
        f"{base}/depth/depthwise:0": floats(8, 1, 3, 3), f"{base}/depth/bias:0": floats(8),
        f"{base}/dense/MatMul/ReadVariableOp:0": floats(8 * 4, 5), f"{base}/dense/BiasAdd/ReadVariableOp:0": floats(5),
        "six:0": np.float32(6), "zero:0": np.float32(0),
        "start:0": np.array([0], np.int64), "end:0": np.array([1], np.int64), "wide:0": np.array([32], np.int64),
    }
    n = lambda op, i, o, **a: helper.make_node(op, i, [o], name=o.split(":")[0], **a)
    nodes = [
        n("Transpose", ["image:0"], f"{base}/conv/Conv2D__5:0", perm=[0, 3, 1, 2]),
        n("Conv", [f"{base}/conv/Conv2D__5:0", f"{base}/conv/Conv2D/ReadVariableOp:0", f"{base}/conv/bias:0"], f"{base}/conv/BiasAdd:0",
          auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3]),
        n("Clip", [f"{base}/conv/BiasAdd:0", "zero:0", "six:0"], f"{base}/relu6:0"),
        n("Transpose", [f"{base}/relu6:0"], f"{base}/relu6__9:0", perm=[0, 2, 3, 1]),
        n("Transpose", [f"{base}/relu6__9:0"], f"{base}/depth/depthwise__11:0", perm=[0, 3, 1, 2]),
        n("Conv", [f"{base}/depth/depthwise__11:0", f"{base}/depth/depthwise:0", f"{base}/depth/bias:0"], f"{base}/depth:0", group=8,
          auto_pad="SAME_LOWER", strides=[2, 2], kernel_shape=[3, 3]),
        n("Relu", [f"{base}/depth:0"], f"{base}/depth/Relu:0"),
        n("Add", [f"{base}/depth/Relu:0", f"{base}/depth:0"], f"{base}/add:0"),
        n("MaxPool", [f"{base}/add:0"], f"{base}/pool:0", kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID"),
        n("Transpose", [f"{base}/pool:0"], f"{base}/pool__17:0", perm=[0, 2, 3, 1]),
        n("Shape", ["image:0"], f"{base}/flatten/Shape:0"),
        n("Slice", [f"{base}/flatten/Shape:0", "start:0", "end:0"], f"{base}/flatten/batch:0"),
        n("Concat", [f"{base}/flatten/batch:0", "wide:0"], f"{base}/flatten/shape:0", axis=0),
        n("Reshape", [f"{base}/pool__17:0", f"{base}/flatten/shape:0"], f"{base}/flatten/Reshape:0"),
        n("MatMul", [f"{base}/flatten/Reshape:0", f"{base}/dense/MatMul/ReadVariableOp:0"], f"{base}/dense/MatMul:0"),
        n("Add", [f"{base}/dense/MatMul:0", f"{base}/dense/BiasAdd/ReadVariableOp:0"], "Identity:0"),
    ]
    image = helper.make_tensor_value_info("image:0", TensorProto.FLOAT, ["unk__1", 16, 16, 3])
    out = helper.make_tensor_value_info("Identity:0", TensorProto.FLOAT, ["unk__1", 5])
    return model_of("tf2onnx", nodes, [image], [out], weights, 15, "tf2onnx")


def old_keras():
    """Opset 9: scales of Upsample as an input, BatchNormalization with `spatial` gone, no bounds as inputs."""
    weights = {
        "conv/kernel": floats(6, 3, 3, 3), "conv/bias": floats(6), "bn/gamma": 1 + floats(6), "bn/beta": floats(6), "bn/mean": floats(6),
        "bn/variance": np.abs(floats(6)) + 0.5, "scales": np.array([1, 1, 2, 2], np.float32), "dense/kernel": floats(6, 4), "dense/bias": floats(4),
        "shape": np.array([-1, 6], np.int64),
    }
    n = lambda op, i, o, **a: helper.make_node(op, i, [o], name=o, **a)
    nodes = [
        n("Transpose", ["input_1"], "adjusted_input1", perm=[0, 3, 1, 2]),
        n("Conv", ["adjusted_input1", "conv/kernel", "conv/bias"], "convolution_output", auto_pad="SAME_UPPER", kernel_shape=[3, 3]),
        n("BatchNormalization", ["convolution_output", "bn/gamma", "bn/beta", "bn/mean", "bn/variance"], "normalized", epsilon=1e-3),
        n("LeakyRelu", ["normalized"], "activated", alpha=0.2),
        n("Upsample", ["activated", "scales"], "upsampled", mode="nearest"),
        n("AveragePool", ["upsampled"], "pooled", kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID"),
        n("GlobalAveragePool", ["pooled"], "global"),
        n("Reshape", ["global", "shape"], "flat"),
        n("MatMul", ["flat", "dense/kernel"], "dense_product"),
        n("Add", ["dense_product", "dense/bias"], "dense_sum"),
        n("Softmax", ["dense_sum"], "dense", axis=1),
    ]
    image = helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["N", 8, 8, 3])
    out = helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["N", 4])
    return model_of("keras", nodes, [image], [out], weights, 9, "keras2onnx")


def record(path):
    """Checks a model, and writes inputs and what ONNX Runtime makes of them."""
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    sizes = {"batch": 3, "sequence": 5, "height": 48, "width": 64, "unk__1": 3, "N": 3}
    arrays = {}
    for value in session.get_inputs():
        shape = [sizes[d] if isinstance(d, str) else d for d in value.shape]
        if value.type == "tensor(int64)":
            limit = 2 if "mask" in value.name else 50
            array = RNG.integers(0, limit, shape)
            if limit == 2:
                array[:, 0] = 1
        else:
            array = RNG.normal(size=shape).astype(np.float32)
        arrays["in_" + value.name] = array
    outputs = session.run(None, {name[3:]: array for name, array in arrays.items()})
    arrays |= {"out_" + o.name: a for o, a in zip(session.get_outputs(), outputs)}
    np.savez(path.with_suffix(".npz"), **arrays)
    print(f"{path.name}: {', '.join(f'{o.name} {list(a.shape)}' for o, a in zip(session.get_outputs(), outputs))}")


if __name__ == "__main__":
    main()
