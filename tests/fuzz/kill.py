"""Kill or interrupt runs of the notebook: the results are always those of one complete run.

    python tests/fuzz/kill.py [--kills N] [--random-state N]

Half of the runs are stopped anywhere, half when new results take the place of the old ones. The
status is 1 if there was a fault.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import Process
from pathlib import Path

import numpy as np
import psutil

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import CORPUS, make_project, run_notebook


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder; none if it is missing or moves meanwhile."""
    try:
        return {path.name: path.read_bytes() for path in folder.iterdir()}
    except OSError:
        return {}


def run(project: Path, random_state: int) -> None:
    """Run the notebook; this process ends with status 1 if that fails."""
    done = run_notebook(project, {"TMPDIR": str(project.parent)}, random_state=random_state)
    sys.exit(done.notebook is None)


def inode(folder: Path) -> int:
    """Return what tells the folder from one that takes its place; 0 if it is missing."""
    with suppress(FileNotFoundError):
        return folder.stat().st_ino
    return 0


def attempt(project: Path, random_state: int, sign: int = 0, at: float = 0) -> int | None:
    """Return the status of a run that gets a signal after `at` seconds; if 0, as results move."""
    process, kernels, begin = Process(target=run, args=(project, random_state)), [], time.time()
    results = project / "outputs" / CORPUS
    old, aside = inode(results), results.with_name(f".{CORPUS}")
    process.start()
    while sign and process.is_alive():
        with suppress(psutil.Error):  # one of them has just ended
            below = [] if kernels else psutil.Process(process.pid).children(recursive=True)
            kernels += [one.pid for one in below if "ipykernel_launcher" in one.cmdline()]
        if kernels and (time.time() - begin > at if at else inode(results) != old):
            with suppress(ProcessLookupError):  # as Jupyter interrupts the kernel's whole group
                os.killpg(kernels[0], sign)
            break
        time.sleep(0 if kernels and not at and aside.exists() else 0.01)
    process.join(600)
    return process.exitcode


def main() -> None:
    """Stop runs and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--random-state", type=int, default=0)
    options, complete, faults = parser.parse_args(), [], 0
    rng = np.random.default_rng(options.random_state)
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project")
        results, begin = project / "outputs" / CORPUS, time.time()
        for state in (0, 1):
            assert attempt(project, state) == 0, "an undisturbed run fails"
            complete.append(contents(results))
        usual = (time.time() - begin) / 2
        for i in range(options.kills):
            old = contents(results)
            state = int(old == complete[0])  # so that new results differ from the old ones
            sign = signal.SIGKILL if rng.random() < 0.5 else signal.SIGINT
            at = rng.uniform(0, usual) if rng.random() < 0.5 else 0
            status, found = attempt(project, state, sign, at), contents(results)
            # an interrupted training goes on with other weights, to results of its own
            short = status == 0 and sign == signal.SIGINT and found.keys() == old.keys()
            good = status is not None and (found in (old, complete[state]) or short)
            if not found:  # killed between two renamings: the next run mends it
                good = attempt(project, state) == 0 and contents(results) == complete[state]
            faults += not good
            said = "good" if good else "FAULT"
            print(f"{i}: {sign.name} {f'after {at:.1f} s' if at else 'late'}: {said}", flush=True)
        good = attempt(project, 0) == 0 and contents(results) == complete[0]
        faults += not good or [path.name for path in results.parent.iterdir()] != [CORPUS]
    print(f"{faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
