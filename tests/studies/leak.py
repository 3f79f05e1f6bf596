"""Score the same table and the same model on two splits and write outputs/study/leak.csv.

    python tests/study_leak.py [PATH]

PATH is a folder of MIDI files, by default data/bach_chorales. One split is the notebook's, by work.
The other is the usual mistake: all windows of all pieces, one beginning at every note, are dealt
out at random, so that held-out windows have neighbours in training that share all notes but one.
Windows are scored by themselves in both. Two full trainings.
"""

import argparse
import copy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import ROOT, definitions
from study_tools import STUDY, load, untrained
from torch import nn

TABLE = STUDY / "leak.csv"
RANDOM_STATE = 0


def every_start(encoded: list, config: object) -> list[tuple[int, int]]:
    """Return piece and first note of every window."""
    lengths = [len(piece["pitch"]) for piece in encoded]
    return [(i, s) for i, n in enumerate(lengths) for s in range(n - config.window + 1)]


def cut(encoded: list, starts: list[tuple[int, int]], config: object) -> list[dict]:
    """Return the windows that begin at these places, each as a piece of its own."""
    ends = [(encoded[i], slice(s, s + config.window)) for i, s in starts]
    return [{name: values[part] for name, values in piece.items()} for piece, part in ends]


def scores(
    nb: ModuleType, sides: dict[str, tuple[list, list]], model: nn.Module, config: object
) -> dict[str, float]:
    """Return nats per pitch of held-out windows by the best table and by the model, once trained.

    `sides` are for training, validation and test the encoded pieces and the places of windows.
    """
    windows = {side: cut(*places, config) for side, places in sides.items()}
    pitches = {side: [w["pitch"].tolist() for w in windows[side]] for side in windows}
    # overlapping windows hold no more n-grams than the pieces that they are cut from
    encoded, starts = sides["training"]
    counted = nb.count_ngrams([encoded[i]["pitch"].tolist() for i in {i for i, _ in starts}])
    tried = [
        np.mean([nb.ngram_nats(counted, window, n).mean() for window in pitches["validation"]])
        for n in nb.ORDERS
    ]
    order = nb.ORDERS[int(np.argmin(tried))]
    table = [nb.ngram_nats(counted, window, order, nb.MEMORY).mean() for window in pitches["test"]]
    torch.manual_seed(RANDOM_STATE)
    nb.fit(model, windows, config)
    return {
        "table with a memory of the piece": float(np.mean(table)),
        "model": nb.evaluate(model, nb.make_eval_loader(windows["test"], config))["pitch"],
    }


def main() -> None:
    """Train on both splits and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=ROOT / "data" / "bach_chorales")
    folder = parser.parse_args().path.resolve()
    nb, rng = definitions(), np.random.default_rng(RANDOM_STATE)
    config = nb.Config()
    ready = untrained(nb, load(nb, folder, config), config, RANDOM_STATE)
    encoded = ready.encoded
    apart = {side: every_start(encoded[side], config) for side in encoded}
    # as many held-out windows as the pieces hold side by side
    for side in ("validation", "test"):
        apart[side] = [(i, s) for i, s in apart[side] if s % config.window == 0]
    pieces = [piece for side in encoded for piece in encoded[side]]
    mixed = every_start(pieces, config)
    mixed = [mixed[i] for i in rng.permutation(len(mixed))]
    count = len(apart["test"])
    dealt = {"test": mixed[:count], "validation": mixed[count : 2 * count]}
    dealt["training"] = mixed[2 * count :]
    rows = {
        "split by work": {side: (encoded[side], apart[side]) for side in encoded},
        "random split of windows": {side: (pieces, dealt[side]) for side in encoded},
    }
    new = copy.deepcopy
    results = {k: scores(nb, sides, new(ready.model), config) for k, sides in rows.items()}
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(results).T.rename_axis("split").to_csv(TABLE, float_format="%.4f")


if __name__ == "__main__":
    main()
