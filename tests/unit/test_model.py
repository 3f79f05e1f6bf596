"""The models: what reaches which output, the heads by hand, and the diagram."""

from types import ModuleType, SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn
from toys import FULL, HEADS, MODELS, PLAIN, batch_of, new_model, toy_music

NO_PITCH = 128


@pytest.fixture(scope="module")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces, encoded, and as one batch."""
    toy = toy_music(nb)
    toy.batch = batch_of(toy, toy.encoded)
    return toy


@pytest.mark.parametrize("kind", MODELS)
def test_no_input_is_ignored(toy: SimpleNamespace, kind: str) -> None:
    """Each component of an input changes all that depends on it, from its note on, and no more."""
    model, at, piece = new_model(toy, kind).double(), 5, toy.encoded[3]
    start = int((piece["parallel_pitch"][20:] < NO_PITCH).any(-1).nonzero()[0]) + 20 - at
    window = {name: values[None, start : start + 12] for name, values in piece.items()}
    window = {k: v.double() if v.is_floating_point() else v for k, v in window.items()}
    targets, near = window["parallel_pitch"][0, at], window["near_pitch"][0, at]
    near = (near - window["context_pitch"][0, at]).abs() <= 16
    some = dict.fromkeys(("parallel_pitch", "parallel_interval"), targets < NO_PITCH)
    some |= {"near_pitch": near, "near_state": near.repeat_interleave(6)}
    to_lstm = {"context_pitch", "context_attributes"}
    to_lstm |= {*toy.nb.CONTEXT_FEATURES, "near_pitch", "near_state"} if kind == FULL else set()
    for name, values in window.items():
        here = some.get(name, torch.ones(values[0, at].numel()))  # the others are not there
        for i in here.nonzero()[:, 0].tolist():
            other = window | {name: values.clone()}
            part = other[name][0, at].view(-1)
            part[i] = part[i] - 1 if part[i] > 0 else 1
            reached = torch.zeros(12, NO_PITCH + 3, dtype=torch.bool)  # logits and medians
            if name in to_lstm:
                reached[at:] = True  # the LSTM keeps it
            elif kind == FULL and name == "attributes":  # each is an input of the heads after it
                reached[at, NO_PITCH + i + 1 :] = True
            elif kind == FULL and name.startswith("parallel"):  # only of the pitches it is about
                reached[at, [targets[i], other["parallel_pitch"][0, at, i]]] = True
            elif kind == FULL:  # the plain model has no other input
                reached[at, : NO_PITCH if name.startswith("candidate") else None] = True
                reached[at, :NO_PITCH] &= name.startswith("candidate")
            pairs = zip(model(window), model(other), strict=True)
            logits, medians, *layers = (one[0] != changed[0] for one, changed in pairs)
            assert torch.equal(torch.cat([logits, medians], dim=-1), reached), (name, i)
            for layer in layers:  # it reaches the hidden layer, not only the proposals
                assert torch.equal(layer.any(-1), reached[:, NO_PITCH:]), (name, i)


@pytest.mark.parametrize("kind", MODELS)
def test_dropout_and_normalisation(toy: SimpleNamespace, kind: str) -> None:
    """Dropout follows the LSTM and stands in each head; states and hidden layers are normalised."""
    model = new_model(toy, kind, dropout=0.5, copy_dropout=0.0)
    rates = [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    assert rates == [0.5] * (1 if kind == PLAIN else 5)
    spied = []
    model.encoder.register_forward_hook(lambda *call: spied.append(call[-1][0]))
    for training in (True, False):
        one, other = (model.train(training)(toy.batch) for _ in range(2))
        assert torch.equal(one[0], other[0]) != training
    for layer in (spied[-1], *other[2:]):  # and those in the heads of the model in full
        assert torch.allclose(layer.mean(-1), torch.tensor(0.0), atol=1e-5)
        assert torch.allclose(layer.std(-1, correction=0), torch.tensor(1.0), atol=0.05)


def test_copy_dropout(nb: ModuleType, toy: SimpleNamespace) -> None:
    """In training, and only there, whole windows have nothing to copy, in the share that is set."""
    copies = {"candidate", "candidate_length", "copied", "copied_change", "copied_length"}
    torch.manual_seed(0)
    given = {name: torch.cat([values] * 300) for name, values in toy.batch.items()}
    left = nb.apply_copy_dropout(given, 0.25)
    gone = (left["candidate"] == NO_PITCH).flatten(1).all(dim=1)
    assert 0.2 < gone.float().mean() < 0.3
    for name, values in left.items():
        expected = given[name].clone()
        if name in copies:
            expected[gone] = NO_PITCH if name == "candidate" else 0
        assert torch.equal(values, expected), name
    model = new_model(toy, FULL, dropout=0.0, copy_dropout=1.0)
    emptied, free = model(nb.apply_copy_dropout(toy.batch, 1.0)), model(toy.batch)
    for trained, *evaluated in zip(model.train()(toy.batch), emptied, free, strict=True):
        assert [torch.equal(trained, values) for values in evaluated] == [True, False]


def test_heads_by_hand(toy: SimpleNamespace) -> None:
    """Candidates add to their pitch; a median is a mean of the head's value and its proposals."""
    model, batch = new_model(toy, FULL), toy.batch
    last = [head.output[1] for head in (model.pitch_head, *model.attribute_heads)]
    for layer in (*last, model.tied.score):
        layer.weight.data.zero_()
        layer.bias.data.normal_()
    logits, medians, _ = model(batch)
    copies = nn.functional.one_hot(batch["candidate"], NO_PITCH + 1)[..., :NO_PITCH].float()
    own, copied = last[0].bias[:NO_PITCH].clone(), last[0].bias[NO_PITCH : NO_PITCH + 2]
    own[40:80] += model.tied.score.bias
    expected = own + torch.einsum("k,btkp->btp", copied, copies)
    assert torch.allclose(logits, expected, atol=1e-5)
    copied, previous, end = batch["copied"], batch["context_attributes"], batch["context_end"]
    proposals = torch.stack([copied, previous + batch["copied_change"], previous, end])
    for i, layer in enumerate(last[1:]):
        own, *mixture = layer.bias
        values = torch.cat([own.expand(1, *medians.shape[:2]), proposals[..., i]])
        expected = torch.einsum("k,kbt->bt", torch.stack(mixture).softmax(0), values)
        assert torch.allclose(medians[..., i], expected, atol=1e-5)


