"""Leave out one idea at a time, in full trainings, and write outputs/study/ablation.csv.

    python tests/study_ablation.py PATH [--random-states 0 1 2] [--ideas ...]

PATH is a folder of MIDI files, by default data/bach_chorales. A random state draws the split by
work as well as the weights. What only concerns the drawing of notes is left out with the model of
the whole. Each row of outputs/study/ablation_runs.csv is one run; runs that are there already are
passed over, so that the study goes on where it stopped, and two processes may share it.
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
from notebook_tools import ROOT, definitions
from study_tools import STUDY, Trained, add_row, known, load, real_figures, train, unselected

RUNS, TABLE = STUDY / "ablation_runs.csv", STUDY / "ablation.csv"
KEY = ["corpus", "random state", "idea left out"]
WHOLE = "none"
PIECES = 96  # composed in each run, none selected
SCORES = ("pitch", "step", "duration", "velocity", "told apart", "silent")
SILENT = 0.1  # share of the time, above which a piece counts as silent


def blanked(nb: ModuleType, *names: str) -> dict:
    """Return changes that blank what the model is told of these."""
    context, whole = nb.PieceSoFar.context, [f"context_{name}" for name in names]

    def told(self: object) -> dict:
        return {k: v * 0 if k in whole else v for k, v in context(self).items()}

    return {(nb.PieceSoFar, "context"): told}


def uncopied(nb: ModuleType, first: int) -> dict:
    """Return changes that offer no candidate from number `first` on; with 0 no numbers either."""
    candidates, copied = nb.CopyMemory.candidates, nb.CopyMemory.copied

    def some(self: object, distance: int = 1) -> dict:
        found = candidates(self, distance)
        found["candidate"][first:], found["candidate_length"][first:] = nb.NO_PITCH, 0
        return found

    def nothing(self: object, pitch: int) -> dict:
        return {k: np.zeros_like(v) for k, v in copied(self, pitch).items()}

    changes = {(nb.CopyMemory, "candidates"): some}
    return changes | ({(nb.CopyMemory, "copied"): nothing} if first == 0 else {})


def unaided(nb: ModuleType) -> dict:
    """Return changes that make a number head leave the proposals aside."""

    def forward(self: object, known: torch.Tensor, proposals: torch.Tensor) -> tuple:
        output, hidden = nb.Head.forward(self, known)
        return output[..., 0], hidden

    return {(nb.NumberHead, "forward"): forward}


def no_intervals(nb: ModuleType) -> dict:
    """Return changes that take the votes for intervals from the pitch head."""
    forward = nb.Head.forward

    def mute(self: object, x: torch.Tensor) -> tuple:
        output, hidden = forward(self, x)
        if output.shape[-1] == sum(nb.VOTES):
            output = torch.cat(
                [
                    output[..., : nb.VOTES[0]],
                    output[..., nb.VOTES[0] : -nb.VOTES[2]] * 0,
                    output[..., -nb.VOTES[2] :],
                ],
                -1,
            )
        return output, hidden

    return {(nb.Head, "forward"): mute}


def unsnapped(nb: ModuleType) -> dict:
    """Return changes that do not put a drawn number on a value of the seed."""

    def values(
        self: object, index: int, medians: torch.Tensor, layers: torch.Tensor, neighbours: int
    ) -> torch.Tensor:
        near = torch.cdist(layers, self.layers[:, index]).topk(neighbours, largest=False).indices
        return medians[:, None] + self.residuals[near, index]

    return {(nb.ResidualBank, "values"): values}


TRAINING = {
    WHOLE: ({}, lambda nb: {}),
    "copying": ({}, lambda nb: uncopied(nb, 0)),
    "transposed copy": ({}, lambda nb: uncopied(nb, nb.LITERAL)),
    "proposals for the numbers": ({}, unaided),
    "held pitches": ({}, lambda nb: blanked(nb, "held")),
    "recent pitches": ({}, lambda nb: blanked(nb, "recent")),
    "metre": ({}, lambda nb: blanked(nb, "metre")),
    "polyphony as input": ({}, lambda nb: blanked(nb, "polyphony")),
    "transposition": ({"transpose": 0}, lambda nb: {}),
    "windows without copies": ({"forget": 0.0}, lambda nb: {}),
    "logits for intervals": ({}, no_intervals),
    "loss weight 1, a third instead": ({"number_weight": 1 / 3}, lambda nb: {}),
    "loss weight 1, three instead": ({"number_weight": 3.0}, lambda nb: {}),
}
DRAWING = {
    "nucleus": ({"top_p": 1.0}, lambda nb: {}),
    "distance of copies": ({"distance": 1}, lambda nb: {}),
    "residuals (medians instead)": ({"neighbours": 0}, lambda nb: {}),
    "values of the seed": ({}, unsnapped),
    "balance of polyphony": ({}, lambda nb: {(nb, "balance"): lambda *_: None}),
}


def changed(changes: dict) -> ExitStack:
    """Return a context in which these attributes are others."""
    stack = ExitStack()
    for (owner, name), value in changes.items():
        stack.enter_context(patch.object(owner, name, value))
    return stack


def music_scores(nb: ModuleType, trained: Trained, real: pd.DataFrame, random_state: int) -> dict:
    """Return how unselected pieces are told apart, and how many are silent."""
    made = nb.with_sources(unselected(nb, trained, PIECES, 10_000 * random_state))
    return {"told apart": nb.told_apart(real, made), "silent": int((made.silence > SILENT).sum())}


def test_scores(nb: ModuleType, trained: Trained) -> dict[str, float]:
    """Return the model's nats per pitch and errors of the numbers on the test pieces."""
    test = nb.whole_pieces(trained.encoded["test"], trained.composer.config)
    scores = {"pitch": nb.evaluate(trained.model, test)["pitch"]}
    losses = nb.number_losses(
        trained.model, trained.encoded["test"], trained.split, trained.normaliser
    )
    return scores | {k: float(np.concatenate(rules["model"]).mean()) for k, rules in losses.items()}


