"""The models: what reaches which output, the heads by hand, and the diagram."""

from types import ModuleType, SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn
from toys import FULL, HEADS, MODELS, NO_PITCH, PLAIN, new_model

COPIES = {"candidate", "candidate_length", "copied", "copied_change", "copied_length"}


@pytest.mark.parametrize("kind", MODELS)
def test_no_input_is_ignored(toy: SimpleNamespace, kind: str) -> None:
    """Each component of an input changes all that depends on it, from its note on, and no more."""
    model, at, piece = new_model(toy, kind).double(), 5, toy.encoded[3]
    start = int((piece["parallel_pitch"][20:] < NO_PITCH).any(-1).nonzero()[0]) + 20 - at
    window = {name: values[None, start : start + 12] for name, values in piece.items()}
    window = {k: v.double() if v.is_floating_point() else v for k, v in window.items()}
    targets, near = window["parallel_pitch"][0, at], window["near_pitch"][0, at]
    near = (near - window["context_pitch"][0, at]).abs() <= 16
    there = dict.fromkeys(("parallel_pitch", "parallel_interval"), targets < NO_PITCH)
    there |= {"near_pitch": near, "near_state": near.repeat_interleave(6)}
    to_lstm = {"context_pitch", "context_attributes"}
    if kind == FULL:
        to_lstm |= {"near_pitch", "near_state", "context_metre", "context_counts"}
    for name, values in window.items():
        here = there.get(name, torch.ones(values[0, at].numel()))
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
                of_pitch = name.startswith("candidate")
                reached[at] = torch.arange(NO_PITCH + 3).lt(NO_PITCH) == of_pitch
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
    assert not model.train()(toy.batch)[0].equal(model(toy.batch)[0])
    hidden = []
    model.eval().encoder.register_forward_hook(lambda *call: hidden.append(call[-1][0]))
    for layer in (*model(toy.batch)[2:], *hidden):
        assert torch.allclose(layer.mean(-1), torch.tensor(0.0), atol=1e-5)
        assert torch.allclose(layer.std(-1, correction=0), torch.tensor(1.0), atol=0.05)


def test_copy_dropout(nb: ModuleType, toy: SimpleNamespace) -> None:
    """In training, and only there, whole windows have nothing to copy, in the share that is set."""
    torch.manual_seed(0)
    given = {name: torch.cat([values] * 300) for name, values in toy.batch.items()}
    left = nb.apply_copy_dropout(given, 0.25)
    gone = (left["candidate"] == NO_PITCH).flatten(1).all(dim=1)
    assert 0.2 < gone.float().mean() < 0.3
    for name, values in given.items():
        nothing = NO_PITCH if name == "candidate" else 0
        emptied = values.index_fill(0, gone.nonzero()[:, 0], nothing)
        assert torch.equal(left[name], emptied if name in COPIES else values), name
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


def test_tied_head_by_hand(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A logit is that of the near notes, the question and parallel motion, as in the formula."""
    torch.manual_seed(0)
    tied, batch = nb.TiedPitches(range(50, 68), 8), toy.batch  # not all that the music has
    batch = batch | {"near_pitch": batch["near_pitch"][..., [*range(10), 11, 11]]}  # a unison
    one, near = {name: v.flatten(0, 1) for name, v in batch.items()}, tied.near
    question, roll = torch.randn(*batch["pitch"].shape, 8), near.roll(batch)
    apart = one["near_pitch"][..., None] - torch.arange(50, 68)  # (time, near notes, pitches)
    close, classes = near.close.weight.view(8, 6, 9), near.classes.weight.view(8, 6, 12)
    weights = close[..., (apart + 4).clamp(0, 8)] * (apart.abs() <= 4)
    weights = weights + classes[..., apart % 12]
    x = torch.einsum("uktnp,tnk->tpu", weights, one["near_state"]) + near.close.bias
    there = (one["parallel_pitch"][..., None] == torch.arange(50, 68)).float()
    moves = torch.einsum("tmp,tmu->tpu", there, tied.parallel.weight[one["parallel_interval"]])
    x = (x + question.flatten(0, 1)[:, None] + 8**0.5 * moves).relu()
    expected = nn.functional.pad(tied.score(x)[..., 0], (50, NO_PITCH - 68))
    found = tied(roll, question, batch).flatten(0, 1)
    assert there.any() and torch.allclose(found, expected, atol=1e-5)
    apart = one["near_pitch"] - one["context_pitch"][:, None]
    weights = near.previous.weight.view(8, 33, 6)[:, (apart + 16).clamp(0, 32)]
    weights = weights * (apart.abs() <= 16)[..., None]
    expected = torch.einsum("utnk,tnk->tu", weights, one["near_state"]) + near.previous.bias
    found = near.around_previous(roll, batch["context_pitch"]).flatten(0, 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_diagram(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The diagram gives the sizes of all layers, and those of a head under its name."""
    model = new_model(toy, FULL)
    (axis,), near = nb.draw_diagram(model).axes, model.tied.near
    plt.close("all")
    boxes = "\n".join(text.get_text() for text in axis.texts)
    expected = [f"LSTM {model.encoder.lstm.input_size} → 16\n", "Embedding 129 × 8"]
    for layer, name in ((near.previous, "previous pitch:\n"), (near.close, "40 pitches, tied\n")):
        expected.append(f"{name}Linear {layer.in_features} → {layer.out_features}")
    for name, head in zip(HEADS, (model.pitch_head, *model.attribute_heads), strict=True):
        first, last = head.layer[0], head.output[1]
        sizes = f"Linear {first.in_features} → {first.out_features}\n"
        expected.append(f"{name}: {sizes}Linear {last.in_features} → {last.out_features}")
    assert [text for text in expected if text not in boxes] == []
