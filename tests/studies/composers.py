"""Train the notebook's model on every composer and write outputs/study/composers.csv.

    python tests/studies/composers.py PATH [composer ...]

PATH is a folder with one folder of MIDI files a composer. Composers that are in the table already
are passed over, so that the study goes on where it stopped, and two processes with different
composers may share it. Each row is one training by the notebook's own configuration, scored on the
test works once; the 1-NN accuracy is the mean over DRAWS draws of 96 pieces, none selected, beside
its standard deviation.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import definitions
from study_tools import (
    DRAWS,
    RANDOM_STATE,
    STUDY,
    add_row,
    known,
    load,
    mean_losses,
    one_nn_accuracy,
    real_excerpts,
    train,
    unselected,
    version,
)
from tqdm import tqdm

KEY = ["version", "composer"]
TABLE = STUDY / "composers.csv"


def study(nb: ModuleType, folder: Path, stamp: str) -> dict[str, object]:
    """Return the row of one composer."""
    config = nb.Config()
    pieces = load(nb, folder, config)
    trained = train(nb, pieces, config, RANDOM_STATE)
    training, test = (trained.split[name] for name in ("training", "test"))
    row = {
        "version": stamp,
        "composer": folder.name,
        "random state": RANDOM_STATE,
        "notes": sum(map(len, pieces)),
        "test works": len({piece.work for piece in test}),
        "cut": bool({p.name for p in training} & {p.name for p in test}),
    }
    for head, means in mean_losses(nb, trained).items():
        row[head] = means.pop("model")
        row[f"{head}, strongest baseline"] = min(means.values())
    real, composer = real_excerpts(nb, pieces, config), trained.composer
    states = [10_000 * RANDOM_STATE + 1000 * draw for draw in range(DRAWS)]
    draws = [unselected(nb, composer, test, state) for state in states]
    made = [[piece for _, piece, _ in draw] for draw in draws]
    true = [piece for _, _, piece in draws[0] if len(piece) == config.piece_notes]
    accuracy = [one_nn_accuracy(nb, real, draw) for draw in made]
    pitches = [piece.notes.pitch.to_numpy() for piece in training]
    statistics = nb.statistics_of(made[0], pitches, trained.normaliser, config)
    return row | {
        "1-NN accuracy": np.mean(accuracy),
        "deviation": np.std(accuracy, ddof=1),
        "1-NN accuracy, ground truth": one_nn_accuracy(nb, real, true) if true else np.nan,
        "longest run shared": int(statistics["run shared with training"].max()),
    }


def main() -> None:
    """Study the composers that are not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a folder with one folder of MIDI files a composer")
    parser.add_argument("composers", nargs="*", help="folders in it; all by default")
    arguments = parser.parse_args()
    present = sorted(folder.name for folder in arguments.path.iterdir() if folder.is_dir())
    wanted = arguments.composers or present
    if missing := sorted(set(wanted) - set(present)):
        parser.error(f"no {', '.join(missing)} in {arguments.path}; there are {', '.join(present)}")
    nb = definitions()
    stamp = version(nb)
    for name in tqdm(wanted, "composers"):
        if (stamp, name) not in known(TABLE, KEY):
            add_row(TABLE, study(nb, arguments.path / name, stamp), KEY)


if __name__ == "__main__":
    main()
