"""Sections 9 and 13: scores with their intervals, their figure, and tables of studies."""

from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pytest


def test_bootstrap(nb: ModuleType) -> None:
    """The interval is that of the mean note over works, and there is none over a single one."""
    # of eight pieces, the long one is not drawn in a third of the samples, or up to three times
    uneven = [np.full(1, 1.0)] * 7 + [np.full(93, 2.0)]
    assert nb.bootstrap(uneven, [*"abcdefgh"]) == pytest.approx((1.93, 1.0, 1 + 279 / 284))
    values = np.random.default_rng(0).normal(size=100)
    expected = values.mean() + 0.196 * values.std() * np.array([0, -1, 1])
    works = [str(i % 100) for i in range(200)]  # two movements each
    found = nb.bootstrap([np.full(5, value) for value in [*values, *values]], works)
    assert found == pytest.approx(expected, abs=0.02)
    one = nb.bootstrap([np.zeros(1), np.ones(3)], ["a", "a"])
    assert one == pytest.approx((0.75, np.nan, np.nan), nan_ok=True)


def test_scores(nb: ModuleType) -> None:
    """The gain is over the strongest baseline that is no model, note by note, to six decimals.

    The figure shows these scores and says sure only where the interval leaves out zero.
    """
    model, zero = [np.array([1.0, 2.0]), np.array([5.0])], [np.zeros(2), np.zeros(1)]
    more = {"weak": 3.0, "best": 0.5, "plain model": -1.0, "model": 0.0}
    losses = {"pitch": {name: [piece + x for piece in model] for name, x in more.items()}}
    losses["step"] = {"best": zero, "plain model": zero, "model": model}
    losses["duration"] = losses["step"] | {"model": [zero[0] - 1, zero[1] + 1]}
    scores = nb.score_table(losses, ["a", "b"])
    table = scores.set_index(["head", "score"])
    assert table.loc["pitch"].index.tolist() == [*more, "gain over best"]
    assert table.value["pitch", "weak"] == 5.666667
    gains = [[0.5, 0.5, 0.5], [-2.666667, -5, -1.5], [0.333333, -1, 1]]
    assert table.xs("gain over best", level="score").to_numpy().tolist() == gains
    axes, said = nb.draw_scores(scores).axes, ("0.5 below", "2.67 above", "0.333 below")
    for axis, head, change in zip(axes, losses, said, strict=True):
        assert axis.get_title().startswith(head) and change in axis.get_title()
        assert ("not sure" in axis.get_title()) == (head == "duration")
        for y, name in enumerate(("model", "plain model", "best")):
            assert axis.get_yticklabels()[y].get_text().startswith(f"{name} ")
            value, low, high = table.loc[(head, name)]
            assert axis.lines[y].get_xydata().tolist() == [[value, y]]
            assert axis.collections[y].get_segments()[0][:, 0].tolist() == [low, high]
    axes = nb.draw_scores(nb.score_table(losses, ["a", "a"])).axes
    assert all("not sure" in axis.get_title() for axis in axes)
    plt.close("all")
