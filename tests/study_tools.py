"""What the studies share: a full training, unselected pieces, and their likeness to real music."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

STUDY = Path(__file__).resolve().parents[1] / "outputs" / "study"
DRAWS = 50  # random halves of a comparison, over which its score is averaged
EXCERPTS = 2  # of a real piece
ORDERS = (1, 2, 3, 4)  # of the n-gram tables, of which the best counts
FORGOTTEN = -1000  # far from every pitch and interval


@dataclass
class Trained:
    """A model that was trained in full, with what it was trained and is scored on."""

    config: object
    model: torch.nn.Module
    split: dict[str, list]
    normaliser: object
    test: torch.utils.data.DataLoader
    limits: object
    epochs: int
    seconds: float


def load(nb: ModuleType, folder: Path, config: object) -> list:
    """Return the pieces of a corpus with their works."""
    pieces, _ = nb.load_corpus(nb.find_corpus(folder.name, folder.parent), config)
    for piece, work in zip(pieces, nb.find_works(pieces, config), strict=True):
        piece.work = work
    return pieces


def train(nb: ModuleType, pieces: list, config: object, random_state: int) -> Trained:
    """Return the model that a run of the notebook trains with this random state."""
    split = nb.split_pieces(pieces, config, np.random.default_rng(random_state))
    normaliser = nb.Normaliser(split["training"], config)
    loaders = [nb.whole_pieces(split[side], normaliser, config) for side in ("validation", "test")]
    windows = nb.random_windows(split["training"], normaliser, config)
    torch.manual_seed(random_state)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    torch.manual_seed(random_state)
    began = time.perf_counter()
    log = nb.fit(model, windows, loaders[0], config)
    seconds = time.perf_counter() - began
    limits = nb.find_limits(split["training"])
    return Trained(config, model, split, normaliser, loaders[1], limits, len(log), seconds)


def pitch_in_window(nb: ModuleType, trained: Trained) -> float:
    """Return nats per pitch of the test pieces with a memory of only the last window of notes."""
    window = trained.config.window

    class WindowMemory(nb.PieceMemory):
        """A memory that forgets what is further back than a window."""

        def append(self, pitch: int) -> None:
            """Hear a note and forget one."""
            super().append(pitch)
            for matches in (self.pitches, self.intervals):
                # nothing equals this value, and no pitch is moved to one by it
                matches.values[: max(matches.size - window, 0)] = FORGOTTEN

    with patch.object(nb, "PieceMemory", WindowMemory):
        pieces = nb.whole_pieces(trained.split["test"], trained.normaliser, trained.config)
    return nb.evaluate(trained.model, pieces)["pitch"]


def best_table(nb: ModuleType, split: dict[str, list]) -> float:
    """Return nats per pitch of the best n-gram table without memory of the piece."""
    sides = [[piece.notes.pitch.to_numpy() for piece in split[s]] for s in ("training", "test")]
    return min(nb.ngram_nats(*sides, order, range(-6, 6)) for order in ORDERS)


def seeds(trained: Trained, count: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield `count` seeds with the names of their pieces, spread over the test pieces."""
    length = trained.config.seed_notes
    pieces = [piece for piece in trained.split["test"] if len(piece) >= length]
    turns = -(-count // len(pieces))
    for i in range(count):
        piece, turn = pieces[i % len(pieces)], i // len(pieces)
        start = turn * (len(piece) - length) // turns
        yield piece.name, piece.notes.iloc[start : start + length].reset_index(drop=True)


def compose(
    nb: ModuleType, trained: Trained, count: int, random_state: int, attempts: int = 1
) -> list:
    """Return `count` pairs of the name of a seed's piece and its continuation.

    None is selected, but each may be the one of several attempts that is most like its seed.
    """
    parts, none = (trained.limits, trained.normaliser, trained.config), [np.zeros(0, dtype=int)]
    known = nb.excerpts(trained.split["training"], trained.config.piece_notes)
    real = pd.DataFrame([nb.describe(notes, none) for notes in known])
    made = []
    for i, (name, seed) in enumerate(seeds(trained, count)):
        states = [random_state + i + count * attempt for attempt in range(attempts)]
        tried = [nb.compose(trained.model, seed, *parts, state) for state in states]
        aim = nb.describe(seed, none)
        # a single attempt is kept whatever it is like
        unlike = [nb.unlikeness(nb.describe(n, none), aim, real) for n in tried if attempts > 1]
        made.append((name, tried[int(np.argmin(unlike or [0]))]))
    return made


def figures(nb: ModuleType, notes: pd.DataFrame) -> dict[str, float]:
    """Return what is compared of 200 notes: the notebook's own figures and a few more."""
    described = nb.describe(notes, [np.zeros(0, dtype=int)])
    described.pop("run shared with training")
    length, step = np.log2(notes.duration + 0.02), notes.step[notes.step >= nb.CHORD]
    return described | {
        "mean pitch": notes.pitch.mean(),
        "range": np.ptp(notes.pitch),
        "pitch classes": len(set(notes.pitch % 12)),
        "mean step": step.mean() if len(step) else 0.0,
        "mean log duration": length.mean(),
        "spread of log duration": length.std(),
        "velocity spread": notes.velocity.std(),
    }


def real_excerpts(nb: ModuleType, pieces: list, length: int) -> list[tuple[str, pd.DataFrame]]:
    """Return at most `EXCERPTS` excerpts of each piece, from its middle outwards."""
    found = []
    for piece in pieces:
        parts = nb.excerpts([piece], length)
        first = max(0, (len(parts) - EXCERPTS) // 2)
        found += [(piece.name, part) for part in parts[first : first + EXCERPTS]]
    return found


def told_apart(nb: ModuleType, real: list, made: list) -> float:
    """Return how often real and made are told apart: .5 like each other, 1 always.

    The leave-one-out accuracy of the nearest neighbour (Lopez-Paz & Oquab 2017) on the figures, in
    standard deviations of the real ones. What comes from one piece is never compared with each
    other, and as many real as made ones are offered as neighbours. NaN where there are too few.
    """
    sources = np.array([name.split(" from note ")[0] for name, _ in real + made])
    if len(set(sources[: len(real)])) < 4 or len(set(sources[len(real) :])) < 2:
        return float("nan")
    table = pd.DataFrame([figures(nb, notes) for _, notes in real + made])
    values = (table / (table[: len(real)].std() + 1e-3)).to_numpy()
    distance = np.square(values[:, None] - values).sum(-1)
    distance[sources[:, None] == sources] = np.inf
    is_made = np.arange(len(values)) >= len(real)
    size, rng, scores = min(len(real), len(made)), np.random.default_rng(0), []
    for _ in range(DRAWS):
        sides = [rng.permutation(np.flatnonzero(side))[:size] for side in (~is_made, is_made)]
        chosen = np.concatenate(sides)
        near = distance[np.ix_(chosen, chosen)]
        for row in near:
            offered = [np.flatnonzero(np.isfinite(row) & (is_made[chosen] == s)) for s in (0, 1)]
            for side in offered:
                row[rng.permutation(side)[min(map(len, offered)) :]] = np.inf
        nearest = chosen[near.argmin(1)]
        scores.append((is_made[nearest] == is_made[chosen]).mean())
    return float(np.mean(scores))


def stuck(nb: ModuleType, made: list) -> int:
    """Return how many pieces hang on one note or are silent for half of the time."""
    count = 0
    for _, notes in made:
        end = notes.onset.iloc[-1] - notes.onset.iloc[0]
        gaps = (notes.onset.shift(-1) - (notes.onset + notes.duration).cummax()).clip(lower=0)
        often = notes.pitch.value_counts(normalize=True).iloc[0]
        count += bool(often > 0.5 or end <= 0 or gaps.sum() > end / 2)
    return count


def longest_runs(nb: ModuleType, trained: Trained, made: list) -> list[int]:
    """Return for each piece the longest run of pitches that also stands in a training piece."""
    training = [piece.notes.pitch.to_numpy() for piece in trained.split["training"]]
    return [nb.longest_shared_run(notes.pitch.to_numpy(), training) for _, notes in made]


def add_row(nb: ModuleType, path: Path, row: dict[str, object], key: list[str]) -> None:
    """Add a row to a table in a file, in place of the row with the same `key`, sorted by it."""
    table = pd.DataFrame([row])
    if path.exists():
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(key, keep="last")
    path.parent.mkdir(parents=True, exist_ok=True)
    with nb.replacing(path) as temporary:
        table.sort_values(key).to_csv(temporary, index=False, float_format="%.4f")


def known(path: Path, key: list[str]) -> set[tuple]:
    """Return the keys of the rows that a table in a file has already."""
    return (
        set(pd.read_csv(path)[key].itertuples(index=False, name=None)) if path.exists() else set()
    )
