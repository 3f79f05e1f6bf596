"""Run the notebook on composers of the course dataset and keep what it leaves in outputs/gallery/.

    python tests/studies/gallery.py PATH [composer ...]

PATH is a folder with one folder of MIDI files a composer. The notebook runs in a temporary copy of
the project. The pieces, their sound and the tables of each composer are copied to
outputs/gallery/<composer>/ once its run has ended well, for `REPORTED` also the executed report.
Seeds are left out: they are cut from the dataset, and pieces.csv says where.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbconvert

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import ROOT, make_project, run_notebook
from study_tools import RANDOM_STATE
from tqdm import tqdm

COMPOSERS = ("mozart", "chopin", "beeth")
REPORTED = ("mozart",)
FULL = {"OMP_NUM_THREADS": str(os.cpu_count())}


def make(data: Path, composer: str) -> None:
    """Run the notebook on one composer and copy what it wrote to outputs/gallery/<composer>/."""
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project", data / composer, files=None)
        shutil.copytree(ROOT / "outputs" / "study", project / "outputs" / "study")
        run = run_notebook(project, FULL, corpus=composer, random_state=RANDOM_STATE, changes={})
        if run.notebook is None:
            raise SystemExit(f"the notebook failed on {composer}: {run.errors[-3000:]}")
        if composer in REPORTED:
            report = nbconvert.HTMLExporter().from_notebook_node(run.notebook)[0]
            (run.outputs / "report.html").write_text(report, encoding="utf-8")
        target, seeds = ROOT / "outputs" / "gallery" / composer, shutil.ignore_patterns("seed_*")
        shutil.copytree(run.outputs, target, ignore=seeds, dirs_exist_ok=True)


def main() -> None:
    """Make the gallery."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a folder with one folder of MIDI files a composer")
    parser.add_argument("composers", nargs="*", default=COMPOSERS)
    arguments = parser.parse_args()
    for composer in tqdm(arguments.composers, "composers"):
        make(arguments.path.resolve(), composer)


if __name__ == "__main__":
    main()
