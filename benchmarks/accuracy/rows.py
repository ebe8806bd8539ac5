"""All rows by their names."""

from __future__ import annotations

from benchmarks.accuracy import images, lottery, remarks, sequences, text
from benchmarks.accuracy.study import Ask, Study

STUDIES: dict[str, Study] = {
    "resnet20-structured": Study(
        "ResNet-20, channels, CIFAR-10",
        f"Channels by group L2 norm over all layers together, in cycles; crops, flips and distillation from the dense network. {images.SEEN}",
        images.structured(
            "resnet20-structured",
            20,
            {1.5: Ask("drop", 0.006), 2.0: Ask("drop", 0.012)},
            {},
        ),
        minutes=24,
        published=("Soft filter pruning, 1.73x fewer MACs: 90.83% from 92.20% (He et al., IJCAI 2018, table 1).",),
    ),
    "resnet56-structured": Study(
        "ResNet-56, channels, CIFAR-10",
        f"As ResNet-20, without sparse learning. {images.SEEN}",
        images.structured(
            "resnet56-structured",
            56,
            {2.11: Ask("accuracy", 0.934), 2.57: Ask("accuracy", 0.933)},
            {2.11: f"93.46% from 93.53%, without sparse learning, {images.DEPGRAPH}"},
        ),
        minutes=25,
        published=(f"{images.DEPGRAPH}: fine-tuned for 100 epochs; its dense network has 93.53%, ours 93.39%.",),
    ),
    "resnet56-sparse-learning": Study(
        "ResNet-56, channels after sparse learning, CIFAR-10",
        f"Trained under DepGraph's group lasso before the cut; `learnt` is the accuracy before it. {images.SEEN}",
        images.sparse_learning,
        minutes=28,
        published=(f"{images.DEPGRAPH}: 100 epochs of sparse learning and 100 of fine-tuning.",),
    ),
    "resnet20-unstructured": Study(
        "ResNet-20, single weights, CIFAR-10",
        f"Magnitude over all layers together, cubic schedule. {images.SEEN}",
        images.unstructured("resnet20-unstructured", 20, asked=False),
        minutes=25,
        published=("The schedule: Zhu and Gupta, 2017.",),
    ),
    "resnet56-unstructured": Study(
        "ResNet-56, single weights, CIFAR-10",
        f"Magnitude over all layers together, cubic schedule. {images.SEEN}",
        images.unstructured("resnet56-unstructured", 56, asked=True),
        minutes=28,
        published=("The schedule: Zhu and Gupta, 2017.",),
    ),
    "oneshot-iterative": Study(
        "One-shot against iterative, single weights, ResNet-20, CIFAR-10",
        f"The same epochs of training in all: after one cut, or shared among cycles. {images.SEEN}",
        images.one_shot_or_iterative("oneshot-iterative", by_channels=False),
        minutes=26,
        published=("The boundary: one-shot below 30%, iterative above 50%.",),
        remark=remarks.boundary,
        curves=True,
    ),
    "oneshot-iterative-channels": Study(
        "One-shot against iterative, parameters by channels, ResNet-20, CIFAR-10",
        f"The same epochs of training in all: after one cut, or shared among cycles. {images.SEEN}",
        images.one_shot_or_iterative("oneshot-iterative-channels", by_channels=True),
        minutes=26,
        published=("The boundary: one-shot below 30%, iterative above 50%.",),
        remark=remarks.boundary,
        curves=True,
    ),
    "lottery": Study(
        "Lottery ticket against fine-tuning, ResNet-20, CIFAR-10",
        "From scratch on train without validation: warmed up to the early weights, trained on from there to the dense network; no "
        "distillation. Rewind: what stays goes on from the early weights with the dense network's rates; fine-tune: from the "
        "last ones with a tenth of them. Epochs are the same.",
        lottery.trials,
        minutes=29,
        published=(
            "Late rewinding finds tickets as good as the dense network: Frankle et al., ICML 2020.",
            "Rewinding outdoes fine-tuning at the last rate: Renda et al., ICLR 2020.",
        ),
    ),
    "criteria": Study(
        "Criteria after a short recovery, ResNet-20 at 2x fewer MACs, CIFAR-10",
        f"The same share of every layer's channels goes; one cut. {images.SEEN}",
        images.criteria,
        minutes=25,
        published=("After fine-tuning random channels come near to chosen ones: Mittal et al., WACV 2018.",),
        remark=remarks.ranking,
    ),
    "minilm-heads": Study(
        "MiniLM-L6, heads, SST-2 dev",
        "The first-order Taylor term of training sentences, over all layers together. One dev sentence is 0.11 points.",
        text.heads,
        minutes=26,
    ),
    "minilm-speedup": Study(
        "MiniLM-L6, heads and feed-forward neurons to a measured speedup, SST-2 dev",
        "The share is the smallest whose cut runs as fast as asked on ONNX Runtime, dense and pruned alternating.",
        text.speedup,
        minutes=16,
    ),
    "minilm-layers": Study(
        "MiniLM-L6 from 6 to 3 layers, SST-2 dev",
        "Recovery looks at the hidden states that both have, too.",
        text.layers,
        minutes=14,
        published=("DistilBERT on SST-2: 91.3 against BERT's 92.7 (Sanh et al., 2019).",),
    ),
    "stories260k": Study(
        "stories260k (Llama, grouped queries): perplexity on its own sequences",
        "Sequences are sampled from the model: good for before and after, not for what a larger model would lose. Recovery "
        "distils from the dense model.",
        sequences.trials,
        minutes=15,
        metric="log_likelihood",
        remark=remarks.order_of_criteria,
    ),
}
