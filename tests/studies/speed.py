"""Measure how fast the notebook's definitions train and compose: outputs/study/speed.csv.

    python tests/studies/speed.py [--path PATH] [--budget SECONDS]

What is compared is taken in turn in one run, after a warm-up, several times; the table has the
median with the least and the most. With PATH, the folder of the course's dataset, the processor
time per note is also measured on ever larger corpora. Three designs are trained for at most the
budget, 45 seconds, on the same split, and outputs/study/learning.csv has their validation nats per
pitch against the seconds of training:

- the one of TensorFlow's tutorial on music generation: one LSTM of 128 units on windows of 25
  notes, pitch as a plain number among three inputs, squared errors for step and duration;
- the one published for this assignment (github.com/julianricom1/AI-generated-music): windows of 200
  notes at every note, four LSTM layers of 64 units, the last position only in the loss;
- the notebook's, as it trains.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import CORPUS, ROOT, definitions
from study_tools import STUDY, Trained, load, untrained, version
from torch import nn
from torch.nn import functional as F

TABLE, CURVES = STUDY / "speed.csv", STUDY / "learning.csv"
REPEATS = 5
SIZES = (10, 50, 100, 250, 700)  # thousand notes
BATCH = 64  # windows, of both other designs
POINTS = 20  # of a curve


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes."""
    began = clock()
    work()
    return clock() - began


def row(name: str, values: list[float]) -> dict[str, object]:
    """Return a line of the table: the median of the values, the least and the most."""
    return {"figure": name, "value": np.median(values), "low": min(values), "high": max(values)}


def epoch_of(nb: ModuleType, ready: Trained) -> tuple[Callable[[], None], object]:
    """Return a function that trains for an epoch, and its loader."""
    config, model = ready.composer.config, ready.model
    loader = nb.make_train_loader(ready.encoded["training"], config)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser)
    return lambda: nb.train_one_epoch(model, loader, optimiser, schedule, config), loader


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
    for folder in sorted(folder for folder in path.iterdir() if folder.is_dir()):
        for piece in nb.load_corpus(folder.name, path, config)[0]:
            everything.append(replace(piece, name=f"{folder.name} {piece.name}"))
    order = np.random.default_rng(0).permutation(len(everything))
    total, rows = np.cumsum([len(everything[i]) for i in order]), []
    for size in SIZES:
        pieces = [everything[i] for i in order[: np.searchsorted(total, 1000 * size) + 1]]
        count = sum(map(len, pieces))
        began = clock()
        ready = untrained(nb, nb.link_pieces(pieces, config), config, 0)
        before = (clock() - began) / count
        epoch, loader = epoch_of(nb, ready)
        training = seconds(epoch, clock) / (len(loader.sampler) * config.window)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        measured = {"microseconds a note to link and encode": 1e6 * before}
        measured |= {"microseconds a note to train": 1e6 * training, "peak memory in GB": peak}
        rows += [row(f"{count:,} notes, {name}", [value]) for name, value in measured.items()]
    return rows


class Tutorial(nn.Module):
    """The tutorial's design: an LSTM of 128 units on windows of 25 notes, three linear heads."""

    window, rate, error = 25, 5e-3, staticmethod(F.mse_loss)
    weights = (0.05, 1.0, 1.0)  # of the losses: pitch, step, duration

    def __init__(self, names: list[str]) -> None:
        """Make the layers; of the attributes the design has step and duration."""
        super().__init__()
        self.names = names[:2]
        self.lstm, self.heads = nn.LSTM(3, 128, batch_first=True), nn.Linear(128, 128 + 2)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and attributes, of a whole piece, or in training after the window only."""
        pitch, attributes = batch["context_pitch"][..., None] / 128, batch["context_attributes"]
        notes = torch.cat([pitch, attributes[..., :2]], dim=-1)
        if not self.training:  # a window for each note
            filled = F.pad(notes, (0, 0, self.window - 1, 0))
            notes = filled.unfold(1, self.window, 1).mT.flatten(0, 1)
        output = self.heads(self.lstm(notes)[0][:, -1]).view(len(pitch), -1, 130)
        return output[..., :128], output[..., 128:]


class Published(nn.Module):
    """The published design: an embedding of 40, four LSTM layers of 64, linear heads."""

    window, rate, error = 200, 5e-4, staticmethod(F.l1_loss)
    weights = (0.3, 2.0, 2.0, 1.0)  # of the losses: pitch, step, duration, velocity

    def __init__(self, names: list[str]) -> None:
        """Make the layers."""
        super().__init__()
        self.names, self.embedding = names, nn.Embedding(129, 40)
        self.lstm = nn.LSTM(40 + len(names), 64, 4, batch_first=True)
        self.heads = nn.Linear(64, 128 + len(names))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (batch, time, 128) and attributes (batch, time, k)."""
        features = [self.embedding(batch["context_pitch"]), batch["context_attributes"]]
        output = self.heads(self.lstm(torch.cat(features, dim=-1))[0])
        return output[..., :128], output[..., 128:]


