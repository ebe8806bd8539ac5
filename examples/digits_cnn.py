"""Trains the sample model and registers it; copy this file for a model of your own.

Run: MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python examples/digits_cnn.py
"""

import mlflow
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tasks import datasets, recipe

NAME = "digits-cnn"
EPOCHS, BATCH, LEARNING_RATE = 16, 64, 0.05


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        same = into == out and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class DigitsCNN(nn.Module):
    """Images [N, 1, 8, 8] to logits [N, 10]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 2 * width, 1),
            Block(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def main() -> None:
    torch.manual_seed(0)
    # the recipe's own splits: what the gate will test on must not have been trained on
    data = datasets.load(recipe.load("digits"))
    inputs, labels = torch.from_numpy(data.train.inputs), torch.from_numpy(data.train.labels)
    model = DigitsCNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = EPOCHS * (len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        model.train()
        for part in torch.randperm(len(inputs))[: len(inputs) // BATCH * BATCH].split(BATCH):
            loss = functional.cross_entropy(model(inputs[part]), labels[part], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}", flush=True)
    model.eval()
    with torch.no_grad():
        predicted = model(torch.from_numpy(data.test.inputs)).argmax(1).numpy()
    accuracy = float(np.mean(predicted == data.test.labels))
    print(f"test accuracy {accuracy:.4f} on {len(data.test)} images")

    mlflow.set_experiment(f"secateur/{NAME}")
    with mlflow.start_run(run_name="train dense"):
        mlflow.log_metric("test_accuracy", accuracy)
        mlflow.pytorch.log_model(
            model,
            name="model",
            input_example=data.train.inputs[:2],  # two examples: a batch of one would fix the batch size
            registered_model_name=NAME,
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],  # inferring them takes long
        )


if __name__ == "__main__":
    main()
