"""The bundled corpus, its manifest and what is said about it; the list of the course dataset."""

import csv
import hashlib
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from notebook_tools import ROOT, git, listed_sums, tracked_files

CHORALES = ROOT / "data" / "bach_chorales"
LISTED = {".mid": 292, ".MID": 3}  # files of the course dataset by suffix
COMPOSERS = 19


def sum_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def manifest() -> list[dict[str, str]]:
    """Return the rows of the manifest."""
    with (CHORALES / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_manifest_is_that_of_the_files(manifest: list[dict[str, str]]) -> None:
    """The manifest names the files of the folder, and none has changed since it was written."""
    sums = {path.name: sum_of(path) for path in CHORALES.glob("*.mid")}
    assert {row["file"]: row["sha256"] for row in manifest} == sums
    assert len(manifest) == len(sums)


def test_notes_of_the_manifest(nb: ModuleType, manifest: list[dict[str, str]]) -> None:
    """The notebook reads the notes that the manifest counts, from where it says they begin."""
    for row in manifest[::20]:
        piece = nb.read_piece((CHORALES / row["file"]).read_bytes(), row["file"])
        assert len(piece) == int(row["notes"]), row["file"]
        assert piece.notes.onset.iloc[0] == pytest.approx(float(row["start_beat"]), abs=1e-6)
        assert piece.tempo == pytest.approx(80, rel=1e-3)


def test_counts_in_the_readme(manifest: list[dict[str, str]]) -> None:
    """The numbers in the text are those of the tables."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    with (CHORALES / "left_out.csv").open(newline="", encoding="utf-8") as file:
        reasons = Counter(row["reason"].split(":")[0] for row in csv.DictReader(file))
    notes = sum(int(row["notes"]) for row in manifest)
    assert f"{len(manifest)} four-part chorales" in text
    assert f"{notes:,} notes" in text
    assert f"{sum(reasons.values())} of them are left out" in text
    assert f"{len(manifest) + sum(reasons.values())} files" in text
    assert f"{sum(not row['title'] for row in manifest)} chorales are not in it" in text
    parts = [int(n) for n in re.findall(r"^- (\d+) (?:setting|file)s? ", text, re.MULTILINE)]
    assert sum(parts) == sum(reasons.values())


def test_course_list() -> None:
    """The list has one well-formed line for each of the 295 files, sorted by name."""
    text = (ROOT / "data" / "course_dataset.sha256").read_text(encoding="utf-8")
    line, sums = re.compile(r"[0-9a-f]{64}  [a-z]+/[\w-]+\.\w+"), listed_sums()
    assert not [row for row in text.splitlines() if not line.fullmatch(row)]
    assert [row.split("  ")[1] for row in text.splitlines()] == sorted(sums)
    assert len(sums) == len(set(sums.values())) == sum(LISTED.values())
    assert Counter(Path(name).suffix for name in sums) == LISTED
    assert len({name.split("/")[0] for name in sums}) == COMPOSERS


def test_course_list_against_the_dataset(dataset: Path) -> None:
    """The sums of the list are those of the files, and no file is missing on either side."""
    folders = [dataset / composer for composer in {name.split("/")[0] for name in listed_sums()}]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    # a file manager may have left something hidden
    files = [path for path in files if not path.name.startswith(".")]
    assert {path.relative_to(dataset).as_posix(): sum_of(path) for path in files} == listed_sums()


def test_no_file_of_the_list_is_in_the_repository() -> None:
    """No file that git tracks, or would in a copy without it, is one of the course dataset."""
    files = [ROOT / name for name in tracked_files()]
    if not files:
        folders = ("data/bach_chorales", "diagram", "outputs", "tests")
        files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files = [path for path in files if path.is_file()]
    assert len(files) > 300
    known = set(listed_sums().values())
    assert not [path for path in files if sum_of(path) in known]


def test_no_commit_held_a_file_of_the_list() -> None:
    """No commit ever added a file with the name of one of the course dataset."""
    if not tracked_files():
        pytest.skip("git cannot tell what was committed")
    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("this clone is shallow: it does not have the whole history")
    # a rename counts as an addition, and a merge may add files too
    options = ["--diff-filter=A", "--no-renames", "-m"]
    listed = git("log", "--all", "--name-only", "--format=", "-z", *options)
    added = {Path(name).name.lower() for name in re.split(r"[\0\n]", listed) if name}
    assert "notebook.ipynb" in added
    assert not added & {Path(name).name.lower() for name in listed_sums()}
