"""Ask the bundled model every question with a known answer, and count the exact answers.

    python -m training.evaluate [--model DIR] [--json]

Arithmetic is reported separately for the pairs in the training data and for the held-out pairs. The first
result shows what the model remembers, the second whether it has learned to add. Decoding is greedy, except
for the second set of stories.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from training import corpus
from training.corpus import Document

WEIGHTS = Path(__file__).resolve().parent.parent / "ladder" / "data" / "weights"
BATCH = 64
STORY_LIMIT = 250
STORY_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Score:
    """The number of questions and of exact answers."""

    right: int
    asked: int

    def __str__(self) -> str:
        return f"{self.right / self.asked:.1%}  ({self.right}/{self.asked})"


@dataclass(frozen=True)
class Stories:
    """The lengths of stories, and how many end with the end token."""

    ended: int
    told: int
    shortest: int
    longest: int

    def __str__(self) -> str:
        return f"{self.ended}/{self.told} end by themselves, {self.shortest} to {self.longest} tokens"


@dataclass(frozen=True)
class Evaluation:
    """Everything `python -m training.evaluate` reports."""

    arithmetic: Score
    arithmetic_seen: Score
    arithmetic_held_out: Score
    counting: Score
    glossary: Score
    fixed_answers: Score
    stories_greedy: Stories
    stories_sampled: Stories
    parameters: int
    bytes_on_disk: int


@dataclass(frozen=True)
class Examinee:
    """A model and its tokenizer; it answers in batches."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast

    @torch.inference_mode()
    def answer(self, prompts: Sequence[str], limit: int, temperature: float = 0.0) -> list[list[int]]:
        """The token ids of each answer, up to and including the end-of-sequence token if there is one."""
        eos = self.tokenizer.eos_token_id
        settings: dict[str, Any] = {"max_new_tokens": limit, "do_sample": temperature > 0}
        if temperature > 0:
            settings |= {"temperature": temperature, "top_k": 0}
        answers: list[list[int]] = []
        for start in range(0, len(prompts), BATCH):
            # Padding on the left, so that each answer directly follows its prompt.
            batch = self.tokenizer(
                list(prompts[start : start + BATCH]), return_tensors="pt", padding=True, padding_side="left"
            )
            output: torch.Tensor = self.model.generate(**batch, **settings)
            new_ids = output[:, batch["input_ids"].shape[1] :].tolist()
            answers += [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in new_ids]
        return answers

    def exact(self, documents: Sequence[Document]) -> list[bool]:
        """For each document, whether the model's answer equals its answer, with the end token."""
        expected = [[*self.tokenizer.encode(answer), self.tokenizer.eos_token_id] for _, answer in documents]
        given = self.answer([prompt for prompt, _ in documents], limit=max(map(len, expected)))
        return [ours == theirs for ours, theirs in zip(given, expected, strict=True)]

    def score(self, documents: Sequence[Document]) -> Score:
        """How many of the documents get an exact answer."""
        return Score(sum(self.exact(documents)), len(documents))

    def tell(self, prompts: Sequence[str], temperature: float = 0.0) -> Stories:
        """Generate a story for each prompt and measure the stories."""
        told = self.answer(prompts, STORY_LIMIT, temperature)
        lengths = [len(ids) for ids in told]
        ended = sum(ids[-1] == self.tokenizer.eos_token_id for ids in told)
        return Stories(ended, len(told), min(lengths), max(lengths))


def load(directory: Path) -> Examinee:
    """Load the saved bfloat16 weights, to compute in float32."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return Examinee(model, PreTrainedTokenizerFast.from_pretrained(directory))


def evaluate(directory: Path) -> Evaluation:
    """Evaluate the model in a directory, from arithmetic to its size on disk."""
    examinee = load(directory)
    right = examinee.exact([problem.document for problem in corpus.PROBLEMS])
    held_out = [ok for ok, problem in zip(right, corpus.PROBLEMS, strict=True) if problem in corpus.HELD_OUT]
    torch.manual_seed(0)
    return Evaluation(
        arithmetic=Score(sum(right), len(right)),
        arithmetic_seen=Score(sum(right) - sum(held_out), len(right) - len(held_out)),
        arithmetic_held_out=Score(sum(held_out), len(held_out)),
        counting=examinee.score(corpus.COUNTING),
        glossary=examinee.score(corpus.GLOSSARY),
        fixed_answers=examinee.score(corpus.GREETINGS + corpus.EMOJI + corpus.SCRIPTS + corpus.MARKUP),
        stories_greedy=examinee.tell(corpus.STORY_PROMPTS),
        stories_sampled=examinee.tell(corpus.STORY_PROMPTS * 2, STORY_TEMPERATURE),
        parameters=examinee.model.num_parameters(),
        bytes_on_disk=sum(file.stat().st_size for file in directory.iterdir()),
    )


def table(evaluation: Evaluation) -> Table:
    """The evaluation as a table."""
    rows = {
        f"arithmetic, all pairs 0..{corpus.LARGEST}": evaluation.arithmetic,
        "arithmetic, seen in training": evaluation.arithmetic_seen,
        "arithmetic, held out": evaluation.arithmetic_held_out,
        f"counting from 1 to N, N <= {corpus.COUNT_TO}": evaluation.counting,
        "glossary": evaluation.glossary,
        "greetings, emoji, scripts, markup": evaluation.fixed_answers,
        "stories, greedy": evaluation.stories_greedy,
        f"stories, temperature {STORY_TEMPERATURE}": evaluation.stories_sampled,
        "parameters": f"{evaluation.parameters:,}",
        "on disk": f"{evaluation.bytes_on_disk / 1e6:.1f} MB",
    }
    result = Table("evaluation", "result", title="The bundled model")
    for name, value in rows.items():
        result.add_row(name, str(value))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the bundled model.")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="directory with weights and tokenizer")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    evaluation = evaluate(arguments.model)
    if arguments.json:
        print(json.dumps(asdict(evaluation), indent=2))
    else:
        Console().print(table(evaluation))


if __name__ == "__main__":
    main()
