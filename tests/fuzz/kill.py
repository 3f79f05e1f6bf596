"""Kill or interrupt runs of the notebook: the results are always those of one complete run.

    python tests/fuzz/kill.py [--kills N] [--random-state N]

Half of the runs are stopped anywhere, half when new results take the place of the old ones. The
status is 1 if there was a fault.
"""

import argparse
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Process
from pathlib import Path

import numpy as np
import psutil

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import CORPUS, NOTEBOOK, make_project, run_notebook

PATIENCE = 600  # seconds for a run to end after an interrupt
Files = dict[str, str]  # digests by name


def digests(folder: Path) -> Files | None:
    """Return the digests of the files; None if the folder is missing or moves meanwhile."""
    try:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    except OSError:
        return None


def moved(folder: Path, inode: int) -> bool:
    """Return whether the folder is missing or another one, after looking many times."""
    for _ in range(10**5 if folder.with_name(f".{folder.name}").exists() else 1):
        try:
            if folder.stat().st_ino != inode:
                return True
        except FileNotFoundError:
            return True
    return False


def run(project: Path, notebook: bytes, random_state: int) -> None:
    """Run the notebook; this process ends with status 1 if that fails."""
    (project / NOTEBOOK.name).write_bytes(notebook)  # since each run adds a cell to it
    # what a killed run leaves among the temporary files goes with the project
    done = run_notebook(project, {"TMPDIR": str(project.parent)}, random_state=random_state)
    sys.exit(done.notebook is None)


def started(process: Process) -> list[psutil.Process]:
    """Return the processes below, the kernel first; none as long as there is no kernel."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
        kernels = [one for one in below if "ipykernel_launcher" in one.cmdline()]
    except psutil.Error:  # one of them has just ended
        return []
    return kernels + [one for one in below if one not in kernels] if kernels else []


def attempt(
    work: tuple[Path, bytes, int], kind: str = "", ripe: Callable[[float], bool] = bool
) -> tuple[int | None, float]:
    """Run the notebook until it ends, or is stopped once its seconds are `ripe`.

    Return the status, None if the run goes on for ever, and the seconds.
    """
    process, begin, below = Process(target=run, args=work), time.monotonic(), []
    process.start()
    while process.is_alive():
        below = below or started(process)
        if kind and below and ripe(time.monotonic() - begin):
            with suppress(ProcessLookupError, psutil.NoSuchProcess):  # it has just ended
                # Jupyter too interrupts the whole group of the kernel
                os.killpg(below[0].pid, signal.SIGKILL if kind == "kill" else signal.SIGINT)
                for one in [*below[1:], process] if kind == "kill" else []:
                    one.kill()
            break
        time.sleep(0.01)
    seconds = time.monotonic() - begin
    process.join(PATIENCE)
    psutil.wait_procs(below, 5)
    return process.exitcode, seconds


def mended(work: tuple[Path, bytes, int], old: Files, new: Files) -> bool:
    """Return whether the next run puts the old results back, and then new ones in their place."""
    results, seen = work[0] / "outputs" / CORPUS, []

    def look(since: float) -> bool:
        """Note the first results that are there again and let the run go on."""
        seen.extend([digests(results)] if not seen and results.exists() else [])
        return False

    status, _ = attempt(work, "look", look)
    return status == 0 and seen == [old] and digests(results) == new


def main() -> None:
    """Stop runs, print a line for each and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--random-state", type=int, default=0)
    options = parser.parse_args()
    rng, counts, complete = np.random.default_rng(options.random_state), Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project")
        notebook, results = (project / NOTEBOOK.name).read_bytes(), project / "outputs" / CORPUS
        for state in (0, 1):
            status, usual = attempt((project, notebook, state))
            complete.append(digests(results))
            assert status == 0 and complete[-1], "an undisturbed run fails"
        print(f"an undisturbed run takes {usual:.0f} s", flush=True)
        for i in range(options.kills):
            old, inode, begin = digests(results), results.stat().st_ino, time.time()
            state = int(old == complete[0])  # so that new results differ from the old ones
            work, new = (project, notebook, state), complete[state]
            kind, at = str(rng.choice(["kill", "interrupt"])), rng.uniform(-usual, usual)
            status, seconds = attempt(
                work, kind, lambda s, at=at, i=inode: s > at if at > 0 else moved(results, i)
            )
            found, result = digests(results), "fault"
            if status is None:
                result = "fault, does not end"
            elif found in (old, new):
                result = "old" if found == old else "new"
            elif found is None:  # stopped between two renamings
                good = mended(work, old, new)
                result = "missing, mended by the next run" if good else "fault, missing"
            elif found.keys() == old.keys() and status == 0 and kind == "interrupt":
                young = all(path.stat().st_mtime > begin for path in results.iterdir())
                result = "new, of a training cut short" if young else "fault, a mixture"
            counts[result] += 1
            print(
                f"{i}: {kind} {'anywhere' if at > 0 else 'late'}, {seconds:.1f} s: {result}",
                flush=True,
            )
            if result.startswith("fault"):  # the next one would start from it
                break
        state = int(digests(results) == complete[0])
        good = attempt((project, notebook, state))[0] == 0 and digests(results) == complete[state]
        good &= [path.name for path in results.parent.iterdir()] == [CORPUS]
        counts["last run good" if good else "fault, last run"] += 1
    print(", ".join(f"{count} {result}" for result, count in counts.items()))
    sys.exit(any(result.startswith("fault") for result in counts))


if __name__ == "__main__":
    main()