def in_beats(ready: Trained) -> Trained:
    """Return the data with attributes that are not scaled and 24 zeros before training pieces."""
    names, before = ("attributes", "context_attributes"), (Tutorial.window - 1, 0)
    encoded = {
        split: [
            piece | {k: torch.from_numpy(ready.normaliser.inverse(piece[k])).float() for k in names}
            for piece in part
        ]
        for split, part in ready.encoded.items()
    }
    encoded["training"] = [
        {k: F.pad(v, (0, 0) * (v.dim() - 1) + before) for k, v in piece.items()}
        for piece in encoded["training"]
    ]
    return replace(ready, encoded=encoded)


def batches(encoded: list[dict], length: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of windows that begin at every note, in random order, for ever."""
    names = "pitch", "attributes", "context_pitch", "context_attributes"
    places = [(i, s) for i, e in enumerate(encoded) for s in range(len(e["pitch"]) - length + 1)]
    while True:
        for chosen in torch.randperm(len(places)).split(BATCH):
            at = [places[i] for i in chosen.tolist()]
            yield {n: torch.stack([encoded[i][n][s : s + length] for i, s in at]) for n in names}


def curve(
    nb: ModuleType, ready: Trained, name: str, design: type[nn.Module], budget: float
) -> pd.DataFrame:
    """Return seconds of training and held-out nats per pitch, at twenty points of the budget."""
    torch.manual_seed(0)
    model, rows, spent = design(ready.normaliser.names), [], 0.0
    optimiser = torch.optim.Adam(model.parameters(), lr=model.rate)
    held_out = nb.make_eval_loader(ready.encoded["validation"], ready.composer.config)
    for batch in batches(ready.encoded["training"], model.window):
        began = time.perf_counter()
        (logits, attributes), true = model.train()(batch), batch["attributes"][:, -1]
        loss = model.weights[0] * F.cross_entropy(logits[:, -1], batch["pitch"][:, -1])
        for i, weight in enumerate(model.weights[1 : len(model.names) + 1]):
            loss += weight * model.error(attributes[:, -1, i], true[:, i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        spent += time.perf_counter() - began
        if spent > budget * (len(rows) + 1) / POINTS:
            rows.append((name, spent, nb.evaluate(model, held_out)["pitch"]))
        if len(rows) == POINTS:
            return pd.DataFrame(rows, columns=["design", "seconds", "pitch"])


def curve_of_notebook(nb: ModuleType, ready: Trained, budget: float) -> pd.DataFrame:
    """Return the curve of the notebook's training, by epoch, interrupted after the budget."""
    spent, train = [], nb.train_one_epoch

    def timed(*given: object) -> None:
        if sum(spent) > budget:
            raise KeyboardInterrupt
        spent.append(seconds(lambda: train(*given)))

    torch.manual_seed(0)
    with patch.object(nb, "train_one_epoch", timed):
        log = nb.fit(ready.model, ready.encoded, ready.composer.config)
    columns = {"seconds": np.cumsum(spent)[: len(log)], "pitch": log.validation_pitch}
    return pd.DataFrame({"design": "this model"} | columns)


def quality_rows(curves: pd.DataFrame) -> list[dict]:
    """Return the seconds in which the published design and ours reach the same pitch score."""
    published, ours = (curves[curves.design == name] for name in ("published", "this model"))
    best = published.loc[published.pitch.idxmin()]
    half = published.pitch.iloc[POINTS // 2 - 1]
    rows = {"published design, seconds": best.seconds, "published design, nats": best.pitch}
    rows |= {"the same at half of the budget, nats": half}
    for reached in ours[ours.pitch <= best.pitch].head(1).itertuples():
        rows |= {"this model, seconds": reached.seconds, "this model, nats": reached.pitch}
        rows |= {"times faster to that score": best.seconds / reached.seconds}
    return [row(name, [value]) for name, value in rows.items()]


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, help="a folder with one folder of files a composer")
    parser.add_argument("--budget", type=float, default=45, help="seconds for each design")
    arguments = parser.parse_args()
    nb = definitions()
    pieces = load(nb, ROOT / "data" / CORPUS, nb.Config())
    ready = untrained(nb, pieces, nb.Config(), 0)
    STUDY.mkdir(parents=True, exist_ok=True)
    made = [curve_of_notebook(nb, ready, arguments.budget)]  # first: the rows train the model too
    made.append(curve(nb, ready, "published", Published, arguments.budget))
    made.append(curve(nb, in_beats(ready), "tutorial", Tutorial, arguments.budget))
    stamp, curves = version(nb), pd.concat(made, ignore_index=True)
    curves.assign(version=stamp).to_csv(CURVES, index=False, float_format="%.4g")
    rows = quality_rows(curves)
    rows += composing_rows(nb, ready) + training_rows(nb, ready)
    if arguments.path:
        rows += growth_rows(nb, arguments.path.resolve())
    table = pd.DataFrame(rows).assign(version=stamp)
    table.to_csv(TABLE, index=False, float_format="%.4g")
    print(table)


if __name__ == "__main__":
    main()
