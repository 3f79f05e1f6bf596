"""The studies: their tools on toy music, tiny runs of both scripts, and the committed tables."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pretty_midi
import pytest
import study_ablation
import study_composers
import study_tools
import torch
from notebook_tools import chorale, chorale_notes, midi_bytes, piece_of, small_config

LEAST_WORKS = 5  # with fewer, the scores of a composer say little
STATES = 3  # random states of each idea
PIECES = 24  # composed for each composer
ALL = [*study_ablation.TRAINING, *study_ablation.DRAWING]

Excerpts = list[tuple[str, pd.DataFrame]]


@pytest.fixture
def tiny(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> object:
    """Let the studies train tiny models, shorter ones for an epoch; return the configuration."""
    config = small_config(nb, epoch_windows=16, epochs=study_ablation.SHORTER)
    monkeypatch.setattr(nb, "Config", lambda: config)
    for script in (study_composers, study_ablation):
        monkeypatch.setattr(script, "definitions", lambda: nb)
    return config


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the list of configurations that the studies train with from now on."""
    begun = []

    def counted(*arguments: object) -> object:
        begun.append(arguments[2])
        return study_tools.train(*arguments)

    for script in (study_composers, study_ablation):
        monkeypatch.setattr(script, "train", counted)
    return begun


def corpus_folder(folder: Path, files: int, beats: int = 24) -> Path:
    """Return a folder of random pieces with dynamics and a change of tempo."""
    folder.mkdir(parents=True)
    for number in range(files):
        notes = chorale_notes(number, beats, velocity=True)
        data = midi_bytes([notes], ((0, 70), (9, 95)))
        (folder / f"piece{number}x.mid").write_bytes(data)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *arguments: object) -> None:
    """Call a script's `main` with arguments of the command line."""
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
    main()


def toy_music(nb: ModuleType, count: int) -> Excerpts:
    """Return `count` random pieces of one kind, each from a source of its own."""
    return [(f"source{i}", chorale(nb, i, velocity=True).notes) for i in range(count)]


def at_level(nb: ModuleType, semitones: int) -> pd.DataFrame:
    """Return always the same music, so many semitones higher."""
    notes = chorale(nb, 0).notes
    return notes.assign(pitch=notes.pitch + semitones)


# Real and made


def test_one_kind_of_music_is_not_told_apart(nb: ModuleType) -> None:
    """Random halves of the same kind of music are told apart about as often as not."""
    music, rng, scores = toy_music(nb, 80), np.random.default_rng(0), []
    for _ in range(5):
        order = [music[i] for i in rng.permutation(len(music))]
        scores.append(study_tools.told_apart(nb, order[:40], order[40:]))
    assert 0.4 < np.mean(scores) < 0.6
    # unequal numbers make neither side more likely
    unequal = [study_tools.told_apart(nb, music[:60], music[60:]) for _ in range(2)]
    assert unequal[0] == unequal[1] and 0.35 < unequal[0] < 0.65


@pytest.mark.parametrize("column", ["duration", "pitch", "velocity"])
def test_other_kinds_of_music_are_told_apart(nb: ModuleType, column: str) -> None:
    """Music that lies higher, lasts longer or is more even is told apart nearly always."""
    changes = {
        "duration": lambda notes: notes.duration * 3,
        "pitch": lambda notes: notes.pitch + 12,
        "velocity": lambda notes: 64,
    }
    music = toy_music(nb, 40)
    other = [(name, notes.assign(**{column: changes[column](notes)})) for name, notes in music]
    assert study_tools.told_apart(nb, music[:20], other[20:]) > 0.95


def test_excerpts_of_one_source_are_not_compared(nb: ModuleType) -> None:
    """Two excerpts of a piece are alike, which says nothing about real and made."""
    sides = {
        kind: [(f"{kind}{k} from note {n}", at_level(nb, k)) for k in levels for n in (0, 200)]
        for kind, levels in (("real", range(0, 24, 2)), ("made", range(1, 24, 2)))
    }
    # the nearest of another source is always from the other side
    assert study_tools.told_apart(nb, sides["real"], sides["made"]) < 0.05
    # if they counted, the nearest would be the other excerpt of the same source
    strangers = {
        kind: [(f"{kind} {i}", notes) for i, (_, notes) in enumerate(side)]
        for kind, side in sides.items()
    }
    assert study_tools.told_apart(nb, strangers["real"], strangers["made"]) > 0.95


def test_made_pieces_are_not_compared_with_their_source(nb: ModuleType) -> None:
    """What continues a piece is not compared with this piece."""
    real, made = [], []
    for k in range(4):
        real += [(f"a{k}", at_level(nb, 20 * k)), (f"b{k}", at_level(nb, 20 * k + 5))]
        made += [(f"a{k}", at_level(nb, 20 * k - 1)), (f"b{k}", at_level(nb, 20 * k + 6))]
    # the nearest of another source is real for all; that of any source would be of the other side
    assert study_tools.told_apart(nb, real, made) == pytest.approx(0.5, abs=0.05)
    strangers = [(f"made {name}", notes) for name, notes in made]
    assert study_tools.told_apart(nb, real, strangers) < 0.25