def study(nb: ModuleType, folder: Path, random_state: int, ideas: list[str]) -> None:
    """Make the runs of one random state that are missing."""
    config, done = nb.Config(), known(RUNS, KEY)
    pieces = load(nb, folder, config)
    real = real_figures(nb, pieces, config)
    for idea in ideas:
        key = {"corpus": folder.name, "random state": random_state, "idea left out": idea}
        if tuple(key.values()) in done or idea in DRAWING:
            continue
        settings, change = TRAINING[idea]
        with changed(change(nb)):
            trained = train(nb, pieces, replace(config, **settings), random_state)
            row = {"epochs": len(trained.log)} | test_scores(nb, trained)
            add_row(RUNS, key | row | music_scores(nb, trained, real, random_state), KEY)
        for other in [name for name in ideas if name in DRAWING and idea == WHOLE]:
            settings, change = DRAWING[other]
            composer = replace(trained.composer, config=replace(config, **settings))
            with changed(change(nb)):
                scores = music_scores(nb, replace(trained, composer=composer), real, random_state)
            add_row(RUNS, key | {"idea left out": other} | row | scores, KEY)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return by corpus and idea the scores and their changes against the whole, with spreads.

    An idea is `kept` if it is still in the notebook.
    """
    rows = []
    for corpus, mine in runs.groupby("corpus", sort=False):
        whole = mine[mine["idea left out"] == WHOLE].set_index("random state")
        ideas = [*TRAINING, *DRAWING]
        for idea in [*ideas, *sorted(set(mine["idea left out"]) - set(ideas))]:
            without = mine[mine["idea left out"] == idea].set_index("random state")
            if without.empty:
                continue
            row = {"corpus": corpus, "idea left out": idea, "kept": idea in ideas}
            row["runs"] = len(without)
            for name in [name for name in SCORES if name in mine]:
                change = without[name] - whole[name].reindex(without.index)
                row |= {name: without[name].mean(), f"{name}, change": change.mean()}
                row[f"{name}, spread"] = change.std()
            rows.append(row)
    return pd.DataFrame(rows)


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
    summary(pd.read_csv(RUNS)).to_csv(TABLE, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
