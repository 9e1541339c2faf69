"""Train the bundled model from scratch: tokenizer, weights, evaluation, report.

    python -m training.train [--steps N] [--seed N] [--output DIR]

Documents are packed one after another into rows of equal length, so that no step is spent on
padding. The loss covers only the answers (^), each with its end token:

    What is 2 + 2? The answer is 4.<end>Goodbye! Goodbye! Come back soon.<end>What is 9 - 3? The ans
                  ^^^^^^^^^^^^^^^^^^^^^^        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^              ^^^^^^^^

A prompt cannot be predicted (which sum will it be?), so its gradient would only be noise.

The training has four phases:

1. Numbers only. Arithmetic, and stopping a count in time, are the hardest tasks for the model; it learns
   stories and glossary easily. Beside stories, where many words are a matter of chance, the gradient
   of a sum would be weak.
2. Every kind of document.
3. The same in rows as long as the context, so that every position up to 1,024 is trained.
4. Short rows again. They hold more questions near position 0, where the questions of real clients begin.
"""

import argparse
import copy
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from ladder.lab.machine import processor
from training import corpus, evaluate

END = "<|endoftext|>"
VOCABULARY = 1024
CONTEXT = 1024
TOKENIZER_DOCUMENTS = 20_000
IGNORED = -100
"""The label of a token outside the loss, as transformers defines it."""

WARMUP_STEPS = 100
LEARNING_RATE = 1e-3
LAST_LEARNING_RATE = 0.02
"""The final learning rate, as a share of the full one."""
WEIGHT_DECAY = 0.1
CHECKPOINT_EVERY = 300


@dataclass(frozen=True)
class Phase:
    """A phase of the training: its share of the steps, its documents and the shape of a batch."""

    name: str
    share: float
    mixture: corpus.Mixture
    rows: int
    length: int


PHASES = (
    Phase("numbers only", 0.32, corpus.NUMBERS, rows=12, length=256),
    Phase("every kind of document", 0.45, corpus.EVERYTHING, rows=12, length=256),
    Phase(f"rows of {CONTEXT} tokens", 0.08, corpus.EVERYTHING_LONG, rows=3, length=CONTEXT),
    Phase("short rows again", 0.15, corpus.EVERYTHING, rows=12, length=256),
)
TOKENS_PER_STEP = PHASES[0].rows * PHASES[0].length


@dataclass(frozen=True)
class Batch:
    ids: torch.Tensor  # (rows, length)
    labels: torch.Tensor  # (rows, length), IGNORED on prompts


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: it can encode any text, and every digit is a token of its own.

    With single digits, adding two numbers takes a few small steps. With merged digits, "12" and "13" would
    be two unrelated tokens.
    """
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.tokenizer_texts(TOKENIZER_DOCUMENTS, seed), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def build_model(end_id: int) -> LlamaForCausalLM:
    """A small Llama: grouped-query attention, rotary embedding, tied input and output embeddings."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # No pad_token_id here: torch does not train the embedding of a padding token, and ours is
        # the end token.
        bos_token_id=None,
        eos_token_id=end_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=end_id, pad_token_id=end_id
    )
    return model