def test_too_few_sources(nb: ModuleType) -> None:
    """With fewer than four real pieces there is no score, however many excerpts they have."""
    music = toy_music(nb, 12)
    cut = [(f"{'abc'[i % 3]} from note {i}", notes) for i, (_, notes) in enumerate(music[:6])]
    assert np.isnan(study_tools.told_apart(nb, cut, music[6:]))
    assert not np.isnan(study_tools.told_apart(nb, [*cut, ("d", music[6][1])], music[7:]))


def test_seeds_of_one_piece(nb: ModuleType) -> None:
    """Where all seeds are of one piece, the score is that of others or there is none."""
    music = toy_music(nb, 40)
    made = [("seed", notes.assign(duration=notes.duration * 3)) for _, notes in music[20:]]
    score = study_tools.told_apart(nb, music[:20], made)
    assert np.isnan(score) or score > 0.95


def test_real_excerpts(nb: ModuleType) -> None:
    """At most two excerpts of a piece count, from its middle; a short piece has none."""
    long, middle = chorale(nb, 0, beats=80, name="long"), chorale(nb, 1, name="middle")
    short = replace(middle, name="short", notes=middle.notes.head(19))
    found = study_tools.real_excerpts(nb, [long, middle, short], 20)
    assert [name for name, _ in found] == ["long", "long", "middle", "middle"]
    for piece, parts in ((long, found[:2]), (middle, found[2:])):
        whole, starts = len(piece) // 20, [int(notes.index[0]) for _, notes in parts]
        assert starts[1] == starts[0] + 20 and all(len(notes) == 20 for _, notes in parts)
        assert abs(starts[1] / 20 - whole / 2) <= 1
        for start, (_, notes) in zip(starts, parts, strict=True):
            pd.testing.assert_frame_equal(notes, piece.notes.iloc[start : start + 20])


def test_stuck(nb: ModuleType) -> None:
    """Pieces that hang on a note or are mostly silent are counted, others are not."""
    normal = chorale(nb, 0).notes
    one_note = piece_of(nb, "one", [(float(i), 60, 1.0, 90) for i in range(50)]).notes
    hanging = normal.assign(pitch=normal.pitch.where(normal.index % 5 < 2, 60))
    silent = piece_of(nb, "gaps", [(2.0 * i, 60 + i % 7, 0.5, 90) for i in range(50)]).notes
    # a long note sounds through what would be gaps
    held = piece_of(nb, "held", [(0, 40, 99.0, 90), *zip_notes(silent)]).notes
    chord = piece_of(nb, "chord", [(0, 60 + i, 1.0, 90) for i in range(50)]).notes
    kinds = [(one_note, 1), (hanging, 1), (silent, 1), (chord, 1), (normal, 0), (held, 0)]
    for notes, expected in kinds:
        assert study_tools.stuck(nb, [("name", notes)]) == expected
    assert study_tools.stuck(nb, [("name", notes) for notes, _ in kinds]) == 4
    late = normal.assign(onset=normal.onset + 500)
    assert study_tools.stuck(nb, [("late", late)]) == 0


def zip_notes(notes: pd.DataFrame) -> list[tuple[float, int, float, int]]:
    """Return the notes as a list of onset, pitch, duration and velocity."""
    columns = notes[["onset", "pitch", "duration", "velocity"]]
    return list(columns.itertuples(index=False, name=None))


@pytest.mark.parametrize("count", [1, 3, 7, 24])
def test_seeds(nb: ModuleType, count: int) -> None:
    """Seeds are excerpts of all test pieces that are long enough, no two of them the same."""
    config = small_config(nb)
    pieces = [chorale(nb, i, name=f"p{i}") for i in range(3)]
    pieces.append(replace(pieces[0], name="short", notes=pieces[0].notes.head(15)))
    trained = study_tools.Trained(config, None, {"test": pieces}, None, None, None, 0, 0.0)
    found = list(study_tools.seeds(trained, count))
    assert len(found) == count
    table = {piece.name: piece.notes for piece in pieces}
    places = set()
    for name, seed in found:
        start = int(np.flatnonzero(table[name].onset.to_numpy() == seed.onset[0])[0])
        starts = range(start, start + 5)  # the notes of a chord have one onset
        parts = [table[name].iloc[s : s + 16].reset_index(drop=True) for s in starts]
        assert any(seed.equals(part) for part in parts) and len(seed) == 16
        places.add((name, seed.onset[0], seed.pitch[0]))
    assert len(places) == count
    turns = Counter(name for name, _ in found)
    assert set(turns) == {"p0", "p1", "p2"} or count < 3
    assert max(turns.values()) - min(turns.values()) <= 1
    assert found[0][1].equals(table["p0"].head(16))


# Tables


