"""The committed pieces and tables against what the committed notebook says of them."""

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pretty_midi
import pytest
from notebook_tools import code_cells, output_texts, read_notebook

NUMBERS = (1, 2, 3)
LARGEST_WAV = 2_500_000  # bytes
LARGEST_REPOSITORY = 60_000_000  # bytes
GALLERY = ("mozart", "chopin", "beeth")
REPORTED = ("mozart",)
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(work|root|home|tmp|Users)\b")


@pytest.fixture(scope="module")
def outputs(root: Path) -> Path:
    """Return the folder of the committed outputs."""
    return root / "outputs" / "bach_chorales"


@pytest.fixture(scope="module")
def pieces(outputs: Path) -> pd.DataFrame:
    """Return the table of the pieces, by name."""
    return pd.read_csv(outputs / "pieces.csv", keep_default_na=False).set_index("piece")


@pytest.fixture(scope="module")
def scores(outputs: Path) -> pd.DataFrame:
    """Return the scores, one row a head and one column a score."""
    return pd.read_csv(outputs / "scores.csv").pivot(index="head", columns="score", values="value")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    """Return the committed notebook."""
    return read_notebook()


@pytest.fixture(scope="module")
def split(nb: ModuleType, root: Path) -> dict[str, list]:
    """Return the corpus as the notebook splits it, for the random state it is committed with."""
    paths = sorted((root / "data" / "bach_chorales").glob("*.mid"))
    corpus = [read(nb, path) for path in paths]
    for piece, work in zip(corpus, nb.find_works(corpus, nb.Config()), strict=True):
        piece.work = work
    return nb.split_pieces(corpus, nb.Config(), np.random.default_rng(0))


def read(nb: ModuleType, path: Path) -> object:
    """Return a MIDI file as a piece."""
    return nb.read_piece(path.read_bytes(), path.name, nb.Config())


def shown(notebook: nbformat.NotebookNode) -> str:
    """Return the texts of all outputs of the notebook."""
    return "\n".join(text for cell in code_cells(notebook) for text in output_texts(cell))


def numbers_shown(notebook: nbformat.NotebookNode) -> set[str]:
    """Return all numbers in the outputs, without zeros at their ends."""
    found = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)", shown(notebook))
    return {number.rstrip("0").rstrip(".") if "." in number else number for number in found}


@pytest.mark.parametrize("number", NUMBERS)
def test_pieces(nb: ModuleType, outputs: Path, split: dict[str, list], number: int) -> None:
    """A piece has 200 notes that go on in time, on pitches that the training pieces use."""
    notes = read(nb, outputs / f"piece_{number}.mid").notes
    assert len(notes) == 200
    assert (notes.step >= 0).all() and (notes.duration > 0).all()
    assert notes.onset[0] == 0
    pitches = np.concatenate([piece.notes.pitch for piece in split["training"]])
    assert notes.pitch.between(pitches.min(), pitches.max()).all()


def test_pieces_differ(nb: ModuleType, outputs: Path) -> None:
    """No two pieces are alike."""
    pitches = [tuple(read(nb, outputs / f"piece_{number}.mid").notes.pitch) for number in NUMBERS]
    assert len(set(pitches)) == 3


@pytest.mark.parametrize("number", NUMBERS)
def test_sound(nb: ModuleType, outputs: Path, number: int) -> None:
    """A WAV is small, as long as its piece, neither silent nor clipped, and sounds throughout."""
    path = outputs / f"piece_{number}.wav"
    assert path.stat().st_size < LARGEST_WAV
    samples, rate = nb.read_samples(path)
    end = pretty_midi.PrettyMIDI(str(path.with_suffix(".mid"))).get_end_time()
    assert end <= len(samples) / rate <= end + 2
    assert 0.5 < np.abs(samples).max() < 0.99
    seconds = samples[: int(end) * rate].reshape(int(end), rate)
    loudness = np.sqrt((seconds**2).mean(axis=1))
    assert np.median(loudness) > 0.02
    assert (loudness > nb.SILENCE).mean() > 0.95


@pytest.mark.parametrize("number", NUMBERS)
def test_seeds(
    nb: ModuleType, root: Path, outputs: Path, pieces: pd.DataFrame, number: int
) -> None:
    """A seed is the opening of the chorale that the table names, from time zero."""
    seed = read(nb, outputs / f"seed_{number}.mid").notes
    source = pieces.loc[f"piece_{number}", "seed from"]
    opening = read(nb, root / "data" / "bach_chorales" / f"{source}.mid").notes.head(128)
    assert len(seed) == len(opening) == 128
    assert seed.pitch.tolist() == opening.pitch.tolist()
    assert np.allclose(seed.onset, opening.onset - opening.onset[0], atol=1e-3)
    # where two voices meet on a pitch, MIDI lets both end with the shorter
    assert np.isclose(seed.duration, opening.duration, atol=1e-2).mean() > 0.9


