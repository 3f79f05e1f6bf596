"""Which pieces are linked, and which are held out."""

from dataclasses import replace
from itertools import combinations
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from notebook_tools import CORPUS, ROOT, chorale_notes, listed_sums, piece_of, small_config

SPLITS = ["training", "validation", "test"]


def tune(random_state: int, length: int) -> list[int]:
    """Return random pitches."""
    return np.random.default_rng(random_state).integers(60, 84, length).tolist()


def chords(nb: ModuleType, name: str, *voices: list[int]) -> object:
    """Return a piece with one note of each voice on every beat."""
    notes = [(i, pitch, 1.0, 90) for voice in voices for i, pitch in enumerate(voice)]
    return piece_of(nb, name, sorted(notes))


def in_a_row(nb: ModuleType, sizes: list[int], reach: int = 0) -> list:
    """Return pieces a, b, c and so on of so many notes, linked with their neighbours in reach."""
    place = np.arange(len(sizes))
    linked = abs(place[:, None] - place) <= reach
    pieces = [chords(nb, chr(ord("a") + i), [60] * size) for i, size in enumerate(sizes)]
    return [replace(piece, linked=row) for piece, row in zip(pieces, linked, strict=True)]


def links_of(nb: ModuleType, pieces: list, **changes: float) -> dict[str, str]:
    """Return for each piece by name the sorted names of what it is linked with."""
    linked = nb.link_pieces(pieces, replace(nb.Config(), **changes))
    names = np.array([piece.name for piece in pieces])
    return {piece.name: " ".join(sorted(names[piece.linked])) for piece in linked}


def test_skyline(nb: ModuleType) -> None:
    """A note is in the skyline if nothing higher sounds when it begins."""
    for random_state in range(10):
        notes, highest = sorted([*chorale_notes(random_state)[:40], (2, 80, 3, 90)]), []
        for onset, pitch, _, _ in notes:
            sounding = [p for start, p, length, _ in notes if start <= onset < start + length]
            highest += [pitch] if pitch == max(sounding) else []
        assert nb.skyline(piece_of(nb, "a", notes).notes).tolist() == highest


def test_links(nb: ModuleType) -> None:
    """Pieces are linked by tunes, settings and movements, and no link is passed on."""
    for shared, linked in ((11, {"a": "a", "b": "b"}), (12, {"a": "a b", "b": "a b"})):
        common = tune(0, shared)  # all but eight of its notes begin a run, of 20 in the shorter
        short = chords(nb, "a", common + tune(1, 28 - shared), [p - 40 for p in tune(3, 28)])
        long = chords(nb, "b", tune(2, 40) + [pitch + 5 for pitch in common])
        pieces = [short, long, chords(nb, "two notes", [60, 62])]
        assert links_of(nb, pieces) == linked | {"two notes": "two notes"}
    # a few bars in all voices link two pieces whose skylines share next to nothing
    pieces = [
        chords(nb, name, *([p - 24 * v for p in tune(v, 8) + tune(i + v, 72)] for v in range(3)))
        for name, i in (("a", 10), ("b", 20))
    ]
    assert links_of(nb, pieces) == {"a": "a b", "b": "a b"}
    assert links_of(nb, pieces, same_setting=0.1) == {"a": "a", "b": "b"}
    names = "z_311_1 Z_311_2 z_312_1 op-p18 op-p31 op-3 op-4 last x y".split()
    pieces = [chords(nb, name, tune(i, 30)) for i, name in enumerate(names[:-1])]
    pieces.append(chords(nb, "y", tune(0, 30) + tune(8, 30)))  # like the first and the last
    works = [piece.work for piece in nb.link_pieces(pieces, nb.Config())]
    assert works == nb.works_of(names)
    linked = {"z_311_1": "Z_311_2 y z_311_1", "Z_311_2": "Z_311_2 z_311_1"}
    linked |= {"x": "x y", "y": "x y z_311_1"}
    assert links_of(nb, pieces) == {name: name for name in names} | linked


