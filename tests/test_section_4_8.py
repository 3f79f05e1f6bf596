"""Sections 4 to 8 of the notebook: numbers, what the model is told, the models and training."""

import copy
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, code_cells, piece_of, read_notebook, small_config
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

Batch = dict[str, torch.Tensor]
NO_PITCH = 128
TICK = 1 / 960  # beats, in which nothing changes
HEADS = ["pitch", "step", "duration", "velocity"]
PLAIN, FULL = MODELS = ["PlainLSTM", "MultiHeadLSTM"]
# scores on validation by epoch, None where it is interrupted, and the best; equal is no better
SCORES = [([5, 3, 4, 3, 9], 2), ([5, 6, 4, 5, 3, 2], 6), ([5, 3, 4, None], 2), ([None], 0)]


@pytest.fixture(scope="module")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces, encoded, with a normaliser and both models, untrained."""
    config = small_config(nb)
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(4)]
    normaliser = nb.Normaliser(pieces)
    encoded = nb.encode(pieces, normaliser, config)
    torch.manual_seed(0)
    plain = nb.PlainLSTM(normaliser.names, config).eval()
    model = nb.MultiHeadLSTM(normaliser.names, range(40, 80), config).eval()
    models = {PLAIN: plain, FULL: model}
    return SimpleNamespace(**locals())


def batch_of(toy: SimpleNamespace, encoded: list[Batch]) -> Batch:
    """Return encoded pieces as one batch of whole, padded windows."""
    windows = toy.nb.NoteWindows(encoded, max(len(piece["pitch"]) for piece in encoded))
    return next(iter(torch.utils.data.DataLoader(windows, len(encoded))))


def new_model(toy: SimpleNamespace, kind: str, **changes: float) -> nn.Module:
    """Return an untrained model of a kind with changes to the configuration."""
    pitches = [range(40, 80)] if kind == FULL else []
    return getattr(toy.nb, kind)(HEADS[1:], *pitches, replace(toy.config, **changes))


def weights_of(model: nn.Module) -> torch.Tensor:
    """Return all weights of a model in one vector."""
    return nn.utils.parameters_to_vector(model.parameters()).detach()


# Section 4: numbers and windows


def test_normaliser(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Numbers are standardised logarithms, by the pieces given alone, and come back."""
    normaliser, notes = nb.Normaliser(toy.pieces[:2]), toy.pieces[3].notes
    found = normaliser.transform(notes)
    assert normaliser.names == HEADS[1:] and found.dtype == np.float32
    for column, name in zip(found.T, HEADS[1:], strict=True):
        known = np.log2(np.concatenate([p.notes[name] for p in toy.pieces[:2]]) + 1 / 16)
        expected = (np.log2(notes[name] + 1 / 16) - known.mean()) / known.std()
        assert np.allclose(column, expected, atol=1e-5), name
    assert np.allclose(normaliser.inverse(found), notes[HEADS[1:]], 1e-5, 1e-5)
    assert not normaliser.inverse(np.full(3, -99.0)).any(), "never negative"
    steady = piece_of(nb, "steady", [(i**1.5, 60 + i, 1, 90) for i in range(9)])
    normaliser = nb.Normaliser([steady])  # its velocity is left out, its duration finite
    assert normaliser.names == HEADS[1:3] and not normaliser.transform(steady.notes)[:, 1].any()


def test_only_training_pieces_are_learned_from() -> None:
    """The notebook takes statistics and training windows from the training pieces alone."""
    source = "\n".join(cell.source for cell in code_cells(read_notebook()))
    found = re.findall(r"(?<!def )\b(Normaliser|make_train_loader)\(([^,)]+)", source)
    windows = {("make_train_loader", f'{kind}["training"]') for kind in ("shifted", "encoded")}
    assert set(found) == {("Normaliser", 'split["training"]')} | windows


