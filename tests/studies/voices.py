"""Compare how voices move in Bach's chorales, in a published system's and in this model's.

    python tests/studies/voices.py PEERS

PEERS is a folder of MIDI files of four-part chorales that a published system wrote, such as JS Fake
Chorales (Peracha 2021, arXiv 2107.10388, CC BY 4.0, github.com/omarperacha/js-fakes). Writes
outputs/study/voices.csv: means over pieces of 200 notes, per hundred notes; of this model 96 pieces
are drawn three times, none is selected, and `deviation` is the standard deviation over the draws.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import CORPUS, ROOT, definitions
from study_tools import STUDY, load, train, unselected

DRAWS = 3
RANDOM_STATE = 0


def main() -> None:
    """Train on the chorales and measure all sets alike."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path)
    folder = parser.parse_args().peers.resolve()
    nb = definitions()
    config = nb.Config()
    pieces = load(nb, ROOT / "data" / CORPUS, config)
    trained = train(nb, pieces, config, RANDOM_STATE)
    peers, _ = nb.load_corpus(folder.name, folder.parent, config)
    sets = {"Bach": [pieces], "JS Fake Chorales": [peers]}
    sets = {name: [nb.excerpts(some, config.piece_notes)] for name, (some,) in sets.items()}
    sets["this model"] = []
    for state in range(0, 1_000 * DRAWS, 1_000):
        triples = unselected(nb, trained.composer, trained.split["test"], state)
        sets["this model"].append([made for _, made, _ in triples])
    rows = []
    for name, draws in sets.items():
        measured = [nb.voice_leading(some, trained.normaliser, config) for some in draws]
        means = 100 * pd.DataFrame([found.mean() for found in measured])
        for what in ("parallels", "leaps"):
            rows.append((name, what, len(draws[0]), means[what].mean(), means[what].std()))
    table = pd.DataFrame(rows, columns=["set", "what", "pieces", "value", "deviation"])
    table.to_csv(STUDY / "voices.csv", index=False, float_format="%.3f")
    print(table)


if __name__ == "__main__":
    main()
