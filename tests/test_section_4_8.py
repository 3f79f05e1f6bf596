"""Sections 4 to 8 of the notebook: numbers, what the model is told, the models and training."""

import ast
import copy
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from notebook_tools import chorale, code_cells, piece_of, read_notebook, small_config
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

Batch = dict[str, torch.Tensor]
NO_PITCH = 128
HEADS = ["pitch", "step", "duration", "velocity"]
MODELS = ["PlainLSTM", "MultiHeadLSTM"]


@pytest.fixture(scope="module")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces, encoded, with a normaliser and both models, untrained."""
    config = small_config(nb)
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(4)]
    normaliser = nb.Normaliser(pieces)
    encoded = [nb.encode(piece.notes, normaliser, config) for piece in pieces]
    torch.manual_seed(0)
    models = {name: getattr(nb, name)(normaliser.names, config).eval() for name in MODELS}
    model, facts = models["MultiHeadLSTM"], {MODELS[0]: ("context_numbers",), MODELS[1]: nb.FACTS}
    return SimpleNamespace(**locals())


def batch_of(nb: ModuleType, encoded: list[Batch]) -> Batch:
    """Return encoded pieces as one batch of whole, padded windows."""
    windows = nb.NoteWindows(encoded, max(len(piece["pitch"]) for piece in encoded))
    return next(iter(torch.utils.data.DataLoader(windows, len(encoded))))


def weights_of(model: nn.Module) -> torch.Tensor:
    """Return all weights of a model in one vector."""
    return nn.utils.parameters_to_vector(model.parameters()).detach()


# Section 4: numbers


def test_normaliser(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Numbers are standardised with the pieces given, times as logarithms, and come back."""
    normaliser, notes = nb.Normaliser(toy.pieces[:2]), toy.pieces[3].notes
    found = normaliser.transform(notes)
    assert found.dtype == np.float32 and found.shape == (len(notes), 3)
    for i, name in enumerate(HEADS[1:]):
        known, values = np.concatenate([p.notes[name] for p in toy.pieces[:2]]), notes[name]
        if name != "velocity":
            known, values = np.log2(known + 1 / 16), np.log2(values + 1 / 16)
            assert normaliser.inverse(name, -9.0) == 0, "beats are never negative"
        assert np.allclose(found[:, i], (values - known.mean()) / known.std(), atol=1e-5), name
        assert np.allclose(normaliser.inverse(name, found[:, i]), notes[name], 1e-5, 1e-5), name
    assert np.array_equal(normaliser.transform(notes.iloc[7].to_dict()), found[7])


