"""Ask what pieces are like as they go on, and what the model knows of what it knows.

    python tests/studies/music.py [PATH]

PATH is a folder of MIDI files, by default data/bach_chorales. The tables are drift.csv and
calibration.csv in outputs/study, of validation pieces. One full training; 96 pieces of which none
is selected, and the ground-truth continuations of their seeds.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import definitions
from study_tools import (
    RANDOM_STATE,
    STUDY,
    Trained,
    corpus_parser,
    load,
    train,
    unselected,
    version,
)
from torch.nn import functional as F

STATISTICS = ("mean pitch", "chord rate", "mean step", "silence")


def quarters(nb: ModuleType, composer: object, music: list[tuple]) -> pd.DataFrame:
    """Return statistics of pieces by quarter, each piece heard after its seed."""
    rows = []
    for seed, piece in music:
        notes = piece.notes
        gap = seed.notes.onset.iloc[-1] + notes.step.iloc[0] - notes.onset.iloc[0]
        after = pd.concat([seed.notes, notes.assign(onset=notes.onset + gap)], ignore_index=True)
        (encoded,) = nb.encode([replace(piece, notes=after)], composer.normaliser, composer.config)
        logits = nb.predict(composer.model, encoded)[0]
        nats = F.cross_entropy(logits, encoded["pitch"], reduction="none")[len(seed.notes) :]
        for quarter, index in enumerate(np.array_split(np.arange(len(notes)), 4), start=1):
            found = nb.describe(notes.iloc[index])
            row = {"quarter": quarter} | {name: found[name] for name in STATISTICS}
            rows.append(row | {"nats": float(nats[index].mean())})
    by_quarter = pd.DataFrame(rows).groupby("quarter")
    return by_quarter.mean().assign(**{"spread of the mean pitch": by_quarter["mean pitch"].std()})


def reliability(nb: ModuleType, trained: Trained) -> pd.Series:
    """Return for tenths of the probability given to a pitch how often it came."""
    pieces = trained.encoded["validation"]
    probability = [nb.predict(trained.model, piece)[0].softmax(-1).flatten() for piece in pieces]
    came = [F.one_hot(piece["pitch"], nb.NO_PITCH).flatten() for piece in pieces]
    table = pd.DataFrame({"said": torch.cat(probability), "came": torch.cat(came)})
    means = table.groupby((table.said * 10).astype(int).clip(upper=9)).mean()
    return pd.Series({f"pitch given {row.said:.0%} came": row.came for row in means.itertuples()})


def coverage(nb: ModuleType, trained: Trained) -> pd.Series:
    """Return how often each true attribute lies in the middle of what the sampler would draw."""
    rows, config, names = [], trained.composer.config, trained.normaliser.names
    seed = config.seed_notes
    for piece in (piece for piece in trained.encoded["validation"] if len(piece["pitch"]) > seed):
        outputs = [values[None] for values in nb.predict(trained.model, piece)]
        opening = {"attributes": piece["attributes"][None, :seed]}, [v[:, :seed] for v in outputs]
        _, medians, layers = (values[:, seed:] for values in outputs)
        for i, residuals in enumerate(nb.seed_residuals(*opening)):
            places = medians[:, :, i], layers[:, :, i]
            drawn = nb.seed_values(residuals, *places, config.neighbours)[0]
            true = piece["attributes"][seed:, i]
            for share in (0.5, 0.8):
                low, high = drawn.quantile(torch.tensor([0.5 - share / 2, 0.5 + share / 2]), dim=1)
                inside = (true >= low - 1e-4) & (true <= high + 1e-4)
                what = f"{names[i]} in the middle {share:.0%}"
                rows += [(what, float(value)) for value in inside]
    return pd.DataFrame(rows, columns=["what", "inside"]).groupby("what").inside.mean()


def main() -> None:
    """Train, compose and write the tables."""
    folder = corpus_parser(__doc__).parse_args().path
    nb = definitions()
    config = nb.Config()
    trained = train(nb, load(nb, folder, config), config, RANDOM_STATE)
    triples = unselected(nb, trained.composer, trained.split["validation"], RANDOM_STATE)
    triples = [triple for triple in triples if len(triple[2]) == config.piece_notes]
    drift = {}
    for place, whose in ((1, "pieces"), (2, "ground truth")):
        table = quarters(nb, trained.composer, [(triple[0], triple[place]) for triple in triples])
        drift |= {f"{whose}, quarter {quarter}": row for quarter, row in table.iterrows()}
    known = pd.concat([reliability(nb, trained), coverage(nb, trained)]).to_frame("share")
    STUDY.mkdir(parents=True, exist_ok=True)
    for name, table in (("drift", pd.DataFrame(drift)), ("calibration", known)):
        table = table.rename_axis("what").assign(version=version(nb))
        table.to_csv(STUDY / f"{name}.csv", float_format="%.3f")


if __name__ == "__main__":
    main()
