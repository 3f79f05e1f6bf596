"""Sections 4 to 8 of the notebook: numbers, what the model is told, the model and its training."""

import ast
import copy
import io
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, code_cells, piece_of, read_notebook, small_config
from torch.optim.optimizer import register_optimizer_step_pre_hook

NO_PITCH = 128
LINE = (60, 62, 64, 65)
COPIES = {"candidate", "candidate_length", "copied", "copied_change", "copied_length"}
TOLD = {f"context_{name}" for name in "pitch numbers metre polyphony held recent".split()}
HEADS = ["pitch", "step", "duration", "velocity"]
# input: the first and the last head that hear it at its note, and whether later notes hear it
HEARD = dict.fromkeys(TOLD, (0, 3, True)) | dict.fromkeys([*COPIES, "pitch"], (1, 3, False))
HEARD |= {"candidate": (0, 0, False), "candidate_length": (0, 0, False), "numbers": (1, 3, False)}


@pytest.fixture(scope="module")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces, encoded, with a normaliser and an untrained model."""
    config = small_config(nb)
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(4)]
    normaliser = nb.Normaliser(pieces, config)
    encoded = [nb.encode(piece.notes, normaliser, config) for piece in pieces]
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config).eval()
    return SimpleNamespace(**locals())


def batch_of(nb: ModuleType, encoded: list) -> dict[str, torch.Tensor]:
    """Return encoded pieces as one batch of whole, padded windows."""
    windows = nb.NoteWindows(encoded, max(len(piece["pitch"]) for piece in encoded))
    return next(iter(torch.utils.data.DataLoader(windows, len(encoded))))


def arguments_of(name: str) -> set[str]:
    """Return the first arguments with which the notebook's cells call something."""
    calls = [
        node
        for cell in code_cells(read_notebook())
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]
    return {ast.unparse(call.args[0]) for call in calls}


# Section 4


def test_normaliser_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Mean and deviation are those of the pieces given, on a logarithmic scale for times."""
    values = np.concatenate([piece.notes.duration for piece in toy.pieces[:2]])
    scaled = np.log2(values + 1 / 16)
    normaliser = nb.Normaliser(toy.pieces[:2], toy.config)
    assert normaliser.mean["duration"] == pytest.approx(scaled.mean())
    assert normaliser.std["duration"] == pytest.approx(scaled.std())
    mean = np.concatenate([piece.notes.velocity for piece in toy.pieces[:2]]).mean()
    assert normaliser.mean["velocity"] == pytest.approx(mean)
    expected = (np.log2(3 + 1 / 16) - scaled.mean()) / scaled.std()
    assert normaliser.transform("duration", 3) == pytest.approx(expected)
    everything = np.concatenate([toy.normaliser.table(piece.notes) for piece in toy.pieces])
    assert everything.dtype == np.float32 and everything.shape[1] == 3
    assert np.allclose(everything.mean(0), 0, atol=1e-5) and np.allclose(everything.std(0), 1)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("Normaliser", "split['training']"), ("random_windows", "encoded['training']")],
)
def test_only_training_pieces_are_learned_from(name: str, argument: str) -> None:
    """The notebook takes statistics and training windows from the training pieces alone."""
    assert arguments_of(name) == {argument}


@pytest.mark.parametrize("name", ["step", "duration", "velocity"])
def test_round_trip(toy: SimpleNamespace, name: str) -> None:
    """Values come back from their numbers, zero included, and beats are never negative."""
    values = np.array([0, 1 / 480, 0.25, 1, 64, 127])
    numbers = toy.normaliser.transform(name, values)
    assert np.allclose(toy.normaliser.inverse(name, numbers), values, rtol=0, atol=1e-9)
    assert name == "velocity" or toy.normaliser.inverse(name, -9.0) == 0


def test_constant_velocity_is_left_out(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A velocity that varies is a number of the notes, one that does not is none."""
    assert toy.normaliser.names == HEADS[1:]
    steady = nb.Normaliser([chorale(nb, 0)], toy.config)
    assert steady.names == HEADS[1:3] and steady.table(toy.pieces[0].notes).shape[1] == 2


# Section 5: what the model is told


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