@pytest.mark.parametrize(
    ("names", "works"),
    [
        ("z_311_1 Z_311_2 z_312_1 op_10-3 op_10-19", "z_311 z_311 z_312 op_10 op_10"),
        ("ps1 PS2 ps4 et-1 et-2 elise se2", "ps ps ps et et elise se2"),
        ("op18 op31 k_279 k_280 im2 im5 im6", "op18 op31 k_279 k_280 im2 im5 im6"),
        ("1 2 11 12 a\n1 İ_7_1", "1 2 11 12 a\n i̇_7"),
        (" ".join(f"song_{i:03}" for i in range(1, 17)), " ".join(["song"] * 16)),
        (" ".join(f"song_{i:03}" for i in range(1, 41)), ""),
        (" ".join(f"song{i}" for i in range(1, 41)), ""),
    ],
)
def test_works(nb: ModuleType, names: str, works: str) -> None:
    """A name gives up its last number only if that is likely to be a movement's."""
    assert nb.works_of(names.split(" ")) == (works or names).split(" ")


def test_test_pieces(nb: ModuleType) -> None:
    """Pieces are drawn with their partners, but not theirs, to the share or up to twice that."""
    alone, linked = in_a_row(nb, [81, 80] + 6 * [10]), in_a_row(nb, 12 * [10], reach=1)

    def draws(pieces: list, share: float) -> list[str]:
        config = small_config(nb, held_out=share, seed_notes=1, piece_notes=1)
        splits = [nb.split_pieces(pieces, config, i)["test"] for i in range(60)]
        return ["".join(piece.name for piece in test) for test in splits]

    found = draws(alone, 40 / 221)
    assert set().union(*found) == {*"bcdefgh"}
    assert all(draw == "b" or (len(draw) == 4 and "b" not in draw) for draw in found)
    expected = {"abcdefghijkl"[max(0, i - 1) : i + 2] for i in range(12)}
    assert {*draws(linked, 20 / 120)} == expected


@pytest.mark.parametrize("random_state", range(3))
def test_what_is_linked_does_not_train(nb: ModuleType, random_state: int) -> None:
    """Shares are held out, and what is linked with a held-out piece is in no other split."""
    config = small_config(nb)
    alone, pieces = (in_a_row(nb, 100 * [20], reach) for reach in (0, 1))
    parts = [nb.split_pieces(alone, config, random_state)[name] for name in SPLITS]
    assert [len(part) for part in parts] == [80, 10, 10] and set().union(*parts) == set(alone)
    split, again, other = (nb.split_pieces(pieces, config, random_state + i) for i in (0, 0, 1))
    assert again == split and all(other[name] != split[name] for name in SPLITS)
    linked = np.array([piece.linked for piece in pieces])
    inside = {name: np.array([piece in split[name] for piece in pieces]) for name in SPLITS}
    by_test, by_validation = (linked[inside[name]].any(axis=0) for name in ("test", "validation"))
    assert by_test.sum() > inside["test"].sum() and not (inside["validation"] & by_test).any()
    assert (inside["training"] == ~by_test & ~by_validation).all()


