"""Measure Bach's chorales, a published system's and this model's alike, to outputs/study/peers.csv.

    python tests/studies/peers.py PEERS

PEERS is a folder of MIDI files of four-part chorales that a published system wrote, such as JS Fake
Chorales (Peracha 2021, arXiv 2107.10388, CC BY 4.0, github.com/omarperacha/js-fakes). All are
compared with excerpts of one half of Bach's chorales: 1-NN accuracy, and how voices move per
hundred notes. Of the model 96 pieces are drawn DRAWS times, none selected; `deviation` is the
standard deviation over the draws. The kept pieces are those in outputs/bach_chorales; three are too
few for the 1-NN accuracy.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import CORPUS, ROOT, definitions
from study_tools import (
    DRAWS,
    RANDOM_STATE,
    STUDY,
    load,
    one_nn_accuracy,
    real_excerpts,
    train,
    unselected,
    version,
)


def main() -> None:
    """Train on the chorales and measure all sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path)
    folder = parser.parse_args().peers.resolve()
    nb = definitions()
    config = nb.Config()
    pieces = load(nb, ROOT / "data" / CORPUS, config)
    trained = train(nb, pieces, config, RANDOM_STATE)
    peers, _ = nb.load_corpus(folder.name, folder.parent, config)
    halves = np.random.default_rng(RANDOM_STATE).permutation(len(pieces)) % 2
    one, other = ([p for p, h in zip(pieces, halves, strict=True) if h == i] for i in (0, 1))
    states = [10_000 * RANDOM_STATE + 1_000 * draw for draw in range(DRAWS)]
    draws = [unselected(nb, trained.composer, trained.split["test"], state) for state in states]
    true = [real for _, _, real in draws[0] if len(real) == config.piece_notes]
    kept = sorted((ROOT / "outputs" / CORPUS).glob("piece_*.mid"))
    sets = {
        "Bach, other half": [real_excerpts(nb, other, config)],
        "ground truth": [true],
        "JS Fake Chorales": [real_excerpts(nb, peers, config)],
        "this model": [[made for _, made, _ in draw] for draw in draws],
        "this model, kept": [[nb.read_piece(path.read_bytes(), path.name) for path in kept]],
    }
    rows, real = [], real_excerpts(nb, one, config)
    for name, some in sets.items():
        moves = [nb.voice_leading(made, trained.normaliser, config).mean() for made in some]
        found = 100 * pd.DataFrame(moves)[["parallels", "leaps"]]
        if len(some[0]) > len(kept):
            found["1-NN accuracy"] = [one_nn_accuracy(nb, real, made) for made in some]
        for score, values in found.items():
            rows.append((name, score, len(some[0]), len(some), values.mean(), values.std()))
    columns = ["set", "score", "pieces", "draws", "value", "deviation"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(0, "version", version(nb))
    table.to_csv(STUDY / "peers.csv", index=False, float_format="%.4f")
    print(table)


if __name__ == "__main__":
    main()
