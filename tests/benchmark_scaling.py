"""Compare the time per note of one composer with that of all as one corpus.

    python tests/benchmark_scaling.py PATH [composer]

PATH is a folder with one folder of MIDI files a composer. Both are read, grouped into works, split,
encoded and trained for an epoch, several times in turn. What counts is the ratio, which
goes to outputs/study/scaling.csv beside the seconds of this machine and the memory of the process.
"""

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from notebook_tools import definitions
from study_tools import STUDY

TABLE = STUDY / "scaling.csv"
ROUNDS = 2  # of which the fastest counts: other jobs only ever make a round slower


def timed(work: Callable[[], object]) -> tuple[object, float]:
    """Return what the function returns and the seconds it took."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def stages(nb: ModuleType, folders: list[Path]) -> dict[str, float]:
    """Return the notes of the corpus and the seconds of each stage."""
    config = nb.Config()
    read, reading = timed(lambda: [nb.load_corpus(f.name, f.parent, config)[0] for f in folders])
    pieces = [
        replace(piece, name=f"{folder.name} {piece.name}")
        for folder, mine in zip(folders, read, strict=True)
        for piece in mine
    ]
    pieces, grouping = timed(lambda: nb.find_works(pieces, config))
    split = nb.split_pieces(pieces, config, 0)
    normaliser = nb.Normaliser(split["training"], config)
    encoded, encoding = timed(
        lambda: [nb.encode(piece.notes, normaliser, config) for piece in split["training"]]
    )
    loader = nb.random_windows(encoded, config)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    optimiser = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser)
    run = (model, loader, optimiser, scheduler, config)
    _, training = timed(lambda: nb.train_one_epoch(*run))
    heard = {"training": sum(map(len, split["training"])), "epoch": len(loader.sampler)}
    return {
        "notes": sum(map(len, pieces)),
        "reading": reading / sum(map(len, pieces)),
        "grouping": grouping / sum(map(len, pieces)),
        "encoding": encoding / heard["training"],
        "an epoch": training / (heard["epoch"] * config.window),
    }


def main() -> None:
    """Time both corpora in turn and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a folder with one folder of MIDI files a composer")
    parser.add_argument("composer", nargs="?", default="mozart")
    arguments = parser.parse_args()
    nb, path = definitions(), arguments.path.resolve()
    everyone = sorted(folder for folder in path.iterdir() if folder.is_dir())
    rounds = {"one": [], "all": []}
    for _ in range(ROUNDS):
        rounds["one"].append(stages(nb, [path / arguments.composer]))
        rounds["all"].append(stages(nb, everyone))
    one, every = (pd.DataFrame(times).min() for times in rounds.values())
    table = pd.DataFrame({arguments.composer: one, "all": every, "ratio": every / one})
    table.index.name = "seconds per note"
    table.loc["peak memory, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    table.loc["peak memory, GB", [arguments.composer, "ratio"]] = np.nan
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(TABLE, float_format="%.6g")
    print(table)


if __name__ == "__main__":
    main()