def test_add_row(nb: ModuleType, tmp_path: Path) -> None:
    """A row takes the place of the one with its key, the others stay, sorted, in one file."""
    path, key = tmp_path / "new" / "table.csv", ["idea", "random state"]
    assert study_tools.known(path, key) == set()
    rows = [("none", 1, 2.5), ("none", 0, 3.0), ("metre", 0, 1.25), ("none", 1, 2.123456)]
    for idea, state, pitch in rows:
        row = {"idea": idea, "random state": state, "pitch": pitch, "cut": state == 1}
        study_tools.add_row(nb, path, row, key)
        assert [p.name for p in path.parent.iterdir()] == ["table.csv"]
    assert path.read_text().splitlines() == [
        "idea,random state,pitch,cut",
        "metre,0,1.2500,False",
        "none,0,3.0000,False",
        "none,1,2.1235,True",
    ]
    assert study_tools.known(path, key) == {("metre", 0), ("none", 0), ("none", 1)}
    assert study_tools.known(path, ["idea"]) == {("metre",), ("none",)}
    # a row may have a column more than those before it, or one less
    study_tools.add_row(nb, path, {"idea": "a", "random state": 0, "velocity": 7.0}, key)
    table = pd.read_csv(path).set_index("idea")
    assert table.velocity["a"] == 7 and np.isnan(table.pitch["a"]) and table.pitch["metre"] == 1.25


def test_failed_row_leaves_the_table(nb: ModuleType, tmp_path: Path) -> None:
    """A row that cannot be written leaves the old table, and no temporary file."""
    path = tmp_path / "table.csv"
    study_tools.add_row(nb, path, {"composer": "haydn", "pitch": 2.0}, ["composer"])
    before = path.read_bytes()
    with pytest.raises(KeyError):
        study_tools.add_row(nb, path, {"composer": "mozart", "pitch": 2.0}, ["no such column"])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def ablation_runs() -> pd.DataFrame:
    """Return a small table of runs, in no order."""
    rows = [
        ("metre", 2, 2.7, 0.5, 1.0, 0.9),
        ("none", 0, 2.0, 0.2, 0.5, 0.6),
        ("metre", 0, 2.1, 0.3, 1.0, 0.8),
        ("none", 2, 2.4, 0.2, 0.7, 0.7),
        ("metre", 1, 2.4, 0.4, 1.0, 0.7),
        ("none", 1, 2.2, 0.2, 0.6, 0.8),
        ("nucleus", 1, 2.2, 0.2, 0.6, 0.9),
    ]
    columns = ["idea left out", "random state", "pitch", "step", "duration", "told apart"]
    return pd.DataFrame(rows, columns=columns)


def test_summary() -> None:
    """Means, spreads and changes under the same random state are those worked out by hand."""
    table = study_ablation.summary(ablation_runs()).set_index("idea left out")
    assert list(table.index) == ALL
    counts = {"none": 3, "metre": 3, "nucleus": 1}
    assert table["random states"].to_dict() == dict.fromkeys(ALL, 0) | counts
    expected = {
        "pitch": 2.4,
        "pitch, spread": 0.3,
        "pitch, change": 0.2,
        "pitch, spread of change": 0.1,
        "step": 0.4,
        "step, spread": 0.1,
        "step, change": 0.2,
        "step, spread of change": 0.1,
        "duration": 1.0,
        "duration, spread": 0.0,
        "duration, change": 0.4,
        "duration, spread of change": 0.1,
        "told apart": 0.8,
        "told apart, spread": 0.1,
        "told apart, change": 0.1,
        "told apart, spread of change": np.sqrt((0.1**2 + 0.2**2 + 0.1**2) / 2),
    }
    assert list(table.columns) == ["random states", *expected]
    assert table.loc["metre"].drop("random states").to_dict() == pytest.approx(expected)
    whole = table.loc["none"]
    assert whole["pitch"] == pytest.approx(2.2) and whole["pitch, spread"] == pytest.approx(0.2)
    assert whole.filter(like="change").eq(0).all()
    # only random state 1 is there, whose whole is .8
    assert table.loc["nucleus", "told apart, change"] == pytest.approx(0.1)
    assert np.isnan(table.loc["nucleus", "told apart, spread"])
    assert table.loc["transposition"].drop("random states").isna().all()


# Ideas left out


@pytest.mark.parametrize("idea", [k for k, v in study_ablation.TRAINING.items() if "silent" in v])
def test_silent_features(nb: ModuleType, idea: str) -> None:
    """The named features are zero, all others as they were."""
    names = study_ablation.TRAINING[idea]["silent"]
    piece, config = chorale(nb, 0), small_config(nb)
    arguments = piece.notes, nb.Normaliser([piece], config), config
    whole = nb.note_features(*arguments)
    silent = study_ablation.features_without(nb, names)(*arguments)
    assert set(names) < set(whole) == set(silent)
    for name, values in whole.items():
        assert values.any()
        assert silent[name].dtype == values.dtype and silent[name].shape == values.shape
        assert np.array_equal(silent[name], values * 0 if name in names else values), name