def offered_by_search(pitch: list[int]) -> list[tuple[int, int]]:
    """Return two literal candidates and a transposed one with their match lengths."""
    found, intervals = [], intervals_of(pitch)
    for _ in range(2):
        left = [place for place in range(len(pitch)) if pitch[place] not in dict(found)]
        length, place = best(pitch, left)
        found.append((pitch[place] if length else NO_PITCH, length))
    moved = [pitch[-1] + interval for interval in intervals]
    new = [place for place in range(len(pitch)) if moved[place] in {*range(128)} - {*dict(found)}]
    length, place = best(intervals, [place for place in new if matched(intervals, place) > 1])
    return [*found, (moved[place] if length else NO_PITCH, length)]


def copied_by_search(pitch: list[int], now: int) -> tuple[int, int]:
    """Return match length and place of the note most like `now` after these pitches."""
    intervals = intervals_of(pitch)
    literal = best(pitch, [place for place in range(len(pitch)) if pitch[place] == now])
    same = [place for place in range(len(pitch)) if intervals[place] == now - pitch[-1]]
    run, place = best(intervals, same)
    return (run + 1, place) if same and run + 1 > literal[0] else literal


def memory_of(nb: ModuleType, pitches: tuple[int, ...], limit: int = 24) -> object:
    """Return a memory of pitches, with the number of each note as the number it copies."""
    memory = nb.CopyMemory(len(pitches) + 2, 1, replace(nb.Config(), match_limit=limit))
    for place, pitch in enumerate(pitches):
        memory.append(pitch, np.array([place]))
    return memory


def offers(memory: object) -> list[tuple[int, int]]:
    """Return the candidates of a memory with their match lengths."""
    found = memory.candidates()
    return list(zip(found["candidate"].tolist(), found["candidate_length"].tolist(), strict=True))


def test_suffix_match_is_a_search(nb: ModuleType) -> None:
    """The lengths and the longest match are those that a search through everything finds."""
    rng, values, match = np.random.default_rng(0), [], nb.SuffixMatch(150)
    assert match.longest(np.zeros(0, dtype=bool)) == (-1, 0)
    for value in rng.choice(3, 150).tolist():
        values.append(value)
        match.append(value)
        places = range(len(values))
        assert match.length[: len(values)].tolist() == [matched(values, p) for p in places]
        allowed = rng.random(len(values)) < 0.5
        expected = best(values, [place for place in places if allowed[place]])
        assert match.longest(allowed) == expected[::-1]


@pytest.mark.parametrize("scale", [range(60, 63), range(60, 72), (0, 1, 2, 125, 126, 127)])
def test_copies_are_a_search(nb: ModuleType, scale: range) -> None:
    """What may be copied is what a search through everything finds, up to the match limit."""
    rng, pitch, kinds = np.random.default_rng(0), [], Counter()
    memory = nb.CopyMemory(200, 1, replace(nb.Config(), match_limit=4))
    for note in rng.choice(scale, 200).tolist():
        expected = offered_by_search(pitch)
        assert offers(memory) == [(candidate, min(length, 4)) for candidate, length in expected]
        for now in (note, int(rng.choice(scale)), 99) if pitch else ():
            length, place = copied_by_search(pitch, now)
            numbers = np.square([max(place, 0), max(place - 1, 0)]) + (place >= 0)
            found = memory.copied(now)
            assert found["copied"] == numbers[0] and found["copied_length"] == min(length, 4)
            assert found["copied_change"] == (numbers[0] - numbers[1] if place > 0 else 0)
            kinds[length > 0 and pitch[place] != now] += 1
        kinds["moved"] += expected[2][1] > 0
        memory.append(note, np.array([len(pitch) ** 2 + 1]))
        pitch.append(note)
    assert kinds[True] > 3 and kinds["moved"] > 20, "transposed matches were not met"


