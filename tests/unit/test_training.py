"""Losses, training, early stopping, and the piece of the plain model."""

import math
from collections import Counter
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from toys import FULL, HEADS, PLAIN, new_model


def weights_of(model: nn.Module) -> torch.Tensor:
    """Return all weights of a model in one vector."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize(("passes", "most", "share"), [(2.5, 999, 2.5), (2, 11, 0)])
def test_size_of_an_epoch(toy: SimpleNamespace, passes: float, most: int, share: float) -> None:
    """An epoch is some passes over all windows, each drawn equally often, or the most allowed."""
    config = replace(toy.config, max_passes=passes, epoch_windows=most, transpose=2)
    loader = toy.nb.make_train_loader(toy.encoded, config)
    drawn = Counter(loader.sampler)
    assert drawn.total() == (round(share * len(loader.dataset)) or most)
    assert set(drawn.values()) <= {math.floor(share) or 1, math.ceil(share) or 1}
    assert loader.dataset.largest_shift == 2


def test_scores_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Scores are means over all notes, without dropout, gradients or random numbers."""
    model, state, spied = new_model(toy, FULL).train(), torch.get_rng_state(), []
    model.register_forward_hook(lambda *call: spied.append(call[-1][0].requires_grad))
    found = nb.evaluate(model, nb.make_eval_loader(toy.encoded, replace(toy.config, batch_size=2)))
    assert torch.equal(torch.get_rng_state(), state) and not any(spied) and len(spied) > 1
    (logits, medians, _), valid = new_model(toy, FULL)(toy.batch), toy.batch["valid"]
    nats = -logits.log_softmax(-1).gather(-1, toy.batch["pitch"][..., None])[valid].mean().item()
    errors = (medians - toy.batch["attributes"])[valid].abs().mean(0).tolist()
    assert found == pytest.approx(dict(zip(HEADS, [nats, *errors], strict=True)), rel=1e-5)
    total = [nb.composite_loss(found, replace(toy.config, attribute_weight=w)) for w in (0, 1, 4)]
    assert total == pytest.approx([nats + w * sum(errors) for w in (0, 1, 4)], rel=1e-5)


def test_one_epoch(nb: ModuleType, toy: SimpleNamespace) -> None:
    """An epoch trains with dropout and fresh gradients, at most of length one."""
    model = new_model(toy, FULL)
    for weights in model.parameters():
        weights.grad = torch.full_like(weights, torch.nan)  # of an earlier batch
    optimiser, before = torch.optim.SGD(model.parameters(), lr=0.1), weights_of(model)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    config = replace(toy.config, attribute_weight=99)
    nb.train_one_epoch(model, [toy.batch], optimiser, schedule, config)
    moved = (weights_of(model) - before).norm().item()
    assert model.training and moved == pytest.approx(0.1, rel=1e-3)


def test_training(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The rate rises for a tenth, then falls to nothing; the log has what the best scored."""
    changes = {"epochs": 8, "patience": 9, "batch_size": 4, "learning_rate": 2e-2, "dropout": 0.0}
    model, config, rates = new_model(toy, FULL, **changes), replace(toy.config, **changes), []
    encoded = {"training": toy.encoded[:2], "validation": toy.encoded[2:3]}
    spy = register_optimizer_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    log = nb.fit(model, encoded, config)
    spy.remove()
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(2e-2, rel=0.05) and 0 < top <= 0.15 * len(rates)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert rates[0] < 2e-3 and rates[-1] < 2e-5
    for split, pieces in (("training", encoded["training"][:1]), ("validation", toy.encoded[2:3])):
        scores = nb.evaluate(model, nb.make_eval_loader(pieces, config))
        logged = log.loc[log.validation_total.idxmin(), [f"{split}_{head}" for head in HEADS]]
        assert [*scores.values()] == pytest.approx(logged.tolist()), split
    assert log.validation_total.min() == pytest.approx(sum(scores.values()))
    assert log.training_pitch[7] < log.training_pitch[0] - 0.5


@pytest.mark.parametrize(
    ("scores", "best"),  # by epoch, None where it is interrupted; an equal score is no better
    [([5, 3, 4, 3, 9], 2), ([5, 6, 4, 5, 3, 2], 6), ([5, 3, 4, None], 2), ([None], 0)],
)
def test_best_weights_are_kept(
    toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, scores: list[int | None], best: int
) -> None:
    """Stopped early or interrupted, training keeps the weights best on validation."""
    model, epochs = new_model(toy, PLAIN), iter(range(1, 9))
    untrained = weights_of(model)
    encoded = {"training": toy.encoded[:3], "validation": toy.encoded[3:]}

    def train(model: nn.Module, loader: object, *_: object) -> None:
        assert loader.dataset.encoded is encoded["training"]
        epoch = next(epochs)
        for weights in model.parameters():
            weights.data.fill_(epoch)  # in place, as an optimiser does

    def evaluate(model: nn.Module, loader: object) -> dict[str, float]:
        (piece,), epoch = loader.dataset.encoded, int(weights_of(model)[0])
        score = scores[epoch - 1] if piece is toy.encoded[3] else -epoch
        if score is None:
            raise KeyboardInterrupt
        return {"pitch": score / 2, "step": score / 2}

    monkeypatch.setattr(toy.nb, "train_one_epoch", train)
    monkeypatch.setattr(toy.nb, "evaluate", evaluate)
    log = toy.nb.fit(model, encoded, replace(toy.config, epochs=6, patience=3))
    assert (weights_of(model) == (best or untrained)).all()
    rows = log[["epoch", "validation_total"]].to_numpy().tolist()
    assert rows == [[i, score] for i, score in enumerate(scores, start=1) if score]


@pytest.mark.parametrize("sharp", [False, True])
def test_plain_continuation(nb: ModuleType, toy: SimpleNamespace, sharp: bool) -> None:
    """Pitches follow the softmax, and attributes are predicted, from the seed and all since."""
    model, seed = new_model(toy, PLAIN).train(), toy.pieces[0].notes.head(20)
    model.pitch_head.weight.data *= 1e4 if sharp else 1
    model.attribute_head.weight.data *= 0.3  # so that none is below zero
    arguments = nb.shift_notes(seed, toy.normaliser), toy.normaliser, 15
    one, same, other = (nb.continue_plainly(model, *arguments, state) for state in (0, 0, 1))
    assert one.equals(same) and one.equals(other) == sharp and len(one) == 15
    assert np.allclose(one.onset, one.step.cumsum())
    encoded = nb.shift_notes(pd.concat([seed, one], ignore_index=True), toy.normaliser)
    logits, medians = (x[0, 20:] for x in model({k: v[None] for k, v in encoded.items()}))
    assert torch.allclose(medians, encoded["attributes"][20:], atol=1e-3)
    assert not sharp or torch.equal(logits.argmax(-1), encoded["pitch"][20:])
