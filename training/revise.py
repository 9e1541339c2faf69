"""Revise: ask for every count from 1, and train on the wrong ones until all are right.

    python -m training.revise

Training ends with two of the 49 counts wrong: each has nearly two hundred tokens, and all of them have to be
right. This is the second half of `make model`. It starts from the saved weights, mixes in all other documents
so that the model does not forget them, and updates the report.
"""

import json
import time
from dataclasses import asdict
from functools import partial
from itertools import compress
from pathlib import Path

from rich.console import Console
from transformers.utils import logging

from training import corpus, evaluate
from training.corpus import Document
from training.train import Phase, optimize, phase_batches, save

ROUNDS = 10
STEPS = 60
LEARNING_RATE = 3e-4
REPORT = Path(__file__).parent / "report.json"


def learning_rate(step: int) -> float:
    """A short warm-up, then a linear decay to zero."""
    return LEARNING_RATE * min(1.0, (step + 1) / 10) * (1 - step / STEPS)


def wrong_counts() -> list[Document]:
    """The counts that the saved weights get wrong."""
    right = evaluate.load(evaluate.WEIGHTS).exact(corpus.COUNTING)
    return list(compress(corpus.COUNTING, (not ok for ok in right)))


def practise(documents: list[Document], number: int, console: Console) -> None:
    """Run one round: load the saved weights, train, and save them again."""
    examinee = evaluate.load(evaluate.WEIGHTS)
    examinee.model.train()
    phase = Phase(f"revision {number}", 1.0, corpus.with_practice(documents), rows=12, length=256)
    drawn = phase_batches(examinee.tokenizer, phase, seed=0)
    keep = partial(save, examinee.model, examinee.tokenizer, evaluate.WEIGHTS)
    optimize(examinee.model, drawn, STEPS, learning_rate, console, keep)


def main() -> None:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    console = Console()
    started = time.perf_counter()
    rounds = 0
    while (wrong := wrong_counts()) and rounds < ROUNDS:
        rounds += 1
        console.print(f"round {rounds}: wrong were " + ", ".join(document.prompt for document in wrong))
        practise(wrong, rounds, console)
    seconds = time.perf_counter() - started
    evaluation = evaluate.evaluate(evaluate.WEIGHTS)
    console.print(evaluate.table(evaluation))
    report = json.loads(REPORT.read_text())
    report["revision"] = {
        "command": "python -m training.revise",
        "rounds": rounds,
        "steps": rounds * STEPS,
        "seconds": round(seconds),
    }
    report["evaluation"] = asdict(evaluation)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