@pytest.mark.parametrize(
    ("heard", "offered", "now", "copied"),
    [
        ((), [], 60, (0, 0, 0)),
        ((1, 90, 20), [], 60, (0, 0, 0)),
        ((*LINE, *LINE[:3]), [(65, 3)], 65, (3, 1, 3)),  # literally
        ((*LINE, 72, 74, 76), [(128, 0), (128, 0), (77, 2)], 77, (3, 1, 3)),  # transposed
        ((60, 62, 60, 64, 60), [(64, 1), (62, 1)], 62, (1, 1, 1)),  # the latest comes first
        ((60, 62, 72, 62, 60), [(62, 1)], 62, (1, 1, 1)),  # the longer match, not the latest
        ((60, 62, 72, 62, 65), [], 62, (3, 1, 0)),  # nothing but the pitch: the latest
        ((60, 67), [], 60, (0, 0, 0)),  # the first note has not changed
        ((*range(30, 60), *range(30, 59)), [(59, 24), (128, 0), (29, 24)], 59, (29, 1, 24)),
    ],
)
def test_copies_by_hand(
    nb: ModuleType, heard: tuple, offered: list, now: int, copied: tuple[int, int, int]
) -> None:
    """Offered are the most likely pitches; copied the number, its change and the match length."""
    memory = memory_of(nb, heard)
    assert offers(memory) == [*offered, *[(NO_PITCH, 0)] * 3][:3]
    found = memory.copied(now)
    assert [found[k] for k in ("copied", "copied_change", "copied_length")] == list(copied)


def test_context_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Told are the note before, its place in the metre, what sounds and what is recent."""
    notes = [(0, 60, 1, 80), (0, 67, 3, 80), (1.25, 64, 0.5, 70), (1.5, 67, 0.25, 60)]
    table = piece_of(nb, "hand", [*notes, (5, 60, 1, 80)]).notes
    told = {
        k: v[4] for k, v in nb.encode(table, toy.normaliser, replace(toy.config, window=2)).items()
    }
    angles = 2 * np.pi * 1.5 / np.array([1, 2, 3, 4])
    metre = [*np.sin(angles), *np.cos(angles)]
    held, recent = np.zeros(128), np.zeros(128)
    # the first 67 sounds longer than the second; 60 has ended, and is no longer recent
    held[[67, 64]], recent[[67, 64]] = np.tanh([1.5, 0.25]), [1, 0.5]
    assert told["context_pitch"] == 67 and told["context_polyphony"].tolist() == [3]
    assert torch.equal(told["context_numbers"], torch.tensor(toy.normaliser.table(table)[3]))
    for name, expected in (("metre", metre), ("held", held), ("recent", recent)):
        assert np.allclose(told[f"context_{name}"], expected, atol=1e-6), name


def test_context_is_a_search(toy: SimpleNamespace) -> None:
    """What sounds and what is recent is what a search through all notes before finds."""
    notes, told = toy.pieces[3].notes, toy.encoded[3]
    for i in range(1, len(notes)):
        held, recent, before = np.zeros(128), np.zeros(128), notes[:i]
        left = (before.onset + before.duration - before.onset.iloc[-1]).clip(lower=0)
        for place, (pitch, beats) in enumerate(zip(before.pitch, left, strict=True)):
            held[pitch] = max(held[pitch], np.tanh(beats))
            recent[pitch] = max(0, 1 - (i - 1 - place) / toy.config.window)
        assert told["context_polyphony"][i] == (left > 0).sum()
        assert np.allclose(told["context_held"][i], held, atol=1e-6)
        assert np.allclose(told["context_recent"][i], recent, atol=1e-6)


def test_before_the_first_note(toy: SimpleNamespace) -> None:
    """Before the first note all that is told is zero, and its pitches are none."""
    first = {name: values[0] for name, values in toy.encoded[0].items()}
    assert (first.pop("context_pitch") == NO_PITCH) and (first.pop("candidate") == NO_PITCH).all()
    assert not any(first[name].any() for name in (TOLD | COPIES) & first.keys())
    assert first["pitch"] == toy.pieces[0].notes.pitch[0]


def test_piece_of_one_note(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A piece of one note is told nothing."""
    alone = nb.encode(toy.pieces[0].notes.head(1), toy.normaliser, toy.config)
    for name in TOLD | COPIES:
        assert torch.equal(alone[name], toy.encoded[0][name][:1]), name


@pytest.mark.parametrize(("column", "change"), [("pitch", 1), ("duration", 0.5), ("onset", 0.25)])
def test_what_is_told_is_the_past(
    nb: ModuleType, toy: SimpleNamespace, column: str, change: float
) -> None:
    """Another note changes nothing told before it, nor its own copies unless by its pitch."""
    notes, place = toy.pieces[1].notes, 30
    changed = notes.copy()
    changed.loc[place, [column]] += change
    before, after = toy.encoded[1], nb.encode(changed, toy.normaliser, toy.config)
    for name in TOLD | COPIES:
        upto = place if column == "pitch" and name.startswith("copied") else place + 1
        assert torch.equal(before[name][:upto], after[name][:upto]), name
    assert any(not torch.equal(before[name][place + 1], after[name][place + 1]) for name in TOLD)


