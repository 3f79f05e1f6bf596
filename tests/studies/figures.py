"""Draw the figures of the report from the tables of the studies, into outputs/study.

    python tests/studies/figures.py

Each picture names in `Source` a digest of the tables that it was drawn from.
"""

import sys
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).parents[1] / "support"))
from ladder import PLAIN, STEPS
from study_tools import STUDY

HEADS = ["pitch", "step", "duration", "velocity"]


def ablation(rows: pd.DataFrame) -> plt.Figure:
    """Return a forest plot: how four scores change without each part."""
    parts = rows.groupby("left out").change.size().index[::-1]
    panels = "pitch", "step", "1-NN accuracy", "failing"
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4.5), sharey=True)
    for axis, score in zip(axes, panels, strict=True):
        for i, name in enumerate(("bach_chorales", "mozart")):
            mine = rows[(rows.score == score) & (rows.corpus == name)]
            y = parts.get_indexer(mine["left out"]) + 0.3 * i - 0.15
            axis.hlines(y, mine.low, mine.high, f"C{i}", label=name)
            fill = np.where(mine.sure, f"C{i}", "white")
            axis.scatter(mine.change, y, c=fill, edgecolor=f"C{i}", zorder=2)
        axis.axvline(0, color="0.7", zorder=0)
        axis.set_xlabel(f"change of {score}")
    axes[0].set_yticks(range(len(parts)), parts)
    axes[0].legend()
    return figure


def ladder(rows: pd.DataFrame) -> plt.Figure:
    """Return the scores of models from the plain one to the full one."""
    rows = rows.groupby("step of the ladder", sort=False).pitch
    figure, axis = plt.subplots(figsize=(7, 2.2))
    steps = [*PLAIN, *STEPS][::-1]  # the first on top
    axis.errorbar(rows.mean()[steps], steps, xerr=rows.std()[steps], fmt="o")
    axis.set_xlabel("validation pitch (nats), standard deviation over splits")
    return figure


def composers(rows: pd.DataFrame) -> plt.Figure:
    """Return paired dots by composer: the model, the strongest baseline, ground truth."""
    rows = rows.sort_values(["cut", "composer"])
    names, uncut = rows.composer + np.where(rows.cut, " *", ""), rows[~rows.cut]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), sharey=True)
    panels = {
        "pitch": ("pitch, strongest baseline", "strongest baseline"),
        "1-NN accuracy": ("1-NN accuracy, ground truth", "ground truth"),
    }
    for axis, (ours, (theirs, other)) in zip(axes, panels.items(), strict=True):
        for column, name in ((ours, "model"), (theirs, other)):
            label = f"{name}, mean {uncut[column].mean():.2f}"
            axis.plot(rows[column], names, "o", label=label)
        axis.hlines(names, rows[ours], rows[theirs], "0.7", zorder=0)
        axis.set_xlabel("pitch (nats)" if ours == "pitch" else ours)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    axes[1].errorbar(rows["1-NN accuracy"], names, xerr=2 * rows.deviation, fmt="none")
    gain = uncut[[f"{h}, strongest baseline" for h in HEADS]].set_axis(HEADS, axis=1) - uncut[HEADS]
    beaten = [f"{h} {(gain[h] > 0).sum()} of {gain[h].count()}" for h in HEADS]
    figure.suptitle(f"Strongest baseline beaten: {', '.join(beaten)}", fontsize=10)
    return figure


def drift(rows: pd.DataFrame) -> plt.Figure:
    """Return four statistics of pieces and of ground truth by quarter."""
    columns = pd.MultiIndex.from_product([["model", "ground truth"], range(1, 5)])
    values = rows.set_index("what").drop(columns="version").set_axis(columns, axis=1)
    measures = "nats", "mean pitch", "spread of the mean pitch", "mean step"
    figure, axes = plt.subplots(1, len(measures), figsize=(10, 2.3))
    for axis, measure in zip(axes, measures, strict=True):
        for name in ("model", "ground truth"):
            axis.plot(values.loc[measure, name], "o-", label=name)
        axis.set(title=measure, xlabel="quarter", xticks=range(1, 5))
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def calibration(rows: pd.DataFrame) -> plt.Figure:
    """Return a reliability diagram: what was observed against what was said."""
    rows[["head", "said"]] = rows.what.str.extract(r"(\w+).*?(\d+)%")
    figure, axis = plt.subplots(figsize=(4.5, 3))
    for head, mine in rows.groupby("head"):
        axis.plot(mine.said.astype(float), 100 * mine.share, "o", label=head)
    axis.axline((0, 0), slope=1, color="0.7")
    axis.set(xlabel="probability said (%)", ylabel="share observed (%)")
    axis.legend()
    return figure


def learning(rows: pd.DataFrame) -> plt.Figure:
    """Return the validation loss of three designs against seconds of training."""
    figure, axis = plt.subplots(figsize=(7, 2.6))
    for design, mine in rows.groupby("design", sort=False):
        axis.plot(mine.seconds, mine.pitch, ".-", label=design)
    axis.set(xlabel="seconds of training", ylabel="validation pitch (nats)")
    axis.legend(loc="upper right")
    return figure


def peers(rows: pd.DataFrame) -> plt.Figure:
    """Return parallels, leaps and 1-NN accuracy of sets of chorales."""
    panels = rows.groupby("score", sort=False)
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.2), sharey=True)
    for axis, (score, mine) in zip(axes, panels, strict=True):
        mine = mine.iloc[::-1]
        axis.errorbar(mine.value, mine.set, xerr=2 * mine.deviation.fillna(0), fmt="o")
        axis.set_xlim(0)
        axis.set_xlabel(score if score == "1-NN accuracy" else f"{score} per 100 notes")
    return figure


DRAWN = ablation, ladder, composers, drift, calibration, learning, peers
FIGURES = {function.__name__: function for function in DRAWN}


def source(name: str) -> str:
    """Return the digest of a table that a picture of it carries."""
    return f"{zlib.crc32((STUDY / f'{name}.csv').read_bytes()):08x}"


def main() -> None:
    """Draw all figures."""
    for name, draw in FIGURES.items():
        figure = draw(pd.read_csv(STUDY / f"{name}.csv"))
        figure.tight_layout()
        metadata = {"Source": source(name), "Software": None}
        figure.savefig(STUDY / f"{name}.png", dpi=80, metadata=metadata)
        plt.close(figure)


if __name__ == "__main__":
    main()
