"""Leave out one part at a time, in trainings, and write outputs/study/ablation.csv.

    python tests/studies/ablation.py PATH [--random-states 10 11 12 13 14] [--parts ...]

PATH is a folder of MIDI files, by default data/bach_chorales. A random state draws the split by
work as well as the weights; all is scored on validation pieces, and pieces continue their seeds.
Trainings have EPOCHS epochs. What only concerns the drawing of notes is left out with the model of
the whole. Each row of outputs/study/ablation_runs.csv is one run; runs that are there already are
passed over, so that the study goes on where it stopped, and two processes may share it.
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
from scipy.stats import ttest_1samp

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import definitions
from study_tools import (
    STUDY,
    Trained,
    add_row,
    corpus_parser,
    known,
    load,
    one_nn_accuracy,
    real_excerpts,
    train,
    unselected,
    version,
)

RUNS, TABLE = STUDY / "ablation_runs.csv", STUDY / "ablation.csv"
KEY = ["version", "corpus", "random state", "left out"]
WHOLE = "none"
EPOCHS = 6  # half of those of the notebook, so that the study ends
SCORES = ("pitch", "step", "duration", "velocity", "1-NN accuracy", "parallels", "leaps", "failing")
SCORES += ("keys struck again", "notes at once")

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


def unconditioned(nb: ModuleType) -> Changes:
    """Return changes that hide from an attribute's head what was drawn of the note before it."""
    attribute = nb.MultiHeadLSTM.attribute

    def alone(self: object, i: int, hidden: object, batch: dict, before: torch.Tensor) -> tuple:
        hidden_pitch = batch | {"pitch": batch["context_pitch"]}
        return attribute(self, i, hidden, hidden_pitch, before * 0)

    return {(nb.MultiHeadLSTM, "attribute"): alone}


def unmoved(nb: ModuleType) -> Changes:
    """Return changes that add no residual to a median."""

    def still(found: list[tuple]) -> list[tuple]:
        return [(values, residuals * 0, layers) for values, residuals, layers in found]

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


def unlimited(nb: ModuleType) -> Changes:
    """Return changes that offer a candidate however long its match already is."""
    candidates = nb.candidates
    return {(nb, "candidates"): lambda pieces, distance=1, _=None: candidates(pieces, distance)}


TRAINING = {
    WHOLE: ({}, lambda nb: {}),
    "copy dropout": ({"copy_dropout": 0.0}, lambda nb: {}),
    "transposed copies": ({}, untransposed),
    "first end as a proposal": ({}, lambda nb: blank(nb, "context", "context_end")),
    "parallel motion": ({}, lambda nb: blank(nb, "context", "parallel_pitch")),
    "copying": ({}, uncopied),
    "metre": ({}, lambda nb: blank(nb, "context", "context_metre")),
    "note counts": ({}, lambda nb: blank(nb, "context", "context_counts")),
    "near notes": ({}, lambda nb: blank(nb, "context", "near_state")),
    "conditioned heads": ({}, unconditioned),
    "transposition": ({"transpose": 0}, lambda nb: {}),
}
DRAWING = {
    "nucleus": ({"top_p": 1.0}, lambda nb: {}),
    "least distance of copies": ({"distance": 1}, lambda nb: {}),
    "limit on match length": ({}, unlimited),
    "residuals": ({}, unmoved),
    "rounding to seed values": ({}, unsnapped),
    "bounds on the step": ({}, unbounded),
}
PARTS = TRAINING | DRAWING  # the changed settings and the changes that leave a part out


def changed(changes: Changes) -> ExitStack:
    """Return a context in which these functions are others."""
    stack = ExitStack()
    for (owner, name), value in changes.items():
        stack.enter_context(patch.object(owner, name, value))
    return stack


