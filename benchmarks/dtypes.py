"""Measures the quality of the bundled model in each dtype, on held-out sums and on fresh text.

    python -m benchmarks.dtypes

Accuracy is the share of exact greedy answers to sums and differences; the held-out pairs are not in the
training data. Perplexity is that of the answers of 200 new documents (of the kinds in the training data,
with another seed).
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import os
import random
from collections.abc import Sequence
from itertools import islice

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.results_file import RESULTS, write_result
from ladder import import_rung
from ladder.cli import DTYPES, EngineConfig
from ladder.engine.messages import EngineRequest
from ladder.llm.loading import Model, load_model
from ladder.llm.sampling import SamplingSettings
from training import corpus
from training.corpus import Document

DOCUMENTS = 200
SEED = 20_000
"""No training run uses this seed."""


def tokens_of(model: Model, document: Document) -> tuple[list[int], list[int]]:
    """The tokens of the prompt, and those of the answer with its end token."""
    answer = [*model.tokenizer.encode(document.answer), *model.stop_ids]
    return model.tokenizer.encode(document.prompt), answer


def exact_answers(model: Model, documents: Sequence[Document]) -> list[bool]:
    """Whether rung 04's engine gives the exact answer to each; it runs them in batches."""
    core = import_rung("04_continuous_batching").EngineCore(model, EngineConfig())
    expected = {}
    for number, document in enumerate(documents):
        prompt, expected[number] = tokens_of(model, document)
        core.handle(EngineRequest(number, prompt, len(expected[number]), SamplingSettings(), model.stop_ids))
    given: dict[int, list[int]] = {number: [] for number in expected}
    while core.states:
        for token in core.step().tokens:
            given[token.id].append(token.token_id)
    return [given[number] == expected[number] for number in expected]


def perplexity(model: Model, documents: Sequence[Document]) -> float:
    """The perplexity of the answers' tokens, each predicted from the true tokens before it."""
    loss, count = 0.0, 0
    for document in documents:
        prompt, answer = tokens_of(model, document)
        cache = model.decoder.new_cache(slots=1, context=len(prompt) + len(answer))
        logits = model.decoder.prefill(cache, [0], [prompt])
        for token in answer:
            loss -= float(torch.log_softmax(logits.float(), dim=-1)[0, token])
            logits = model.decoder.decode(cache, [0], [token])
        count += len(answer)
    return float(torch.tensor(loss / count).exp())


def main() -> None:
    console = Console()
    drawn = list(islice(corpus.documents(corpus.EVERYTHING, random.Random(SEED)), DOCUMENTS))
    held_out = [problem in corpus.HELD_OUT for problem in corpus.PROBLEMS]
    result = {}
    table = Table("dtype", "sums and differences", "of these held out", "perplexity of fresh answers")
    with errors_in_one_line("benchmarks.dtypes"):
        for dtype in DTYPES:
            with console.status(dtype):
                model = load_model("tiny", dtype, "cpu")
                right = exact_answers(model, [problem.document for problem in corpus.PROBLEMS])
                unseen = [ok for ok, held in zip(right, held_out, strict=True) if held]
                result[dtype] = {
                    "right": sum(right),
                    "asked": len(right),
                    "held_out_right": sum(unseen),
                    "held_out_asked": len(unseen),
                    "perplexity": perplexity(model, drawn),
                }
            table.add_row(
                dtype,
                f"{sum(right)} of {len(right)}",
                f"{sum(unseen)} of {len(unseen)}",
                f"{result[dtype]['perplexity']:.4f}",
            )
    console.print(table)
    file = RESULTS / "dtypes.json"
    write_result(file, "python -m benchmarks.dtypes", {"model": "tiny", "documents": DOCUMENTS, **result})
    console.print(f"result: {os.path.relpath(file)}")


if __name__ == "__main__":
    main()
