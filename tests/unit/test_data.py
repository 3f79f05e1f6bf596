"""The bundled corpus, its manifest and what is said about it; the list of the course dataset."""

import hashlib
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from notebook_tools import ROOT, git, listed_sums, tracked_files

CHORALES = ROOT / "data" / "bach_chorales"


def sum_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def manifest() -> pd.DataFrame:
    """Return the table of the bundled files."""
    return pd.read_csv(CHORALES / "manifest.csv", keep_default_na=False)


def test_manifest_is_that_of_the_files(nb: ModuleType, manifest: pd.DataFrame) -> None:
    """The files are those of the manifest, and the notebook reads the notes that it counts."""
    sums = {path.name: sum_of(path) for path in CHORALES.glob("*.mid")}
    assert dict(zip(manifest.file, manifest.sha256, strict=True)) == sums
    for row in manifest[::20].itertuples():
        piece = nb.read_piece((CHORALES / row.file).read_bytes(), row.file)
        found = len(piece), piece.notes.onset.iloc[0], piece.tempo
        assert found == pytest.approx((row.notes, row.start_beat, 80), rel=1e-3), row.file


def test_counts_in_the_readme(manifest: pd.DataFrame) -> None:
    """The numbers in the text are those of the tables."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    left_out = len(pd.read_csv(CHORALES / "left_out.csv"))
    assert f"{len(manifest)} four-part chorales" in text
    assert f"{manifest.notes.sum():,} notes" in text
    assert f"{left_out} of them are left out" in text
    assert f"{len(manifest) + left_out} files" in text
    assert f"{sum(manifest.title == '')} chorales are not in it" in text
    parts = re.findall(r"^- (\d+) (?:setting|file)s? ", text, re.MULTILINE)
    assert sum(map(int, parts)) == left_out


def test_course_list(dataset: Path) -> None:
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
    known = set(listed_sums().values())
    assert len(files) > 300 and len(known) == 295
    assert not [path for path in files if path.is_file() and sum_of(path) in known]


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