def music_scores(nb: ModuleType, trained: Trained, real: list, triples: list) -> dict:
    """Return what unselected pieces are like: `failing` is the share that fails a check."""
    seeds, config = trained.split["validation"], trained.composer.config
    given = [p.notes.pitch for p in trained.split["training"]], trained.normaliser, config
    made = nb.statistics_of([piece for _, piece, _ in triples], *given)
    usual = nb.statistics_of(nb.excerpts(seeds, config.piece_notes), *given)
    return {
        "1-NN accuracy": one_nn_accuracy(nb, real, [piece for _, piece, _ in triples]),
        "parallels": 100 * made["parallels"].mean(),
        "leaps": 100 * made["leaps"].mean(),
        "keys struck again": 100 * made["keys struck again"].mean(),
        "notes at once": made["notes at once"].mean(),
        "failing": nb.outside_range(made, usual).any(axis=1).mean(),
    }


def study(nb: ModuleType, folder: Path, random_state: int, parts: list[str]) -> None:
    """Make the runs of one random state that are missing."""
    config = replace(nb.Config(), epochs=EPOCHS)
    pieces, stamp = load(nb, folder, config), version(nb)
    real = real_excerpts(nb, pieces, config)
    keys = {part: (stamp, folder.name, random_state, part) for part in [WHOLE, *parts]}
    missing = [part for part in parts if keys[part] not in known(RUNS, KEY)]
    drawing = [part for part in missing if part in DRAWING]
    for part in (part for part in TRAINING if part in missing or (part == WHOLE and drawing)):
        if keys[part] in known(RUNS, KEY) and not (part == WHOLE and drawing):
            continue  # by another process meanwhile
        settings, change = TRAINING[part]
        with changed(change(nb)):
            trained = train(nb, pieces, replace(config, **settings), random_state)
            loader = nb.make_eval_loader(trained.encoded["validation"], config)
            losses = nb.evaluate(trained.model, loader)
        for name in [part, *drawing] if part == WHOLE else [part]:
            settings, change = PARTS[name]
            composer = replace(trained.composer, config=replace(config, **settings))
            with changed(change(nb)):  # but not while measuring, which uses the features too
                seeds = trained.split["validation"]
                triples = unselected(nb, composer, seeds, 10_000 * random_state)
            scores = losses | music_scores(nb, trained, real, triples)
            key = dict(zip(KEY, keys[name], strict=True))
            add_row(RUNS, key | {"epochs": len(trained.log)} | scores, KEY)


def holm(p: pd.Series) -> pd.Series:
    """Return p-values corrected for their number (Holm 1979)."""
    order = p.sort_values()
    corrected = (order * np.arange(len(order), 0, -1)).cummax().clip(upper=1)
    return corrected.reindex(p.index)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return by corpus, part and score the mean change without the part, and its t-interval.

    Changes are paired by random state. `p` is of a paired t-test, by Holm corrected for the number
    of parts; what is `sure` has p < .05.
    """
    runs = runs.reindex(columns=[*KEY, *SCORES])  # a velocity may never have been scored
    runs = runs.melt(KEY, [*SCORES], "score").dropna(subset="value")
    tables = []
    for (corpus, score), mine in runs.groupby(["corpus", "score"], sort=False):
        values = mine.pivot(index="random state", columns="left out", values="value")
        change = values.drop(columns=WHOLE).sub(values[WHOLE], axis=0)
        change = change.loc[:, change.any() & (change.count() > 3)]  # what it can change at all
        test = ttest_1samp(change, 0, nan_policy="omit")
        ends = test.confidence_interval(0.95)
        table = {"change": change.mean(), "low": ends.low, "high": ends.high, "p": test.pvalue}
        table = pd.DataFrame(table, change.columns).assign(states=change.count())
        table = table.assign(p=holm(table.p), corpus=corpus, score=score)
        tables.append(table.assign(sure=table.p < 0.05).reset_index())
    table = pd.concat(tables).assign(version=runs.version.iloc[0])
    columns = ["version", "corpus", "left out", "score", "states"]
    columns += ["change", "low", "high", "p", "sure"]
    return table[columns].sort_values(columns[:4])


def main() -> None:
    """Make the missing runs, then the table."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--random-states", type=int, nargs="+", default=[*range(10, 15)])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    nb = definitions()
    for random_state in arguments.random_states:
        study(nb, arguments.path.resolve(), random_state, arguments.parts)
    runs = pd.read_csv(RUNS)
    table = summary(runs[runs.version == version(nb)])
    table.to_csv(TABLE, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
