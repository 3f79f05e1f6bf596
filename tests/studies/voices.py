"""Compare how voices move in Bach's chorales, in a published system's and in this model's.

    python tests/study_voices.py PEERS [--random-state N]

PEERS is a folder of MIDI files of four-part chorales that a published system wrote, such as JS Fake
Chorales (Peracha 2021, arXiv 2107.10388, CC BY 4.0, github.com/omarperacha/js-fakes). Writes
outputs/study/voices.csv: means over pieces of 200 notes, per hundred notes; of this model 96 pieces
are drawn three times, none is selected, and `deviation` is the standard deviation over the draws.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import ROOT, definitions
from study_tools import STUDY, load, train, unselected

DRAWS, PIECES = 3, 96


def voices_table(sets: dict[str, list[list]], measure: object) -> pd.DataFrame:
    """Return for each set of draws the mean measures of its pieces, and how far draws differ."""
    rows = []
    for name, draws in sets.items():
        means = np.array([measure(pieces).mean() * 100 for pieces in draws])
        for what, values in zip(measure(draws[0]).columns, means.T, strict=True):
            spread = values.std(ddof=1) if len(values) > 1 else np.nan
            rows.append((name, what, len(draws[0]), values.mean(), spread))
    return pd.DataFrame(rows, columns=["set", "what", "pieces", "value", "deviation"])


def main() -> None:
    """Train on the chorales and measure all sets alike."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path)
    parser.add_argument("--random-state", type=int, default=0)
    arguments = parser.parse_args()
    nb = definitions()
    config = nb.Config()
    pieces = load(nb, ROOT / "data" / "bach_chorales", config)
    trained = train(nb, pieces, config, arguments.random_state)
    peers, _ = nb.load_corpus(arguments.peers.name, arguments.peers.parent, config)
    made = []
    for draw in range(DRAWS):
        seed = 10_000 * arguments.random_state + 1_000 * draw
        triples = unselected(nb, trained.composer, trained.split["test"], PIECES, seed)
        made.append([piece for _, piece, _ in triples])
    first = {"Bach": pieces, "JS Fake Chorales": peers}
    sets = {name: [nb.excerpts(some, config.piece_notes)] for name, some in first.items()}

    def measure(some: list) -> pd.DataFrame:
        return nb.voice_leading(some, trained.normaliser, config)[["parallels", "leaps"]]

    table = voices_table(sets | {"this model": made}, measure)
    table.to_csv(STUDY / "voices.csv", index=False, float_format="%.3f")
    print(table)


if __name__ == "__main__":
    main()