# Section 5: windows


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


def test_whole_pieces(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Scored pieces are not cut."""
    batches = list(nb.whole_pieces(toy.encoded, replace(toy.config, batch_size=4)))
    lengths = [len(piece) for piece in toy.pieces]
    assert torch.cat([batch["valid"].sum(1) for batch in batches]).tolist() == lengths
    assert [tuple(batch["pitch"].shape) for batch in batches] == [(2, max(lengths))] * 2


@pytest.mark.parametrize("shift", [-6, 0, 5])
def test_transposition(nb: ModuleType, toy: SimpleNamespace, shift: int) -> None:
    """A transposed encoding is the encoding of the transposed piece."""
    notes = toy.pieces[0].notes
    expected = nb.encode(notes.assign(pitch=notes.pitch + shift), toy.normaliser, toy.config)
    found = nb.transpose(toy.encoded[0], shift)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name
    assert (found["candidate"] == NO_PITCH).any()


def test_transposed_pitches_stay_pitches(nb: ModuleType, toy: SimpleNamespace) -> None:
    """At the edges pitches are kept between 0 and 127, and none stays none."""
    pitch = torch.tensor([0, 126, 127, 128])
    item = toy.encoded[0] | {"pitch": pitch, "candidate": pitch, "context_pitch": pitch}
    for name in ("pitch", "candidate", "context_pitch"):
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
def test_size_of_an_epoch(
    nb: ModuleType, toy: SimpleNamespace, passes: float, most: int, share: float
) -> None:
    """An epoch is some passes over all windows, each drawn equally often, or the most allowed."""
    config = replace(toy.config, passes=passes, epoch_windows=most)
    loader = nb.random_windows(toy.encoded, config)
    count = len(nb.NoteWindows(toy.encoded, config.window))
    drawn = Counter(loader.sampler)
    assert drawn.total() == (round(share * count) or most)
    assert sum(len(batch["pitch"]) for batch in loader) == drawn.total()
    assert set(drawn.values()) <= {math.floor(share) or 1, math.ceil(share) or 1}
    assert loader.dataset.largest_shift == config.transpose


# Section 6


def change_each(values: torch.Tensor, place: int) -> torch.Tensor:
    """Return the values with component i - 1 of note `place` changed in row i."""
    changed = values.clone()
    flat = changed.view(*changed.shape[:2], -1)
    for i in range(flat.shape[-1]):
        now = flat[i + 1, place, i]
        flat[i + 1, place, i] = now + 0.5 if now.is_floating_point() else abs(now - 1)
    return changed


@pytest.mark.parametrize("name", sorted(HEARD))
def test_inputs_are_heard(toy: SimpleNamespace, name: str) -> None:
    """Each component of an input changes what it may change at its note and later, no more."""
    place, rows = 5, toy.encoded[3][name][0].numel() + 1
    batch = {
        k: (v.double() if v.is_floating_point() else v)[20:32]
        .expand(rows, 12, *v.shape[1:])
        .clone()
        for k, v in toy.encoded[3].items()
    }
    model = copy.deepcopy(toy.model).double()
    outputs = (model(b)[:2] for b in (batch, batch | {name: change_each(batch[name], place)}))
    (logits, medians), (other_logits, other_medians) = outputs
    differs = torch.cat([(logits != other_logits).any(-1, True), medians != other_medians], dim=-1)
    first, last, later = HEARD[name]
    expected = torch.zeros_like(differs)
    expected[1:, place : 12 if later else place + 1, first : last + 1] = True
    if name == "numbers":  # each is told to the heads after it
        expected[1:, place, 1:] = torch.ones(3, 3).triu(1).bool()
    assert torch.equal(differs, expected)


def test_pitch_head_by_hand(toy: SimpleNamespace) -> None:
    """A logit is the sum of votes for the pitch, for its interval and for the candidates."""
    head, batch = (
        copy.deepcopy(toy.model.pitch_head),
        {k: v[None] for k, v in toy.encoded[0].items()},
    )
    votes = head.head.output[1].bias.data.normal_()
    head.head.output[1].weight.data.zero_()
    logits = head(toy.model.encoder(batch)[0], batch)[0]
    pitches, intervals, copies = votes.split([128, 255, 3])
    for t in range(1, len(logits)):
        first = 127 - int(batch["context_pitch"][0, t])  # of the intervals, that to pitch 0
        expected = pitches + intervals[first : first + 128]
        for vote, candidate in zip(copies, batch["candidate"][0, t].tolist(), strict=True):
            if candidate < NO_PITCH:
                expected[candidate] += vote
        assert torch.allclose(logits[t], expected, atol=1e-5)


def test_number_head_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A median is a mean of the head's own value and its proposals, weighted by a softmax."""
    head, known = nb.NumberHead(5, toy.config).eval(), torch.randn(2, 30, 5)
    proposals = torch.randn(2, 30, 3)
    median, hidden = head(known, proposals)
    own, votes = head.output(hidden).split([1, 4], dim=-1)
    values = torch.cat([own, proposals], dim=-1)
    assert torch.equal(hidden, head.hidden(known))
    assert (values.amin(-1) <= median).all() and (median <= values.amax(-1)).all()
    weights = votes.exp() / votes.exp().sum(-1, keepdim=True)
    assert torch.allclose(median, (weights * values).sum(-1), atol=1e-5)


@pytest.mark.parametrize("source", [0, 1, 2])
def test_proposals(toy: SimpleNamespace, source: int) -> None:
    """What a head trusts is proposed: copied, the previous changed as copied, the previous."""
    model, batch = copy.deepcopy(toy.model), {k: v[None] for k, v in toy.encoded[0].items()}
    previous = torch.cat([torch.zeros(1, 1, 3), batch["numbers"][:, :-1]], dim=1)
    proposed = batch["copied"], previous + batch["copied_change"], previous
    for head in model.number_heads:
        head.output[1].weight.data.zero_()
        head.output[1].bias.data = 200.0 * torch.eye(5)[2 + source]
    assert torch.equal(model(batch)[1], proposed[source])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_only_in_training(nb: ModuleType, toy: SimpleNamespace, dropout: float) -> None:
    """Predictions vary in training if there is dropout, in evaluation they never do."""
    model = nb.MultiHeadLSTM(HEADS[1:], replace(toy.config, dropout=dropout))
    batch = batch_of(nb, toy.encoded)
    places = [model.encoder.norm[1], model.pitch_head.head.output[0]]
    places += [head.output[0] for head in model.number_heads]
    for training in (True, False):
        one, other = (model.train(training)(batch) for _ in range(2))
        same = [torch.equal(a, b) for a, b in zip(one, other, strict=True)]
        assert same == [not (training and dropout)] * 3
        for place in places:
            x = torch.randn(2, 9, 64)
            assert torch.equal(place(x), place(x)) == (not (training and dropout))
    assert model.encoder.lstm.dropout == dropout


@pytest.mark.parametrize("count", [2, 3])
def test_diagram(nb: ModuleType, toy: SimpleNamespace, count: int) -> None:
    """The diagram holds all heads, the sizes of the layers, and arrows from box to box."""
    model = nb.MultiHeadLSTM(HEADS[1 : count + 1], toy.config)
    boxes, figure = nb.diagram_boxes(model), nb.draw_diagram(model)
    (axis,) = figure.axes
    texts = {text.get_text() for text in axis.texts if text.get_text()}
    assert texts == {text for *_, text in boxes.values()}
    assert {"Embedding\n129 × 8", "LSTM\n2 × 16", "LayerNorm\n16"} <= texts
    assert sum("L1Loss" in text for text in texts) == count
    names = {box[:2]: name for name, box in boxes.items()}
    arrows = {(names[t.xyann], names[t.xy]) for t in axis.texts if not t.get_text()}
    heads = HEADS[: count + 1]
    for head in heads:
        assert {("norm", head), ("copies", head), (head, f"{head} loss")} <= arrows
    assert {pair for pair in arrows if set(pair) <= set(heads)} == set(pairwise(heads))
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    assert all(left < x < right and low < y < high for x, y in names)
    plt.close(figure)


# Section 7


def test_padding_has_no_influence(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Losses are means over the valid notes, whatever stands in the padding."""
    batch = batch_of(nb, toy.encoded)
    outputs, valid = toy.model(batch), batch["valid"]
    losses = nb.note_losses(HEADS[1:], outputs, batch)
    assert list(losses) == HEADS and not valid.all()
    nats = -outputs[0].log_softmax(-1).gather(-1, batch["pitch"][..., None])[valid].mean()
    assert losses["pitch"].item() == pytest.approx(nats.item(), rel=1e-5)
    errors = (outputs[1] - batch["numbers"])[valid].abs().mean(0).tolist()
    assert [losses[name].item() for name in HEADS[1:]] == pytest.approx(errors, rel=1e-5)
    spoilt = {
        name: values.masked_fill(~valid.view(*valid.shape, *[1] * (values.dim() - 2)), 7)
        for name, values in batch.items()
    } | {"valid": valid}
    assert nb.note_losses(HEADS[1:], toy.model(spoilt), spoilt) == losses


def test_composite_loss(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The loss is the cross-entropy plus the weighted errors of the numbers."""
    losses = {"pitch": 2.0, "step": 0.5, "duration": 0.25}
    found = [nb.composite_loss(losses, replace(toy.config, number_weight=w)) for w in (0, 1, 4)]
    assert found == [2.0, 2.75, 5.0]


def test_without_copies(nb: ModuleType, toy: SimpleNamespace) -> None:
    """In the chosen windows there is nothing to copy, all else is as it was."""
    batch = batch_of(nb, toy.encoded)
    gone = torch.tensor([True, False, False, True])
    found = nb.without_copies(batch, gone)
    assert found.keys() == batch.keys()
    for name, values in batch.items():
        blank = gone if name in COPIES else gone & False
        assert torch.equal(found[name][~blank], values[~blank])
        assert (found[name][blank] == (NO_PITCH if name == "candidate" else 0)).all()
        assert found[name].dtype == values.dtype and (name not in COPIES or values[gone].any())


def test_untrained_losses(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Untrained, the pitch costs about ln 128 and a number about a standard deviation."""
    losses = nb.evaluate(toy.model, nb.whole_pieces(toy.encoded, toy.config))
    assert losses["pitch"] == pytest.approx(math.log(128), abs=0.5)
    assert all(0.4 < losses[name] < 1.2 for name in HEADS[1:])


def test_evaluation_weighs_notes_alike(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The score of unequal batches is the mean over all notes, without dropout or gradients."""
    model = copy.deepcopy(toy.model).train()
    found = nb.evaluate(model, nb.whole_pieces(toy.encoded, replace(toy.config, batch_size=2)))
    batch = batch_of(nb, toy.encoded)
    expected = nb.note_losses(HEADS[1:], toy.model(batch), batch)
    assert found == pytest.approx({name: loss.item() for name, loss in expected.items()}, rel=1e-5)


def test_evaluation_without_copying(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Scored without copying, it does not matter what might be copied."""
    blank = [nb.without_copies(batch_of(nb, [p]), torch.tensor([True])) for p in toy.encoded]
    loader = nb.whole_pieces(toy.encoded, replace(toy.config, batch_size=2))
    found = nb.evaluate(toy.model, loader, copying=False)
    assert found == pytest.approx(nb.evaluate(toy.model, blank), rel=1e-5)
    assert found != pytest.approx(nb.evaluate(toy.model, loader), rel=1e-5)


# Section 8


def train_once(nb: ModuleType, toy: SimpleNamespace, **changes: float) -> torch.nn.Module:
    """Return the model after one step of plain gradient descent with rate 0.1 on all pieces."""
    model = copy.deepcopy(toy.model)
    for weights in model.parameters():
        weights.grad = torch.full_like(weights, torch.nan)  # of an earlier batch
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    loader = [batch_of(nb, toy.encoded * 10)]
    nb.train_one_epoch(model, loader, optimiser, scheduler, replace(toy.config, **changes))
    return model


@pytest.mark.parametrize(("forget", "low", "high"), [(0, 0, 0), (0.5, 10, 30), (1, 40, 40)])
def test_forget(
    nb: ModuleType,
    toy: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    forget: float,
    low: int,
    high: int,
) -> None:
    """In training that share of the windows may not copy, and dropout is on."""
    batches, blank = [], nb.without_copies
    monkeypatch.setattr(
        nb, "without_copies", lambda batch, gone: batches.append(blank(batch, gone)) or batches[-1]
    )
    model = train_once(nb, toy, forget=forget)
    (batch,) = batches
    assert low <= int((batch["candidate"] == NO_PITCH).flatten(1).all(1).sum()) <= high
    assert model.training


@pytest.mark.parametrize("weight", [1.0, 1e6])
def test_gradient_is_clipped(nb: ModuleType, toy: SimpleNamespace, weight: float) -> None:
    """However large the loss is, a gradient has at most length one, and its step helps."""
    model = train_once(nb, toy, number_weight=weight)
    pairs = zip(model.parameters(), toy.model.parameters(), strict=True)
    moved = torch.cat([(a - b).detach().flatten() for a, b in pairs]).norm().item()
    assert moved == pytest.approx(0.1, rel=1e-3)
    loader, config = (
        nb.whole_pieces(toy.encoded, toy.config),
        replace(toy.config, number_weight=weight),
    )
    after, before = (nb.composite_loss(nb.evaluate(m, loader), config) for m in (model, toy.model))
    assert after < before


def fit_toy(
    nb: ModuleType, toy: SimpleNamespace, random_state: int = 0, last: int = 3, **changes: object
) -> SimpleNamespace:
    """Return log and weights of a training that is scored on pieces 2 to `last`."""
    config = replace(toy.config, **changes)
    torch.manual_seed(random_state)
    model = nb.MultiHeadLSTM(toy.normaliser.names, config)
    untrained = nb.evaluate(model, nb.whole_pieces(toy.encoded[2:last], config))
    scored = {"training": toy.encoded[:2], "validation": toy.encoded[2:last]}
    loaders = {side: nb.whole_pieces(encoded, config) for side, encoded in scored.items()}
    log = nb.fit(model, nb.random_windows(toy.encoded[:2], config), loaders, config)
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return SimpleNamespace(**locals())


def test_training_learns(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The losses of all heads fall, and the log has them for every epoch and side."""
    run = fit_toy(nb, toy, epochs=6, learning_rate=2e-2, dropout=0.0)
    sides = [f"{side}_{head}" for side in ("training", "validation") for head in HEADS]
    assert list(run.log) == ["epoch", *sides, "validation_total"]
    assert run.log.epoch.tolist() == list(range(1, 7))
    total = run.log[[f"validation_{head}" for head in HEADS]].sum(axis=1)
    assert np.allclose(run.log.validation_total, total)
    last = run.log.iloc[-1]
    assert last.validation_pitch < run.untrained["pitch"] - 1
    assert all(last[f"training_{head}"] < run.log[f"training_{head}"][0] for head in HEADS)


def test_learning_rate(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The learning rate rises in the first tenth of all steps, then it falls to nothing."""
    found = []
    hook = register_optimizer_step_pre_hook(
        lambda optimiser, *_: found.append(optimiser.param_groups[0]["lr"])
    )
    fit_toy(nb, toy, epochs=8, patience=9, learning_rate=3e-3, batch_size=4)
    hook.remove()
    rates = np.array(found)
    top = rates.argmax()
    assert rates[top] == pytest.approx(3e-3, rel=0.05)
    assert 0 < top <= 0.15 * len(rates) and len(rates) == 8 * round(len(rates) / 8)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert rates[0] < 3e-4 and rates[-1] < 3e-6


def test_training_is_reproducible(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The same random state gives the same weights, bit by bit; another one does not."""
    one, same, other = (fit_toy(nb, toy, state, epochs=1).weights for state in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_validation_chooses_only_the_epoch(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another validation set, the weights after each epoch are the same."""
    weights, evaluate = [], nb.evaluate

    def spy(model: torch.nn.Module, loader: object) -> dict[str, float]:
        weights[-1].append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
        return evaluate(model, loader)

    monkeypatch.setattr(nb, "evaluate", spy)
    for last in (3, 4):
        weights.append([])
        fit_toy(nb, toy, last=last, epochs=3, batch_size=2)
    one, other = (torch.stack(states) for states in weights)
    assert torch.equal(one, other) and not torch.equal(one[-1], one[1])


class Script:
    """Takes the place of training and scoring: epoch n makes all weights n, its score is given."""

    def __init__(self, nb: ModuleType, monkeypatch: pytest.MonkeyPatch, scores: list) -> None:
        """Take the scores, or in place of one the moment at which the epoch is interrupted."""
        self.scores, self.epoch = scores, 0
        monkeypatch.setattr(nb, "train_one_epoch", self.train)
        monkeypatch.setattr(nb, "evaluate", self.evaluate)

    def train(self, model: torch.nn.Module, *_: object) -> None:
        """Set the weights."""
        self.epoch += 1
        for weights in model.parameters():
            weights.data.fill_(self.epoch)
        if self.scores[self.epoch - 1] == "training":
            raise KeyboardInterrupt

    def evaluate(self, model: torch.nn.Module, side: str) -> dict[str, float]:
        """Return the validation score, half of it due to the step; the training only improves."""
        score = self.scores[self.epoch - 1]
        if score == side:
            raise KeyboardInterrupt
        score = score if side == "validation" else -self.epoch
        return {"pitch": score / 2, "step": score / 2}


@pytest.mark.parametrize(
    ("scores", "epochs", "best_epoch"),
    [
        ([5, 3, 4, 3, 9, 1], 5, 2),  # an equal score is no better, and patience is 3
        ([5, 6, 4, 5, 3, 2], 6, 6),  # no early stop
        ([5, 3, 4, 2, "validation"], 4, 4),
        ([5, 3, 4, "training"], 3, 2),
        ([5, "training"], 1, 1),
        ([5, "validation"], 1, 1),
        (["training"], 0, 0),
        (["validation"], 0, 0),
    ],
)
def test_best_weights_are_kept(
    nb: ModuleType,
    toy: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    scores: list,
    epochs: int,
    best_epoch: int,
) -> None:
    """Stopped by patience or an interrupt, the model has the weights that validation liked best."""
    Script(nb, monkeypatch, scores)
    model, sides = copy.deepcopy(toy.model), {"training": "training", "validation": "validation"}
    try:
        log = nb.fit(model, [None] * 3, sides, replace(toy.config, epochs=6, patience=3))
    except KeyboardInterrupt:  # would end all tests
        pytest.fail("the interrupt was passed on")
    assert len(log) == epochs and (not epochs or log.validation_total.tolist() == scores[:epochs])
    for weights, untrained in zip(model.parameters(), toy.model.parameters(), strict=True):
        expected = torch.full_like(weights, best_epoch) if best_epoch else untrained
        assert torch.equal(weights, expected)


@pytest.mark.parametrize("epochs", [2, 1, 0])
def test_notebook_goes_on_after_an_interrupt(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """The cells after the training can be run, however early it was interrupted."""
    Script(nb, monkeypatch, [*[5, 4][:epochs], "training"])
    model = nb.MultiHeadLSTM(["step"], toy.config)
    sides = {"training": "training", "validation": "validation"}
    log = nb.fit(model, [None] * 3, sides, replace(toy.config, epochs=3))
    file = io.StringIO()
    log.to_csv(file, index=False, float_format="%.6f")
    assert "validation_total" in pd.read_csv(io.StringIO(file.getvalue()))
    names = dict(nb.__dict__) | {"log": log, "model": model, "display": lambda *_, **__: None}
    for cell in read_notebook().cells:
        if cell.id in ("curves", "curves-reading"):
            exec(cell.source, names)


# Progress, as fit shows it


@pytest.mark.parametrize("most", [9, 2])
def test_progress_disappears(nb: ModuleType, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """In Jupyter the line of progress is gone at the end, also if the loop is left early."""
    line = MagicMock()
    monkeypatch.setattr(nb, "DisplayHandle", lambda: line)
    assert list(nb.track(range(3), "reading")) == [0, 1, 2] and not line.mock_calls
    monkeypatch.setattr(nb, "get_ipython", lambda: True)
    seen = [item for item, _ in zip(nb.track(range(3), "reading"), range(most), strict=False)]
    shown = [call.args[0]["text/plain"] for call in line.update.mock_calls]
    assert seen == [0, 1, 2][:most] and "reading" in shown[0] and shown[-1] == ""
