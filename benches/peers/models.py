"""The models of the measurements, each defined once: `tests/assets/export_bench.py` writes them as ONNX, and PyTorch
trains or runs the same ones here, with the same weights (real ones, or drawn from a fixed seed).

All are in evaluation mode and in float32. ASSETS is the folder that `tests/assets/fetch.sh` fills.
"""

import warnings

import torch
import torchvision
import transformers

SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def quiet():
    """No warnings and no progress bars."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def minilm_classifier(assets):
    """MiniLM-L6 under BertForSequenceClassification: first token, pooler, a new classifier for two classes."""
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(assets / "minilm-l6", num_labels=2).eval()


def bert_base_classifier(_assets):
    """BERT-base under BertForSequenceClassification for two classes, random weights."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2)).eval()
    make_vectors_distinct(model)
    return model


def smollm2(assets):
    """SmolLM2-135M-Instruct (a Llama), its weights unpacked from GGUF Q4_1."""
    folder = assets / "smollm2-135m"
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=SMOLLM2_GGUF, dtype=torch.float32).eval()


def mobilenet_v2(assets):
    """torchvision's MobileNetV2 with ImageNet weights."""
    model = torchvision.models.mobilenet_v2().eval()
    model.load_state_dict(torch.load(assets / "mobilenet_v2.pth", weights_only=True))
    return model


def resnet50(_assets):
    """torchvision's ResNet-50 with random weights and with the BatchNorm statistics of random images."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    make_vectors_distinct(model)
    return with_own_statistics(model, torch.randn(8, 3, 224, 224))


def resnet20(_assets):
    """ResNet-20 for CIFAR, random weights."""
    return cifar_resnet(3)


def resnet32(_assets):
    """ResNet-32 for CIFAR, random weights."""
    return cifar_resnet(5)


def cifar_resnet(blocks):
    """The ResNet of 6·blocks + 2 layers of He et al. 2016 (section 4.2), statistics of random images."""
    torch.manual_seed(0)
    model = CifarResNet(blocks)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    make_vectors_distinct(model)
    return with_own_statistics(model, torch.randn(32, 3, 32, 32))


class Block(torch.nn.Module):
    """Two 3×3 convolutions around which the input is added; with more channels, strided and padded with zeros."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.more:
            x = torch.nn.functional.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, 0, self.more))
        return torch.relu(x + y)


class CifarResNet(torch.nn.Module):
    """16, 32 and 64 channels, `blocks` blocks each; pixel_values [batch, 3, 32, 32] -> logits [batch, 10]."""

    def __init__(self, blocks):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        stages = [[Block(*width)] + [Block(width[1], width[1], 1) for _ in range(blocks - 1)] for width in widths]
        self.layer1, self.layer2, self.layer3 = (torch.nn.Sequential(*stage) for stage in stages)
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def make_vectors_distinct(model):
    """Adds noise to the biases and scales, which start out equal and which the exporter would merge into one."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.02)


@torch.no_grad()
def with_own_statistics(model, images):
    """Sets the running statistics of every BatchNorm to those of the images, and returns the model for evaluation."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # The mean over all batches: of one, itself.
    model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def without_dropout(model):
    """Switches dropout off, which Sartor does not do in these steps either."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def with_lora(model, task, targets):
    """The model with PEFT's LoRA of rank 8 on these modules."""
    import peft

    config = peft.LoraConfig(task_type=task, r=8, lora_alpha=16, target_modules=targets, lora_dropout=0.0)
    return peft.get_peft_model(model, config)
