"""Score the same n-grams and the same model on two splits and write outputs/study/leak.csv.

    python tests/studies/leak.py [PATH]

PATH is a folder of MIDI files, by default data/bach_chorales. One split is the notebook's, by work.
The other is the usual mistake: all windows of all pieces, one beginning at every note, are dealt
out at random, so that held-out windows have neighbours in training that share all notes but one.
Windows are scored by themselves in both. The test pieces stay closed: half of the validation pieces
stop the training, and the other half is scored. Two full trainings.
"""

import copy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import definitions
from study_tools import STUDY, corpus_parser, load, untrained, version
from torch import nn

RANDOM_STATE = 10
Windows = tuple[list[dict], list[tuple[int, int]]]  # encoded pieces; piece and first note of each


def every_start(encoded: list[dict], length: int) -> list[tuple[int, int]]:
    """Return piece and first note of every window."""
    lengths = [len(piece["pitch"]) for piece in encoded]
    return [(i, s) for i, n in enumerate(lengths) for s in range(n - length + 1)]


def cut(encoded: list[dict], starts: list[tuple[int, int]], length: int) -> list[dict]:
    """Return the windows that begin at these places, each as a piece of its own."""
    return [{k: values[s : s + length] for k, values in encoded[i].items()} for i, s in starts]


def scores(
    nb: ModuleType, splits: dict[str, Windows], model: nn.Module, config: object
) -> dict[str, float]:
    """Return nats per pitch of held-out windows by n-grams with a cache and by the model, trained.

    `splits` are the training, validation and test windows.
    """
    windows = {name: cut(*places, config.window) for name, places in splits.items()}
    # overlapping windows hold no more n-grams than the pieces that they are cut from
    pieces, starts = splits["training"]
    known = [pieces[i] for i in {i for i, _ in starts}]
    parts = known, windows["validation"], windows["test"]
    pitches = [[part["pitch"].tolist() for part in some] for some in parts]
    *_, with_cache = nb.ngram_losses(*pitches).values()
    torch.manual_seed(RANDOM_STATE)
    nb.fit(model, windows, config)
    return {
        "n-gram with cache": float(np.concatenate(with_cache).mean()),
        "model": nb.evaluate(model, nb.make_eval_loader(windows["test"], config))["pitch"],
    }


def both_splits(encoded: dict[str, list[dict]], length: int) -> dict[str, dict[str, Windows]]:
    """Return the windows of the split by work, and of the random one with as many held out."""
    by_work = {name: (part, every_start(part, length)) for name, part in encoded.items()}
    for name in ("validation", "test"):  # side by side, so that each note counts once
        part, starts = by_work[name]
        by_work[name] = part, [(i, s) for i, s in starts if s % length == 0]
    pieces = [piece for part in encoded.values() for piece in part]
    starts = every_start(pieces, length)
    rng, count = np.random.default_rng(RANDOM_STATE), len(by_work["test"][1])
    dealt = [starts[i] for i in rng.permutation(len(starts))]
    parts = dealt[2 * count :], dealt[count : 2 * count], dealt[:count]
    names = "training", "validation", "test"
    mixed = {name: (pieces, part) for name, part in zip(names, parts, strict=True)}
    return {"split by work": by_work, "random split of windows": mixed}


def main() -> None:
    """Train on both splits and write the table."""
    folder = corpus_parser(__doc__).parse_args().path
    nb = definitions()
    config = nb.Config()
    ready = untrained(nb, load(nb, folder, config), config, RANDOM_STATE)
    held, half = ready.encoded["validation"], len(ready.encoded["validation"]) // 2
    encoded = ready.encoded | {"validation": held[:half], "test": held[half:]}
    splits = both_splits(encoded, config.window)
    rows = {k: scores(nb, v, copy.deepcopy(ready.model), config) for k, v in splits.items()}
    STUDY.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows).T.rename_axis("split").assign(version=version(nb))
    table.to_csv(STUDY / "leak.csv", float_format="%.4f")


if __name__ == "__main__":
    main()