def packed_rows(
    tokenizer: PreTrainedTokenizerFast, phase: Phase, rng: random.Random
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels, row after row. A row begins with a new document; its last document may be cut."""
    end = tokenizer.eos_token_id
    ids: list[int] = []
    labels: list[int] = []
    for prompt, answer in corpus.documents(phase.mixture, rng):
        # Prompt and answer are encoded separately, because a server tokenizes the prompt alone.
        prompt_ids, answer_ids = tokenizer.encode(prompt), [*tokenizer.encode(answer), end]
        ids += prompt_ids + answer_ids
        labels += [IGNORED] * len(prompt_ids) + answer_ids
        if len(ids) >= phase.length:
            yield ids[: phase.length], labels[: phase.length]
            ids, labels = [], []


def phase_starts(steps: int) -> list[int]:
    """The first step of each phase."""
    return [round(steps * sum(phase.share for phase in PHASES[:i])) for i in range(len(PHASES))]


def phase_batches(tokenizer: PreTrainedTokenizerFast, phase: Phase, seed: int) -> Iterator[Batch]:
    """An endless series of batches of one phase."""
    drawn = packed_rows(tokenizer, phase, random.Random(f"{seed} {phase.name}"))
    while True:
        ids, labels = zip(*(next(drawn) for _ in range(phase.rows)), strict=True)
        yield Batch(torch.tensor(ids), torch.tensor(labels))


def batches(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[Batch]:
    """The batches of the whole training, phase after phase."""
    starts = [*phase_starts(steps), steps]
    for phase, (start, end) in zip(PHASES, pairwise(starts), strict=True):
        yield from islice(phase_batches(tokenizer, phase, seed), end - start)


def learning_rate(step: int, steps: int) -> float:
    """A short linear warm-up, then a cosine decay to a small value."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return LEARNING_RATE * (LAST_LEARNING_RATE + (1 - LAST_LEARNING_RATE) * cosine)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Save the weights in bfloat16, half the size; the training continues in float32."""
    copy.deepcopy(model).bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def optimize(
    model: LlamaForCausalLM,
    drawn: Iterator[Batch],
    steps: int,
    rate_of_step: Callable[[int], float],
    console: Console,
    checkpoint: Callable[[], None],
) -> list[float]:
    """Run the training loop and return the loss of every step.

    It calls `checkpoint` every few hundred steps, so that an interrupted run leaves a usable model.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
    )
    losses: list[float] = []
    with Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s  left"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("train", total=steps, loss=math.nan, rate=0.0)
        for step, batch in enumerate(islice(drawn, steps)):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate_of_step(step)
            loss = model(input_ids=batch.ids, labels=batch.labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            rate = batch.ids.numel() / (time.perf_counter() - started)
            progress.update(task, advance=1, loss=losses[-1], rate=rate)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                checkpoint()
                console.print(f"step {step + 1}: loss {losses[-1]:.3f}, weights saved")
    checkpoint()
    return losses


def running_mean(values: list[float], window: int) -> list[float]:
    """The mean of each value and up to `window` values before it."""
    spans = (values[max(0, i - window) : i + 1] for i in range(len(values)))
    return [sum(span) / len(span) for span in spans]


def draw_losses(losses: list[float], path: Path) -> None:
    """Draw the loss of every step, its running mean, and the beginnings of the phases."""
    window = 25
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, color="#9db8d2", linewidth=0.6, label="each step")
    smooth = running_mean(losses, window)
    axes.plot(smooth, color="#1f4e79", linewidth=1.6, label=f"mean of {window} steps")
    for phase, start in zip(PHASES, phase_starts(len(losses)), strict=True):
        axes.axvline(start, color="#888888", linestyle=":")
        axes.annotate(f" {phase.name}", (start, 1), xycoords=("data", "axes fraction"), va="top", rotation=90)
    axes.set(yscale="log", xlabel="training step")
    axes.set(ylabel="cross-entropy of an answer token (nats)")
    axes.set_title("Training the bundled model")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(frameon=False)
    # With a fixed salt and no date, the same losses give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "loss"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model.")
    parser.add_argument("--steps", type=int, default=2600, help=f"steps of {TOKENS_PER_STEP:,} tokens")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the corpus")
    parser.add_argument("--output", type=Path, default=evaluate.WEIGHTS, help="for the weights")
    arguments = parser.parse_args()

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    console = Console()
    started = time.perf_counter()
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer(arguments.seed)
    model = build_model(tokenizer.get_vocab()[END])
    losses = optimize(
        model,
        batches(tokenizer, arguments.steps, arguments.seed),
        arguments.steps,
        partial(learning_rate, steps=arguments.steps),
        console,
        partial(save, model, tokenizer, arguments.output),
    )
    seconds = time.perf_counter() - started

    evaluation = evaluate.evaluate(arguments.output)
    console.print(evaluate.table(evaluation))
    report: dict[str, Any] = {
        "command": " ".join(["python -m training.train", *sys.argv[1:]]),
        "steps": arguments.steps,
        "seed": arguments.seed,
        "tokens": TOKENS_PER_STEP * arguments.steps,
        "seconds": round(seconds),
        "final_loss": round(losses[-1], 4),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "evaluation": asdict(evaluation),
    }
    # The report in this folder belongs to the bundled weights; other runs write theirs beside their weights.
    bundled = arguments.output.resolve() == evaluate.WEIGHTS
    reports = Path(__file__).parent if bundled else arguments.output
    (reports / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_losses(losses, reports / "loss.svg")


if __name__ == "__main__":
    main()