def test_tied_head_moves_with_the_music(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The logits of the tied head for a transposed window are those of the window, moved."""
    tied = new_model(toy, FULL).tied.double()
    batch = toy.batch | {"near_state": toy.batch["near_state"].double()}
    question = torch.randn(*batch["pitch"].shape, 8, dtype=torch.double)
    roll, heard = tied.near.roll(batch), batch["context_pitch"] < NO_PITCH
    logits = tied(roll, question, batch)
    previous = tied.near.around_previous(roll, batch["context_pitch"])
    assert not logits[..., :40].any() and not logits[..., 80:].any() and len(logits.unique()) > 99
    for shift in (-5, 1, 6):
        moved, inside = nb.transpose(batch, shift), slice(46, 74)
        roll = tied.near.roll(moved)
        found = tied(roll, question, moved).roll(-shift, dims=-1)
        assert torch.allclose(found[..., inside], logits[..., inside], rtol=0, atol=1e-12)
        found = tied.near.around_previous(roll, moved["context_pitch"])
        assert torch.allclose(found[heard], previous[heard], rtol=0, atol=1e-12)


def test_tied_head_by_hand(toy: SimpleNamespace) -> None:
    """A logit is that of the near notes, the question and parallel motion, as in the formula."""
    tied, batch = new_model(toy, FULL).tied, batch_of(toy, toy.encoded[3:])
    near, question = tied.near, torch.randn(*batch["pitch"].shape, 8)
    roll, one = near.roll(batch), {name: values[0] for name, values in batch.items()}
    apart = one["near_pitch"][..., None] - torch.arange(40, 80)  # (time, near notes, pitches)
    close, classes = near.close.weight.view(8, 6, 10), near.classes.weight.view(8, 6, 12)
    weights = close[..., (apart + 4).clamp(0, 8)] * (apart.abs() <= 4)
    weights = weights + classes[..., apart % 12] + close[..., 9, None, None, None] * (apart < 0)
    x = torch.einsum("uktnp,tnk->tpu", weights, one["near_state"]) + near.close.bias
    there = (one["parallel_pitch"][..., None] == torch.arange(40, 80)).float()
    assert there.any()
    moves = torch.einsum("tmp,tmu->tpu", there, tied.parallel.weight[one["parallel_interval"]])
    expected = tied.score((x + question[0, :, None] + 8**0.5 * moves).relu())[..., 0]
    assert torch.allclose(tied(roll, question, batch)[0, :, 40:80], expected, atol=1e-5)
    apart = one["near_pitch"] - one["context_pitch"][:, None]
    weights = near.previous.weight.view(8, 33, 6)[:, (apart + 16).clamp(0, 32)]
    weights = weights * (apart.abs() <= 16)[..., None]
    expected = torch.einsum("utnk,tnk->tu", weights, one["near_state"]) + near.previous.bias
    found = near.around_previous(roll, batch["context_pitch"])[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_diagram(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The diagram gives the sizes of all layers, and those of a head under its name."""
    model = new_model(toy, FULL)
    (axis,), near = nb.draw_diagram(model).axes, model.tied.near
    plt.close("all")
    boxes = "\n".join(text.get_text() for text in axis.texts)
    expected = [f"LSTM {model.encoder.lstm.input_size} → 16\n", "Embedding 129 × 8"]
    for layer, name in ((near.previous, "previous pitch\n"), (near.close, "40 pitches, tied\n")):
        expected.append(f"{name}Linear {layer.in_features} → {layer.out_features}")
    for name, head in zip(HEADS, (model.pitch_head, *model.attribute_heads), strict=True):
        first, last = head.layer[0], head.output[1]
        sizes = f"Linear {first.in_features} → {first.out_features}\n"
        expected.append(f"{name}: {sizes}Linear {last.in_features} → {last.out_features}")
    assert [text for text in expected if text not in boxes] == []
