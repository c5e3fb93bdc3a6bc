"""The digits that scikit-learn brings along, and two small models of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

__all__ = ["MODELS", "SPARSE", "Digits", "make_model"]

MODELS = ("CNN", "MLP")
SPARSE = {"CNN": ["conv2", "conv3", "fc1"], "MLP": ["fc2", "fc3"]}
"""Layers that are trained sparse: all but the first, which sees pixels, and the last, which names classes."""


@dataclass(frozen=True)
class Digits:
    """1797 images of 8 x 8: three quarters to train on, a quarter to test."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    @classmethod
    def split(cls, seed: int) -> Digits:
        """Every seed splits anew, the classes in proportion."""
        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(images, labels, test_size=0.25, random_state=seed, stratify=labels)
        train, test = (torch.tensor(part.reshape(-1, 1, 8, 8) / 8 - 1, dtype=torch.float32) for part in parts[:2])
        return cls(train, torch.tensor(parts[2]), test, torch.tensor(parts[3]))

    def batches(self, size: int, generator: torch.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch in random order, each image shifted by up to one pixel."""
        order = torch.randperm(len(self.train_labels), generator=generator)
        padded = nn.functional.pad(self.train_images, (1, 1, 1, 1), value=-1.0)
        shifts = torch.randint(0, 3, (len(order), 2), generator=generator)
        moved = torch.empty_like(self.train_images)
        for down in range(3):
            for right in range(3):
                chosen = (shifts[:, 0] == down) & (shifts[:, 1] == right)
                moved[chosen] = padded[chosen, :, down : down + 8, right : right + 8]
        whole = len(order) // size * size
        return [(moved[part], self.train_labels[part]) for part in order[:whole].split(size)]


def make_model(name: str) -> nn.Module:
    """A fresh model, of about 75 thousand weights (CNN) or 150 thousand (MLP)."""
    if name == "MLP":
        layers = {
            "flat": nn.Flatten(),
            "fc1": nn.Linear(64, 256),
            "relu1": nn.ReLU(),
            "fc2": nn.Linear(256, 256),
            "relu2": nn.ReLU(),
            "fc3": nn.Linear(256, 256),
            "relu3": nn.ReLU(),
            "out": nn.Linear(256, 10),
        }
    else:
        layers = {
            "conv1": nn.Conv2d(1, 32, 3, padding=1),
            "norm1": nn.BatchNorm2d(32),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(32, 48, 3, padding=1),
            "norm2": nn.BatchNorm2d(48),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "conv3": nn.Conv2d(48, 64, 3, padding=1),
            "norm3": nn.BatchNorm2d(64),
            "relu3": nn.ReLU(),
            "pool3": nn.MaxPool2d(2),
            "flat": nn.Flatten(),
            "fc1": nn.Linear(256, 128),
            "relu4": nn.ReLU(),
            "out": nn.Linear(128, 10),
        }
    model = nn.Sequential()
    for key, layer in layers.items():
        model.add_module(key, layer)
    return model