def test_pieces_are_cut(nb: ModuleType) -> None:
    """With too few works each piece is cut, with a window left out between the parts."""
    config = small_config(nb)
    lengths = {"a": 80, "b": 24, "c": 90}  # beats; parts of one piece are too short as seeds
    pieces = [piece_of(nb, name, chorale_notes(0, beats)) for name, beats in lengths.items()]
    pieces = [replace(piece, linked=np.ones(3, bool)) for piece in pieces]
    split = nb.split_pieces(pieces, config, 0)
    for i, piece in enumerate(pieces):
        half, late = len(piece) // 2, 3 * len(piece) // 4
        starts, ends = [0, half + config.window, late + config.window], [half, late, len(piece)]
        for name, start, end in zip(SPLITS, starts, ends, strict=True):
            expected = piece.notes[start:end].reset_index(drop=True)
            pd.testing.assert_frame_equal(split[name][i].notes, expected)
            assert (split[name][i].name, split[name][i].first) == (piece.name, start)
    parts = nb.cut_pieces(in_a_row(nb, [4, 8]), 0)  # one note has nothing to predict
    assert [len(part) for part in parts.values()] == [2, 1, 1]
    # too few are works too large for the test or for validation, or with links to all others
    for sizes, reach in (([200, 200], 0), ([100, 500, 600], 0), ([50, 50, 700, 200], 1)):
        split = nb.split_pieces(in_a_row(nb, sizes, reach), config, 0)
        assert [len(part) for part in split["training"]] == [size // 2 for size in sizes]


@pytest.mark.parametrize("name", ["seed_notes", "piece_notes"])
def test_no_held_out_piece_is_long_enough(nb: ModuleType, name: str) -> None:
    """Then pieces are cut, and where that is no help the message names number and cure."""
    sizes = [110, 100, 790]
    for random_state in range(10):
        pieces = in_a_row(nb, sizes)
        whole = nb.split_pieces(pieces, small_config(nb, **{name: 100}), random_state)
        assert whole["test"][0] in pieces
        cut = nb.split_pieces(pieces, small_config(nb, **{name: 101}), random_state)
        assert [len(part) for part in cut["training"]] == [size // 2 for size in sizes]
        message = f"^no validation piece has 400 notes: take another .*lower .*`{name}`"
        with pytest.raises(ValueError, match=message):
            nb.split_pieces(pieces, small_config(nb, **{name: 400}), random_state)
    with pytest.raises(ValueError, match="no validation piece has"):
        nb.split_pieces(in_a_row(nb, [60]), small_config(nb), 0)  # too short to cut


def test_longest_shared_run(nb: ModuleType) -> None:
    """The run equals that of a search through all, and no run goes on into the next piece."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        values, *corpus = (rng.integers(60, 64, size) for size in (30, 25, 1, 40))
        mine, *others = (
            {tuple(p[i:j].tolist()) for j in range(len(p) + 1) for i in range(j)}
            for p in (values, *corpus)
        )
        longest = [max(map(len, mine & runs), default=0) for runs in others]
        assert nb.longest_shared_run(values, corpus) == max(longest)
    assert nb.longest_shared_run(np.arange(4), [np.arange(2), np.arange(2, 4)]) == 2


def test_border_between_chorales(nb: ModuleType) -> None:
    """Enough is held out, and no run of over 22 pitches is in two splits."""
    pieces, _ = nb.load_corpus(CORPUS, ROOT / "data", nb.Config())
    pieces = nb.link_pieces(pieces, nb.Config())
    partners = np.array([piece.linked for piece in pieces]).sum(axis=0) - 1
    assert len(partners) == 365 and max(partners) < 365 / 15 and sum(partners == 0) > 365 / 3
    for random_state in range(3):
        split = nb.split_pieces(pieces, nb.Config(), random_state)
        shares = [sum(map(len, split[name])) / sum(map(len, pieces)) for name in SPLITS]
        assert shares[0] > 0.6 and 0.1 <= min(shares[1:]) <= max(shares[1:]) <= 0.2
        runs = {name: set() for name in SPLITS}
        for name, pitches in ((s, p.notes.pitch.tolist()) for s in SPLITS for p in split[s]):
            runs[name].update(zip(*(pitches[k:] for k in range(23)), strict=False))
        for one, other in combinations(SPLITS, 2):
            assert runs[one] and not runs[one] & runs[other]


def test_works_of_the_course(nb: ModuleType) -> None:
    """Suites and sonatas are one work each, other pieces are works of their own."""
    names = pd.Series([*listed_sums()]).str.extract(r"(?P<composer>.+)/(?P<name>.+)\.")
    works = names.groupby("composer").name.agg(lambda names: {*nb.works_of([*names])})
    assert works["mozart"] == {f"mz_{k}" for k in (311, 330, 331, 332, 333, 545, 570)}
    assert works["chopin"] > {"chpn-p7", "chp_op18", "chpn_op10_e01", "chpn_op7", "chpn_op35"}
    counts = "albeniz 2 bach 3 balakir 1 beeth 10 borodin 1 brahms 6 burgm 9 chopin 42 debussy 5 "
    counts += "granados 1 grieg 16 haydn 7 liszt 11 mendelssohn 4 mozart 7 muss 1 schubert 7 "
    counts += "schumann 4 tschai 12"
    assert " ".join(f"{composer} {len(found)}" for composer, found in works.items()) == counts
