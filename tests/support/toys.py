"""Toy music, encoded, and untrained models for it."""

from dataclasses import replace
from types import ModuleType, SimpleNamespace

import torch
from notebook_tools import chorale, small_config
from torch import nn
from torch.utils.data import DataLoader

HEADS = ["pitch", "step", "duration", "velocity"]
PLAIN, FULL = MODELS = ["PlainLSTM", "MultiHeadLSTM"]


def toy_music(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces of several lengths, encoded, with their normaliser."""
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(4)]
    config = small_config(nb, max_passes=2.5, epoch_windows=999, attribute_weight=1.0)
    normaliser = nb.Normaliser(pieces)
    encoded = nb.encode(pieces, normaliser, config)
    return SimpleNamespace(**locals())


def batch_of(toy: SimpleNamespace, encoded: list[dict]) -> dict[str, torch.Tensor]:
    """Return encoded pieces as one batch of whole, padded windows."""
    windows = toy.nb.NoteWindows(encoded, max(len(piece["pitch"]) for piece in encoded))
    return next(iter(DataLoader(windows, len(encoded))))


def new_model(toy: SimpleNamespace, kind: str, **changes: float) -> nn.Module:
    """Return an untrained model of a kind, the same each time, ready to predict."""
    torch.manual_seed(0)
    pitches = [range(40, 80)] if kind == FULL else []
    model = getattr(toy.nb, kind)(HEADS[1:], *pitches, replace(toy.config, **changes))
    return model.eval()
