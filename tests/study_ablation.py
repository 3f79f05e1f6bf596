"""Leave out one idea at a time and write outputs/study/ablation.csv.

    python tests/study_ablation.py PATH

PATH is a folder of MIDI files, for example data/mozart. Every idea is left out in trainings with
three random states, which also draw three splits by work. They are a sixth as long as the
notebook's own. What only concerns the drawing of notes is left out with the models of the whole.
Runs that are in outputs/study/ablation_runs.csv already are passed over, so an interrupted study
goes on where it stopped; two processes may share the work by --random-states.
"""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from notebook_tools import definitions
from study_tools import (
    STUDY,
    Trained,
    add_row,
    compose,
    known,
    load,
    real_excerpts,
    told_apart,
    train,
)
from tqdm import tqdm

RUNS, TABLE = STUDY / "ablation_runs.csv", STUDY / "ablation.csv"
KEY = ["idea left out", "random state"]
WHOLE = "none"
PIECES = 12  # composed for each run, none selected
SHORTER = 6  # the trainings are so many times shorter
FIGURES = ("pitch", "step", "duration", "told apart")

TRAINING = {
    WHOLE: {},
    "memory of the piece": {"remember": False},
    "candidates moved by intervals": {"MOVED": 0},
    "held and recent pitches": {"silent": ("held", "recent", "voices")},
    "metre": {"silent": ("metre",)},
    "transposition": {"transpose": 0},
    "corrupted context": {"noise": 0.0},
    "proposals for the numbers": {"propose": False},
}
DRAWING = {
    "nucleus": {"top_p": 1.0},
    "distance of the memory": {"distance": 1},
    "drawing of numbers (medians instead)": {"draw": False},
    "balance of the voices": {"rests": 0.0, "voices": 1000},
}


def forgetful(nb: ModuleType) -> type:
    """Return a memory of the piece that offers nothing."""

    class Forgetful(nb.PieceMemory):
        """A memory that offers nothing."""

        def candidates(self, distance: int = 1) -> list[tuple[int, int]]:
            """Return no candidates."""
            return [(nb.NO_PITCH, 0)] * (nb.LITERAL + nb.MOVED)

        def last_time(self, pitch: int) -> tuple[int, int]:
            """Return no place."""
            return -1, 0

    return Forgetful


def unaided(nb: ModuleType) -> type:
    """Return a number head that leaves the proposals aside and says a value of its own."""

    class Unaided(nb.NumberHead):
        """A number head without proposals."""

        def forward(self, x: torch.Tensor, proposals: torch.Tensor) -> tuple:
            """Return the value and the hidden layer."""
            output, hidden = nb.Head.forward(self, x)
            return output[..., 0], hidden

    return Unaided


def undrawn(nb: ModuleType) -> type:
    """Return habits that play the median as it is."""

    class Undrawn(nb.Habits):
        """Habits without errors."""

        def draw(self, index: int, median: torch.Tensor, *_: object) -> torch.Tensor:
            """Return the median."""
            return median

    return Undrawn


def features_without(nb: ModuleType, names: tuple[str, ...]) -> object:
    """Return the notebook's `note_features` with the named features silent."""
    whole = nb.note_features

    def note_features(*arguments: object) -> dict[str, np.ndarray]:
        """Return the features, some of them zero."""
        return {k: v * (k not in names) for k, v in whole(*arguments).items()}

    return note_features


def trained_without(nb: ModuleType, pieces: list, change: dict, random_state: int) -> tuple:
    """Return the figures of one training and the trained model."""
    change = dict(change)
    moved, silent = change.pop("MOVED", nb.MOVED), change.pop("silent", ())
    memory = nb.PieceMemory if change.pop("remember", True) else forgetful(nb)
    head = nb.NumberHead if change.pop("propose", True) else unaided(nb)
    config = nb.Config()
    config = replace(config, epochs=config.epochs // SHORTER, **change)
    with ExitStack() as changed:
        changed.enter_context(patch.object(nb, "MOVED", moved))
        changed.enter_context(patch.object(nb, "VOTES", [*nb.VOTES[:2], nb.LITERAL + moved]))
        changed.enter_context(patch.object(nb, "note_features", features_without(nb, silent)))
        changed.enter_context(patch.object(nb, "PieceMemory", memory))
        changed.enter_context(patch.object(nb, "NumberHead", head))
        trained = train(nb, pieces, config, random_state)
        errors = nb.number_scores(trained.model, trained.test, trained.split, trained.normaliser)
        row = {"pitch": nb.evaluate(trained.model, trained.test)["pitch"]}
        row |= {name: errors.model[name] for name in ("step", "duration")}
        row["told apart"] = likeness(nb, pieces, trained, random_state)
    return row, trained


def likeness(nb: ModuleType, pieces: list, trained: Trained, random_state: int) -> float:
    """Return how often unselected pieces by the model are told apart from the composer's."""
    real = real_excerpts(nb, pieces, trained.config.piece_notes)
    return told_apart(nb, real, compose(nb, trained, PIECES, 1000 * random_state))


def drawn_without(trained: Trained, change: dict) -> Trained:
    """Return the trained model with other settings of the drawing."""
    settings = {name: value for name, value in change.items() if name not in ("voices", "draw")}
    limits = replace(trained.limits, voices=change.get("voices", trained.limits.voices))
    return replace(trained, config=replace(trained.config, **settings), limits=limits)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean and spread of each figure, and of its change against the whole, by idea."""
    whole = runs[runs[KEY[0]] == WHOLE].set_index(KEY[1])
    rows = []
    for idea in [*TRAINING, *DRAWING]:
        mine = runs[runs[KEY[0]] == idea].set_index(KEY[1])
        row = {KEY[0]: idea, "random states": len(mine)}
        for name in FIGURES:
            change = mine[name] - whole[name]
            row |= {name: mine[name].mean(), f"{name}, spread": mine[name].std()}
            row |= {f"{name}, change": change.mean(), f"{name}, spread of change": change.std()}
        rows.append(row)
    return pd.DataFrame(rows)


def study(nb: ModuleType, pieces: list, random_state: int) -> None:
    """Make the runs of one random state that are missing."""
    done = known(RUNS, KEY)
    drawing_missing = any((idea, random_state) not in done for idea in DRAWING)
    for idea, change in tqdm(TRAINING.items(), f"random state {random_state}"):
        if (idea, random_state) in done and not (idea == WHOLE and drawing_missing):
            continue
        row, trained = trained_without(nb, pieces, change, random_state)
        add_row(nb, RUNS, {KEY[0]: idea, KEY[1]: random_state} | row, KEY)
        if idea == WHOLE:
            for other, settings in DRAWING.items():
                habits = nb.Habits if settings.get("draw", True) else undrawn(nb)
                with patch.object(nb, "Habits", habits):
                    apart = likeness(nb, pieces, drawn_without(trained, settings), random_state)
                drawn = {KEY[0]: other, KEY[1]: random_state} | row | {"told apart": apart}
                add_row(nb, RUNS, drawn, KEY)


def main() -> None:
    """Make the missing runs, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a folder of MIDI files")
    parser.add_argument("--random-states", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    nb = definitions()
    pieces = load(nb, arguments.path.resolve(), nb.Config())
    for random_state in arguments.random_states:
        study(nb, pieces, random_state)
    with nb.replacing(TABLE) as path:
        summary(pd.read_csv(RUNS)).to_csv(path, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
