"""Score the same table and the same model on two splits and write outputs/study/leak.csv.

    python tests/study_leak.py [PATH]

PATH is a folder of MIDI files, by default data/bach_chorales. One split is the notebook's, by work.
The other is the usual mistake: all windows of all pieces, one beginning at every note, are dealt
out at random, so that held-out windows have neighbours in training that share all notes but one.
Windows are scored by themselves in both. Two full trainings.
"""

import argparse
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from notebook_tools import ROOT, definitions
from study_tools import STUDY, load
from torch.utils.data import DataLoader, Dataset, RandomSampler

TABLE = STUDY / "leak.csv"
RANDOM_STATE = 0


class Windows(Dataset):
    """Windows of encoded pieces that begin at given places, transposed at random if asked to."""

    def __init__(
        self, nb: ModuleType, encoded: list, starts: list, config: object, shift: int
    ) -> None:
        """Keep what is needed to cut a window."""
        self.nb, self.encoded, self.starts, self.shift = nb, encoded, starts, shift
        self.length = config.window

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one window."""
        number, start = self.starts[index]
        piece = self.encoded[number]
        item = {name: values[start : start + self.length] for name, values in piece.items()}
        item["valid"] = torch.ones(self.length, dtype=torch.bool)
        shift = int(torch.randint(-self.shift, self.shift + 1, ()))
        return self.nb.transpose(item, shift)


def every_start(encoded: list, config: object) -> list[tuple[int, int]]:
    """Return piece and first note of every window."""
    lengths = [len(piece["pitch"]) for piece in encoded]
    return [(i, s) for i, n in enumerate(lengths) for s in range(n - config.window + 1)]


def scores(
    nb: ModuleType, sides: dict[str, tuple[list, list]], normaliser: object, config: object
) -> dict[str, float]:
    """Return nats per pitch of held-out windows by the best table and by the model.

    `sides` are for training, validation and test the encoded pieces and the places of windows.
    """
    pitches = {
        side: [encoded[i]["pitch"][s : s + config.window].tolist() for i, s in starts]
        for side, (encoded, starts) in sides.items()
    }
    encoded, starts = sides["training"]
    used = {i for i, _ in starts}
    # overlapping windows hold no more n-grams than the pieces that they are cut from
    counted = nb.count_ngrams([encoded[i]["pitch"].tolist() for i in used])
    order = nb.best_order(counted, pitches["validation"])
    table = [nb.ngram_nats(counted, window, order, nb.MEMORY).mean() for window in pitches["test"]]
    windows = Windows(nb, encoded, starts, config, config.transpose)
    sampler = RandomSampler(windows, num_samples=config.epoch_windows)
    training = DataLoader(windows, config.batch_size, sampler=sampler)
    held_out = {
        side: DataLoader(Windows(nb, *sides[side], config, 0), config.batch_size)
        for side in ("validation", "test")
    }
    torch.manual_seed(RANDOM_STATE)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    nb.fit(model, training, {"validation": held_out["validation"]}, config)
    return {
        "table with a memory of the piece": float(np.mean(table)),
        "model": nb.evaluate(model, held_out["test"])["pitch"],
    }


def main() -> None:
    """Train on both splits and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=ROOT / "data" / "bach_chorales")
    folder = parser.parse_args().path.resolve()
    nb, rng = definitions(), np.random.default_rng(RANDOM_STATE)
    config = nb.Config()
    split = nb.split_pieces(load(nb, folder, config), config, RANDOM_STATE)
    normaliser = nb.Normaliser(split["training"])
    encoded = {s: [nb.encode(p.notes, normaliser, config) for p in split[s]] for s in split}
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
    results = {name: scores(nb, sides, normaliser, config) for name, sides in rows.items()}
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(results).T.rename_axis("split").to_csv(TABLE, float_format="%.4f")


if __name__ == "__main__":
    main()
