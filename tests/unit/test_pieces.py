"""What is measured of pieces, and which of them are kept."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from notebook_tools import chorale, piece_of, small_config

# little of these is no fault
HARMLESS = ["silence", "repeated 8-note runs", "run shared with training", "run shared with seed"]
HARMLESS += ["parallels", "leaps", "keys struck again", "notes at once"]


def melody(nb: ModuleType, pitches: list[int], step: float = 1) -> object:
    """Return a piece of notes one after another."""
    return piece_of(nb, "a", [(i * step, int(p), step, 90) for i, p in enumerate(pitches)])


def test_describe(nb: ModuleType) -> None:
    """The statistics of a small piece with two chords and a rest are those counted by hand."""
    onsets, pitches = (7, 7, 8, 10, 10.03, 11, 12, 12.75), (60, 64, 62, 60, 67, 65, 69, 71)
    lengths, loudness = (1, 1, 0.5, 1, 0.97, 2, 0.5, 0.25), [80, 100] * 4
    notes = list(zip(onsets, pitches, lengths, loudness, strict=True))
    found = nb.describe(piece_of(nb, "a", notes).notes)
    rhythm = {"chord rate": 2 / 7, "mean step": (1 + 2 + 0.97 + 1 + 0.75) / 5}
    rhythm |= {"step spread": np.std([0, 1, 2, 0.03, 0.97, 1, 0.75]), "mean duration": 7.22 / 8}
    rhythm |= {"duration spread": np.log2(np.array(lengths) + 1 / 16).std()}
    pitch = {"distinct pitches": 7, "mean pitch": sum(pitches) / 8, "pitch range": 11}
    # of 6 beats, 1.5 are silent
    # at 7, 7, 8, 10, 11 and 12 something begins on the beat, and .03 later it still does
    rest = {"notes on the beat": 7 / 8} | {
        "notes sounding": 7.22 / 4.5,
        "silence": 1.5 / 6,
        "velocity spread": 10,
    }
    assert found == pytest.approx(rhythm | pitch | rest | {"repeated 8-note runs": 0})
    # of the five runs of eight notes in a pattern of four, played three times, one is repeated
    repeated = nb.describe(melody(nb, [60, 64, 67, 72] * 3).notes)["repeated 8-note runs"]
    assert repeated == pytest.approx(1 / 5)
    for step in (0, 1):  # a chord of two notes, or two notes, can be described, too
        two = nb.describe(melody(nb, [60, 61], step).notes)
        assert (two["chord rate"], two["mean step"], two["silence"]) == (1 - step, step, 0)
        assert np.isfinite(list(two.values())).all()


def test_excerpts(nb: ModuleType) -> None:
    """Excerpts have one length, follow each other and cross no piece."""
    pieces = [replace(chorale(nb, n), notes=chorale(nb, n).notes[:n]) for n in (25, 9, 10)]
    found = [(part.name, [*part.notes.index]) for part in nb.excerpts(pieces, 10)]
    places = (("piece25x", 0), ("piece25x", 10), ("piece10x", 0))
    assert found == [(name, [*range(start, start + 10)]) for name, start in places]


def test_voice_leading(nb: ModuleType) -> None:
    """Parallels and leaps are those counted by hand, in a batch with longer pieces too."""
    cases = [  # chords of a semiquaver each, then the parallels and leaps
        ([(48, 55), (50, 57)], 1, 0),  # a fifth moves up
        ([(48, 67), (46, 65)], 1, 0),  # a twelfth moves down
        ([(48, 60), (50, 62), (53, 65)], 2, 0),  # an octave moves twice
        ([(48, 55, 64), (50, 57, 62)], 1, 0),  # two voices of three
        ([(48, 55), (48, 55), (50, 53), (48, 55)], 0, 0),  # repetition, contrary motion
        ([(48, 52), (50, 54), (49, 54), (51, 56)], 0, 0),  # thirds and fourths
        ([(48, 55), (50,), (57,)], 0, 0),  # one voice moves after the other
        ([(60,), (66,), (56,), (67,), (54,)], 0, 4),  # six, ten, eleven and thirteen
        ([(60,), (72,), (63,), (68,), (61,)], 0, 0),  # octave, sixth, fourth and fifth
        ([(60,), (), (), (), (78,)], 0, 0),  # after a rest nothing is continued
    ]
    pieces = [
        piece_of(nb, "a", [(i / 4, pitch, 1 / 4, 90) for i, c in enumerate(music) for pitch in c])
        for music, *_ in cases
    ]
    found = nb.voice_leading(pieces, nb.Normaliser(pieces), small_config(nb))
    counts = found[["parallels", "leaps"]].mul([len(piece) for piece in pieces], axis=0)
    assert counts.round(9).to_numpy().tolist() == [count for _, *count in cases]
    assert found["notes at once"].tolist() == [max(map(len, music)) for music, *_ in cases]
    assert (found["keys struck again"] == 0).all()


def test_usual_limits(nb: ModuleType) -> None:
    """They are those of most excerpts; a key is struck again while it sounds, not as it ends."""
    notes = [(0, 60, 2, 90), (1, 60, 2, 90), (3, 60, 1, 90), (3, 64, 1, 90)]
    once, config = piece_of(nb, "a", notes), small_config(nb, piece_notes=4)
    never = melody(nb, [60] * 76)
    normaliser = nb.Normaliser([once, never])
    found = nb.voice_leading([once, never], normaliser, config)["keys struck again"]
    assert found.tolist() == [0.25, 0]
    # of twenty excerpts one has such a key, then three, and then the only one
    short = replace(once, notes=once.notes[:3])
    cases = [once, never], [never, *[once] * 3], [short]
    limits = [nb.usual_limits(pieces, normaliser, config)[:2] for pieces in cases]
    assert limits == [(1, 0), (2, 1), (2, 1)]
    rng, pieces = np.random.default_rng(0), []
    for i in range(11):  # the first i notes come back after the opening of 16
        opening, rest = rng.integers(40, 60, 16), rng.integers(60, 80, 20)
        pieces.append(melody(nb, [*opening, *opening[:i], *rest]))
    assert nb.usual_limits(pieces, nb.Normaliser(pieces), small_config(nb))[2] == 9


def test_pitch_range(nb: ModuleType) -> None:
    """It goes from the lowest pitch of any piece to the highest."""
    pieces = [melody(nb, pitches) for pitches in ([50, 70], [40, 60])]
    assert nb.pitch_range(pieces) == range(40, 71) and nb.pitch_range(pieces, 60) == range(0, 128)


def test_statistics_and_their_range(nb: ModuleType) -> None:
    """All statistics stand in one table; only beyond the ends of real ones is a fault."""
    piece, config = chorale(nb, 1), small_config(nb)
    pieces, normaliser = [piece, replace(piece, notes=piece.notes[:10])], nb.Normaliser([piece])
    training = [np.append(piece.notes.pitch[start:end], 1) for start, end in ((5, 14), (30, 37))]
    table = nb.statistics_of(pieces, training, normaliser, config)
    assert table["run shared with training"].tolist() == [9, 5]
    voices = nb.voice_leading(pieces, normaliser, config)
    expected = nb.describe(piece.notes) | voices.loc[0].to_dict() | {"run shared with training": 9}
    assert table.loc[0].to_dict() == expected
    names = [*table, "run shared with seed"]
    real = pd.DataFrame({name: [8.0, 6.0, 7.0] for name in names})
    for name in names:
        low = 0 if name in HARMLESS else 6
        found = nb.outside_range(real.iloc[[0] * 4].assign(**{name: [low, 8, low - 1, 9]}), real)
        assert found[name].tolist() == [False, False, True, True]
        assert not found.drop(columns=name).any(axis=None)


@pytest.mark.parametrize(
    ("works", "chosen"), [("aaaaabc", "abc"), ("aaab", "aab abb"), ("ab", "aab abb"), ("a", "aaa")]
)
def test_seeds(nb: ModuleType, works: str, chosen: str) -> None:
    """Three openings of long enough pieces are drawn, of different works as far as there are."""
    pieces = [
        replace(chorale(nb, i), name=f"{w}_{i}", work=w, tempo=80.4) for i, w in enumerate(works)
    ]
    short, drawn = replace(pieces[0], name="z_99", notes=pieces[0].notes.head(15)), []
    for random_state in [*range(10), 0]:
        seeds = nb.choose_seeds([*pieces, short], small_config(nb), random_state)
        for seed in seeds:
            assert seed.notes.equals(pieces[int(seed.name[2:])].notes.head(16)) and seed.tempo == 80
        assert "".join(sorted(seed.work for seed in seeds)) in chosen.split()
        drawn.append(tuple(seed.name for seed in seeds))
        assert len(set(drawn[-1])) == min(3, len(works))
    assert drawn[0] == drawn[-1] and (len(set(drawn)) > 1) == (len(works) > 1)


@pytest.mark.parametrize(
    ("name", "tonic", "minor", "said"),
    [
        ("bwv102_7", 51, False, "BWV 102.7, in E♭ major"),
        ("mz_311_1", 61, True, "mz_311_1, in C♯ minor"),
    ],
)
def test_title(nb: ModuleType, name: str, tonic: int, minor: bool, said: str) -> None:
    """A title names source and key: tonic, subdominant, dominant and tonic, with ornaments."""
    chords = (0, 4 - minor, 7), (5, 9 - minor, 12), (7, 11, 14), (0, 4 - minor, 7)
    notes = [(i, tonic + k, 1, 90) for i, chord in enumerate(chords) for k in chord]
    notes += [(i / 4, tonic + 6, 1 / 64, 90) for i in range(12)]
    title = nb.title_of(2, chorale(nb, 1, name=name), piece_of(nb, "a", notes).notes)
    assert title == f"Piece 2, after the opening of {said}"


def test_after_seed(nb: ModuleType) -> None:
    """Before a piece stands the end of its seed, played softly but never silent."""
    whole = chorale(nb, 1, velocity=True)
    whole.notes.loc[39, "velocity"] = 1
    seed, piece = (replace(whole, notes=notes) for notes in (whole.notes[:40], whole.notes[40:]))
    heard = nb.after_seed(seed, piece).notes
    softly = [max(1, velocity * 6 // 10) for velocity in seed.notes.velocity[8:]]
    assert heard.velocity.tolist() == softly + piece.notes.velocity.tolist()
    assert heard.drop(columns="velocity").equals(whole.notes[8:].drop(columns="velocity"))
