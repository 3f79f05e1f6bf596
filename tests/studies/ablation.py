"""Leave out one idea at a time, in full trainings, and write outputs/study/ablation.csv.

    python tests/study_ablation.py PATH [--random-states 0 1 2] [--ideas ...]

PATH is a folder of MIDI files, by default data/bach_chorales. A random state draws the split by
work as well as the weights. What only concerns the drawing of notes is left out with the model of
the whole. Each row of outputs/study/ablation_runs.csv is one run; runs that are there already are
passed over, so that the study goes on where it stopped, and two processes may share it. The column
`whole` says of which state of the notebook a run left something out; changes are taken within one.
"""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import ROOT, definitions
from study_tools import (
    STUDY,
    Trained,
    add_row,
    known,
    load,
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
PIECES = 96  # composed in each run, none selected
SCORES = ("pitch", "step", "duration", "velocity", "told apart", "silent")
SILENT = 0.1  # share of the time, above which a piece counts as silent


def blanked(nb: ModuleType, *names: str) -> dict:
    """Return changes that blank what the model is told of these."""
    context = nb.context

    def features(pieces: object) -> dict:
        return {k: v * 0 if k in names else v for k, v in context(pieces).items()}

    return {(nb, "context"): features}


def unparalleled(nb: ModuleType) -> dict:
    """Return changes that do not tell where a voice would move in parallel."""
    context = nb.context

    def features(pieces: object) -> dict:
        found = context(pieces)
        return found | {"parallel_pitch": np.full_like(found["parallel_pitch"], nb.NO_PITCH)}

    return {(nb, "context"): features}


def uncopied(nb: ModuleType) -> dict:
    """Return changes that offer nothing to copy."""
    candidates, copied = nb.candidates, nb.copied_attributes

    def none(pieces: object, distance: int = 1) -> dict:
        found = candidates(pieces, distance)
        found["candidate"][:], found["candidate_length"][:] = nb.NO_PITCH, 0
        return found

    def nothing(pieces: object, pitch: np.ndarray) -> dict:
        return {k: np.zeros_like(v) for k, v in copied(pieces, pitch).items()}

    return {(nb, "candidates"): none, (nb, "copied_attributes"): nothing}


def untransposed(nb: ModuleType) -> dict:
    """Return changes that find no match of intervals, so that nothing is copied transposed."""
    longest = nb.PiecesSoFar.longest

    def literal(self: object, way: int, allowed: np.ndarray) -> tuple:
        return longest(self, way, allowed & (way != nb.TRANSPOSED))

    return {(nb.PiecesSoFar, "longest"): literal}


def unaided(nb: ModuleType) -> dict:
    """Return changes that make a number head leave the proposals aside."""
    head = nb.head

    def own_value(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[..., :2], output[..., 2:] * 0 - 1e9], dim=-1)

    def alone(inputs: int, units: int, outputs: int, dropout: float) -> torch.nn.Sequential:
        made = head(inputs, units, outputs, dropout)
        if outputs == 2 + nb.PROPOSALS:
            made[1].register_forward_hook(own_value)
        return made

    return {(nb, "head"): alone}


def unmoved(nb: ModuleType) -> dict:
    """Return changes that add no residual to a median."""
    residuals = nb.seed_residuals

    def none(*features: object) -> list[tuple]:
        return [(values, more * 0, places) for values, more, places in residuals(*features)]

    return {(nb, "seed_residuals"): none}


def unsnapped(nb: ModuleType) -> dict:
    """Return changes that do not put a drawn number on a value of the seed."""

    def values(
        seed: tuple, medians: torch.Tensor, layers: torch.Tensor, neighbours: int
    ) -> torch.Tensor:
        known, residuals, places = seed
        near = torch.cdist(layers, places).topk(neighbours, largest=False).indices
        # without limits a number that is far off leads to one still further off
        low, high = (ends(1)[:, None, None] for ends in (known.amin, known.amax))
        return (medians[..., None] + residuals[:, None].take_along_dim(near, -1)).clamp(low, high)

    return {(nb, "seed_values"): values}


def unbounded(nb: ModuleType) -> dict:
    """Return changes that let every step be drawn."""

    def bounds(*_: object) -> list[torch.Tensor]:
        return [torch.tensor(-torch.inf), torch.tensor(torch.inf)]

    return {(nb.Composer, "step_bounds"): bounds}


