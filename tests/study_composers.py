"""Train the notebook's model on every composer of a dataset and write outputs/study/composers.csv.

    python tests/study_composers.py PATH [composer ...]

PATH is a folder with one folder of MIDI files a composer. Composers that are in the table already
are passed over, so an interrupted study goes on where it stopped. Every row is a full training with
the notebook's own configuration, scored on the test works once. One composer takes about as long
as a run of the notebook. Two processes with different composers may share a table. Other random
states, which draw other splits, have tables of their own. With --keep the pieces are written as
FOLDER/composer/SOURCE__k.mid, SOURCE being the piece that the seed is from. With --attempts there
are as many pieces more, each the one of several that is most like its seed, as in the notebook.
"""

import argparse
from pathlib import Path
from types import ModuleType

import numpy as np
from notebook_tools import definitions
from study_tools import (
    STUDY,
    add_row,
    best_table,
    compose,
    known,
    load,
    longest_runs,
    pitch_in_window,
    real_excerpts,
    stuck,
    told_apart,
    train,
)
from tqdm import tqdm


def table_path(random_state: int) -> Path:
    """Return where the table of a random state is."""
    return STUDY / (f"composers_{random_state}.csv" if random_state else "composers.csv")


def keep(nb: ModuleType, made: list, folder: Path, first: int) -> None:
    """Write the pieces as SOURCE__k.mid, k from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, (name, notes) in enumerate(made, start=first):
        source = name.split(" from note ")[0]
        nb.write_midi(notes, 100.0, 0, folder / f"{source}__{k}.mid")


def study(nb: ModuleType, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Return the row of one composer."""
    random_state = arguments.random_state
    config = nb.Config()
    pieces = load(nb, folder, config)
    trained = train(nb, pieces, config, random_state)
    sides = [{piece.work for piece in part} for part in trained.split.values()]
    row = {
        "composer": folder.name,
        "files": len(pieces),
        "works": len({piece.work for piece in pieces}),
        "notes": sum(map(len, pieces)),
        "cut": len(set.union(*sides)) < sum(map(len, sides)),
        "epochs": trained.epochs,
        "seconds": round(trained.seconds),
        "pitch": nb.evaluate(trained.model, trained.test)["pitch"],
        "pitch without memory": nb.evaluate(trained.model, trained.test, forgotten=1.0)["pitch"],
        "pitch with memory of a window": pitch_in_window(nb, trained),
        "pitch, best table": best_table(nb, trained.split),
    }
    errors = nb.number_scores(trained.model, trained.test, trained.split, trained.normaliser)
    for name, error in errors.iterrows():
        row |= {name: error["model"], f"{name}, copy": error["copy of the note before"]}
        row[f"{name}, median"] = error["constant median"]
    real = real_excerpts(nb, pieces, config.piece_notes)
    for attempts in sorted({1, arguments.attempts}):
        chosen = ", chosen" if attempts > 1 else ""
        made = compose(nb, trained, arguments.pieces, 1000 * random_state, attempts)
        if arguments.keep:
            keep(nb, made, arguments.keep / f"{folder.name}{chosen}", 1000 * random_state)
        row |= {
            f"told apart{chosen}": told_apart(nb, real, made),
            f"stuck{chosen}": stuck(nb, made),
        }
        row[f"longest run shared{chosen}"] = int(np.max(longest_runs(nb, trained, made)))
    return row


def main() -> None:
    """Study the composers that are not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a folder with one folder of MIDI files a composer")
    parser.add_argument("composers", nargs="*", help="folders in it; all by default")
    parser.add_argument("--random-state", type=int, default=0)
    parser.add_argument("--pieces", type=int, default=24, help="composed for each, none selected")
    parser.add_argument("--attempts", type=int, default=1, help="of which the best is kept")
    parser.add_argument("--table", type=Path, help="another table")
    parser.add_argument("--keep", type=Path, help="folder for the pieces")
    arguments = parser.parse_args()
    table = arguments.table or table_path(arguments.random_state)
    present = sorted(folder.name for folder in arguments.path.iterdir() if folder.is_dir())
    wanted = arguments.composers or present
    if missing := sorted(set(wanted) - set(present)):
        parser.error(
            f"{arguments.path} has no {', '.join(missing)}; there are: {', '.join(present)}"
        )
    nb = definitions()
    for name in tqdm(wanted, "composers"):
        if (name,) not in known(table, ["composer"]):
            row = study(nb, arguments.path.resolve() / name, arguments)
            add_row(nb, table, row, ["composer"])


if __name__ == "__main__":
    main()
