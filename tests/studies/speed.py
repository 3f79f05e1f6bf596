"""Measure how fast the notebook's definitions train and compose: outputs/study/speed.csv.

    python tests/benchmark_speed.py [--path PATH] [--budget SECONDS]

Figures that are compared are taken in turn in one run, after a warm-up, several times; the table
has their median with the least and the most. What is not measured again stays in the table. With
PATH, the folder of the course's dataset, the processor time per note is also measured on ever
larger corpora. With a budget, the design that was published
for this assignment (github.com/julianricom1/AI-generated-music: windows of 200 notes at every note,
four LSTM layers of 64 units, the last position only in the loss) is trained for so many seconds on
the same split, and the seconds are told after which ours reaches its best held-out pitch score.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import ROOT, definitions
from study_tools import STUDY, Trained, load, untrained
from torch import nn
from torch.nn import functional as F

TABLE = STUDY / "speed.csv"
REPEATS = 5
SIZES = (10, 50, 100, 250, 700)  # thousand notes
WINDOW = 200  # notes, of the published design
WEIGHTS = {"step": 2.0, "duration": 2.0, "velocity": 1.0}  # and .3 for the pitch


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes."""
    began = clock()
    work()
    return clock() - began


def row(figure: str, values: list[float]) -> dict[str, object]:
    """Return a line of the table: the median of a figure, the least and the most."""
    return {"figure": figure, "value": np.median(values), "low": min(values), "high": max(values)}


def epoch_of(nb: ModuleType, ready: Trained) -> tuple[Callable[[], None], object]:
    """Return a function that trains for an epoch, and its loader."""
    config, model = ready.composer.config, ready.model
    loader = nb.make_train_loader(ready.encoded["training"], config)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser)
    return lambda: nb.train_one_epoch(model, loader, optimiser, scheduler, config), loader


def training_rows(nb: ModuleType, ready: Trained) -> list[dict]:
    """Return the share of an epoch that makes windows, and its share of the matrix rate."""
    epoch, loader = epoch_of(nb, ready)
    weights = sum(p.numel() for p in ready.model.parameters() if p.dim() == 2)
    weights -= sum(m.weight.numel() for m in ready.model.modules() if isinstance(m, nn.Embedding))
    notes = len(loader.sampler) * ready.composer.config.window
    a = torch.randn(1024, 1024)
    epoch()
    windows, rates = [], []
    for _ in range(REPEATS):
        whole = seconds(epoch)
        windows.append(seconds(lambda: list(loader)) / whole)
        product = seconds(lambda: [a @ a for _ in range(50)]) / 50
        # a weight costs two operations forward and four backward, for every note
        rates.append(6 * weights * notes / whole / (2 * 1024**3 / product))
    return [row("making windows, share of an epoch", windows), row("share of matrix rate", rates)]


def composing_rows(nb: ModuleType, ready: Trained) -> list[dict]:
    """Return notes a second, twelve pieces at once and one, against recomputing the window."""
    config, composer = ready.composer.config, ready.composer
    seeds = nb.excerpts(ready.split["test"], config.seed_notes)
    twelve = [seeds[i % len(seeds)] for i in range(12)]

    def recompute() -> None:
        nb.predict(ready.model, nb.encode(seeds[:1], ready.normaliser, config)[0])

    nb.compose(composer, twelve[:1], 0)
    many, one, again = [], [], []
    for _ in range(REPEATS):
        many.append(12 * config.piece_notes / seconds(lambda: nb.compose(composer, twelve, 0)))
        one.append(config.piece_notes / seconds(lambda: nb.compose(composer, twelve[:1], 0)))
        again.append(1 / seconds(recompute))
    return [
        row("composing twelve at once, notes a second", many),
        row("composing one, notes a second", one),
        row("recomputing the window, notes a second", again),
        row("twelve at once against recomputing", list(np.divide(many, again))),
    ]


def growth_rows(nb: ModuleType, path: Path) -> list[dict]:
    """Return the time per note before training and in it, and the memory, on larger corpora."""
    config, everything, clock = nb.Config(), [], time.process_time
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    for folder in folders:
        for piece in nb.load_corpus(folder.name, path, config)[0]:
            everything.append(replace(piece, name=f"{folder.name} {piece.name}"))
    order = np.random.default_rng(0).permutation(len(everything))
    rows = []
    for size in SIZES:
        pieces, count = [], 0
        for i in order:
            if count < 1000 * size:
                pieces.append(everything[i])
                count += len(everything[i])
        began = clock()
        ready = untrained(nb, nb.link_pieces(pieces, config), config, 0)
        before = (clock() - began) / count
        epoch, loader = epoch_of(nb, ready)
        training = seconds(epoch, clock) / (len(loader.sampler) * config.window)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        rows.append(row(f"{count:,} notes, microseconds a note to link and encode", [before * 1e6]))
        rows.append(row(f"{count:,} notes, microseconds a note to train", [training * 1e6]))
        rows.append(row(f"{count:,} notes, peak memory in GB", [peak]))
    return rows