def test_seeds_are_of_held_out_works(pieces: pd.DataFrame, split: dict[str, list]) -> None:
    """The seeds open three test pieces of different works."""
    work = {piece.name: piece.work for piece in split["test"]}
    assert len({work[name] for name in pieces["seed from"]}) == 3


@pytest.mark.parametrize("number", NUMBERS)
def test_figures_of_the_pieces(
    nb: ModuleType, outputs: Path, pieces: pd.DataFrame, number: int
) -> None:
    """The figures in the table are those of the MIDI file."""
    piece = read(nb, outputs / f"piece_{number}.mid")
    figures = nb.describe(piece.notes, [piece.notes.pitch.to_numpy()])
    row = pieces.loc[f"piece_{number}"]
    for name in ("chord rate", "step spread", "distinct pitches"):
        assert float(row[name]) == pytest.approx(figures[name], abs=2e-4), name
    assert float(row["mean duration"]) == pytest.approx(figures["mean duration"], rel=0.05)
    assert piece.tempo == pytest.approx(float(row["tempo"]), rel=1e-2)


def test_seeds_are_openings(pieces: pd.DataFrame) -> None:
    """Each seed begins with the first note of its chorale."""
    assert pieces["first note"].tolist() == [0, 0, 0]


def test_pieces_leave_the_range_only_with_their_seeds(
    nb: ModuleType, outputs: Path, pieces: pd.DataFrame, split: dict[str, list]
) -> None:
    """Most pieces lie in the range of real music; one may be outside where its seed is, too."""
    assert (pieces.failed != "").sum() <= 1
    training = [piece.notes.pitch.to_numpy() for piece in split["training"]]
    real = nb.excerpts(split["test"] + split["validation"], nb.Config().piece_notes)
    real = pd.DataFrame([nb.describe(notes, training) for notes in real])
    for number in NUMBERS:
        seed = nb.describe(read(nb, outputs / f"seed_{number}.mid").notes, training)
        failed = [name for name in pieces.loc[f"piece_{number}", "failed"].split(", ") if name]
        assert set(failed) <= set(nb.failed_checks(seed, real))


@pytest.mark.parametrize("number", NUMBERS)
def test_copies_are_short(
    nb: ModuleType, outputs: Path, pieces: pd.DataFrame, split: dict[str, list], number: int
) -> None:
    """The longest run shared with a training piece is the one in the table."""
    training = [piece.notes.pitch.to_numpy() for piece in split["training"]]
    notes = read(nb, outputs / f"piece_{number}.mid").notes
    shared = nb.longest_shared_run(notes.pitch.to_numpy(), training)
    # the file sorts chords by pitch, which may lengthen or cut a run by a chord
    assert abs(shared - pieces.loc[f"piece_{number}", "run shared with training"]) <= 4


def test_model_beats_the_baselines(scores: pd.DataFrame) -> None:
    """On works never heard, the model is better than every baseline, for every head."""
    assert list(scores.index) == ["duration", "pitch", "step"]
    for head, row in scores.iterrows():
        baselines = row.dropna().drop("model")
        assert len(baselines) >= 2
        assert (row["model"] < baselines).all(), head


def test_scores_stand_in_the_notebook(
    notebook: nbformat.NotebookNode, scores: pd.DataFrame
) -> None:
    """The tables of the notebook show the scores of the file, rounded."""
    numbers = numbers_shown(notebook)
    for head, row in scores.iterrows():
        for name, value in row.dropna().items():
            rounded = f"{value:.3f}".rstrip("0").rstrip(".")
            assert rounded in numbers, (head, name)


def test_figures_of_the_pieces_stand_in_the_notebook(
    notebook: nbformat.NotebookNode, pieces: pd.DataFrame
) -> None:
    """The notebook was run together with the pieces that lie beside it."""
    text = shown(notebook)
    for _, row in pieces.iterrows():
        assert row["seed from"] in text
        assert f"{float(row['chord rate']):.2f}".rstrip("0") in text


def test_headline(
    notebook: nbformat.NotebookNode, scores: pd.DataFrame, pieces: pd.DataFrame
) -> None:
    """The sentence at the beginning quotes the scores of the file."""
    cell = next(cell for cell in notebook.cells if cell.id == "headline")
    headline = " ".join(output_texts(cell))
    pitch = scores.loc["pitch"]
    table = next(name for name in pitch.dropna().index if "transpositions" in name)
    for value in (pitch["model"], pitch[table]):
        assert f"{value:.2f}" in headline
    for name in ("step", "duration"):
        row = scores.loc[name]
        gain = 1 - row["model"] / row["copy of the note before"]
        assert f"{name} is {gain:.0%}" in headline
    assert f"{pieces['run shared with training'].max()} notes" in headline


def test_log_of_the_training(outputs: Path, nb: ModuleType) -> None:
    """The log counts the epochs, and the validation loss fell."""
    log = pd.read_csv(outputs / "training_log.csv")
    assert log.epoch.tolist() == list(range(1, len(log) + 1))
    assert 2 < len(log) <= nb.Config().epochs
    assert log.validation_total.min() < log.validation_total[0]
    heads = log.validation_pitch + log.validation_step + log.validation_duration
    assert np.allclose(heads, log.validation_total, atol=1e-5)