@pytest.mark.parametrize("length", [1, 16, 500])
def test_each_position_is_in_one_window(nb: ModuleType, toy: SimpleNamespace, length: int) -> None:
    """Windows without jitter hold the notes of each piece once; the padding is not valid."""
    windows = nb.NoteWindows(toy.encoded, length)
    items = [windows[i] for i in range(len(windows))]
    assert len(items) == sum(-(-len(piece) // length) for piece in toy.pieces)
    for name in toy.encoded[0]:
        found = torch.cat([item[name][item["valid"]] for item in items])
        assert torch.equal(found, torch.cat([piece[name] for piece in toy.encoded])), name
        assert all(len(item[name]) == length for item in items)
        assert not any(item[name][~item["valid"]].any() for item in items)


@pytest.mark.parametrize(("shift", "length"), [(-6, 20), (5, NO_PITCH), (0, 20)])
def test_transposition(nb: ModuleType, toy: SimpleNamespace, shift: int, length: int) -> None:
    """A transposed window is that of the transposed piece; at the edges pitches stay pitches."""
    piece = toy.pieces[1]
    moved = replace(piece, notes=piece.notes.assign(pitch=piece.notes.pitch + shift))
    both = nb.encode([piece, moved], toy.normaliser, toy.config)
    window, expected = (nb.NoteWindows([encoded], length)[0] for encoded in both)
    found, valid = nb.transpose(window, shift), window["valid"]
    for part in (found, expected):  # between no pitches there is no interval
        part["parallel_interval"] = part["parallel_interval"] * (part["parallel_pitch"] < NO_PITCH)
    assert found.keys() == expected.keys() and (window["parallel_pitch"] == NO_PITCH).any()
    for name, values in expected.items():
        assert torch.equal(found[name][valid], values[valid]), name
    for name in ("pitch", "candidate", "context_pitch", "near_pitch", "parallel_pitch"):
        low, high, none = nb.transpose({name: torch.tensor([2, 125, NO_PITCH])}, shift)[name]
        assert (low, high, none) == (max(0, 2 + shift), min(125 + shift, 127), NO_PITCH)


def test_random_windows_stay_inside(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Windows in training are transposed runs of a piece that begin up to half a window off."""
    long = toy.encoded[3] | {"place": torch.arange(len(toy.pieces[3]))}
    windows, shifts, jitters = nb.NoteWindows([long], 16, largest_shift=3), set(), set()
    torch.manual_seed(0)
    for index in list(range(len(windows))) * 30:
        item = windows[index]
        start = int(item["place"][0])
        assert torch.equal(item["place"], torch.arange(start, start + 16)) and item["valid"].all()
        (shift,) = set((item["pitch"] - long["pitch"][start : start + 16]).tolist())
        shifts.add(shift)
        # the first and the last window cannot move freely
        jitters |= {start - 16 * index} if 0 < index < len(windows) - 2 else set()
    assert shifts == {*range(-3, 4)} and jitters == {*range(-8, 9)}
    padded = nb.NoteWindows(toy.encoded[:1], 500, largest_shift=3)[0]
    assert padded["valid"].tolist() == [i < len(toy.pieces[0]) for i in range(500)]


@pytest.mark.parametrize(
    ("max_passes", "most", "share"), [(2, 999, 2), (2.5, 999, 2.5), (2, 11, 0)]
)
def test_size_of_an_epoch(toy: SimpleNamespace, max_passes: float, most: int, share: float) -> None:
    """An epoch is some passes over all windows, each drawn equally often, or the most allowed."""
    config = replace(toy.config, max_passes=max_passes, epoch_windows=most)
    loader = toy.nb.make_train_loader(toy.encoded, config)
    drawn = Counter(loader.sampler)
    assert drawn.total() == sum(len(batch["pitch"]) for batch in loader)
    assert drawn.total() == (round(share * len(loader.dataset)) or most)
    assert set(drawn.values()) <= {math.floor(share) or 1, math.ceil(share) or 1}
    assert loader.dataset.largest_shift == config.transpose


# Sections 5, 7 and 8: the models and their training


@pytest.mark.parametrize("kind", MODELS)
def test_no_input_is_deaf(toy: SimpleNamespace, kind: str) -> None:
    """Each component of an input changes all that may hear it, at its note and later, no more."""
    model, place, piece = copy.deepcopy(toy.models[kind]).double(), 5, toy.encoded[3]
    start = int((piece["parallel_pitch"][20:] < NO_PITCH).any(-1).nonzero()[0]) + 20 - place
    window = {name: values[start : start + 12] for name, values in piece.items()}
    window = {k: v.double() if v.is_floating_point() else v for k, v in window.items()}
    near = (window["near_pitch"] - window["context_pitch"][:, None]).abs()[place] <= 16
    moves = window["parallel_pitch"][place] < NO_PITCH
    some = {"near_pitch": near, "near_state": near.repeat_interleave(6)}
    some |= {"parallel_pitch": moves, "parallel_interval": moves}
    to_lstm = (
        {*toy.nb.CONTEXT_FEATURES, "near_pitch", "near_state"}
        if kind == FULL
        else {"context_attributes"}
    )
    for name, values in window.items():
        every = torch.ones(values[place].numel(), dtype=torch.bool)
        parts = some.get(name, every).nonzero()[:, 0]
        rows = len(parts) + 1  # row i + 1 has another component parts[i]
        batch = {k: v.expand(rows, *v.shape).clone() for k, v in window.items()}
        other = batch | {name: batch[name].clone()}
        for row, i in enumerate(parts, start=1):
            now = values[place].flatten()[i]
            other[name].view(rows, 12, -1)[row, place, i] = now - 1 if now > 0 else 1
        heard = torch.zeros(rows, 12, NO_PITCH + 3, dtype=torch.bool)  # by pitches and numbers
        if name in to_lstm | {"context_pitch"}:
            heard[1:, place:] = True  # the LSTM hears it, and keeps it
        elif kind == FULL and name == "attributes":  # each is told to the heads after it
            heard[1:, place, NO_PITCH:] = torch.ones(3, 3).triu(1).bool()
        elif kind == FULL and name.startswith("parallel"):  # only to the pitches it is about
            for row, i in enumerate(parts, start=1):
                for features in (batch, other):
                    heard[row, place, features["parallel_pitch"][row, place, i]] = True
        elif kind == FULL:  # the plain model hears nothing else
            to_pitch = name.startswith("candidate")
            heard[1:, place, : NO_PITCH if to_pitch else None] = True
            heard[:, :, :NO_PITCH] &= to_pitch
        pairs = zip(model(batch), model(other), strict=True)
        logits, medians, *layers = (one != changed for one, changed in pairs)
        assert torch.equal(logits, heard[..., :NO_PITCH]), name
        assert torch.equal(medians, heard[..., NO_PITCH:]), name
        for layer in layers:  # told to a head, not only proposed
            assert torch.equal(layer, heard[..., NO_PITCH:, None].expand_as(layer)), name


@pytest.mark.parametrize("kind", MODELS)
def test_dropout_and_normalisation(toy: SimpleNamespace, kind: str) -> None:
    """Dropout follows each layer of the LSTM and stands in each head; the state is normalised."""
    model = new_model(toy, kind, dropout=0.5)
    rates = [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    assert rates == [0.5] * (1 if kind == PLAIN else 5) and model.encoder.lstm.dropout == 0.5
    for training in (True, False):
        one, other = (model.train(training)(batch_of(toy, toy.encoded))[0] for _ in range(2))
        assert torch.equal(one, other) != training
    spied = []
    model.encoder.register_forward_hook(lambda *call: spied.append(call[-1][0]))
    spied += model(batch_of(toy, toy.encoded))[2:]  # in the heads of the model in full
    for layer in spied:
        assert torch.allclose(layer.mean(-1), torch.tensor(0.0), atol=1e-5)
        assert torch.allclose(layer.std(-1, correction=0), torch.tensor(1.0), atol=0.05)


def test_some_windows_may_not_copy(nb: ModuleType, toy: SimpleNamespace) -> None:
    """In training, and only there, whole windows have nothing to copy, in the share that is set."""
    batch = batch_of(toy, toy.encoded)
    copies = ("candidate", "candidate_length", "copied", "copied_change", "copied_length")
    torch.manual_seed(0)
    given = {name: torch.cat([values] * 300) for name, values in batch.items()}
    left = nb.apply_copy_dropout(given, 0.25)
    gone = (left["candidate"] == nb.NO_PITCH).flatten(1).all(dim=1)
    assert 0.2 < gone.float().mean() < 0.3
    for name, values in left.items():
        nothing = nb.NO_PITCH if name == "candidate" else 0
        assert name in copies or torch.equal(values, given[name])
        assert torch.equal(values[~gone], given[name][~gone])
        assert name not in copies or (values[gone] == nothing).all()
    model = new_model(toy, FULL, dropout=0.0, copy_dropout=1.0)
    emptied = model.eval()(nb.apply_copy_dropout(batch, 1.0))
    features = model(batch)
    model.train()
    for trained, evaluated, free in zip(model(batch), emptied, features, strict=True):
        assert torch.equal(trained, evaluated) and not torch.equal(evaluated, free)


def test_heads_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Candidates vote for their pitch; a median is a mean of the head's value and its proposals."""
    model, batch = copy.deepcopy(toy.model), batch_of(toy, toy.encoded[:1])
    for head in (model.pitch_head, *model.attribute_heads):
        head[1][1].weight.data.zero_()
        head[1][1].bias.data.normal_()
    model.tied.score.weight.data.zero_()
    model.tied.score.bias.data.zero_()
    logits, medians, _ = model(batch)
    copy_logits = model.pitch_head[1][1].bias
    copies = nn.functional.one_hot(batch["candidate"], NO_PITCH + 1)[..., :NO_PITCH]
    copied = torch.einsum("k,btkp->btp", copy_logits[NO_PITCH : NO_PITCH + 2], copies.float())
    assert torch.allclose(logits, copy_logits[:NO_PITCH] + copied, atol=1e-5)
    copied, previous, end = batch["copied"], batch["context_attributes"], batch["context_end"]
    proposals = torch.stack([copied, previous + batch["copied_change"], previous, end])
    for i, head in enumerate(model.attribute_heads):
        own, *copy_logits = head[1][1].bias
        values = torch.cat([own.expand(1, *medians.shape[:2]), proposals[..., i]])
        expected = torch.einsum("k,kbt->bt", torch.stack(copy_logits).softmax(0), values)
        assert torch.allclose(medians[..., i], expected, atol=1e-5)


def test_diagram(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The diagram holds all heads, the sizes of the layers, and arrows from box to box."""
    (axis,), model = nb.draw_diagram(toy.model).axes, toy.model
    boxes = {text.get_position(): text.get_text() for text in axis.texts if text.get_text()}
    arrows = {(boxes[t.xyann], boxes[t.xy]) for t in axis.texts if not t.get_text()}
    lstm, norm, features = "LSTM\n2 × 16", "LayerNorm\n16", model.encoder.lstm.input_size - 16
    inputs = "Embedding\n(129, 8)", f"numbers, metre\nand counts: {features}"
    near, tied = "near notes, from a pitch\nConv1d (8, 6, 33)", "40 pitches,\nthe same weights"
    copies = "what may be copied\nEmbedding (25, 2)"
    layers = [(head[0][0], head[1][1]) for head in (model.pitch_head, *model.attribute_heads)]
    heads = [f"Linear head\n{one.in_features} → {last.out_features}" for one, last in layers]
    losses = [f"{name}\nL1Loss".replace("pitch\nL1", "pitch\nCrossEntropy") for name in HEADS]
    expected = {("notes so far", box) for box in (*inputs, near, copies)} | {(lstm, norm)}
    expected |= {(box, lstm) for box in (*inputs, near)} | {*zip(heads, losses, strict=True)}
    expected |= {(box, head) for box in (norm, copies) for head in heads} | {*pairwise(heads)}
    expected |= {(near, tied), (norm, tied), (tied, heads[0])}
    assert arrows == expected and len(boxes) == 8 + 2 * len(heads)
    plt.close("all")


def test_scores_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Scores are means over all notes, without dropout, gradients or random numbers."""
    model, state, spied = copy.deepcopy(toy.model).train(), torch.get_rng_state(), []
    model.register_forward_hook(lambda *call: spied.append(call[-1][0].requires_grad))
    found = nb.evaluate(model, nb.make_eval_loader(toy.encoded, replace(toy.config, batch_size=2)))
    assert torch.equal(torch.get_rng_state(), state) and spied == [False] * 4
    batch = batch_of(toy, toy.encoded)
    (logits, medians, _), valid = toy.model(batch), batch["valid"]
    nats = -logits.log_softmax(-1).gather(-1, batch["pitch"][..., None])[valid].mean().item()
    errors = (medians - batch["attributes"])[valid].abs().mean(0).tolist()
    assert found == pytest.approx(dict(zip(HEADS, [nats, *errors], strict=True)), rel=1e-5)
    total = [nb.composite_loss(found, replace(toy.config, attribute_weight=w)) for w in (0, 1, 4)]
    assert total == pytest.approx([nats + w * sum(errors) for w in (0, 1, 4)], rel=1e-5)


def test_one_epoch(nb: ModuleType, toy: SimpleNamespace) -> None:
    """An epoch trains with dropout and fresh gradients, at most of length one."""
    model = copy.deepcopy(toy.model)
    for weights in model.parameters():
        weights.grad = torch.full_like(weights, torch.nan)  # of an earlier batch
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    batches = [batch_of(toy, toy.encoded)]
    nb.train_one_epoch(
        model, batches, optimiser, scheduler, replace(toy.config, attribute_weight=99)
    )
    moved = (weights_of(model) - weights_of(toy.model)).norm().item()
    assert model.training and moved == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_training(toy: SimpleNamespace, kind: str) -> None:
    """The rate rises for a tenth, then falls to nothing; the log has what the best scored."""
    changes = {"epochs": 8, "patience": 9, "batch_size": 4, "learning_rate": 2e-2, "dropout": 0.0}
    config, rates = replace(toy.config, **changes), []
    sides = {"training": toy.encoded[:2], "validation": toy.encoded[2:3]}
    torch.manual_seed(0)
    model = new_model(toy, kind, **changes)
    spy = register_optimizer_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    log = toy.nb.fit(model, sides, config)
    spy.remove()
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(2e-2, rel=0.05) and 0 < top <= 0.15 * len(rates)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert rates[0] < 2e-3 and rates[-1] < 2e-5
    columns = [f"{side}_{head}" for side in sides for head in HEADS]
    assert [*log] == ["epoch", "validation_total", *columns] and len(log) == 8
    heads = log[columns[4:]].set_axis(HEADS, axis=1)
    assert np.allclose(log.validation_total, heads.sum(axis=1))
    scores = toy.nb.evaluate(model, toy.nb.make_eval_loader(sides["validation"], config))
    assert scores == pytest.approx(heads.loc[log.validation_total.idxmin()].to_dict())
    assert scores["pitch"] < heads.pitch[0] - 0.5


@pytest.mark.parametrize(("scores", "best"), SCORES)
def test_best_weights_are_kept(
    toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, scores: list[int | None], best: int
) -> None:
    """Stopped early or interrupted, the cell keeps the weights best on validation, and draws."""
    model, epochs = new_model(toy, PLAIN), iter(range(1, 9))
    untrained = weights_of(model).clone()

    def train(model: nn.Module, *_: object) -> None:
        weights = torch.full_like(untrained, next(epochs))
        nn.utils.vector_to_parameters(weights, model.parameters())

    def evaluate(model: nn.Module, loader: object) -> dict[str, float]:
        (piece,), epoch = loader.dataset.encoded, int(weights_of(model)[0])
        score = scores[epoch - 1] if piece is toy.encoded[3] else -epoch
        if score is None:
            raise KeyboardInterrupt
        return {"pitch": score / 2, "step": score / 2}

    monkeypatch.setattr(toy.nb, "train_one_epoch", train)
    monkeypatch.setattr(toy.nb, "evaluate", evaluate)
    sides = {"training": toy.encoded[:3], "validation": toy.encoded[3:]}
    config = replace(toy.config, epochs=6, patience=3)
    scope = toy.nb.__dict__ | dict(model=model, encoded=sides, config=config, random_state=0)
    (cell,) = (cell for cell in code_cells(read_notebook()) if cell.id == "training")
    exec(cell.source, scope)
    assert (weights_of(model) == (best or untrained)).all()
    rows = scope["log"][["epoch", "validation_total"]].to_numpy().tolist()
    assert rows == [[i, score] for i, score in enumerate(scores, start=1) if score]


@pytest.mark.parametrize("sharp", [False, True])
def test_plain_continuation(nb: ModuleType, toy: SimpleNamespace, sharp: bool) -> None:
    """Pitches follow the softmax and numbers are the predicted ones, of the seed and all since."""
    model, seed = copy.deepcopy(toy.models[PLAIN]).train(), toy.pieces[0].notes.head(20)
    model.pitch_head.weight.data *= 1e4 if sharp else 1
    arguments = nb.shift_notes(seed, toy.normaliser), toy.normaliser, 15
    one, same, other = (nb.continue_plainly(model, *arguments, state) for state in (0, 0, 1))
    assert one.equals(same) and one.equals(other) == sharp and len(one) == 15
    assert np.allclose(one.onset, one.step.cumsum()) and set(one) == set(nb.COLUMNS)
    both = nb.pd.concat([seed, one], ignore_index=True)
    encoded = nb.shift_notes(both, toy.normaliser)
    logits, medians = (x[0, 20:] for x in model({k: v[None] for k, v in encoded.items()}))
    assert torch.allclose(medians, encoded["attributes"][20:], atol=1e-3)
    assert not sharp or torch.equal(logits.argmax(-1), encoded["pitch"][20:])


def test_title_of_the_plain_piece(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The title says how far the durations of the piece spread beside those of its seed."""
    (cell,) = (cell for cell in code_cells(read_notebook()) if cell.id == "plain-piece")
    shown, scope = [], vars(nb) | {"plain_model": toy.models[PLAIN], "random_state": 0}
    scope |= {"split": {"validation": toy.pieces}, "config": toy.config}
    scope |= {"normaliser": toy.normaliser, "show": lambda figure, _: shown.append(figure)}
    exec(cell.source, scope)
    title, made, heard = shown[0].axes[0].get_title(), scope["plain_piece"], toy.pieces[0].notes
    share = np.std(made.duration, ddof=1) / np.std(heard.duration[:16], ddof=1)
    assert title == f"Durations spread {share:.0%} as far as those of the seed"
    plt.close("all")


# Section 6: what may be copied, voices, and what the model is told


def best(values: list[int], places: list[int]) -> tuple[int, int]:
    """Return length and place of the longest match of the latest values, the latest if equal."""
    found = (0, -1)
    for place in places:
        ends = zip(values[:place][::-1], values[::-1], strict=False)
        length = next((i for i, (a, b) in enumerate(ends) if a != b), place)
        found = max(found, (length, place))
    return found


def copies_by_search(pitch: list[int], distance: int, now: int) -> list[tuple[int, int]]:
    """Return two candidates with their match lengths, and length and place of the note like `now`.

    The first candidate is literal, the second transposed; no interval leads to the first pitch.
    """
    found, intervals = [], [NO_PITCH, *np.diff(pitch).tolist()][: len(pitch)]
    moved, far = [pitch[-1] + interval for interval in intervals], range(len(pitch) - distance + 1)
    for values, offers, least in ((pitch, pitch, 1), (intervals, moved, 2)):
        new = [p for p in far if offers[p] in range(NO_PITCH) and offers[p] not in dict(found)]
        length, place = best(values, new)
        found.append((offers[place], length) if length >= least else (NO_PITCH, 0))
    literal = best(pitch, [place for place, there in enumerate(pitch) if there == now])
    run, place = best(intervals, [place for place, there in enumerate(moved) if there == now])
    return [*found, (run + 1, place) if place >= 0 and run + 1 > literal[0] else literal]


def test_copies_are_a_search(nb: ModuleType) -> None:
    """What may be copied is what a search through everything finds, up to the match limit."""
    rng, config = np.random.default_rng(0), replace(nb.Config(), match_limit=4)
    attributes = SimpleNamespace(names=["step"], transform=lambda note: note["step"][:, None])
    scales = range(60, 63), range(60, 72), (0, 1, 2, 125, 126, 127)
    music = np.array([rng.choice(scale, 200) for scale in scales])
    pieces = nb.PiecesSoFar(len(music), 200, attributes, config)
    for i, note in enumerate(music.T):
        other = rng.permutation(note) if i % 2 else note * 0 + 99
        for distance, now in ((1, note), (7, other)):
            found = nb.candidates(pieces, distance) | nb.copied_attributes(pieces, now)
            for k, pitch in enumerate(music[:, :i].tolist()):
                *offered, (length, place) = copies_by_search(pitch, distance, int(now[k]))
                assert found["candidate"][k].tolist() == [candidate for candidate, _ in offered]
                assert found["candidate_length"][k].tolist() == [min(n, 4) for _, n in offered]
                features = np.square([max(place, 0), max(place - 1, 0)]) + (place >= 0)
                assert found["copied"][k] == features[0] and found["copied_length"][k] == min(
                    length, 4
                )
                assert found["copied_change"][k] == (features[0] - features[1] if place > 0 else 0)
        pieces.append(dict.fromkeys(nb.COLUMNS, note * 0.0 + i**2 + 1) | {"pitch": note})


def test_copies_in_the_text(nb: ModuleType, toy: SimpleNamespace) -> None:
    """What the text says is offered after some pitches is offered."""
    (text,) = (cell.source for cell in read_notebook().cells if cell.id == "candidates-text")
    said = re.findall(r"After `([\d ]+)`.*?so (\d+) is offered", text)
    assert len(said) == 2
    for pitches, offered in said:
        notes = [(i, int(pitch), 1, 90) for i, pitch in enumerate(pitches.split())]
        pieces, _ = nb.walk([piece_of(nb, "a", notes).notes], 1, toy.normaliser, toy.config)
        assert int(offered) in nb.candidates(pieces)["candidate"]


def moves_in(features: Batch, row: int, i: int) -> list[tuple[int, int]]:
    """Return where parallel motion would lead, with the intervals to the notes that moved so."""
    pairs = zip(
        features["parallel_pitch"][row, i], features["parallel_interval"][row, i], strict=True
    )
    return [(int(target), int(interval)) for target, interval in pairs if target < NO_PITCH]


def voices_by_search(notes: pd.DataFrame) -> Iterator[tuple[int, list, float, dict[str, list]]]:
    """Yield by what motion each note came, and before it the moves, the first end and the facts."""
    columns = notes.onset, notes.onset + notes.duration, notes.pitch
    (begin, end, pitch), sources = (column.tolist() for column in columns), []

    def lowest(group: list[int]) -> int | None:
        return min(group, key=lambda j: pitch[j], default=None)

    def waiting(now: float) -> list[int]:
        lately = [j for j in near if now - 0.5 < end[j] < now + TICK and begin[j] < now - TICK]
        return [j for j in lately if j not in sources]

    for i in range(len(notes)):
        near, now, rows, moves = range(max(0, i - 24), i), begin[max(i - 1, 0)], [], []
        ends, sounding = waiting(now), [j for j in near if end[j] - now > TICK]
        first = min((end[j] - now for j in sounding), default=16)
        nexts = [j for j in sounding if end[j] - now < first + TICK]
        for j in near:
            struck, kinds = begin[j] > now - TICK, [j in ends, j == lowest(ends), j in nexts]
            moved = sources[j] is not None and pitch[j] - pitch[sources[j]]
            if struck and ends and moved:
                target = pitch[lowest(ends)] + moved
                moves.append((target, (target - pitch[j]) % 12))
            state = [np.tanh(max(end[j] - now, 0)), struck, *kinds, j == lowest(nexts)]
            rows += [(pitch[j], state)] if struck or j in ends or j in sounding else []
        pitches, states = zip(*([(NO_PITCH, [0] * 6)] * 12 + rows)[-12:], strict=True)
        counts = [len(group) for group in (sounding, ends, nexts)]
        sources.append(lowest(waiting(begin[i])))
        motion = 128 if sources[i] is None else pitch[i] - pitch[sources[i]]
        features = {"near_pitch": pitches, "near_state": states, "context_counts": counts}
        yield motion, moves, first, features


def test_context_is_a_search(nb: ModuleType, toy: SimpleNamespace) -> None:
    """What is told is what a search through the notes before finds, and nothing at first."""
    pedal, double = (chorale(nb, i, 28, velocity=True).notes for i in (3, 4))
    pedal.loc[3, "duration"] = 99.0  # a pedal point, forgotten after a while
    pedal.loc[9::9, "duration"] += 1e-5  # an error of rounding
    notes = [*double.to_dict("records"), *double.assign(pitch=double.pitch + 4).to_dict("records")]
    notes = [(note["onset"], note["pitch"], note["duration"], 90) for note in notes]
    dense = piece_of(nb, "a", notes).notes
    dense.loc[::3, "duration"] = 0.25  # rests, after which nothing is continued
    dense.loc[1::6, "duration"] = 0.0005  # and notes that are over at once
    tables, periods = [pedal, dense, toy.pieces[1].notes], np.array([1, 2, 3, 4])
    pieces, features = nb.walk(tables, 0, toy.normaliser, toy.config)
    assert (features["parallel_pitch"] < NO_PITCH).any() and (
        features["near_pitch"][..., 0] < 128
    ).any()
    for name in features.keys() - {"pitch", "attributes", "parallel_interval"}:
        assert (features[name][:, 0] == NO_PITCH * (name in nb.PITCHES)).all(), name
    for row, notes in enumerate(tables):
        for name, values in nb.shift_notes(notes, toy.normaliser).items():  # for the plain model
            assert torch.equal(values, features[name][row, : len(notes)]), name
        for i, (motion, moves, first, expected) in enumerate(voices_by_search(notes)):
            assert pieces.motion[row, nb.NEAR + i] == motion and moves_in(features, row, i) == moves
            last, angle = notes.loc[max(i - 1, 0)], notes.onset[max(i - 1, 0)] / periods
            end = dict.fromkeys(HEADS[1:3], first) | {"velocity": last.velocity}
            expected |= {
                "context_pitch": last.pitch,
                "context_attributes": toy.normaliser.transform(last),
                "context_metre": [*np.sin(2 * np.pi * angle), *np.cos(2 * np.pi * angle)],
                "context_end": toy.normaliser.transform(end),
            }
            assert {*expected} == {name for name in features if name[:4] in ("cont", "near")}
            for name, values in expected.items() if i else ():
                assert np.allclose(features[name][row, i], values, atol=1e-4), (row, name, i)


def test_voices_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Where a fifth and an octave move in parallel, what is told equals what is on paper."""
    chords = (48, 55, 64, 72), (50, 57, 62, 74), (50, 59, 71)
    notes = [(i, pitch, 1, 90) for i, chord in enumerate(chords) for pitch in chord]
    pieces, features = nb.walk([piece_of(nb, "a", notes).notes], 0, toy.normaliser, toy.config)
    assert pieces.motion[0, nb.NEAR :].tolist() == [128] * 4 + [2, 2, -2, 2, 0, 2, 9]
    # 50 came by 2, so 57 would from 55; then 66 and 74 by 2 and 70 by -2, and after 57 came 59
    moves = {4: [], 5: [(57, 7)], 6: [(66, 4), (66, 9)], 7: [(74, 0), (74, 5), (70, 8)]}
    moves |= {8: [], 9: [], 10: [(64, 5)]}
    assert {i: moves_in(features, 0, i) for i in range(4, 11)} == moves
    assert features["context_counts"][0, [4, 5, 10]].tolist() == [[4, 0, 4], [1, 3, 1], [2, 2, 2]]


def test_sampling_is_told_the_same(nb: ModuleType, toy: SimpleNamespace, root: Path) -> None:
    """A chorale in a batch with longer and shorter pieces is told, bit for bit, as it is alone."""
    path = sorted((root / "data" / "bach_chorales").glob("*.mid"))[3]
    real = nb.of_instrument(nb.read_piece(path.read_bytes(), path.name), "Piano")
    pieces = [toy.pieces[0], real, chorale(nb, 9, 90, velocity=True), toy.pieces[1]]
    assert len(pieces[0]) < len(real) < len(pieces[2])
    _, batch = nb.walk([piece.notes for piece in pieces], 5, toy.normaliser, toy.config)
    encoded = nb.encode(pieces, toy.normaliser, toy.config)
    for row, piece in enumerate(pieces[:2]):
        alone = nb.PiecesSoFar(1, len(piece), toy.normaliser, toy.config)
        for i, note in enumerate(piece.notes.to_dict("records")):
            note = {name: np.array([value]) for name, value in note.items()}
            pitch = note["pitch"]
            found = nb.context(alone) | nb.candidates(alone) | nb.copied_attributes(alone, pitch)
            alone.append(note)
            found |= {"pitch": pitch, "attributes": alone.attributes[:, nb.NEAR + i]}
            assert found.keys() == batch.keys() == encoded[row].keys()
            for name, values in found.items():
                assert values.tobytes() == batch[name][row, i].numpy().tobytes(), (i, name)
                assert values.tobytes() == encoded[row][name][i].numpy().tobytes(), (i, name)


def test_tied_head_moves_with_the_music(nb: ModuleType, toy: SimpleNamespace) -> None:
    """What the tied head says of a transposed window is what it says of the window, moved."""
    tied, batch = nb.TiedPitches(range(40, 80), 8).double(), batch_of(toy, toy.encoded)
    batch["near_state"] = batch["near_state"].double()
    asked, roll = torch.randn(*batch["pitch"].shape, 8, dtype=torch.double), tied.roll(batch)
    logits, heard = tied(roll, asked, batch), batch["context_pitch"] < NO_PITCH
    assert not logits[..., :40].any() and not logits[..., 80:].any() and len(logits.unique()) > 99
    for shift in (-5, 1, 6):
        moved, inside = nb.transpose(batch, shift), slice(46, 74)
        found = tied(tied.roll(moved), asked, moved).roll(-shift, dims=-1)
        assert torch.allclose(found[..., inside], logits[..., inside], rtol=0, atol=1e-12)
        same = (tied.at_last(tied.roll(item), item)[heard] for item in (moved, batch))
        assert torch.allclose(*same, rtol=0, atol=1e-12)


def test_tied_head_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A logit sums what the near notes, the question and parallel motion add at its pitch."""
    tied, batch = nb.TiedPitches(range(40, 80), 8), batch_of(toy, toy.encoded[3:])
    asked, roll = torch.randn(*batch["pitch"].shape, 8), tied.roll(batch)
    found, seen = tied(roll, asked, batch), tied.at_last(roll, batch)
    last = tied.last.weight.view(8, -1, 33), tied.last.bias
    near, states = batch["near_pitch"][0], batch["near_state"][0]
    for i, pitch in zip(range(3, 60, 3), range(42, 80, 2), strict=True):
        views = (
            (pitch, tied.near.weight, tied.near.bias),
            (int(batch["context_pitch"][0, i]), *last),
        )
        (x, view) = (
            bias
            + sum(w[:, :, d + 16] @ s for d, s in zip(n, states[i], strict=True) if abs(d) < 17)
            for n, w, bias in (((near[i] - whose).tolist(), w, bias) for whose, w, bias in views)
        )
        assert torch.allclose(seen[0, i], view, atol=1e-5)
        for target, interval in moves_in(batch, 0, i):
            x = x + (target == pitch) * 8**0.5 * tied.parallel.weight[interval]
        logit = tied.score((x + asked[0, i]).relu()).item()
        assert found[0, i, pitch].item() == pytest.approx(logit, abs=1e-5)
