"""Sections 4 to 8 of the notebook: numbers, what the model is told, the models and training."""

import copy
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import ModuleType, SimpleNamespace

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
PLAIN, FULL = MODELS = ["PlainLSTM", "MultiHeadLSTM"]
# scores on validation by epoch, None where it is interrupted, and the best; equal is no better
SCORES = [([5, 3, 4, 3, 9], 2), ([5, 6, 4, 5, 3, 2], 6), ([5, 3, 4, None], 2), ([None], 0)]


@pytest.fixture(scope="module")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces, encoded, with a normaliser and both models, untrained."""
    config = small_config(nb)
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(4)]
    normaliser = nb.Normaliser(pieces)
    encoded = [nb.encode(piece.notes, normaliser, config) for piece in pieces]
    torch.manual_seed(0)
    models = {name: getattr(nb, name)(normaliser.names, config).eval() for name in MODELS}
    model, facts = models[FULL], {PLAIN: ("context_numbers",), FULL: nb.FACTS}
    return SimpleNamespace(**locals())


def batch_of(toy: SimpleNamespace, encoded: list[Batch]) -> Batch:
    """Return encoded pieces as one batch of whole, padded windows."""
    windows = toy.nb.NoteWindows(encoded, max(len(piece["pitch"]) for piece in encoded))
    return next(iter(torch.utils.data.DataLoader(windows, len(encoded))))


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
    found = re.findall(r"(?<!def )\b(Normaliser|random_windows)\(([^,)]+)", source)
    windows = {("random_windows", f'{kind}["training"]') for kind in ("shifted", "encoded")}
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
    notes, windows = toy.pieces[1].notes, []
    for table in (notes, notes.assign(pitch=notes.pitch + shift)):
        encoded = nb.encode(table, toy.normaliser, toy.config)
        windows.append(nb.NoteWindows([encoded], length)[0])
    found, valid = nb.transpose(windows[0], shift), windows[0]["valid"]
    windows[1]["context_shift"] += shift / 12  # what it is told of the shift, in octaves
    assert found.keys() == windows[1].keys() and (windows[0]["candidate"] == NO_PITCH).any()
    for name, values in windows[1].items():
        assert torch.equal(found[name][valid], values[valid]), name
    for name in ("pitch", "candidate", "context_pitch"):
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


@pytest.mark.parametrize(("passes", "most", "share"), [(2, 999, 2), (2.5, 999, 2.5), (2, 11, 0)])
def test_size_of_an_epoch(toy: SimpleNamespace, passes: float, most: int, share: float) -> None:
    """An epoch is some passes over all windows, each drawn equally often, or the most allowed."""
    config = replace(toy.config, passes=passes, epoch_windows=most)
    loader = toy.nb.random_windows(toy.encoded, config)
    drawn = Counter(loader.sampler)
    assert drawn.total() == sum(len(batch["pitch"]) for batch in loader)
    assert drawn.total() == (round(share * len(loader.dataset)) or most)
    assert set(drawn.values()) <= {math.floor(share) or 1, math.ceil(share) or 1}
    assert loader.dataset.largest_shift == config.transpose


# Sections 5, 7 and 8: the models and their training


@pytest.mark.parametrize("kind", MODELS)
def test_no_input_is_deaf(toy: SimpleNamespace, kind: str) -> None:
    """Each component of an input changes all that may hear it, at its note and later, no more."""
    model, place = copy.deepcopy(toy.models[kind]).double(), 5
    window = {name: values[20:32] for name, values in toy.encoded[3].items()}
    window = {k: v.double() if v.is_floating_point() else v for k, v in window.items()}
    for name, values in window.items():
        rows = values[0].numel() + 1  # row i + 1 has another component i
        batch = {k: v.expand(rows, *v.shape).clone() for k, v in window.items()}
        changed = batch[name].clone()
        for i, now in enumerate(values[place].flatten()):
            changed.view(rows, 12, -1)[i + 1, place, i] = now - 1 if now > 0 else 1
        heard = torch.zeros(rows, 12, 4, dtype=torch.bool)  # by each head
        if name in {"context_pitch", *toy.facts[kind]}:
            heard[1:, place:] = True  # the LSTM hears it, and keeps it
        elif kind == FULL and name == "numbers":  # each is told to the heads after it
            heard[1:, place, 1:] = torch.ones(3, 3).triu(1).bool()
        elif kind == FULL:  # the plain model hears nothing else
            to_pitch = name.startswith("candidate") or name == "context_shift"
            heard[1:, place, : 1 if to_pitch else 4] = True
            heard[:, :, 0] &= to_pitch
        pairs = zip(model(batch), model(batch | {name: changed}), strict=True)
        logits, medians, *layers = (one != other for one, other in pairs)
        assert torch.equal(logits, heard[..., :1].expand_as(logits)), name
        assert torch.equal(medians, heard[..., 1:]), name
        for layer in layers:  # told to a head, not only proposed
            assert torch.equal(layer, heard[..., 1:, None].expand_as(layer)), name


@pytest.mark.parametrize("kind", MODELS)
def test_dropout_and_normalisation(toy: SimpleNamespace, kind: str) -> None:
    """Dropout follows each layer of the LSTM and stands in each head; the state is normalised."""
    model = getattr(toy.nb, kind)(HEADS[1:], replace(toy.config, dropout=0.5))
    rates = [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    assert rates == [0.5] * (1 if kind == PLAIN else 5) and model.encoder.lstm.dropout == 0.5
    for training in (True, False):
        one, other = (model.train(training)(batch_of(toy, toy.encoded))[0] for _ in range(2))
        assert torch.equal(one, other) != training
    hidden, _ = model.encoder(toy.encoded[0], toy.facts[kind])
    assert torch.allclose(hidden.mean(-1), torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(hidden.std(-1, correction=0), torch.tensor(1.0), atol=0.02)
    for layers in model(batch_of(toy, toy.encoded))[2:]:  # in the heads of the model in full
        assert torch.allclose(layers.mean(-1), torch.tensor(0.0), atol=1e-5)
        assert torch.allclose(layers.std(-1, correction=0), torch.tensor(1.0), atol=0.05)


def test_some_windows_may_not_copy(nb: ModuleType, toy: SimpleNamespace) -> None:
    """In training, and only there, whole windows have nothing to copy, in the share that is set."""
    batch = batch_of(toy, toy.encoded)
    copies = ("candidate", "candidate_length", "copied", "copied_change", "copied_length")
    torch.manual_seed(0)
    given = {name: torch.cat([values] * 300) for name, values in batch.items()}
    left = nb.without_copies(given, 0.25)
    gone = (left["candidate"] == nb.NO_PITCH).flatten(1).all(dim=1)
    assert 0.2 < gone.float().mean() < 0.3
    for name, values in left.items():
        nothing = nb.NO_PITCH if name == "candidate" else 0
        assert name in copies or torch.equal(values, given[name])
        assert torch.equal(values[~gone], given[name][~gone])
        assert name not in copies or (values[gone] == nothing).all()
    config = replace(toy.config, dropout=0.0, copy_dropout=1.0)
    model = nb.MultiHeadLSTM(toy.normaliser.names, config)
    emptied = model.eval()(nb.without_copies(batch, 1.0))
    told = model(batch)
    model.train()
    for trained, evaluated, free in zip(model(batch), emptied, told, strict=True):
        assert torch.equal(trained, evaluated) and not torch.equal(evaluated, free)


def test_heads_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Candidates vote for their pitch; a median is a mean of the head's value and its proposals."""
    model, batch = copy.deepcopy(toy.model), batch_of(toy, toy.encoded[:1])
    for head in (model.pitch_head, *model.number_heads):
        head[1][1].weight.data.zero_()
        head[1][1].bias.data.normal_()
    logits, medians, _ = model(batch)
    votes = model.pitch_head[1][1].bias
    copies = nn.functional.one_hot(batch["candidate"], NO_PITCH + 1)[..., :NO_PITCH]
    expected = votes[:NO_PITCH] + torch.einsum("k,btkp->btp", votes[NO_PITCH:], copies.float())
    assert torch.allclose(logits, expected, atol=1e-5)
    copied, previous, end = batch["copied"], batch["context_numbers"], batch["context_end"]
    proposals = torch.stack([copied, previous + batch["copied_change"], previous, end])
    for i, head in enumerate(model.number_heads):
        own, *votes = head[1][1].bias
        values = torch.cat([own.expand(1, *medians.shape[:2]), proposals[..., i]])
        expected = torch.einsum("k,kbt->bt", torch.stack(votes).softmax(0), values)
        assert torch.allclose(medians[..., i], expected, atol=1e-5)


