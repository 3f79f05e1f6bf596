"""Train the notebook's model on every composer and write outputs/study/composers_runs.csv.

    python tests/study_composers.py PATH [composer ...]

PATH is a folder with one folder of MIDI files a composer. Composers that are in the table already
are passed over, so an interrupted study goes on where it stopped. The medians over the random
states of each composer are in composers.csv. Every row is a full training with
the notebook's own configuration, scored on the test works once. One composer takes about as long
as a run of the notebook. Two processes with different composers may share a table. With --keep the
unselected pieces are written as FOLDER/composer/SOURCE__k.mid, SOURCE being the piece that the seed
is from.
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
    one_nn_accuracy,
    real_excerpts,
    train,
    unselected,
)
from tqdm import tqdm

KEY = ["composer", "random state"]
RUNS, TABLE = STUDY / "composers_runs.csv", STUDY / "composers.csv"


def study(nb: ModuleType, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Return the row of one composer."""
    config, state = nb.Config(), arguments.random_state
    pieces = load(nb, folder, config)
    trained = train(nb, pieces, config, state)
    training, test = ({p.name for p in trained.split[side]} for side in ("training", "test"))
    row = {
        "composer": folder.name,
        "random state": state,
        "files": len(pieces),
        "works": len({piece.work for piece in pieces}),
        "notes": sum(map(len, pieces)),
        "cut": bool(training & test),
        "epochs": len(trained.log),
    }
    models = {"model": trained.model}
    losses = {"pitch": nb.pitch_losses(models, trained.encoded)}
    losses |= nb.attribute_losses(models, trained.encoded, trained.normaliser)
    for head, rules in losses.items():
        means = {rule: float(np.concatenate(values).mean()) for rule, values in rules.items()}
        row[head] = means["model"]
        row[f"{head}, strongest rule"] = min(v for k, v in means.items() if "model" not in k)
    triples = unselected(
        nb, trained.composer, trained.split["test"], arguments.pieces, 10_000 * state
    )
    made, really = ([triple[place] for triple in triples] for place in (1, 2))
    really = [piece for piece in really if len(piece) == config.piece_notes]
    real = real_excerpts(nb, pieces, config)
    training = [piece.notes.pitch.to_numpy() for piece in trained.split["training"]]
    figures = nb.statistics_of(made, training, trained.normaliser, config)
    row |= {
        "told apart": one_nn_accuracy(nb, real, made),
        "told apart, real continuations": one_nn_accuracy(nb, real, really) if really else np.nan,
        "silent": int((figures.silence > 0.5).sum()),
        "longest run shared": int(figures["run shared with training"].max()),
    }
    for whose, music in (("", made), (" real", really)):
        target = arguments.keep and arguments.keep / (folder.name + whose)
        for k, piece in enumerate(music if target else ()):
            target.mkdir(parents=True, exist_ok=True)
            midi = nb.midi_bytes(replace(piece, tempo=100.0))
            (target / f"{piece.name}__{k}.mid").write_bytes(midi)
    return row


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
    parser.add_argument("--pieces", type=int, default=96, help="composed for each, none selected")
    parser.add_argument("--runs", type=Path, default=RUNS, help="table that grows")
    parser.add_argument("--table", type=Path, default=TABLE, help="table of the medians")
    parser.add_argument("--keep", type=Path, help="folder for the pieces")
    arguments = parser.parse_args()
    present = sorted(folder.name for folder in arguments.path.iterdir() if folder.is_dir())
    wanted = arguments.composers or present
    if missing := sorted(set(wanted) - set(present)):
        parser.error(f"no {', '.join(missing)} in {arguments.path}; there are {', '.join(present)}")
    nb = definitions()
    for name in tqdm(wanted, "composers"):
        if (name, arguments.random_state) not in known(arguments.runs, KEY):
            row = study(nb, arguments.path.resolve() / name, arguments)
            add_row(arguments.runs, row, KEY)
    table = summary(pd.read_csv(arguments.runs))
    table.to_csv(arguments.table, index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
