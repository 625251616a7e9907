"""Five short scripts as users write them. Each gets a function that compiles a model, and yields after each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
)

Prepare = Callable[[nn.Module], nn.Module]
Script = Callable[[Prepare], Iterator[str]]


def bert(prepare: Prepare) -> Iterator[str]:
    """Train a BERT, 2 layers of width 128, for 60 steps of one shape."""
    config = BertConfig(
        vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    model = prepare(BertForSequenceClassification(config).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    words, labels = torch.randint(1000, (16, 64)), torch.randint(2, (16,))
    for _ in range(60):
        _step(optimizer, model(input_ids=words, labels=labels).loss)
        yield "16 x 64"


class LanguageModel(nn.Module):
    """Embedding, two layers of LSTM, decoder: the word language model of PyTorch's examples, with its default sizes."""

    def __init__(self, words: int = 1000, width: int = 200) -> None:
        super().__init__()
        self.encoder, self.rnn = nn.Embedding(words, width), nn.LSTM(width, width, num_layers=2, dropout=0.2)
        self.decoder = nn.Linear(width, words)

    def forward(self, words: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.encoder(words))[0])


def lstm(prepare: Prepare) -> Iterator[str]:
    """Train an LSTM on sequences of 35 words in batches of 20, then on other lengths, then in batches of 10."""
    model = prepare(LanguageModel().train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for length, batch in [(35, 20)] * 5 + [(length, 20) for length in (30, 33, 12)] + [(35, 10), (31, 10)]:
        words = torch.randint(1000, (length + 1, batch))
        _step(optimizer, F.cross_entropy(model(words[:-1]).flatten(0, 1), words[1:].flatten()))
        yield f"{length} x {batch}"


def generate(prepare: Prepare) -> Iterator[str]:
    """Generate 20 tokens with a GPT-2, 2 layers of width 128, from two prompts of different lengths."""
    config = GPT2Config(vocab_size=1000, n_embd=128, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = prepare(GPT2LMHeadModel(config).eval())
    for length in (8, 13):
        words = torch.randint(1, 1000, (1, length))
        mask = torch.ones_like(words)
        model.generate(words, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        yield f"from {length}"


class Perceptron(nn.Module):
    """Layers of width 512. A class of its own: Dynamo does not compile a module of torch.nn that is the whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def epoch(prepare: Prepare) -> Iterator[str]:
    """Train three linear layers of width 512 for two epochs of which the last batch is shorter."""
    model = prepare(Perceptron().train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(torch.randn(200, 512)), batch_size=64)
    for _ in range(2):
        for (x,) in loader:
            _step(optimizer, F.mse_loss(model(x), x))
            yield f"batch of {len(x)}"


def conv(prepare: Prepare) -> Iterator[str]:
    """Train a ResNet of 4 blocks on images of 32 x 32 for 5 steps."""
    config = ResNetConfig(embedding_size=32, hidden_sizes=[64, 128], depths=[2, 2], layer_type="basic")
    model = prepare(ResNetForImageClassification(config).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(2, (16,))
    for _ in range(5):
        _step(optimizer, model(pixel_values=images, labels=labels).loss)
        yield "16 images"


def _step(optimizer: torch.optim.Optimizer, loss: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


SCRIPTS: dict[str, Script] = {"bert": bert, "lstm": lstm, "generate": generate, "epoch": epoch, "conv": conv}
