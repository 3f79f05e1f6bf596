"""Climb from the plain model to the full one and write outputs/study/ladder.csv.

    python tests/studies/ladder.py [--random-states 10 11 12]

The chorales, in the order of the notebook: the plain model as it is; the same with as many units
and epochs as the full one; the full network with none of its features; and those, one idea at a
time. Trainings have as many epochs as in the ablation, scores are of validation pieces. Rows that
are there already are passed over.
"""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from ablation import EPOCHS, TRAINING, changed
from notebook_tools import CORPUS, ROOT, definitions
from study_tools import STUDY, add_row, known, load, untrained, version

TABLE, KEY = STUDY / "ladder.csv", ["version", "random state", "step of the ladder"]
PLAIN = ("plain model", "plain, as large and long")
# what each further step brings, parts of the ablation
STEPS = {
    "full network, no features": (),
    "and copying": ("copying",),
    "and near notes, voices": ("near notes", "parallel motion", "first end as a proposal"),
    "and metre, note counts": ("metre", "note counts"),
    "and conditioned heads": ("conditioned heads",),
}


def climb(nb: ModuleType, pieces: list, random_state: int, name: str) -> dict[str, float]:
    """Return the validation losses of one step."""
    config, missing = replace(nb.Config(), epochs=EPOCHS), ()
    if name == PLAIN[0]:
        small = -(-EPOCHS // 3), config.hidden_size // 2
        config = replace(config, epochs=small[0], hidden_size=small[1])
    elif name not in PLAIN:
        names = list(STEPS)
        missing = [part for step in names[names.index(name) + 1 :] for part in STEPS[step]]
    with ExitStack() as stack:
        for part in missing:
            stack.enter_context(changed(TRAINING[part][1](nb)))
        ready = untrained(nb, pieces, config, random_state)
        torch.manual_seed(random_state)
        model = ready.model
        if name in PLAIN:
            model = nb.PlainLSTM(ready.normaliser.names, config)
        nb.fit(model, ready.encoded, config)
        return nb.evaluate(model, nb.make_eval_loader(ready.encoded["validation"], config))


def main() -> None:
    """Make the steps that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random-states", type=int, nargs="+", default=[*range(10, 13)])
    states = parser.parse_args().random_states
    nb = definitions()
    stamp, pieces = version(nb), load(nb, ROOT / "data" / CORPUS, nb.Config())
    for random_state in states:
        for name in (*PLAIN, *STEPS):
            if (stamp, random_state, name) not in known(TABLE, KEY):
                key = dict(zip(KEY, (stamp, random_state, name), strict=True))
                add_row(TABLE, key | climb(nb, pieces, random_state, name), KEY)


if __name__ == "__main__":
    main()