def test_numbers_that_do_not_vary(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A velocity that does not vary is left out of all arrays; a duration stays finite."""
    piece = piece_of(nb, "steady", [(i**1.5, 60 + i, 1, 90) for i in range(9)])
    normaliser = nb.Normaliser([piece])
    assert toy.normaliser.names == HEADS[1:] and normaliser.names == HEADS[1:3]
    assert not normaliser.transform(piece.notes)[:, 1].any()
    batch = batch_of(nb, [nb.encode(piece.notes, normaliser, toy.config)])
    _, medians, layers = nb.MultiHeadLSTM(normaliser.names, toy.config)(batch)
    assert medians.shape == (1, 9, 2) and layers.shape[:3] == (1, 9, 2)


def test_only_training_pieces_are_learned_from() -> None:
    """The notebook takes statistics and training windows from the training pieces alone."""
    found = {"Normaliser": set(), "random_windows": set()}
    for cell in code_cells(read_notebook()):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in found:
                found[ast.unparse(node.func)].add(ast.unparse(node.args[0]))
    windows = {"shifted['training']", "encoded['training']"}
    assert found == {"Normaliser": {"split['training']"}, "random_windows": windows}


# Section 4: windows


def test_shifted_notes(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The plain model is told the note before, as the full model is; the first has none."""
    found = nb.shift_notes(toy.pieces[0].notes, toy.normaliser)
    assert found.keys() == {"pitch", "numbers", "context_pitch", "context_numbers"}
    for name, values in found.items():
        assert torch.equal(values, toy.encoded[0][name]), name
        assert values.dtype == toy.encoded[0][name].dtype


@pytest.mark.parametrize("length", [1, 16, 500])
def test_each_position_is_in_one_window(nb: ModuleType, toy: SimpleNamespace, length: int) -> None:
    """Windows without jitter hold the notes of each piece once; the padding is not valid."""
    windows = nb.NoteWindows(toy.encoded, length)
    items = [windows[i] for i in range(len(windows))]
    for name in toy.encoded[0]:
        found = torch.cat([item[name][item["valid"]] for item in items])
        assert torch.equal(found, torch.cat([piece[name] for piece in toy.encoded])), name
        assert all(len(item[name]) == length for item in items)
        assert not any(item[name][~item["valid"]].any() for item in items)


def test_scored_pieces(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Scored are all validation pieces and as many for training, whole and untransposed."""
    sides = {"training": toy.encoded, "validation": toy.encoded[:3], "test": toy.encoded}
    loaders = nb.both_sides(sides, replace(toy.config, batch_size=4))
    assert loaders.keys() == {"training", "validation"}
    for loader in loaders.values():
        batches = list(loader)
        pitch = torch.cat([batch["pitch"][batch["valid"]] for batch in batches])
        assert torch.equal(pitch, torch.cat([piece["pitch"] for piece in toy.encoded[:3]]))
        longest = max(map(len, toy.pieces[:3]))
        assert [tuple(batch["pitch"].shape) for batch in batches] == [(2, longest), (1, longest)]


@pytest.mark.parametrize("shift", [-6, 0, 5])
@pytest.mark.parametrize("length", [20, NO_PITCH])
def test_transposition(nb: ModuleType, toy: SimpleNamespace, shift: int, length: int) -> None:
    """A transposed window is that of the transposed piece, also with as many notes as pitches."""
    notes, windows = toy.pieces[1].notes, []
    for table in (notes, notes.assign(pitch=notes.pitch + shift)):
        encoded = nb.encode(table, toy.normaliser, toy.config)
        windows.append(nb.NoteWindows([encoded], length)[0])
    found, valid = nb.transpose(windows[0], shift), windows[0]["valid"]
    assert found.keys() == windows[1].keys() and (windows[0]["candidate"] == NO_PITCH).any()
    for name, values in windows[1].items():
        assert torch.equal(found[name][valid], values[valid]), name


def test_transposed_pitches_stay_pitches(nb: ModuleType) -> None:
    """At the edges pitches are kept between 0 and 127, and none stays none."""
    for name in ("pitch", "candidate", "context_pitch"):
        item = {name: torch.tensor([0, 126, 127, 128])}
        assert nb.transpose(item, 2)[name].tolist() == [2, 127, 127, 128]
        assert nb.transpose(item, -3)[name].tolist() == [0, 123, 124, 128]


def test_random_windows_stay_inside(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Windows in training are transposed runs of a piece that begin up to half a window off."""
    long = toy.encoded[3] | {"place": torch.arange(len(toy.pieces[3]))}
    windows = nb.NoteWindows([long], 16, largest_shift=3)
    shifts, jitters = set(), set()
    torch.manual_seed(0)
    for index in list(range(len(windows))) * 30:
        item = windows[index]
        start = int(item["place"][0])
        assert torch.equal(item["place"], torch.arange(start, start + 16)) and item["valid"].all()
        shift = set((item["pitch"] - long["pitch"][start : start + 16]).tolist())
        assert len(shift) == 1
        shifts |= shift
        # the first and the last window cannot move freely
        jitters |= {start - 16 * index} if 0 < index < len(windows) - 2 else set()
    assert shifts == {*range(-3, 4)} and jitters == {*range(-8, 9)}
    padded = nb.NoteWindows(toy.encoded[:1], 500, largest_shift=3)[0]
    assert padded["valid"].tolist() == [i < len(toy.pieces[0]) for i in range(500)]


@pytest.mark.parametrize(("passes", "most", "share"), [(2, 999, 2), (2.5, 999, 2.5), (2, 11, 0)])
def test_size_of_an_epoch(toy: SimpleNamespace, passes: float, most: int, share: float) -> None:
    """An epoch is some passes over all windows, each drawn equally often, or the most allowed."""
    config = replace(toy.config, passes=passes, epoch_windows=most)
    loader = toy.nb.random_windows(toy.encoded, config)
    count = len(toy.nb.NoteWindows(toy.encoded, config.window))
    drawn = Counter(loader.sampler)
    assert drawn.total() == (round(share * count) or most)
    assert sum(len(batch["pitch"]) for batch in loader) == drawn.total()
    assert set(drawn.values()) <= {math.floor(share) or 1, math.ceil(share) or 1}
    assert loader.dataset.largest_shift == config.transpose


# Sections 5 and 7: both models


@pytest.mark.parametrize("kind", MODELS)
def test_no_input_is_deaf(toy: SimpleNamespace, kind: str) -> None:
    """Each component of an input changes what may hear it, at its note and later, and no more."""
    model, place = copy.deepcopy(toy.models[kind]).double(), 5
    window = {k: v.double() if v.is_floating_point() else v for k, v in toy.encoded[3].items()}
    for name in window:
        rows = window[name][0].numel() + 1
        batch = {k: v[20:32].expand(rows, 12, *v.shape[1:]).clone() for k, v in window.items()}
        changed, each = batch[name].clone(), torch.arange(rows - 1)
        parts = changed.view(rows, 12, -1)  # row i + 1 has another component i
        now = parts[each + 1, place, each]
        parts[each + 1, place, each] = torch.where(now > 0, now - 1, 1)
        outputs, others = model(batch), model(batch | {name: changed})
        logits, medians = (a != b for a, b in zip(outputs[:2], others[:2], strict=True))
        differs = torch.cat([logits.any(-1, True), medians], dim=-1)
        expected = torch.zeros_like(differs)
        if name in {"context_pitch", *toy.facts[kind]}:
            expected[1:, place:] = True  # the LSTM hears it, and keeps it
        elif kind == MODELS[0]:
            pass  # the plain model hears nothing else
        elif name == "numbers":  # each is told to the heads after it
            expected[1:, place, 1:] = torch.ones(3, 3).triu(1).bool()
        elif name.startswith("candidate"):
            expected[1:, place, 0] = True
        else:
            expected[1:, place, 1:] = True
        assert torch.equal(differs, expected), name


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("last", [20, 999])
def test_padding_and_later_notes(toy: SimpleNamespace, kind: str, last: int) -> None:
    """Neither what stands in the padding nor a later note changes an earlier output or loss."""
    batch, model, names = batch_of(toy.nb, toy.encoded), toy.models[kind], toy.normaliser.names
    batch["valid"][:, last:] = False
    gone, other = ~batch["valid"], {name: values.clone() for name, values in batch.items()}
    for name in other.keys() - {"valid"}:
        other[name][gone] = 7
    outputs, others = model(batch), model(other)
    for one, same in zip(outputs, others, strict=True):
        assert torch.equal(one[~gone], same[~gone]) and not torch.equal(one, same)
    assert toy.nb.note_losses(names, outputs, batch) == toy.nb.note_losses(names, others, other)


@pytest.mark.parametrize("kind", MODELS)
def test_hidden_state_is_normalised(toy: SimpleNamespace, kind: str) -> None:
    """What the heads hear of the LSTM has mean zero and deviation one at every note."""
    hidden, _ = toy.models[kind].encoder(toy.encoded[0], toy.facts[kind])
    assert torch.allclose(hidden.mean(-1), torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(hidden.std(-1, correction=0), torch.tensor(1.0), atol=0.02)


# Section 5: losses and scores


def test_scores_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Scores are means over all notes, without dropout, gradients or random numbers."""
    model, state, spied = copy.deepcopy(toy.model).train(), torch.get_rng_state(), []
    model.register_forward_hook(lambda *call: spied.append(call[-1][0].requires_grad))
    found = nb.evaluate(model, nb.whole_pieces(toy.encoded, replace(toy.config, batch_size=2)))
    assert torch.equal(torch.get_rng_state(), state) and spied == [False] * 4
    batch = batch_of(nb, toy.encoded)
    (logits, medians, _), valid = toy.model(batch), batch["valid"]
    nats = -logits.log_softmax(-1).gather(-1, batch["pitch"][..., None])[valid].mean().item()
    errors = (medians - batch["numbers"])[valid].abs().mean(0).tolist()
    assert found == pytest.approx(dict(zip(HEADS, [nats, *errors], strict=True)), rel=1e-5)
    total = [nb.composite_loss(found, replace(toy.config, number_weight=w)) for w in (0, 1, 4)]
    assert total == pytest.approx([nats + w * sum(errors) for w in (0, 1, 4)], rel=1e-5)


# Sections 5 and 8: training


@pytest.mark.parametrize("weight", [1.0, 1e6])
def test_one_epoch(nb: ModuleType, toy: SimpleNamespace, weight: float) -> None:
    """An epoch trains with dropout and fresh gradients, at most of length one, and helps."""
    model, config = copy.deepcopy(toy.model), replace(toy.config, number_weight=weight)
    for weights in model.parameters():
        weights.grad = torch.full_like(weights, torch.nan)  # of an earlier batch
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    nb.train_one_epoch(model, [batch_of(nb, toy.encoded)], optimiser, scheduler, config)
    moved = (weights_of(model) - weights_of(toy.model)).norm().item()
    assert model.training and moved == pytest.approx(0.1, rel=1e-3)
    loader = nb.whole_pieces(toy.encoded, config)
    after, before = (nb.composite_loss(nb.evaluate(m, loader), config) for m in (model, toy.model))
    assert after < before


def fit_toy(
    nb: ModuleType, toy: SimpleNamespace, kind: str = MODELS[1], seed: int = 0, **changes: object
) -> SimpleNamespace:
    """Return log and weights of a training that is scored on piece 2."""
    config = replace(toy.config, **changes)
    torch.manual_seed(seed)
    model = getattr(nb, kind)(toy.normaliser.names, config)
    scored = {"training": toy.encoded[:2], "validation": toy.encoded[2:3]}
    loaders = {side: nb.whole_pieces(encoded, config) for side, encoded in scored.items()}
    untrained = nb.evaluate(model, loaders["validation"])
    log = nb.fit(model, nb.random_windows(toy.encoded[:2], config), loaders, config)
    return SimpleNamespace(untrained=untrained, log=log, weights=weights_of(model))


@pytest.mark.parametrize("kind", MODELS)
def test_training_learns(nb: ModuleType, toy: SimpleNamespace, kind: str) -> None:
    """The losses fall, and the log has those of all heads for every epoch and side."""
    run = fit_toy(nb, toy, kind, epochs=6, learning_rate=2e-2, dropout=0.0)
    sides = {f"{side}_{head}" for side in ("training", "validation") for head in HEADS}
    assert set(run.log) == {"epoch", "validation_total"} | sides
    assert run.log.epoch.tolist() == list(range(1, 7))
    total = run.log[[f"validation_{head}" for head in HEADS]].sum(axis=1)
    assert np.allclose(run.log.validation_total, total)
    last = run.log.iloc[-1]
    assert last.validation_pitch < run.untrained["pitch"] - 1
    # the velocity of the toy pieces is noise
    assert all(last[f"training_{head}"] < run.log[f"training_{head}"][0] for head in HEADS[:3])


def test_learning_rate(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The learning rate rises in the first tenth of all steps, then it falls to nothing."""
    found = []
    spy = register_optimizer_step_pre_hook(lambda o, *_: found.append(o.param_groups[0]["lr"]))
    fit_toy(nb, toy, epochs=8, patience=9, learning_rate=3e-3, batch_size=4)
    spy.remove()
    rates = np.array(found)
    top = rates.argmax()
    assert rates[top] == pytest.approx(3e-3, rel=0.05) and 0 < top <= 0.15 * len(rates)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert rates[0] < 3e-4 and rates[-1] < 3e-6


def test_training_is_reproducible(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The same random state gives the same weights, bit by bit, here after only ten steps."""
    few = {"epochs": 1, "epoch_windows": 10, "batch_size": 1}
    one, same, other = (fit_toy(nb, toy, seed=seed, **few).weights for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("scores", "best_epoch"),
    [
        ([5, 3, 4, 3, 9], 2),  # an equal score is no better, and patience is 3
        ([5, 6, 4, 5, 3, 2], 6),  # no early stop
        ([5, 3, 4, None], 2),  # interrupted
        ([5, None], 1),
        ([None], 0),
    ],
)
def test_best_weights_are_kept(
    nb: ModuleType,
    toy: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[int | None],
    best_epoch: int,
) -> None:
    """Stopped early or interrupted, the best weights are kept, and the next cell can be run."""
    model, epochs = nb.MultiHeadLSTM(["step"], toy.config), iter(range(1, 9))
    untrained = weights_of(model).clone()

    def train(model: nn.Module, *_: object) -> None:
        """Set all weights to the number of the epoch."""
        epoch = next(epochs)
        for weights in model.parameters():
            weights.data.fill_(epoch)

    def evaluate(model: nn.Module, side: str) -> dict[str, float]:
        """Return the score of the epoch, half due to the step; that in training only improves."""
        epoch = int(weights_of(model)[0])
        if scores[epoch - 1] is None:
            raise KeyboardInterrupt
        score = scores[epoch - 1] if side == "validation" else -epoch
        return {"pitch": score / 2, "step": score / 2}

    monkeypatch.setattr(nb, "train_one_epoch", train)
    monkeypatch.setattr(nb, "evaluate", evaluate)
    sides, config = ["training", "validation"], replace(toy.config, epochs=6, patience=3)
    try:
        log = nb.fit(model, [None] * 3, dict(zip(sides, sides, strict=True)), config)
    except KeyboardInterrupt:  # would end all tests
        pytest.fail("the interrupt was passed on")
    expected = torch.full_like(untrained, best_epoch) if best_epoch else untrained
    assert torch.equal(weights_of(model), expected)
    assert [row["validation_total"] for row in log.to_dict("records")] == [*filter(None, scores)]
    (cell,) = (cell for cell in read_notebook().cells if cell.id == "curves")
    exec(cell.source, nb.__dict__ | {"log": log, "model": model})


@pytest.mark.parametrize("most", [9, 2])
def test_progress_disappears(nb: ModuleType, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """In Jupyter the line of progress is gone at the end, also if the loop is left early."""
    line = MagicMock()
    monkeypatch.setattr(nb, "DisplayHandle", lambda: line)
    assert list(nb.track(range(3), "reading")) == [0, 1, 2] and not line.mock_calls
    monkeypatch.setattr(nb, "get_ipython", lambda: True)
    seen = [item for item, _ in zip(nb.track(range(3), "reading"), range(most), strict=False)]
    shown = [call.args[0].data for call in line.update.mock_calls]
    assert seen == [0, 1, 2][:most] and "reading" in shown[0] and shown[-1] == ""


@pytest.mark.parametrize("sharp", [False, True])
def test_plain_continuation(nb: ModuleType, toy: SimpleNamespace, sharp: bool) -> None:
    """Pitches follow the softmax and numbers are the predicted ones, of the seed and all since."""
    model, seed = copy.deepcopy(toy.models["PlainLSTM"]).train(), toy.pieces[0].notes.head(20)
    if sharp:
        model.pitch_head.weight.data *= 1e4
    arguments = nb.shift_notes(seed, toy.normaliser), toy.normaliser, 15
    one, same, other = (nb.continue_plainly(model, *arguments, state) for state in (0, 0, 1))
    assert one.equals(same) and one.equals(other) == sharp and len(one) == 15
    assert np.allclose(one.onset, one.step.cumsum()) and set(one) == set(nb.COLUMNS)
    both = nb.pd.concat([seed, one], ignore_index=True)
    encoded = nb.shift_notes(both, toy.normaliser)
    logits, medians = (x[0, 20:] for x in model({k: v[None] for k, v in encoded.items()}))
    assert torch.allclose(medians, encoded["numbers"][20:], atol=1e-3)
    assert not sharp or torch.equal(logits.argmax(-1), encoded["pitch"][20:])


# Section 6: what may be copied


def matched(values: list[int], place: int) -> int:
    """Return how many values before `place` equal the latest ones."""
    length = 0
    while length < place and values[place - 1 - length] == values[-1 - length]:
        length += 1
    return length


def best(values: list[int], places: list[int]) -> tuple[int, int]:
    """Return length and place of the longest match, the latest among equals."""
    return max([(matched(values, place), place) for place in places], default=(0, -1))


def intervals_of(pitch: list[int]) -> list[int]:
    """Return the interval that leads to each pitch; none leads to the first."""
    return [NO_PITCH, *np.diff(pitch).tolist()][: len(pitch)]


def offered_by_search(pitch: list[int], distance: int) -> list[tuple[int, int]]:
    """Return two literal candidates and a transposed one with their match lengths."""
    found, intervals, far = [], intervals_of(pitch), range(len(pitch) - distance + 1)
    for _ in range(2):
        length, place = best(pitch, [place for place in far if pitch[place] not in dict(found)])
        found.append((pitch[place] if length else NO_PITCH, length))
    moved = [pitch[-1] + interval for interval in intervals]
    new = [place for place in far if moved[place] in {*range(128)} - {*dict(found)}]
    length, place = best(intervals, [place for place in new if matched(intervals, place) > 1])
    return [*found, (moved[place] if length else NO_PITCH, length)]


def copied_by_search(pitch: list[int], now: int) -> tuple[int, int]:
    """Return match length and place of the note most like `now` after these pitches."""
    intervals = intervals_of(pitch)
    literal = best(pitch, [place for place in range(len(pitch)) if pitch[place] == now])
    same = [place for place in range(len(pitch)) if intervals[place] == now - pitch[-1]]
    run, place = best(intervals, same)
    return (run + 1, place) if same and run + 1 > literal[0] else literal


@pytest.mark.parametrize("scale", [range(60, 63), range(60, 72), (0, 1, 2, 125, 126, 127)])
def test_copies_are_a_search(nb: ModuleType, scale: range) -> None:
    """What may be copied is what a search through everything finds, up to the match limit."""
    rng, pitch, kinds = np.random.default_rng(0), [], Counter()
    memory = nb.CopyMemory(200, numbers=1, limit=4)
    for note in rng.choice(scale, 200).tolist():
        for distance in (1, 7):
            expected, found = offered_by_search(pitch, distance), memory.candidates(distance)
            assert found["candidate"].tolist() == [candidate for candidate, _ in expected]
            assert found["candidate_length"].tolist() == [min(n, 4) for _, n in expected]
        for now in (note, int(rng.choice(scale)), 99) if pitch else ():
            length, place = copied_by_search(pitch, now)
            numbers = np.square([max(place, 0), max(place - 1, 0)]) + (place >= 0)
            found = nb.copy_numbers(memory, now)
            assert found["copied"] == numbers[0] and found["copied_length"] == min(length, 4)
            assert found["copied_change"] == (numbers[0] - numbers[1] if place > 0 else 0)
            kinds[length > 0 and pitch[place] != now] += 1
        kinds["moved"] += expected[2][1] > 0
        memory.append(note, np.array([len(pitch) ** 2 + 1]))
        pitch.append(note)
    assert kinds[True] > 3 and kinds["moved"] > 20, "transposed matches were not met"


# Section 6: what the model is told


def test_context_is_a_search(nb: ModuleType, toy: SimpleNamespace) -> None:
    """What is told is what a search through the notes before finds."""
    notes, periods = chorale(nb, 3, velocity=True).notes, np.array([1, 2, 3, 4])
    notes.loc[3, "duration"] = 99.0  # a pedal point, forgotten after a while
    notes.loc[9::9, "duration"] += 1e-5  # an error of rounding
    told = nb.encode(notes, toy.normaliser, toy.config)
    for i in range(1, len(notes)):
        before, last = notes[:i], notes.iloc[i - 1]
        held, recent, used = np.zeros((3, 128))
        angle = 2 * np.pi * last.onset / periods
        left = (before.onset + before.duration - last.onset).clip(lower=0)
        left = left.where(before.index >= i - nb.NEAR, 0)
        for place, (pitch, beats) in enumerate(zip(before.pitch, left, strict=True)):
            held[pitch] = max(held[pitch], np.tanh(beats))
            recent[pitch] = max(0, 1 - (i - 1 - place) / toy.config.window)
            used[pitch] += 1
        end = dict.fromkeys(HEADS[1:3], left[left > 1e-4].min()) | {"velocity": last.velocity}
        expected = {
            "pitch": last.pitch,
            "polyphony": (left > 1e-4).sum(),
            "numbers": toy.normaliser.transform(last),
            "metre": [*np.sin(angle), *np.cos(angle)],
            "held": held,
            "recent": recent,
            "used": used / used.max(),
            "end": toy.normaliser.transform(end),
        }
        for name, values in expected.items():
            assert np.allclose(told[f"context_{name}"][i], values, atol=1e-4), (name, i)


def test_before_the_first_note(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Before the first note all that is told is zero, and its pitches are none."""
    first = nb.encode(toy.pieces[0].notes.head(1), toy.normaliser, toy.config)
    for name in first.keys() - {"pitch", "numbers"}:
        nothing = NO_PITCH if name in ("context_pitch", "candidate") else 0
        assert (first[name] == nothing).all(), name
        assert torch.equal(first[name], toy.encoded[0][name][:1]), name


@pytest.mark.parametrize("column", ["pitch", "duration", "onset", "velocity"])
def test_what_is_told_is_the_past(nb: ModuleType, toy: SimpleNamespace, column: str) -> None:
    """Another note changes nothing told before it, nor its own copies unless by its pitch."""
    changed, place = toy.pieces[1].notes.copy(), 30
    changed.loc[place, column] += 1
    before, after = toy.encoded[1], nb.encode(changed, toy.normaliser, toy.config)
    names = before.keys() - {"pitch", "numbers"}
    for name in names:
        upto = place if column == "pitch" and name.startswith("copied") else place + 1
        assert torch.equal(before[name][:upto], after[name][:upto]), name
    assert any(not torch.equal(before[name][place + 1], after[name][place + 1]) for name in names)


# Section 7: the heads


def test_pitch_head_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A logit is the sum of the votes for the pitch and for the candidates with this pitch."""
    model, batch = copy.deepcopy(toy.model), batch_of(nb, toy.encoded[:1])
    model.pitch_head.output[1].weight.data.zero_()
    votes = model.pitch_head.output[1].bias.data.normal_()
    copies = nn.functional.one_hot(batch["candidate"], NO_PITCH + 1)[..., :NO_PITCH]
    expected = votes[:NO_PITCH] + torch.einsum("k,btkp->btp", votes[NO_PITCH:], copies.float())
    assert torch.allclose(model(batch)[0], expected, atol=1e-5)


def test_number_heads_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A median is a mean of the head's own value and its proposals, weighted by a softmax."""
    model, batch, layers = copy.deepcopy(toy.model), batch_of(nb, toy.encoded[:1]), []
    for head in model.number_heads:
        head.output[1].weight.data.zero_()
        head.output[1].bias.data.normal_()
        head.output.register_forward_pre_hook(lambda _, inputs: layers.append(inputs[0]))
    _, medians, hidden = model(batch)
    assert torch.equal(hidden, torch.stack(layers, dim=2))
    previous = torch.cat([torch.zeros(1, 1, 3), batch["numbers"][:, :-1]], dim=1)
    changed = previous + batch["copied_change"]
    proposals = torch.stack([batch["copied"], changed, previous, batch["context_end"]])
    for i, head in enumerate(model.number_heads):
        own, *votes = head.output[1].bias
        values = torch.cat([own.expand(1, *medians.shape[:2]), proposals[..., i]])
        expected = torch.einsum("k,kbt->bt", torch.stack(votes).softmax(0), values)
        assert torch.allclose(medians[..., i], expected, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_dropout(nb: ModuleType, toy: SimpleNamespace, kind: str) -> None:
    """Dropout follows each layer of the LSTM and stands in each full head, in training only."""
    model = getattr(nb, kind)(HEADS[1:], replace(toy.config, dropout=0.5))
    rates = [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    assert rates == [0.5] * (1 if kind == MODELS[0] else 5) and model.encoder.lstm.dropout == 0.5
    for training in (True, False):
        one, other = (model.train(training)(batch_of(nb, toy.encoded))[0] for _ in range(2))
        assert torch.equal(one, other) != training


@pytest.mark.parametrize("count", [2, 3])
def test_diagram(nb: ModuleType, toy: SimpleNamespace, count: int) -> None:
    """The diagram holds all heads, the sizes of the layers, and arrows from box to box."""
    model = nb.MultiHeadLSTM(HEADS[1 : count + 1], toy.config)
    figure = nb.draw_diagram(model)
    (axis,) = figure.axes
    boxes = {text.get_position(): text.get_text() for text in axis.texts if text.get_text()}
    arrows = {(boxes[t.xyann], boxes[t.xy]) for t in axis.texts if not t.get_text()}
    told, lstm, norm = model.encoder.lstm.input_size - 8, "LSTM\n2 × 16", "LayerNorm\n16"
    inputs = "Embedding\n(129, 8)", f"numbers and facts:\n{told}"
    copies = "what may be copied\nEmbedding (25, 2)"
    layers = [(head.hidden[0], head.output[-1]) for head in (model.pitch_head, *model.number_heads)]
    heads = [f"Linear head\n{one.in_features} → {last.out_features}" for one, last in layers]
    expected = {("notes so far", box) for box in (*inputs, copies)} | {(lstm, norm)}
    expected |= {(box, lstm) for box in inputs} | {*pairwise(heads)}
    for name, head in zip(HEADS[: count + 1], heads, strict=True):
        loss = f"{name}\n{'CrossEntropyLoss' if name == 'pitch' else 'L1Loss'}"
        expected |= {(norm, head), (copies, head), (head, loss)}
    assert arrows == expected and len(boxes) == 6 + 2 * len(heads)
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    assert all(left < x < right and low < y < high for x, y in boxes)
    plt.close(figure)