def test_diagram(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The diagram holds all heads, the sizes of the layers, and arrows from box to box."""
    (axis,), model = nb.draw_diagram(toy.model).axes, toy.model
    boxes = {text.get_position(): text.get_text() for text in axis.texts if text.get_text()}
    arrows = {(boxes[t.xyann], boxes[t.xy]) for t in axis.texts if not t.get_text()}
    told, lstm, norm = model.encoder.lstm.input_size - 8, "LSTM\n2 × 16", "LayerNorm\n16"
    inputs = "Embedding\n(129, 8)", f"numbers and facts:\n{told}"
    copies = "what may be copied\nEmbedding (25, 2)"
    layers = [(head[0][0], head[1][1]) for head in (model.pitch_head, *model.number_heads)]
    heads = [f"Linear head\n{one.in_features} → {last.out_features}" for one, last in layers]
    losses = [f"{name}\nL1Loss".replace("pitch\nL1", "pitch\nCrossEntropy") for name in HEADS]
    expected = {("notes so far", box) for box in (*inputs, copies)} | {(lstm, norm)}
    expected |= {(box, lstm) for box in inputs} | {*zip(heads, losses, strict=True)}
    expected |= {(box, head) for box in (norm, copies) for head in heads} | {*pairwise(heads)}
    expected |= {("shift", heads[0])}
    assert arrows == expected and len(boxes) == 7 + 2 * len(heads)
    plt.close("all")


def test_scores_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Scores are means over all notes, without dropout, gradients or random numbers."""
    model, state, spied = copy.deepcopy(toy.model).train(), torch.get_rng_state(), []
    model.register_forward_hook(lambda *call: spied.append(call[-1][0].requires_grad))
    found = nb.evaluate(model, nb.whole_pieces(toy.encoded, replace(toy.config, batch_size=2)))
    assert torch.equal(torch.get_rng_state(), state) and spied == [False] * 4
    batch = batch_of(toy, toy.encoded)
    (logits, medians, _), valid = toy.model(batch), batch["valid"]
    nats = -logits.log_softmax(-1).gather(-1, batch["pitch"][..., None])[valid].mean().item()
    errors = (medians - batch["numbers"])[valid].abs().mean(0).tolist()
    assert found == pytest.approx(dict(zip(HEADS, [nats, *errors], strict=True)), rel=1e-5)
    total = [nb.composite_loss(found, replace(toy.config, number_weight=w)) for w in (0, 1, 4)]
    assert total == pytest.approx([nats + w * sum(errors) for w in (0, 1, 4)], rel=1e-5)


def test_one_epoch(nb: ModuleType, toy: SimpleNamespace) -> None:
    """An epoch trains with dropout and fresh gradients, at most of length one."""
    model = copy.deepcopy(toy.model)
    for weights in model.parameters():
        weights.grad = torch.full_like(weights, torch.nan)  # of an earlier batch
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    batches = [batch_of(toy, toy.encoded)]
    nb.train_one_epoch(model, batches, optimiser, scheduler, replace(toy.config, number_weight=99))
    moved = (weights_of(model) - weights_of(toy.model)).norm().item()
    assert model.training and moved == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_training(toy: SimpleNamespace, kind: str) -> None:
    """The rate rises for a tenth, then falls to nothing; the log has what the best scored."""
    changes = {"epochs": 8, "patience": 9, "batch_size": 4, "learning_rate": 2e-2, "dropout": 0.0}
    config, rates = replace(toy.config, **changes), []
    sides = {"training": toy.encoded[:2], "validation": toy.encoded[2:3]}
    torch.manual_seed(0)
    model = getattr(toy.nb, kind)(toy.normaliser.names, config)
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
    scores = toy.nb.evaluate(model, toy.nb.whole_pieces(sides["validation"], config))
    assert scores == pytest.approx(heads.loc[log.validation_total.idxmin()].to_dict())
    assert scores["pitch"] < heads.pitch[0] - 0.5


@pytest.mark.parametrize(("scores", "best"), SCORES)
def test_best_weights_are_kept(
    toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, scores: list[int | None], best: int
) -> None:
    """Stopped early or interrupted, the cell keeps the weights best on validation, and draws."""
    model, epochs = toy.nb.MultiHeadLSTM(["step"], toy.config), iter(range(1, 9))
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
    assert torch.allclose(medians, encoded["numbers"][20:], atol=1e-3)
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


# Section 6: what may be copied and what the model is told


def best(values: list[int], places: list[int]) -> tuple[int, int]:
    """Return length and place of the longest match of the latest values, the latest if equal."""
    found = (0, -1)
    for place in places:
        ends = zip(values[:place][::-1], values[::-1], strict=False)
        length = next((i for i, (a, b) in enumerate(ends) if a != b), place)
        found = max(found, (length, place))
    return found


def intervals_of(pitch: list[int]) -> list[int]:
    """Return the interval that leads to each pitch; none leads to the first."""
    return [NO_PITCH, *np.diff(pitch).tolist()][: len(pitch)]


def offered_by_search(pitch: list[int], distance: int) -> list[tuple[int, int]]:
    """Return two literal candidates and a transposed one with their match lengths."""
    found, intervals, far = [], intervals_of(pitch), range(len(pitch) - distance + 1)
    moved = [pitch[-1] + interval for interval in intervals]
    for values, offers, least in ((pitch, pitch, 1), (pitch, pitch, 1), (intervals, moved, 2)):
        new = [p for p in far if offers[p] in range(NO_PITCH) and offers[p] not in dict(found)]
        length, place = best(values, new)
        found.append((offers[place], length) if length >= least else (NO_PITCH, 0))
    return found


def copied_by_search(pitch: list[int], now: int) -> tuple[int, int]:
    """Return match length and place of the note most like `now` after these pitches."""
    intervals, moved = intervals_of(pitch), now - pitch[-1]
    literal = best(pitch, [place for place in range(len(pitch)) if pitch[place] == now])
    run, place = best(intervals, [p for p in range(len(pitch)) if intervals[p] == moved])
    return (run + 1, place) if place >= 0 and run + 1 > literal[0] else literal


@pytest.mark.parametrize("scale", [range(60, 63), range(60, 72), (0, 1, 2, 125, 126, 127)])
def test_copies_are_a_search(nb: ModuleType, scale: range) -> None:
    """What may be copied is what a search through everything finds, up to the match limit."""
    rng, pitch, config = np.random.default_rng(0), [], replace(nb.Config(), match_limit=4)
    numbers = SimpleNamespace(names=["step"], transform=lambda note: np.array([note["step"]]))
    piece = nb.PieceSoFar(200, numbers, config)
    for note in rng.choice(scale, 200).tolist():
        for distance in (1, 7):
            expected, found = offered_by_search(pitch, distance), nb.candidates(piece, distance)
            assert found["candidate"].tolist() == [candidate for candidate, _ in expected]
            assert found["candidate_length"].tolist() == [min(n, 4) for _, n in expected]
        for now in (note, int(rng.choice(scale)), 99) if pitch else ():
            length, place = copied_by_search(pitch, now)
            told = np.square([max(place, 0), max(place - 1, 0)]) + (place >= 0)
            found = nb.copied_numbers(piece, now)
            assert found["copied"] == told[0] and found["copied_length"] == min(length, 4)
            assert found["copied_change"] == (told[0] - told[1] if place > 0 else 0)
        piece.append(dict.fromkeys(nb.COLUMNS, len(pitch) ** 2 + 1) | {"pitch": note})
        pitch.append(note)


def test_copies_in_the_text(nb: ModuleType, toy: SimpleNamespace) -> None:
    """What the text says is offered after some pitches is offered."""
    (text,) = (cell.source for cell in read_notebook().cells if cell.id == "candidates-text")
    said = re.findall(r"After `([\d ]+)`.*?so (\d+) is offered", text)
    assert len(said) == 2
    for pitches, offered in said:
        piece = nb.PieceSoFar(9, toy.normaliser, toy.config)
        for pitch in pitches.split():
            piece.append(dict.fromkeys(nb.COLUMNS, 1.0) | {"pitch": float(pitch)})
        assert int(offered) in nb.candidates(piece)["candidate"]


def test_context_is_a_search(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told is what a search through the notes before finds, and nothing at first."""
    monkeypatch.setattr(nb, "LATELY", 20)
    notes, pitches, periods = toy.pieces[3].notes.copy(), range(NO_PITCH), np.array([1, 2, 3, 4])
    notes.loc[3, "duration"] = 99.0  # a pedal point, forgotten after a while
    notes.loc[9::9, "duration"] += 1e-5  # an error of rounding
    told = nb.encode(notes, toy.normaliser, toy.config)
    for name in told.keys() - {"pitch", "numbers"}:
        nothing = NO_PITCH if name in ("context_pitch", "candidate") else 0
        assert (told[name][0] == nothing).all(), name
    for name, values in nb.shift_notes(notes, toy.normaliser).items():  # for the plain model
        assert torch.equal(values, told[name]), name
    for i in range(1, len(notes)):
        last, near, angle = notes.loc[i - 1], notes[:i].tail(nb.NEAR), notes.onset[i - 1] / periods
        left = (near.onset + near.duration - last.onset).clip(lower=0)
        lately = notes[:i].tail(20)
        classes = (lately.pitch % 12).value_counts(normalize=True)
        end = dict.fromkeys(HEADS[1:3], left[left > 1e-4].min()) | {"velocity": last.velocity}
        expected = {
            "pitch": last.pitch,
            "polyphony": (left > 1e-4).sum(),
            "numbers": toy.normaliser.transform(last),
            "metre": [*np.sin(2 * np.pi * angle), *np.cos(2 * np.pi * angle)],
            "held": np.tanh(left.groupby(near.pitch).max().reindex(pitches, fill_value=0)),
            "key": 12 * classes.reindex(range(12), fill_value=0),
            "pace": toy.normaliser.transform(lately).mean(axis=0),
            "shift": [0],
            "end": toy.normaliser.transform(end),
        }
        assert {f"context_{name}" for name in expected} == {k for k in told if "context" in k}
        for name, values in expected.items():
            assert np.allclose(told[f"context_{name}"][i], values, atol=1e-4), (name, i)


def test_sampling_is_told_the_same(nb: ModuleType, toy: SimpleNamespace) -> None:
    """What is told of a piece that is being composed is what is told of it in training."""
    piece, told, config = toy.pieces[2], toy.encoded[2], replace(toy.config, piece_notes=99)
    seed = replace(piece, notes=piece.notes.head(16))
    so_far = nb.Continuation(seed, toy.normaliser, config)
    for i in range(16, len(piece)):
        pitch = int(told["pitch"][i])
        found = nb.context(so_far) | nb.candidates(so_far) | nb.copied_numbers(so_far, pitch)
        assert found.keys() == told.keys() - {"pitch", "numbers"}
        for name, values in found.items():
            assert np.allclose(values, told[name][i], atol=1e-4), (name, i)
        so_far.add(pitch, told["numbers"][i])
