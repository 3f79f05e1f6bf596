"""Toy music, encoded, and untrained models for it."""

from dataclasses import replace
from types import ModuleType, SimpleNamespace

import torch
from notebook_tools import chorale, small_config
from torch import nn

HEADS = ["pitch", "step", "duration", "velocity"]
PLAIN, FULL = MODELS = ["PlainLSTM", "MultiHeadLSTM"]
NO_PITCH = 128
TICK = 1 / 960  # beats, in which nothing changes


def toy_music(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces of several lengths, encoded, and as one batch of padded windows."""
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(4)]
    config = small_config(nb, max_passes=2.5, epoch_windows=999, attribute_weight=1.0)
    normaliser = nb.Normaliser(pieces)
    encoded = nb.encode(pieces, normaliser, config)
    (batch,) = nb.make_eval_loader(encoded, config)
    return SimpleNamespace(**locals())


def new_model(toy: SimpleNamespace, kind: str, **changes: float) -> nn.Module:
    """Return an untrained model of a kind, the same each time, ready to predict."""
    torch.manual_seed(0)
    pitches = [range(40, 80)] if kind == FULL else []
    model = getattr(toy.nb, kind)(HEADS[1:], *pitches, replace(toy.config, **changes))
    return model.eval()
