"""What the studies share: a full training, unselected pieces, and tables that grow row by row."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

STUDY = Path(__file__).resolve().parents[1] / "outputs" / "study"


@dataclass
class Trained:
    """A model that was trained in full, with what it was trained and is scored on."""

    split: dict[str, list]
    encoded: dict[str, list]
    normaliser: object
    model: torch.nn.Module
    composer: object
    log: pd.DataFrame


def load(nb: ModuleType, folder: Path, config: object) -> list:
    """Return the pieces of a corpus with their works."""
    pieces, _ = nb.load_corpus(folder.name, folder.parent, config)
    return nb.link_pieces(pieces, config)


def train(nb: ModuleType, pieces: list, config: object, random_state: int) -> Trained:
    """Return the model that a run of the notebook trains with this random state."""
    split = nb.split_pieces(pieces, config, random_state)
    normaliser = nb.Normaliser(split["training"])
    encoded = {s: [nb.encode(p.notes, normaliser, config) for p in split[s]] for s in split}
    torch.manual_seed(random_state)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    torch.manual_seed(random_state)
    windows = nb.random_windows(encoded["training"], config)
    log = nb.fit(model, windows, nb.both_sides(encoded, config), config)
    pitches = np.concatenate([piece.notes.pitch for piece in split["training"]])
    composer = nb.Composer(model, normaliser, int(pitches.min()), int(pitches.max()), config)
    return Trained(split, encoded, normaliser, model, composer, log)


def unselected(nb: ModuleType, trained: Trained, count: int, random_state: int) -> list:
    """Return `count` pairs of a test seed and its continuation as read back, none selected."""
    made = nb.unselected(trained.composer, trained.split["test"], count, random_state)
    return [(seed, notes) for seed, notes, _ in made]


def real_figures(nb: ModuleType, pieces: list, config: object) -> pd.DataFrame:
    """Return the figures of excerpts of all pieces, two of each."""
    return nb.with_sources((p, p.notes) for p in nb.excerpts(pieces, config.piece_notes, most=2))


def add_row(path: Path, row: dict[str, object], key: list[str]) -> None:
    """Add a row to a table in a file, in place of the row with the same `key`, sorted by it."""
    table = pd.DataFrame([row])
    if path.exists():
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(key, keep="last")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    table.sort_values(key).to_csv(temporary, index=False, float_format="%.4f")
    temporary.replace(path)


def known(path: Path, key: list[str]) -> set[tuple]:
    """Return the keys of the rows that a table in a file has already."""
    return (
        set(pd.read_csv(path)[key].itertuples(index=False, name=None)) if path.exists() else set()
    )
