"""Ask what pieces are like as they go on, and what the model knows of what it knows.

    python tests/study_music.py [PATH]

PATH is a folder of MIDI files, by default data/bach_chorales. The tables are drift.csv and
calibration.csv in outputs/study. One full training; 96 pieces of which
none is selected, and the real continuations of their seeds.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import ROOT, definitions
from study_tools import STUDY, Trained, load, train, unselected

PIECES = 96
RANDOM_STATE = 0
FIGURES = ("mean pitch", "chord rate", "mean step", "silence")


def quarters(nb: ModuleType, composer: object, music: list[tuple]) -> pd.DataFrame:
    """Return figures of pieces by quarter, each piece heard after its seed."""
    rows = []
    for seed, piece in music:
        notes = piece.notes
        gap = seed.notes.onset.iloc[-1] + notes.step.iloc[0] - notes.onset.iloc[0]
        shifted = notes.assign(onset=notes.onset + gap)
        both = pd.concat([seed.notes, shifted], ignore_index=True)
        both = replace(piece, notes=both)
        (encoded,) = nb.encode([both], composer.normaliser, composer.config)
        logits = nb.predict(composer.model, encoded)[0]
        nats = torch.nn.functional.cross_entropy(logits, encoded["pitch"], reduction="none").numpy()
        for part, index in enumerate(np.array_split(np.arange(len(notes)), 4), start=1):
            figures = nb.describe(notes.iloc[index])
            row = {"quarter": part} | {name: figures[name] for name in FIGURES}
            rows.append(row | {"nats": float(nats[len(seed.notes) + index].mean())})
    by_quarter = pd.DataFrame(rows).groupby("quarter")
    return by_quarter.mean().assign(**{"spread of the mean pitch": by_quarter["mean pitch"].std()})


def reliability(nb: ModuleType, trained: Trained) -> pd.Series:
    """Return for tenths of the chance given to a pitch how often it came."""
    test = trained.encoded["test"]
    probability = [nb.predict(trained.model, piece)[0].softmax(-1).flatten() for piece in test]
    came = [torch.nn.functional.one_hot(piece["pitch"], nb.NO_PITCH).flatten() for piece in test]
    table = pd.DataFrame({"said": torch.cat(probability), "came": torch.cat(came)})
    means = table.groupby((table.said * 10).astype(int).clip(upper=9)).mean()
    return pd.Series({f"pitch given {row.said:.0%} came": row.came for row in means.itertuples()})


def coverage(nb: ModuleType, trained: Trained) -> pd.Series:
    """Return how often each true number after a seed lies in the middle of what would be drawn."""
    rows, config = [], trained.composer.config
    seed, names = config.seed_notes, trained.normaliser.names
    for piece in (piece for piece in trained.encoded["test"] if len(piece["pitch"]) > seed):
        outputs = [values[None] for values in nb.predict(trained.model, piece)]
        opening = {"attributes": piece["attributes"][None, :seed]}, [v[:, :seed] for v in outputs]
        _, medians, layers = (values[:, seed:] for values in outputs)
        for i, residuals in enumerate(nb.seed_residuals(*opening)):
            places = medians[:, :, i], layers[:, :, i]
            drawn = nb.seed_values(residuals, *places, config.neighbours)[0]
            true = piece["attributes"][seed:, i]
            for share in (0.5, 0.8):
                ends = torch.tensor([0.5 - share / 2, 0.5 + share / 2])
                low, high = drawn.quantile(ends, dim=1)
                inside = (true >= low - 1e-4) & (true <= high + 1e-4)
                name = f"{names[i]} in the middle {share:.0%}"
                rows += [(name, float(value)) for value in inside]
    return pd.DataFrame(rows, columns=["what", "inside"]).groupby("what").inside.mean()


def main() -> None:
    """Train, compose and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=ROOT / "data" / "bach_chorales")
    folder = parser.parse_args().path.resolve()
    nb = definitions()
    config = nb.Config()
    trained = train(nb, load(nb, folder, config), config, RANDOM_STATE)
    triples = unselected(nb, trained.composer, trained.split["test"], PIECES, RANDOM_STATE)
    triples = [triple for triple in triples if len(triple[2]) == config.piece_notes]
    drift = {
        f"{whose}, quarter": quarters(nb, trained.composer, [(t[0], t[place]) for t in triples]).T
        for place, whose in ((1, "pieces"), (2, "really"))
    }
    table = pd.concat(drift, axis=1)
    table.columns = [" ".join(map(str, column)) for column in table.columns]
    known = pd.concat([reliability(nb, trained), coverage(nb, trained)])
    STUDY.mkdir(parents=True, exist_ok=True)
    table.to_csv(STUDY / "drift.csv", index_label="what", float_format="%.3f")
    known.to_csv(
        STUDY / "calibration.csv", index_label="what", header=["share"], float_format="%.3f"
    )


if __name__ == "__main__":
    main()
