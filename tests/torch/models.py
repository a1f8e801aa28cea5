"""Hosts as they are found in the wild, small: none of them knows anything of kasmina.

``HOSTS`` names them; each says how to build it, what to feed it, and where slots are wanted.
"""

import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kasmina.adapters.torch.hosts import GPTHost
from kasmina.domain.stages import Topology

CNN, TRANSFORMER = Topology.CNN, Topology.TRANSFORMER
WIDTH, POSITIONS, VOCABULARY = 16, 6, 40


def images():
    return (torch.randn(3, 3, 16, 16),)


def sequences():
    return (torch.randn(3, POSITIONS, WIDTH),)


def tokens():
    return (torch.randint(0, VOCABULARY, (3, POSITIONS)),)


# --- as torchvision writes them ---


class BasicBlock(nn.Module):
    def __init__(self, inplanes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, layers=(2, 1, 1), classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._make_layer(8, 8, layers[0])
        self.layer2 = self._make_layer(8, 12, layers[1], stride=2)
        self.layer3 = self._make_layer(12, 16, layers[2], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, classes)

    def _make_layer(self, inplanes, planes, blocks, stride=1):
        rest = [BasicBlock(planes, planes) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inplanes, planes, stride), *rest)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class EncoderBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.self_attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, input):  # noqa: A002  # torchvision's name
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(x) + input
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, length, depth):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, length, WIDTH) * 0.02)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.Sequential(
            OrderedDict((f"encoder_layer_{i}", EncoderBlock()) for i in range(depth))
        )
        self.ln = nn.LayerNorm(WIDTH)

    def forward(self, input):  # noqa: A002  # torchvision's name
        return self.ln(self.layers(self.dropout(input + self.pos_embedding)))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.encoder = Encoder(5, 2)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(WIDTH, 5)))

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.heads(self.encoder(x)[:, 0])


# --- transformers, with random weights ---


def gpt2(*, checkpointing=None, **changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"n_positions": 8, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    config |= {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(**(config | changes)))
    if checkpointing is not None:
        with warnings.catch_warnings():  # newer releases have another name for it
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.disable_input_require_grads()  # for frozen embeddings: a hook that cannot be pickled
    return model


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=8,
        )
    )


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=8,
        )
    )


# --- what else there is ---


def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.Flatten())


def normalised():
    """BatchNorms, one of them followed by a ReLU that overwrites what it gets, and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, momentum=None),
        nn.Flatten(),
        nn.Linear(8 * 12 * 12, 5),
    )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        outputs, last = self.gru(x)
        return self.head(outputs), last


def encoder():
    """Its layers compute with one fused function in eval mode."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


Pair = namedtuple("Pair", ["features", "extra"])  # noqa: PYI024  # as strangers' models return it


@dataclass
class Bundle:
    extra: object
    features: Tensor


CONTAINERS = {
    "tuple": lambda features: ("extra", features),
    "list": lambda features: [features, "extra"],
    "named tuple": lambda features: Pair(features, "extra"),
    "dict": lambda features: {"extra": torch.arange(3), "features": features},
    "dataclass": lambda features: Bundle("extra", features),
}
OPENED = {
    "tuple": lambda output: output[1],
    "list": lambda output: output[0],
    "named tuple": lambda output: output.features,
    "dict": lambda output: output["features"],
    "dataclass": lambda output: output.features,
}


class Packing(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.kind = kind

    def forward(self, x):
        return CONTAINERS[self.kind](self.conv(x))


class Unpacking(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.block = Packing(kind)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.head(OPENED[self.block.kind](self.block(x)))


class Twice(nn.Module):
    """Calls one module twice, each time by another of its names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.first = self.second = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.1)
        )

    def forward(self, x):
        return self.second(self.first(self.stem(x)))


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.2)
        )
        self.head = nn.Conv2d(8, 4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        if self.training and self.reentrant is not None:
            return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))
        return self.head(self.block(x))


@dataclass(frozen=True)
class Host:
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple]
    places: dict


def _hosts():
    blocks = {"transformer.h.*": TRANSFORMER}
    yield "Sequential", plain, images, {"0": CNN, "2": CNN}
    yield "ResNet", ResNet, images, {"layer?": CNN}
    yield "ResNet, inside", ResNet, images, {"layer1.*.bn1": CNN, "bn1": CNN}
    yield "ResNet, nested", ResNet, images, {"layer1": CNN, "layer1.0": CNN, "layer1.0.*1": CNN}
    yield "ViT", VisionTransformer, images, {"encoder.layers.*": TRANSFORMER}
    yield "GPT-2", gpt2, tokens, blocks
    yield "GPT-2, its whole trunk", gpt2, tokens, {"transformer": TRANSFORMER}
    yield "GPT-2, checkpointed", partial(gpt2, checkpointing=False, use_cache=False), tokens, blocks
    yield (
        "GPT-2, checkpointed re-entrantly",
        partial(gpt2, checkpointing=True, use_cache=False),
        tokens,
        blocks,
    )
    yield "BERT", bert, tokens, {"encoder.layer.*": TRANSFORMER}
    yield "BERT, its encoder", bert, tokens, {"encoder": TRANSFORMER}
    yield "Llama", llama, tokens, {"model.layers.*": TRANSFORMER}
    yield "Llama, its attention", llama, tokens, {"model.layers.*.self_attn": TRANSFORMER}
    yield "GRU", Recurrent, sequences, {"gru": TRANSFORMER}
    yield "BatchNorm", normalised, images, {"[15]": CNN}
    yield "TransformerEncoder", encoder, sequences, {"layers.*": TRANSFORMER}
    yield "tied weights", GPTHost, tokens, {"tokens": TRANSFORMER, "blocks.1": TRANSFORMER}
    yield "called twice", Twice, sequences, {"first": TRANSFORMER}
    yield "slots in series", plain, images, {"0": (CNN, CNN, CNN)}
    for kind in CONTAINERS:
        yield f"returning a {kind}", partial(Unpacking, kind), images, {"block": CNN}
    for reentrant in (False, True):
        name = "checkpointed re-entrantly" if reentrant else "checkpointed"
        yield name, partial(Checkpointed, reentrant=reentrant), images, {"block": CNN}


HOSTS = {name: Host(*rest) for name, *rest in _hosts()}
