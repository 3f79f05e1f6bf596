"""Read thousands of damaged MIDI files: each is parsed to sound notes or refused.

    python tests/fuzz/midi.py [--files N] [--random-state N]

Any other outcome is printed with the random state that makes the file; the status is then 1.
"""

import argparse
import re
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import CORPUS, ROOT, definitions

SECONDS, MEGABYTES = 2, 1000  # of processor time for a file, and of memory for all, at most
KINDS = ("flip", "cut", "splice", "tempo", "header")


def damaged(data: bytes, other: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return the file with one damage; `other` is the file to splice it with."""
    first, last = sorted(rng.integers(len(data) + 1, size=2).tolist())
    if kind == "flip":
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        bits[rng.integers(len(bits), size=int(2 ** rng.uniform(0, 6)))] ^= 1
        return np.packbits(bits).tobytes()
    if kind == "tempo":  # up to 2 or to 16 million microseconds a beat
        beat = rng.bytes(3) if first % 2 else bytes([0, 0, last % 3])
        return re.sub(rb"(?s)(\xff\x51\x03)...", lambda match: match[1] + beat, data)
    if kind == "header":  # type, number of tracks or division, of SMPTE too
        values, place = [0, 1, 2, 255, 32767, 0xE728, int(rng.integers(2**16))], 8 + 2 * (last % 3)
        return data[:place] + values[first % 7].to_bytes(2) + data[place + 2 :]
    return data[:first] + (other if kind == "splice" else data)[last:]


def outcome(nb: ModuleType, data: bytes) -> str:
    """Return `parsed`, `refused` or the fault."""
    begin = time.process_time()
    try:
        piece = nb.read_piece(data, "damaged.mid")
        notes, found = piece.notes, "no music"
        real = np.isfinite(notes).all(axis=None) and notes[["pitch", "velocity"]].isin(range(128))
        real = np.all(real) and min(notes.onset.min(), notes.step.min()) >= 0 < notes.duration.min()
        # beyond these bounds the notebook would make hours of sound
        if real and notes[["step", "duration"]].max(axis=None) <= 256 and 5 <= piece.tempo <= 1000:
            found = "parsed"
    except ValueError:
        found = "refused"
    except Exception as error:  # any other is what is looked for
        found = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - begin
    return found if seconds < SECONDS else f"{found} in {seconds:.1f} s"


def main() -> None:
    """Read damaged files, print each fault and the counts."""
    from resource import RUSAGE_SELF, getrusage  # not on Windows, where the rest can be imported

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--random-state", type=int, default=0)
    options = parser.parse_args()
    nb, paths = definitions(), sorted((ROOT / "data" / CORPUS).glob("*.mid"))
    files, counts = [path.read_bytes() for path in paths], dict.fromkeys(("parsed", "refused"), 0)
    for state in range(options.random_state, options.random_state + options.files):
        rng = np.random.default_rng(state)
        data, other = (files[i] for i in rng.integers(len(files), size=2))
        for kind in rng.choice(KINDS, size=int(rng.integers(1, 4))):
            data = damaged(data, other, str(kind), rng) or b"\0"
        found = outcome(nb, data)
        if found in counts:
            counts[found] += 1
        else:
            print(f"{state}: {found}", flush=True)
    most = getrusage(RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(counts, f"at most {most:.0f} MB")
    sys.exit(sum(counts.values()) < options.files or most > MEGABYTES)


if __name__ == "__main__":
    main()