TRAINING = {
    WHOLE: ({}, lambda nb: {}),
    "copying": ({}, uncopied),
    "transposed copies": ({}, untransposed),
    "proposals for the numbers": ({}, unaided),
    "near notes": ({}, lambda nb: blanked(nb, "near_state")),
    "parallel motion": ({}, unparalleled),
    "metre": ({}, lambda nb: blanked(nb, "context_metre")),
    "counts": ({}, lambda nb: blanked(nb, "context_counts")),
    "transposition": ({"transpose": 0}, lambda nb: {}),
    "windows without copies": ({"copy_dropout": 0.0}, lambda nb: {}),
    "first end as a proposal": ({}, lambda nb: blanked(nb, "context_end")),
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


def changed(changes: dict) -> ExitStack:
    """Return a context in which these attributes are others."""
    stack = ExitStack()
    for (owner, name), value in changes.items():
        stack.enter_context(patch.object(owner, name, value))
    return stack


def music_scores(nb: ModuleType, trained: Trained, real: list, random_state: int) -> dict:
    """Return how unselected pieces are told apart, and how many are silent."""
    triples = unselected(nb, trained.composer, trained.split["test"], PIECES, 10_000 * random_state)
    made = [piece for _, piece, _ in triples]
    silent = sum(nb.describe(piece.notes)["silence"] > SILENT for piece in made)
    return {"told apart": one_nn_accuracy(nb, real, made), "silent": int(silent)}


def test_scores(nb: ModuleType, trained: Trained) -> dict[str, float]:
    """Return the model's nats per pitch and errors of the numbers on the test pieces."""
    test = nb.make_eval_loader(trained.encoded["test"], trained.composer.config)
    scores = {"pitch": nb.evaluate(trained.model, test)["pitch"]}
    models = {"model": trained.model}
    losses = nb.attribute_losses(models, trained.encoded, trained.normaliser)
    return scores | {k: float(np.concatenate(rules["model"]).mean()) for k, rules in losses.items()}


def study(nb: ModuleType, folder: Path, random_state: int, ideas: list[str]) -> None:
    """Make the runs of one random state that are missing."""
    config, done = nb.Config(), known(RUNS, KEY)
    pieces = load(nb, folder, config)
    real = real_excerpts(nb, pieces, config)
    keys = {i: dict(zip(KEY, (folder.name, NOW, random_state, i), strict=True)) for i in ideas}
    missing = [idea for idea in ideas if tuple(keys[idea].values()) not in done]
    for idea in [idea for idea in ideas if idea in TRAINING]:
        drawing = [other for other in missing if other in DRAWING and idea == WHOLE]
        if idea not in missing and not drawing:
            continue
        settings, change = TRAINING[idea]
        with changed(change(nb)):
            trained = train(nb, pieces, replace(config, **settings), random_state)
            row = {"epochs": len(trained.log)} | test_scores(nb, trained)
            scores = music_scores(nb, trained, real, random_state)
            add_row(RUNS, keys[idea] | row | scores, KEY)
        for other in drawing:
            settings, change = DRAWING[other]
            composer = replace(trained.composer, config=replace(config, **settings))
            with changed(change(nb)):
                scores = music_scores(nb, replace(trained, composer=composer), real, random_state)
            add_row(RUNS, keys[other] | row | scores, KEY)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return by corpus and what was left out how the scores change, with their spreads.

    Of several wholes the newest counts. What is `sure` changes by more than twice its spread over
    at least three splits. A part is `kept` if it is still in the notebook.
    """
    rows = {}
    for whole in WHOLES:
        for corpus, mine in runs[runs.whole == whole].groupby("corpus"):
            base = mine[mine["left out"] == WHOLE].set_index("random state")
            for idea, without in mine[mine["left out"] != WHOLE].groupby("left out"):
                without = without.set_index("random state")
                change = without[list(SCORES)] - base[list(SCORES)].reindex(without.index)
                mean, spread = change.mean(), change.std()
                sure = [n for n in SCORES if len(without) >= 3 and abs(mean[n]) > 2 * spread[n]]
                row = {"corpus": corpus, "left out": idea, "whole": whole}
                row |= {"kept": idea in [*TRAINING, *DRAWING], "runs": len(without)}
                row |= {name: cell(mean[name], spread[name]) for name in SCORES}
                rows[corpus, idea] = row | {"sure": ", ".join(sure)}
    return pd.DataFrame([rows[key] for key in sorted(rows)])


def cell(mean: float, spread: float) -> str:
    """Return a change with its spread as text; empty if there is none."""
    if np.isnan(mean) or (mean == 0 and not spread > 0):
        return ""
    return f"{mean:+.3f}" + ("" if np.isnan(spread) else f" ± {spread:.3f}")


def main() -> None:
    """Make the missing runs, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=ROOT / "data" / "bach_chorales")
    parser.add_argument("--random-states", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ideas", nargs="+", default=[*TRAINING, *DRAWING])
    arguments = parser.parse_args()
    nb = definitions()
    for random_state in arguments.random_states:
        study(nb, arguments.path.resolve(), random_state, arguments.ideas)
    summary(pd.read_csv(RUNS)).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