class Published(nn.Module):
    """The published design: an embedding of 40, four LSTM layers of 64, linear heads."""

    def __init__(self, names: list[str]) -> None:
        """Make the layers."""
        super().__init__()
        self.names, self.embedding = names, nn.Embedding(129, 40)
        self.lstm = nn.LSTM(40 + len(names), 64, 4, batch_first=True)
        self.heads = nn.Linear(64, 128 + len(names))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (batch, time, 128) and numbers (batch, time, k)."""
        features = [self.embedding(batch["context_pitch"]), batch["context_attributes"]]
        output = self.heads(self.lstm(torch.cat(features, dim=-1))[0])
        return output[..., :128], output[..., 128:]


def published_batches(encoded: list[dict]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of 64 windows that begin at every note, in random order, for ever."""
    places = [(i, s) for i, e in enumerate(encoded) for s in range(len(e["pitch"]) - WINDOW + 1)]
    names = ("pitch", "attributes", "context_pitch", "context_attributes")
    while True:
        order = torch.randperm(len(places)).tolist()
        for first in range(0, len(order), 64):
            chosen = [places[i] for i in order[first : first + 64]]
            yield {
                n: torch.stack([encoded[i][n][s : s + WINDOW] for i, s in chosen]) for n in names
            }


def curve_of_published(nb: ModuleType, ready: Trained, budget: float) -> list[tuple[float, float]]:
    """Return seconds of training and nats per pitch on validation, every twentieth of a budget."""
    names, config = ready.normaliser.names, ready.composer.config
    torch.manual_seed(0)
    model, curve, spent = Published(names), [], 0.0
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)
    held_out = nb.make_eval_loader(ready.encoded["validation"], config)
    for batch in published_batches(ready.encoded["training"]):
        began = time.perf_counter()
        model.train()
        logits, attributes = model(batch)
        loss = 0.3 * F.cross_entropy(logits[:, -1], batch["pitch"][:, -1])
        for i, name in enumerate(names):
            loss += WEIGHTS[name] * F.l1_loss(attributes[:, -1, i], batch["attributes"][:, -1, i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        spent += time.perf_counter() - began
        if spent > budget * (len(curve) + 1) / 20:
            curve.append((spent, nb.evaluate(model, held_out)["pitch"]))
            print(f"published design: {spent:.0f} s, {curve[-1][1]:.3f} nats", flush=True)
        if len(curve) == 20:
            return curve
    return curve


def quality_rows(nb: ModuleType, ready: Trained, budget: float) -> list[dict]:
    """Return the seconds in which the published design and ours reach the same pitch score."""
    curve = curve_of_published(nb, ready, budget)
    spent, best = min(curve, key=lambda point: point[1])
    rows = [row("published design, seconds", [spent]), row("published design, nats", [best])]
    rows.append(row("the same at half of the budget, nats", [curve[9][1]]))
    held_out = nb.make_eval_loader(ready.encoded["validation"], ready.composer.config)
    epoch, _ = epoch_of(nb, ready)
    ours, nats = 0.0, np.inf
    while nats > best:
        ours += seconds(epoch)
        nats = nb.evaluate(ready.model, held_out)["pitch"]
    rows += [row("this model, seconds", [ours]), row("this model, nats", [nats])]
    return [*rows, row("times faster to that score", [spent / ours])]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, help="a folder with one folder of files a composer")
    parser.add_argument("--budget", type=float, help="seconds for the published design")
    arguments = parser.parse_args()
    nb = definitions()
    config = nb.Config()
    pieces = load(nb, ROOT / "data" / "bach_chorales", config)
    ready = untrained(nb, pieces, config, 0)
    rows = composing_rows(nb, ready) + training_rows(nb, ready)
    if arguments.path:
        rows += growth_rows(nb, arguments.path.resolve())
    if arguments.budget:
        rows += quality_rows(nb, untrained(nb, pieces, config, 0), arguments.budget)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    if TABLE.exists():
        old = pd.read_csv(TABLE)
        table = pd.concat([table, old[~old.figure.isin(table.figure)]])
    table.to_csv(TABLE, index=False, float_format="%.4g")
    print(pd.read_csv(TABLE))


if __name__ == "__main__":
    main()
