"""Leave out one part at a time, in full trainings, and write outputs/study/ablation.csv.

    python tests/studies/ablation.py PATH [--random-states 0 1 2] [--parts ...]

PATH is a folder of MIDI files, by default data/bach_chorales. A random state draws the split by
work as well as the weights. What only concerns the drawing of notes is left out with the model of
the whole. Each row of outputs/study/ablation_runs.csv is one run; runs that are there already are
passed over, so that the study goes on where it stopped, and two processes may share it. The column
`whole` says of which state of the notebook a run left something out; changes are taken within one.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import definitions
from study_tools import (
    STUDY,
    Trained,
    add_row,
    corpus_parser,
    known,
    load,
    mean_losses,
    one_nn_accuracy,
    real_excerpts,
    train,
    unselected,
)

RUNS, TABLE = STUDY / "ablation_runs.csv", STUDY / "ablation.csv"
KEY = ["corpus", "whole", "random state", "left out"]
WHOLE = "none"
NOW = "as it is now"
# oldest first
WHOLES = ("before the first end", "with used pitches", "with recent pitches", "before voices", NOW)
SCORES = ("pitch", "step", "duration", "velocity", "told apart", "silent")
SILENT = 0.1  # share of the time, above which a piece counts as silent

Changes = dict[tuple[object, str], Callable]  # functions by owner and name, and what replaces them


def after(owner: object, name: str, change: Callable) -> Changes:
    """Return a change of a function: what it returns passes through `change`."""
    function = getattr(owner, name)
    return {(owner, name): lambda *given, **named: change(function(*given, **named))}


def blank(nb: ModuleType, function: str, *names: str) -> Changes:
    """Return changes that make these features zero, or no pitch, among those of a function."""

    def without(features: dict) -> dict:
        empty = {k: nb.NO_PITCH if k in ("candidate", "parallel_pitch") else 0 for k in names}
        return features | {k: np.full_like(features[k], value) for k, value in empty.items()}

    return after(nb, function, without)


def uncopied(nb: ModuleType) -> Changes:
    """Return changes that offer nothing to copy."""
    copied = blank(nb, "copied_attributes", "copied", "copied_change", "copied_length")
    return blank(nb, "candidates", "candidate", "candidate_length") | copied


def untransposed(nb: ModuleType) -> Changes:
    """Return changes that find no match of intervals, so that nothing is copied transposed."""
    longest = nb.Matches.longest

    def literal(self: object, kind: int, allowed: np.ndarray) -> tuple:
        return longest(self, kind, allowed & (kind != nb.TRANSPOSED))

    return {(nb.Matches, "longest"): literal}


def unmoved(nb: ModuleType) -> Changes:
    """Return changes that add no residual to a median."""

    def still(found: list[tuple]) -> list[tuple]:
        return [(values, residuals * 0, places) for values, residuals, places in found]

    return after(nb, "seed_residuals", still)


def unsnapped(nb: ModuleType) -> Changes:
    """Return changes that draw attributes from a fine grid in place of the values of the seed."""
    values = nb.seed_values

    def between(seed: tuple, *rest: object) -> torch.Tensor:
        low, high = (ends(1, keepdim=True) for ends in (seed[0].amin, seed[0].amax))
        return values((low + (high - low) * torch.linspace(0, 1, 512), *seed[1:]), *rest)

    return {(nb, "seed_values"): between}


def unbounded(nb: ModuleType) -> Changes:
    """Return changes that let every step be drawn."""
    ends = [torch.tensor(-torch.inf), torch.tensor(torch.inf)]
    return after(nb.Composer, "step_bounds", lambda _: ends)


TRAINING = {
    WHOLE: ({}, lambda nb: {}),
    "copying": ({}, uncopied),
    "transposed copies": ({}, untransposed),
    "proposals for the attributes": ({}, lambda nb: after(nb, "proposals", torch.zeros_like)),
    "near notes": ({}, lambda nb: blank(nb, "context", "near_state")),
    "parallel motion": ({}, lambda nb: blank(nb, "context", "parallel_pitch")),
    "metre": ({}, lambda nb: blank(nb, "context", "context_metre")),
    "counts": ({}, lambda nb: blank(nb, "context", "context_counts")),
    "transposition": ({"transpose": 0}, lambda nb: {}),
    "copy dropout": ({"copy_dropout": 0.0}, lambda nb: {}),
    "first end as a proposal": ({}, lambda nb: blank(nb, "context", "context_end")),
    "loss weight 1, a third instead": ({"attribute_weight": 1 / 3}, lambda nb: {}),
    "loss weight 1, three instead": ({"attribute_weight": 3.0}, lambda nb: {}),
}
DRAWING = {
    "nucleus": ({"top_p": 1.0}, lambda nb: {}),
    "distance of copies": ({"distance": 1}, lambda nb: {}),
    "residuals (medians instead)": ({}, unmoved),
    "values of the seed": ({}, unsnapped),
    "bounds of the step": ({}, unbounded),
}
PARTS = TRAINING | DRAWING  # the changed settings and the changes that leave a part out


def changed(changes: Changes) -> ExitStack:
    """Return a context in which these functions are others."""
    stack = ExitStack()
    for (owner, name), value in changes.items():
        stack.enter_context(patch.object(owner, name, value))
    return stack


def music_scores(nb: ModuleType, trained: Trained, real: list, random_state: int) -> dict:
    """Return the 1-NN accuracy of unselected pieces, and how many are silent."""
    triples = unselected(nb, trained.composer, trained.split["test"], 10_000 * random_state)
    made = [piece for _, piece, _ in triples]
    silent = sum(nb.describe(piece.notes)["silence"] > SILENT for piece in made)
    return {"told apart": one_nn_accuracy(nb, real, made), "silent": int(silent)}


def study(nb: ModuleType, folder: Path, random_state: int, parts: list[str]) -> None:
    """Make the runs of one random state that are missing."""
    config, pieces = nb.Config(), load(nb, folder, nb.Config())
    real, done = real_excerpts(nb, pieces, config), known(RUNS, KEY)
    keys = {part: (folder.name, NOW, random_state, part) for part in [WHOLE, *parts]}
    missing = [part for part in parts if keys[part] not in done]
    drawing = [part for part in missing if part in DRAWING]
    for part in (part for part in TRAINING if part in missing or (part == WHOLE and drawing)):
        settings, change = TRAINING[part]
        with changed(change(nb)):
            trained = train(nb, pieces, replace(config, **settings), random_state)
            losses = {k: scores["model"] for k, scores in mean_losses(nb, trained).items()}
        for name in [part, *drawing] if part == WHOLE else [part]:
            settings, change = PARTS[name]
            composer = replace(trained.composer, config=replace(config, **settings))
            with changed(change(nb)):
                drawn = replace(trained, composer=composer)
                scores = losses | music_scores(nb, drawn, real, random_state)
            key = dict(zip(KEY, keys[name], strict=True))
            add_row(RUNS, key | {"epochs": len(trained.log)} | scores, KEY)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return by corpus and what was left out how the scores change, with their spreads.

    Of several wholes the newest counts. What is `sure` changes by more than twice its spread over
    at least three splits. A part is `kept` if it is still in the notebook.
    """
    rows, runs = {}, runs.reindex(columns=[*KEY, *SCORES])  # a velocity may never have been scored
    for whole in WHOLES:
        for corpus, mine in runs[runs.whole == whole].groupby("corpus"):
            base = mine[mine["left out"] == WHOLE].set_index("random state")
            for part, without in mine[mine["left out"] != WHOLE].groupby("left out"):
                without = without.set_index("random state")
                change = without[list(SCORES)] - base[list(SCORES)].reindex(without.index)
                mean, spread = change.mean(), change.std()
                sure = [n for n in SCORES if len(without) >= 3 and abs(mean[n]) > 2 * spread[n]]
                row = {"corpus": corpus, "left out": part, "whole": whole}
                row |= {"kept": part in PARTS, "runs": len(without)}
                row |= {name: cell(mean[name], spread[name]) for name in SCORES}
                rows[corpus, part] = row | {"sure": ", ".join(sure)}
    return pd.DataFrame([rows[key] for key in sorted(rows)])


def cell(mean: float, spread: float) -> str:
    """Return a change with its spread as text; empty if there is none."""
    if np.isnan(mean) or (mean == 0 and not spread > 0):
        return ""
    return f"{mean:+.3f}" + ("" if np.isnan(spread) else f" ± {spread:.3f}")


def main() -> None:
    """Make the missing runs, then the table."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--random-states", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    nb = definitions()
    for random_state in arguments.random_states:
        study(nb, arguments.path.resolve(), random_state, arguments.parts)
    summary(pd.read_csv(RUNS)).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