def test_diagram(root: Path, nb: ModuleType) -> None:
    """The diagram is there in both formats and shows the size of the LSTM that was trained."""
    assert (root / "diagram" / "architecture.png").read_bytes().startswith(b"\x89PNG")
    drawing = (root / "diagram" / "architecture.svg").read_text(encoding="utf-8")
    config = nb.Config()
    assert "<svg" in drawing
    # matplotlib draws letters as curves and keeps the text as a comment
    assert f"<!-- {config.num_layers} × {config.hidden_size} -->" in drawing


def test_size_of_the_repository(root: Path) -> None:
    """What git tracks can be downloaded in a minute."""
    files = [root / name for name in tracked(root)]
    assert files
    assert sum(path.stat().st_size for path in files if path.exists()) < LARGEST_REPOSITORY


def tracked(root: Path, folder: str = ".") -> list[str]:
    """Return the files that git tracks in a folder, relative to `root`."""
    if not (root / ".git").exists():
        pytest.skip("this copy is no git repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z", folder],
        cwd=root,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name]


# The gallery: other composers


class Report(HTMLParser):
    """What an executed report in HTML consists of: sources of sound, kinds of outputs, texts."""

    def __init__(self, page: str) -> None:
        """Read the page."""
        super().__init__()
        self.sounds, self.kinds, self.texts, self.inside = [], set(), [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the sources of audio elements, also of those inside them, and kinds of outputs."""
        named = dict(attrs)
        self.inside += [tag] * (tag in ("audio", "script", "style"))
        if (tag == "audio" or self.inside[-1:] == ["audio"]) and named.get("src") is not None:
            self.sounds.append(unquote(named["src"]))
        self.kinds.add(named.get("data-mime-type"))
        self.texts += [value for value in named.values() if value and not value.startswith("data:")]

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        if self.inside[-1:] == [tag]:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        """Keep what is shown."""
        if self.inside[-1:] not in (["script"], ["style"]):
            self.texts.append(data)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("composer", GALLERY)
def test_pieces_of_the_gallery(nb: ModuleType, root: Path, composer: str, number: int) -> None:
    """A piece has exactly 200 notes, and its WAV is small, long enough and not silent."""
    path = root / "outputs" / composer / f"piece_{number}.mid"
    midi = pretty_midi.PrettyMIDI(str(path))
    assert sum(len(part.notes) for part in midi.instruments) == 200
    sound = path.with_suffix(".wav")
    assert sound.stat().st_size < LARGEST_WAV
    samples, rate = nb.read_samples(sound)
    assert len(samples) / rate >= midi.get_end_time()
    assert 0.5 < np.abs(samples).max() < 0.99
    assert np.sqrt(np.mean(samples**2)) > 10 * nb.SILENCE


@pytest.mark.parametrize("composer", GALLERY)
def test_table_of_the_gallery(root: Path, composer: str) -> None:
    """The table of the pieces says from which note of which file each seed is."""
    table = pd.read_csv(root / "outputs" / composer / "pieces.csv", keep_default_na=False)
    assert table.piece.tolist() == [f"piece_{number}" for number in NUMBERS]
    listed = (root / "data" / "course_dataset.sha256").read_text(encoding="utf-8").splitlines()
    files = [Path(line.split()[1]) for line in listed]
    sources = {path.stem for path in files if path.parent.name == composer}
    assert {Path(name).stem for name in table["seed from"]} <= sources
    assert (table["first note"] >= 0).all() and table["first note"].dtype.kind == "i"
    assert not table.duplicated(["seed from", "first note"]).any()


@pytest.mark.parametrize("composer", GALLERY)
def test_no_seed_of_the_gallery_is_tracked(root: Path, composer: str) -> None:
    """The pieces are in git, the seeds, which are music of the dataset, are not."""
    names = [Path(name).name for name in tracked(root, f"outputs/{composer}")]
    wanted = {f"piece_{n}.{suffix}" for n in NUMBERS for suffix in ("mid", "wav")}
    assert wanted | {"pieces.csv"} <= set(names)
    assert [name for name in names if name.startswith("seed_")] == []


@pytest.mark.parametrize("composer", REPORTED)
def test_report_of_the_gallery(root: Path, composer: str) -> None:
    """The report shows no error and no path of a machine, and its players find their files."""
    path = root / "outputs" / composer / "report.html"
    report = Report(path.read_text(encoding="utf-8"))
    assert len(report.sounds) == len(NUMBERS)
    assert [name for name in report.sounds if not (path.parent / name).is_file()] == []
    assert "text/plain" in report.kinds
    assert not {"application/vnd.jupyter.stderr", "application/vnd.jupyter.error"} & report.kinds
    assert not [text for text in report.texts if "Traceback (most recent call last)" in text]
    assert [text for text in report.texts if MACHINE_PATH.search(text)] == []
    assert any(text.strip() == "Result." for text in report.texts)
