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


def voices_table(means: dict[str, list[pd.Series]], pieces: dict[str, int]) -> pd.DataFrame:
    """Return for each set of draws the mean of their means, and how far they differ."""
    rows = []
    for name, draws in means.items():
        table = pd.DataFrame(draws)
        for what in table:
            rows.append((name, what, pieces[name], table[what].mean(), table[what].std()))
    return pd.DataFrame(rows, columns=["set", "what", "pieces", "value", "deviation"])


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
    sets = {"Bach": pieces, "JS Fake Chorales": peers}
    sets = {name: [nb.excerpts(music, config.piece_notes)] for name, music in sets.items()}
    test, draws = trained.split["test"], [1_000 * draw for draw in range(DRAWS)]
    triples = [unselected(nb, trained.composer, test, state) for state in draws]
    sets["this model"] = [[made for _, made, _ in draw] for draw in triples]

    def measure(music: list) -> pd.Series:
        """Return the means per hundred notes."""
        return 100 * nb.voice_leading(music, trained.normaliser, config).mean()

    means = {k: [measure(music)[["parallels", "leaps"]] for music in v] for k, v in sets.items()}
    table = voices_table(means, {name: len(draws[0]) for name, draws in sets.items()})
    table.to_csv(STUDY / "voices.csv", index=False, float_format="%.3f")
    print(table)


if __name__ == "__main__":
    main()