def test_forgetful(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgetful memory offers nothing, whatever it heard."""
    memory = study_ablation.forgetful(nb)(40)
    for pitch in [60, 62, 64, 65] * 10:
        memory.append(pitch)
        # asked as in training, and as in sampling
        assert memory.candidates() == memory.candidates(2) == [(nb.NO_PITCH, 0)] * nb.VOTES[2]
        assert memory.last_time(pitch) == (-1, 0)
    piece, config = chorale(nb, 0), small_config(nb)
    normaliser = nb.Normaliser([piece], config)
    assert nb.recall(piece.notes, normaliser, config)["candidate_length"].any()
    monkeypatch.setattr(nb, "PieceMemory", study_ablation.forgetful(nb))
    nothing = nb.recall(piece.notes, normaliser, config)
    assert (nothing.pop("candidate") == nb.NO_PITCH).all()
    assert not any(values.any() for values in nothing.values())


def test_unaided(nb: ModuleType) -> None:
    """An unaided head says the value that it weighs against the proposals, and nothing else."""
    config = small_config(nb)
    torch.manual_seed(0)
    head, unaided = nb.NumberHead(5, config).eval(), study_ablation.unaided(nb)(5, config).eval()
    unaided.load_state_dict(head.state_dict())
    x, proposals = torch.randn(2, 7, 5), torch.randn(2, 7, nb.PROPOSALS)
    value, hidden = unaided(x, proposals)
    assert torch.equal(hidden, head(x, proposals)[1])
    assert torch.equal(value, unaided(x, proposals + 1)[0])
    # only where all proposals agree with the value is it what the head itself says
    agreed = value[..., None].expand(2, 7, nb.PROPOSALS)
    assert torch.allclose(head(x, agreed)[0], value, atol=1e-5)
    assert not torch.allclose(head(x, proposals)[0], value, atol=1e-2)


def test_undrawn(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numbers are not drawn, the habits of a seed change no median."""
    found = {"numbers": torch.randn(9, 2), "medians": torch.randn(9, 2)}
    found["moments"] = torch.randn(9, 2, 4)
    arguments = torch.tensor(0.3), torch.zeros(4), small_config(nb), torch.Generator()
    assert nb.find_habits(found, 9).draw(1, *arguments) != 0.3
    monkeypatch.setattr(nb, "Habits", study_ablation.undrawn(nb))
    assert nb.find_habits(found, 9).draw(1, *arguments) == torch.tensor(0.3)


@pytest.fixture
def corpus(nb: ModuleType, tiny: object) -> list:
    """Return toy pieces, each a work of its own."""
    return [chorale(nb, i, velocity=True) for i in range(10)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return what the next training of the ablation is made with, filled in when it is done."""
    seen = SimpleNamespace()

    def spying(nb: ModuleType, pieces: list, config: object, random_state: int) -> object:
        trained = study_tools.train(nb, pieces, config, random_state)
        seen.votes, seen.batch, seen.config = nb.VOTES, next(iter(trained.test)), config
        seen.outputs = trained.model.pitch_head.head.output[1].out_features
        seen.heads = {type(head) for head in trained.model.number_heads}
        return trained

    monkeypatch.setattr(study_ablation, "train", spying)
    monkeypatch.setattr(study_ablation, "PIECES", 4)
    return seen


@pytest.mark.parametrize("idea", study_ablation.TRAINING)
def test_training_without(
    nb: ModuleType, corpus: list, tiny: object, idea: str, seen: SimpleNamespace
) -> None:
    """What is left out is missing in the training, and afterwards everything is as before."""
    change, before = study_ablation.TRAINING[idea], dict(vars(nb))
    kept = dict(change)
    row, _ = study_ablation.trained_without(nb, corpus, change, random_state=0)
    assert change == kept and set(row) == set(study_ablation.FIGURES)
    # the seeds of so small a corpus are all of one piece
    assert all(np.isfinite(row[name]) for name in ("pitch", "step", "duration"))
    assert dict(vars(nb)) == before
    moved = change.get("MOVED", nb.MOVED)
    assert seen.votes == [nb.NO_PITCH, 2 * nb.NO_PITCH - 1, nb.LITERAL + moved]
    assert seen.outputs == sum(nb.VOTES) - (idea == "candidates moved by intervals")
    assert seen.batch["candidate"].shape[-1] == nb.LITERAL + moved
    remembered = bool((seen.batch["candidate"] != nb.NO_PITCH)[seen.batch["real"]].any())
    assert remembered == bool(seen.batch["recalled"].any()) == change.get("remember", True)
    for name in ("held", "recent", "voices", "metre"):
        heard = bool(seen.batch[f"context_{name}"].any())
        assert heard == (name not in change.get("silent", ())), name
    assert len(seen.heads) == 1 and (seen.heads == {nb.NumberHead}) == change.get("propose", True)
    no_settings = ("MOVED", "silent", "remember", "propose")
    settings = {k: v for k, v in change.items() if k not in no_settings}
    assert seen.config == replace(tiny, epochs=1, **settings)
    for name, value in settings.items():
        assert getattr(tiny, name) != value


def test_interrupted_training_leaves_the_definitions(
    nb: ModuleType, corpus: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in a training does not leave an idea out for the next one."""

    head = nb.NumberHead

    def failing(*arguments: object) -> None:
        assert nb.VOTES[2] == nb.LITERAL and nb.MOVED == 0 and nb.NumberHead is not head
        raise KeyboardInterrupt

    monkeypatch.setattr(study_ablation, "train", failing)
    before, change = dict(vars(nb)), {"MOVED": 0, "remember": False, "silent": ("metre",)}
    change["propose"] = False
    with pytest.raises(KeyboardInterrupt):
        study_ablation.trained_without(nb, corpus, change, random_state=0)
    assert dict(vars(nb)) == before


@pytest.mark.parametrize("idea", study_ablation.DRAWING)
def test_drawing_without(
    nb: ModuleType, corpus: list, tiny: object, idea: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model draws under other settings, and the settings of the whole stay."""
    # so far that a short piece notices, with rests that are filled
    trained = study_tools.train(nb, corpus, replace(tiny, distance=30, rests=0.5), 0)
    kept = trained.config, replace(trained.limits)
    change = study_ablation.DRAWING[idea]
    other = study_ablation.drawn_without(trained, change)
    assert other.model is trained.model and (trained.config, trained.limits) == kept
    settings = {name: value for name, value in change.items() if name not in ("voices", "draw")}
    assert other.config == replace(trained.config, **settings)
    for name, value in settings.items():
        assert value != getattr(trained.config, name) and value != getattr(tiny, name)
    voices = change.get("voices", trained.limits.voices)
    assert other.limits == replace(trained.limits, voices=voices)
    assert voices != trained.limits.voices or "voices" not in change
    whole = study_tools.compose(nb, trained, 6, 0)
    if not change.get("draw", True):
        monkeypatch.setattr(nb, "Habits", study_ablation.undrawn(nb))
    made = study_tools.compose(nb, other, 6, 0)
    notes = [pd.concat([table for _, table in side]) for side in (whole, made)]
    assert len(notes[0]) == len(notes[1]) == 6 * tiny.piece_notes
    assert not notes[0].equals(notes[1])


def test_only_one_idea_leaves_out_the_drawing(
    nb: ModuleType, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study plays medians where the drawing of numbers is left out, and draws elsewhere."""
    limits = nb.Limits(40, 80, voices=4)
    trained = study_tools.Trained(tiny, None, {}, None, None, limits, 1, 1.0)
    before, seen = nb.Habits, []

    def likeness(nb: ModuleType, pieces: list, drawn: object, random_state: int) -> float:
        seen.append((drawn.config, drawn.limits, nb.Habits is before))
        return 0.5

    row = dict.fromkeys(study_ablation.FIGURES, 1.0)
    monkeypatch.setattr(study_ablation, "RUNS", tmp_path / "runs.csv")
    monkeypatch.setattr(study_ablation, "trained_without", lambda *_: (dict(row), trained))
    monkeypatch.setattr(study_ablation, "likeness", likeness)
    study_ablation.study(nb, [], 0)
    expected = []
    for change in study_ablation.DRAWING.values():
        drawn = study_ablation.drawn_without(trained, change)
        expected.append((drawn.config, drawn.limits, change.get("draw", True)))
    assert seen == expected and nb.Habits is before
    assert [drawn for *_, drawn in seen].count(False) == 1


# Tiny runs of the scripts


def test_study_of_composers(
    nb: ModuleType,
    tiny: object,
    trainings: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script makes a row a composer, passes over those it has, and keeps pieces if asked."""
    data, study = tmp_path / "data", tmp_path / "study"
    monkeypatch.setattr(study_composers, "STUDY", study)
    for name, files, beats in (("zelter", 24, 24), ("few", 3, 160), ("bach", 12, 24)):
        corpus_folder(data / name, files, beats)
    (data / "readme.txt").write_text("no composer")
    main, table = study_composers.main, study / "composers.csv"
    call(monkeypatch, main, data, "zelter", "few", "--pieces", 4, "--keep", tmp_path / "kept")
    rows = pd.read_csv(table).set_index("composer")
    assert list(rows.index) == ["few", "zelter"] and len(trainings) == 2
    assert rows.files.tolist() == rows.works.tolist() == [3, 24]
    assert rows.cut.tolist() == [True, False]
    assert np.isnan(rows["told apart"]["few"]) and 0 <= rows["told apart"]["zelter"] <= 1
    assert rows.notes["zelter"] == sum(len(chorale_notes(i, velocity=True)) for i in range(24))
    assert (rows.epochs == tiny.epochs).all() and rows.stuck.between(0, 4).all()
    for name in ("step", "duration", "velocity", "rubato"):
        assert (rows[[name, f"{name}, copy", f"{name}, median"]] > 0).all(axis=None)
    # both were trained for a moment only, so that the table is better
    memories = ["pitch", "pitch without memory", "pitch with memory of a window"]
    assert (rows[[*memories, "pitch, best table"]] < 6).all(axis=None)
    assert not rows.filter(like="chosen").columns.any()
    for name in ("few", "zelter"):
        check_kept(tmp_path / "kept" / name, data / name, tiny.piece_notes)
    before = table.read_bytes()
    call(monkeypatch, main, data, "zelter", "few", "--pieces", 4)
    assert table.read_bytes() == before and len(trainings) == 2
    call(monkeypatch, main, data, "--pieces", 4)
    added = pd.read_csv(table).set_index("composer")
    assert list(added.index) == ["bach", "few", "zelter"] and len(trainings) == 3
    pd.testing.assert_frame_equal(added.loc[["few", "zelter"]], rows)
    assert [path.name for path in study.iterdir()] == ["composers.csv"]


def check_kept(folder: Path, sources: Path, notes: int) -> None:
    """Check that four pieces of so many notes were kept, each with the name of a source."""
    kept = sorted(folder.iterdir(), key=lambda path: path.stem.split("__")[1])
    assert [path.stem.split("__")[1] for path in kept] == ["0", "1", "2", "3"]
    for path in kept:
        assert path.stem.split("__")[0] in {source.stem for source in sources.iterdir()}
        midi = pretty_midi.PrettyMIDI(str(path))
        assert sum(len(part.notes) for part in midi.instruments) == notes


def test_study_of_another_random_state(
    nb: ModuleType,
    tiny: object,
    trainings: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another random state has a table of its own, with other scores and other pieces."""
    study, kept = tmp_path / "study", tmp_path / "kept"
    monkeypatch.setattr(study_composers, "STUDY", study)
    corpus_folder(tmp_path / "data" / "haydn", 10)
    for random_state in (0, 1):
        options = ("--random-state", random_state, "--pieces", 3, "--keep", kept)
        call(monkeypatch, study_composers.main, tmp_path / "data", *options)
    assert sorted(path.name for path in study.iterdir()) == ["composers.csv", "composers_1.csv"]
    rows = [pd.read_csv(path).iloc[0] for path in sorted(study.iterdir())]
    assert rows[0].pitch != rows[1].pitch and len(trainings) == 2
    numbers = sorted(int(path.stem.split("__")[1]) for path in (kept / "haydn").iterdir())
    assert numbers == [0, 1, 2, 1000, 1001, 1002]


def test_study_with_attempts(
    nb: ModuleType, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attempts there are as many pieces more, chosen ones, beside those of one attempt."""
    monkeypatch.setattr(study_composers, "STUDY", tmp_path / "study")
    corpus_folder(tmp_path / "data" / "haydn", 24)
    tables = []
    for attempts in (1, 3):
        table, kept = tmp_path / f"{attempts}.csv", tmp_path / f"kept {attempts}"
        options = ("--pieces", 5, "--attempts", attempts, "--table", table, "--keep", kept)
        call(monkeypatch, study_composers.main, tmp_path / "data", *options)
        tables.append(pd.read_csv(table))
    assert not (tmp_path / "study").exists()
    one, three = (table.drop(columns="seconds") for table in tables)
    added = {f"{name}, chosen" for name in ("told apart", "stuck", "longest run shared")}
    assert set(three) - set(one) == added and len(three) == 1
    pd.testing.assert_frame_equal(three[one.columns], one)
    assert (three[sorted(added)] >= 0).all(axis=None)
    names = {path: folder_contents(tmp_path / f"kept {path}") for path in (1, 3)}
    assert set(names[1]) == {"haydn"} and set(names[3]) == {"haydn", "haydn, chosen"}
    assert names[1]["haydn"] == names[3]["haydn"]
    # of the same seeds, but not all are the first attempt
    chosen = names[3]["haydn, chosen"]
    assert list(chosen) == list(names[1]["haydn"]) and chosen != names[1]["haydn"]


def folder_contents(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the contents of the files in each folder of a folder."""
    return {
        part.name: {path.name: path.read_bytes() for path in sorted(part.iterdir())}
        for part in folder.iterdir()
    }


def test_unknown_composer(
    nb: ModuleType,
    tiny: object,
    trainings: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A name that is no folder is answered with those that are, before any training."""
    monkeypatch.setattr(study_composers, "STUDY", tmp_path / "study")
    corpus_folder(tmp_path / "data" / "haydn", 2)
    with pytest.raises(SystemExit):
        call(monkeypatch, study_composers.main, tmp_path / "data", "haydn", "hydan")
    message = capsys.readouterr().err
    assert "hydan" in message and "there are: haydn" in message
    assert trainings == [] and not (tmp_path / "study").exists()


def test_study_of_the_ideas(
    nb: ModuleType,
    tiny: object,
    trainings: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script makes all runs and the table, and makes again only the runs that are missing."""
    runs, table = tmp_path / "study" / "runs.csv", tmp_path / "study" / "table.csv"
    for name, value in {"RUNS": runs, "TABLE": table, "PIECES": 4}.items():
        monkeypatch.setattr(study_ablation, name, value)
    folder, main = corpus_folder(tmp_path / "haydn", 10), study_ablation.main
    call(monkeypatch, main, folder, "--random-states", 0)
    assert len(trainings) == len(study_ablation.TRAINING)
    call(monkeypatch, main, folder, "--random-states", 1, 0)
    assert len(trainings) == 2 * len(study_ablation.TRAINING)
    assert {config.epochs for config in trainings} == {1}
    made = pd.read_csv(runs)
    pairs = made[["idea left out", "random state"]].itertuples(index=False, name=None)
    assert sorted(pairs) == sorted((idea, state) for idea in ALL for state in (0, 1))
    scores = made.set_index(["random state", "idea left out"])
    for state in (0, 1):
        ways = scores.loc[state].loc[[*study_ablation.DRAWING, "none"]]
        assert (ways[["pitch", "step", "duration"]].nunique() == 1).all()
        whole, changed = scores.loc[state].loc["none"], scores.loc[state].drop("none")
        trained = changed.loc[[idea for idea in study_ablation.TRAINING if idea != "none"]]
        assert (trained.pitch != whole.pitch).all()
    same_summary(pd.read_csv(table), made)
    before = runs.read_bytes(), table.read_bytes()
    call(monkeypatch, main, folder, "--random-states", 0, 1)
    assert (runs.read_bytes(), table.read_bytes()) == before
    assert len(trainings) == 2 * len(study_ablation.TRAINING)
    # one training is missing, then what was drawn by the whole model
    for idea in ("metre", "nucleus"):
        begun = len(trainings)
        missing = (made["idea left out"] == idea) & (made["random state"] == 1)
        made[~missing].to_csv(runs, index=False, float_format="%.4f")
        call(monkeypatch, main, folder, "--random-states", 0, 1)
        assert len(trainings) == begun + 1
        assert (runs.read_bytes(), table.read_bytes()) == before
    assert sorted(path.name for path in runs.parent.iterdir()) == ["runs.csv", "table.csv"]


def test_training_of_the_studies(nb: ModuleType, corpus: list, tiny: object) -> None:
    """A study trains as the notebook does: on its split, and the same for a random state."""
    trained, again, other = (study_tools.train(nb, corpus, tiny, state) for state in (0, 0, 1))
    for name, values in trained.model.state_dict().items():
        assert torch.equal(values, again.model.state_dict()[name])
    split = nb.split_pieces(corpus, tiny, np.random.default_rng(0))
    names = {side: [piece.name for piece in part] for side, part in split.items()}
    assert {side: [p.name for p in part] for side, part in trained.split.items()} == names
    assert {side: [p.name for p in part] for side, part in other.split.items()} != names
    assert trained.epochs == tiny.epochs and trained.seconds > 0
    scored = sum(int(batch["real"].sum()) for batch in trained.test)
    assert scored == sum(map(len, split["test"]))
    made = study_tools.compose(nb, trained, 3, 0)
    assert [len(notes) for _, notes in made] == [tiny.piece_notes] * 3
    assert {name for name, _ in made} <= set(names["test"])
    lengths = study_tools.longest_runs(nb, trained, made)
    training = [piece.notes.pitch.tolist() for piece in trained.split["training"]]
    for length, (_, notes) in zip(lengths, made, strict=True):
        pitch = notes.pitch.tolist()
        for size, expected in ((length, True), (length + 1, False)):
            mine = {tuple(pitch[i : i + size]) for i in range(len(pitch) - size + 1)}
            theirs = {tuple(t[i : i + size]) for t in training for i in range(len(t) - size + 1)}
            assert bool(mine & theirs) == expected


def test_attempts(
    nb: ModuleType, corpus: list, tiny: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several attempts at a piece the one most like its seed is kept, none is made twice."""
    trained, composing, made = study_tools.train(nb, corpus, tiny, 0), nb.compose, {}

    def spying(*arguments: object) -> pd.DataFrame:
        made[arguments[-1]] = arguments[1], composing(*arguments)
        return made[arguments[-1]][1]

    monkeypatch.setattr(nb, "compose", spying)
    single = study_tools.compose(nb, trained, 4, 100)
    assert list(made) == [100, 101, 102, 103]
    for (_, notes), (_, expected) in zip(single, made.values(), strict=True):
        assert notes.equals(expected)
    made.clear()
    chosen = study_tools.compose(nb, trained, 4, 100, attempts=3)
    assert sorted(made) == list(range(100, 112))
    known = nb.excerpts(trained.split["training"], tiny.piece_notes)
    real = pd.DataFrame([nb.describe(notes, [np.array([1])]) for notes in known])
    for i, ((name, notes), (seed_name, seed)) in enumerate(
        zip(chosen, study_tools.seeds(trained, 4), strict=True)
    ):
        tried = [table for heard, table in made.values() if heard.equals(seed)]
        figures = [nb.describe(table, [np.array([1])]) for table in (seed, *tried)]
        apart = [nb.unlikeness(other, figures[0], real) for other in figures[1:]]
        assert len(tried) == 3 and notes.equals(tried[int(np.argmin(apart))]) and name == seed_name
        assert (notes.equals(single[i][1])) == (int(np.argmin(apart)) == 0)
    assert sum(a.equals(b) for (_, a), (_, b) in zip(single, chosen, strict=True)) < 4


def test_memory_of_a_window(
    nb: ModuleType, corpus: list, tiny: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is that of the model with a memory of the last window, which recalls no more."""
    trained, before, loaders = study_tools.train(nb, corpus, tiny, 0), dict(vars(nb)), []
    pitch = np.random.default_rng(0).choice([60, 62, 64], 120)
    pitch[[3, 90]] = 100, 100  # never in one window
    piece = piece_of(nb, "test", [(float(i), int(p), 1.0 + i, 90) for i, p in enumerate(pitch)])
    trained.split["test"] = [piece]

    def evaluating(model: object, loader: object) -> dict[str, float]:
        loaders.append(loader)
        return before["evaluate"](model, loader)

    monkeypatch.setattr(nb, "evaluate", evaluating)
    score = study_tools.pitch_in_window(nb, trained)
    monkeypatch.undo()
    assert nb.PieceMemory is before["PieceMemory"]
    (loader,), whole = loaders, nb.whole_pieces([piece], trained.normaliser, tiny)
    assert score == nb.evaluate(trained.model, loader)["pitch"]
    near, far = next(iter(loader)), next(iter(whole))
    for i in range(len(pitch)):
        length, place = longest_match(pitch[:i].tolist(), tiny.window)
        assert near["candidate"][0, i, 0] == (pitch[place] if length else nb.NO_PITCH)
        assert near["candidate_length"][0, i, 0] == min(length, tiny.match_limit)
    assert not torch.equal(near["candidate"], far["candidate"])
    assert far["recalled"][0, 90].any() and not near["recalled"][0, 90].any()


def longest_match(pitch: list[int], window: int) -> tuple[int, int]:
    """Return the longest match before a place among the last `window`, and the latest such one."""
    size, found = len(pitch), [(0, 0)]
    for place in range(max(0, size - window), size):
        length = 0
        while length < place and pitch[place - 1 - length] == pitch[-1 - length]:
            length += 1
        found.append((length, place))
    return max(found)


def test_best_table(nb: ModuleType) -> None:
    """The best table is the best of the orders, learned from the training pieces only."""
    tune = piece_of(nb, "a", [(float(i), 60 + (0, 4, 7, 5)[i % 4], 1, 90) for i in range(60)])
    higher = replace(tune, notes=tune.notes.assign(pitch=tune.notes.pitch + 3))
    split = {"training": [tune], "test": [higher]}
    sides = [[tune.notes.pitch.to_numpy()], [higher.notes.pitch.to_numpy()]]
    orders = [nb.ngram_nats(*sides, order, range(-6, 6)) for order in range(1, 5)]
    assert study_tools.best_table(nb, split) == min(orders) < 1 < max(orders)


# The committed tables


def same_summary(table: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Check that a table is the summary of the runs to the digits that are printed."""
    expected = study_ablation.summary(runs)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=0, atol=5.1e-5)


def committed(name: str) -> pd.DataFrame:
    """Return a table of outputs/study."""
    path = study_tools.STUDY / name
    assert path.is_file(), f"outputs/study/{name} is missing: run the study"
    return pd.read_csv(path)


def test_table_of_the_composers(root: Path) -> None:
    """The table has one row for each of the 19 composers of the dataset, in order."""
    listed = (root / "data" / "course_dataset.sha256").read_text(encoding="utf-8").splitlines()
    files = Counter(line.split()[1].split("/")[0] for line in listed)
    table = committed("composers.csv").set_index("composer")
    assert list(table.index) == sorted(files) and len(table) == 19
    assert table.files.to_dict() == files


def whole_works() -> pd.DataFrame:
    """Return the composers of whom whole works could be held out."""
    table = committed("composers.csv")
    return table[(table.works >= LEAST_WORKS) & ~table.cut]


def beaten(table: pd.DataFrame, name: str) -> int:
    """Return for how many composers a number is better than copying the note before."""
    return int((table[name] < table[f"{name}, copy"]).sum())


def made_of(table: pd.DataFrame) -> int:
    """Return how many pieces were composed; twice as many where some were also chosen."""
    return int(PIECES * (1 + table["told apart, chosen"].notna()).sum())


def test_scores_of_the_composers() -> None:
    """Wherever whole works could be held out, the model beats tables and copies."""
    fair = whole_works()
    assert len(fair) > 9
    # a few pieces in a hundred hang or fall silent: none is selected here
    assert fair.stuck.sum() <= 0.03 * made_of(fair)
    assert (fair["pitch"] < fair["pitch, best table"]).all()
    for name in ("duration", "velocity", "rubato"):
        assert beaten(fair, name) == len(fair), name
    assert beaten(fair, "step") == len(fair)


def test_readme_quotes_the_composers(root: Path) -> None:
    """The headline of the studies is that of the table."""
    text = (root / "README.md").read_text(encoding="utf-8")
    fair, apart = whole_works(), committed("composers.csv")["told apart"].median()
    table = fair["pitch, best table"].median()
    counts = {name: beaten(fair, name) for name in ("step", "duration", "velocity", "rubato")}
    for claim in (
        f"for all {len(fair)} of whom whole works could be held out",
        f"{fair['pitch'].median():.2f} nats a note against {table:.2f}",
        f"by the step for {counts['step']} of them, by the duration for {counts['duration']}, "
        f"by the velocity for {counts['velocity']} and by the rubato for {counts['rubato']}",
        f"{apart:.0%}".replace("%", " %") + " of the time in the median",
    ):
        assert claim in text, claim


def test_table_of_the_ideas() -> None:
    """The table is the summary of the runs, with at least three random states of every idea."""
    runs = committed("ablation_runs.csv")
    counts = runs.groupby("idea left out")["random state"].nunique()
    assert set(counts.index) == set(ALL) and counts.min() >= STATES
    assert not runs.duplicated(["idea left out", "random state"]).any()
    same_summary(committed("ablation.csv"), runs)
