"""What the studies share: a full training, unselected pieces, and tables that grow row by row."""

import argparse
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from notebook_tools import CORPUS, ROOT, small_config

STUDY = ROOT / "outputs" / "study"
PIECES = 96  # composed in a study, none selected
DRAWS = 5  # of as many pieces, to see how far a statistic of them moves
RANDOM_STATE = 60  # of the final scores, as in the notebook


@dataclass
class Trained:
    """A model that was trained in full, with what it was trained and is scored on."""

    split: dict[str, list]
    encoded: dict[str, list]
    normaliser: object
    model: torch.nn.Module
    composer: object
    log: pd.DataFrame


def corpus_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser whose `path` is the folder of a corpus, by default the chorales."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    chorales = ROOT / "data" / CORPUS
    parser.add_argument("path", type=Path, nargs="?", default=chorales, help="a folder of MIDI")
    return parser


def load(nb: ModuleType, folder: Path, config: object) -> list:
    """Return the pieces of a corpus with their works."""
    folder = folder.resolve()
    return nb.link_pieces(nb.load_corpus(folder.name, folder.parent, config)[0], config)


def untrained(nb: ModuleType, pieces: list, config: object, random_state: int) -> Trained:
    """Return a split corpus, encoded, with the model of the notebook before its training.

    Its composer strikes no key that sounds, and the log is empty.
    """
    split = nb.split_pieces(pieces, config, random_state)
    normaliser = nb.Normaliser(split["training"])
    encoded = {name: nb.encode(part, normaliser, config) for name, part in split.items()}
    around = nb.pitch_range(split["training"], config.transpose)
    torch.manual_seed(random_state)
    model = nb.MultiHeadLSTM(normaliser.names, around, config)
    pitches = nb.pitch_range(split["training"])
    composer = nb.Composer(model, normaliser, pitches, nb.NEAR, 0, 999, config)
    return Trained(split, encoded, normaliser, model, composer, pd.DataFrame())


def train(nb: ModuleType, pieces: list, config: object, random_state: int) -> Trained:
    """Return the model that a run of the notebook trains with this random state."""
    ready = untrained(nb, pieces, config, random_state)
    torch.manual_seed(random_state)
    log = nb.fit(ready.model, ready.encoded, config)
    limits = nb.usual_limits(ready.split["training"], ready.normaliser, config)
    names = "most_sounding", "most_again", "most_copied"
    limits = dict(zip(names, limits, strict=True))
    return replace(ready, log=log, composer=replace(ready.composer, **limits))


def version(nb: ModuleType) -> str:
    """Return a digest of what the code computes: a small training, and what it composes.

    Code that computes the same keeps it. Losses are rounded, so that most machines agree.
    """
    config = small_config(nb, seed_notes=32, epochs=1, epoch_windows=64)
    paths = sorted((ROOT / "data" / CORPUS).glob("*.mid"))[:24]
    pieces = [nb.read_piece(path.read_bytes(), path.name) for path in paths]
    trained = train(nb, nb.link_pieces(pieces, config), config, random_state=0)
    loader = nb.make_eval_loader(trained.encoded["validation"], config)
    losses = [round(loss, 2) for loss in nb.evaluate(trained.model, loader).values()]
    seed = nb.choose_seeds(trained.split["validation"], config, 0)[:1]
    notes = nb.compose(trained.composer, seed, 0)[0].notes[["pitch", "step", "duration"]]
    return f"{zlib.crc32(repr((losses, notes.to_numpy().tolist())).encode()):08x}"


def mean_losses(nb: ModuleType, trained: Trained) -> dict[str, dict[str, float]]:
    """Return by head and baseline, the model too, the mean loss of a note of the test pieces."""
    losses = nb.held_out_losses({"model": trained.model}, trained.encoded, trained.normaliser)
    return {
        head: {name: float(np.concatenate(values).mean()) for name, values in by_name.items()}
        for head, by_name in losses.items()
    }


def real_excerpts(nb: ModuleType, pieces: list, config: object) -> list:
    """Return the first two excerpts of each piece, so that long ones do not count for more."""
    return [part for piece in pieces for part in nb.excerpts([piece], config.piece_notes)[:2]]


def one_nn_accuracy(nb: ModuleType, real: list, made: list) -> float:
    """Return the 1-NN two-sample accuracy of real and made pieces: .5 like each other, 1 never.

    The leave-one-out accuracy of Lopez-Paz & Oquab (2017) on the statistics, in standard deviations
    of the real ones, over random halves of one size. What comes from one piece is never compared
    with each other, and as many real as made ones are offered as neighbours.
    """
    both = pd.DataFrame([nb.describe(piece.notes) for piece in [*real, *made]])
    source = np.array([piece.name for piece in [*real, *made]])
    values = (both / (both[: len(real)].std() + 1e-3)).to_numpy()
    distance = np.square(values[:, None] - values).sum(-1)
    distance[source[:, None] == source] = np.inf
    is_made = np.arange(len(values)) >= len(real)
    size, rng, scores = min(len(real), len(made)), np.random.default_rng(0), []
    for _ in range(50):
        halves = [rng.permutation(np.flatnonzero(half))[:size] for half in (~is_made, is_made)]
        chosen = np.concatenate(halves)
        near = distance[np.ix_(chosen, chosen)]
        for row in near:
            offered = [np.flatnonzero(np.isfinite(row) & (is_made[chosen] == s)) for s in (0, 1)]
            for half in offered:
                row[rng.permutation(half)[min(map(len, offered)) :]] = np.inf
        nearest = chosen[near.argmin(1)]
        scores.append((is_made[nearest] == is_made[chosen]).mean())
    return float(np.mean(scores))


def read_back(nb: ModuleType, piece: object) -> object:
    """Return the piece with its notes as they stand in the file that is written of it.

    A file begins with its first note; the step to it, from the seed, is kept beside.
    """
    found = nb.read_piece(nb.midi_bytes(piece), piece.name).notes[list(nb.COLUMNS)]
    found.loc[0, "step"] = piece.notes.step.iloc[0]
    return replace(piece, notes=found)


def unselected(
    nb: ModuleType, composer: object, pieces: list, random_state: int, count: int = PIECES
) -> list[tuple]:
    """Return `count` triples: a seed, its continuation as read back, and the ground truth.

    The seeds are spread over the pieces. The true notes are as many, or those to the piece's end.
    """
    config, seeds, real, made = composer.config, [], [], []
    pieces = [piece for piece in pieces if len(piece) >= config.seed_notes]
    for i in range(count):
        piece, turn = pieces[i % len(pieces)], i // len(pieces)
        start = turn * (len(piece) - config.seed_notes) // -(-count // len(pieces))
        notes = piece.notes[start:].reset_index(drop=True)
        seeds.append(replace(piece, notes=notes.head(config.seed_notes)))
        notes = notes[config.seed_notes :].head(config.piece_notes).reset_index(drop=True)
        real.append(replace(piece, notes=notes))
    for first in range(0, count, 32):  # as many pieces at once
        drawn = nb.compose(composer, seeds[first : first + 32], random_state + first)
        made += [read_back(nb, piece) for piece in drawn]
    return list(zip(seeds, made, real, strict=True))


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
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=key)
    return set(table[key].itertuples(index=False, name=None))
