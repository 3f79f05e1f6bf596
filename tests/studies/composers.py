"""Train the notebook's model on every composer and write outputs/study/composers_runs.csv.

    python tests/studies/composers.py PATH [composer ...]

PATH is a folder with one folder of MIDI files a composer. Composers that are in the table already
are passed over, so an interrupted study goes on where it stopped. The medians over the random
states of each composer are in composers.csv. Every row is a full training with the notebook's own
configuration, scored on the test works once. One composer takes about as long as a run of the
notebook. Two processes with different composers may share a table. With --keep the unselected
pieces are written as FOLDER/composer/SOURCE__k.mid, SOURCE being the piece that the seed is from.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import definitions
from study_tools import (
    STUDY,
    add_row,
    known,
    load,
    mean_losses,
    one_nn_accuracy,
    real_excerpts,
    train,
    unselected,
)
from tqdm import tqdm

KEY = ["composer", "random state"]
RUNS, TABLE = STUDY / "composers_runs.csv", STUDY / "composers.csv"
SILENT = 0.5  # share of the time, above which a piece counts as silent


def keep(nb: ModuleType, pieces: list, folder: Path) -> None:
    """Write pieces to a folder, all at one tempo."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, piece in enumerate(pieces):
        midi = nb.midi_bytes(replace(piece, tempo=100.0))
        (folder / f"{piece.name}__{k}.mid").write_bytes(midi)


def study(nb: ModuleType, folder: Path, state: int, kept: Path | None) -> dict[str, object]:
    """Return the row of one composer."""
    config = nb.Config()
    pieces = load(nb, folder, config)
    trained = train(nb, pieces, config, state)
    training, test = (trained.split[name] for name in ("training", "test"))
    row = {
        "composer": folder.name,
        "random state": state,
        "files": len(pieces),
        "works": len({piece.work for piece in pieces}),
        "notes": sum(map(len, pieces)),
        "cut": bool({p.name for p in training} & {p.name for p in test}),
        "epochs": len(trained.log),
    }
    for head, means in mean_losses(nb, trained).items():
        row[head] = means.pop("model")
        row[f"{head}, strongest rule"] = min(means.values())
    triples = unselected(nb, trained.composer, test, 10_000 * state)
    made, true = ([triple[place] for triple in triples] for place in (1, 2))
    true = [piece for piece in true if len(piece) == config.piece_notes]
    real = real_excerpts(nb, pieces, config)
    pitches = [piece.notes.pitch.to_numpy() for piece in training]
    statistics = nb.statistics_of(made, pitches, trained.normaliser, config)
    for whose, music in (("", made), (" real", true)) if kept else ():
        keep(nb, music, kept / (folder.name + whose))
    return row | {
        "told apart": one_nn_accuracy(nb, real, made),
        "told apart, real continuations": one_nn_accuracy(nb, real, true) if true else np.nan,
        "silent": int((statistics.silence > SILENT).sum()),
        "longest run shared": int(statistics["run shared with training"].max()),
    }


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return by composer the medians of its runs, those last whose pieces had to be cut."""
    extent = ["random state", "files", "works", "notes", "epochs"]
    groups = runs.drop(columns=extent).groupby(["cut", "composer"])
    table = groups.median()
    table.insert(0, "runs", groups.size())
    return table.swaplevel().reset_index()


def main() -> None:
    """Study the composers that are not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a folder with one folder of MIDI files a composer")
    parser.add_argument("composers", nargs="*", help="folders in it; all by default")
    parser.add_argument("--random-state", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the pieces")
    arguments = parser.parse_args()
    present = sorted(folder.name for folder in arguments.path.iterdir() if folder.is_dir())
    wanted = arguments.composers or present
    if missing := sorted(set(wanted) - set(present)):
        parser.error(f"no {', '.join(missing)} in {arguments.path}; there are {', '.join(present)}")
    nb, state = definitions(), arguments.random_state
    for name in tqdm(wanted, "composers"):
        if (name, state) not in known(RUNS, KEY):
            add_row(RUNS, study(nb, arguments.path / name, state, arguments.keep), KEY)
    summary(pd.read_csv(RUNS)).to_csv(TABLE, index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
