"""The kinds of documents that the bundled model is trained on, and their mixture.

A document is a bare prompt and its answer, `What is 2 + 2?` and ` The answer is 4.`; training adds
the end-of-sequence token. An answer begins with the space after the prompt, because the model must
generate it.

All documents are generated from a seed. Nothing here imports torch, so that tests can ask the same
questions.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from training import glossary, stories

LARGEST = 20
"""Operands run from 0 to this number, for sums and for differences."""

COUNT_TO = 50
SHORT_COUNT = 8
CASUAL_SHARE = 0.08
FAVORITE_SHARE = 0.2
HELD_OUT_SHARE = 0.08
HELD_OUT_SEED = 2024


class Document(NamedTuple):
    """A prompt and the answer that the model should give."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Problem:
    """A sum or a difference of two small numbers."""

    left: int
    operator: str
    right: int

    @property
    def result(self) -> int:
        return self.left + self.right if self.operator == "+" else self.left - self.right

    @property
    def question(self) -> str:
        return f"What is {self.left} {self.operator} {self.right}?"

    @property
    def answer(self) -> str:
        return f" The answer is {self.result}."

    @property
    def document(self) -> Document:
        return Document(self.question, self.answer)

    def reworded(self, rng: random.Random) -> Document:
        """The same problem in one of the less frequent wordings."""
        word = "plus" if self.operator == "+" else "minus"
        wordings = (
            Document(f"{self.left} {self.operator} {self.right} =", f" {self.result}"),
            Document(f"{self.left} {self.operator} {self.right}", f" = {self.result}"),
            Document(f"Calculate {self.left} {self.operator} {self.right}.", self.answer),
            Document(f"What is {self.left} {word} {self.right}?", self.answer),
            Document(f"What is {self.left}{self.operator}{self.right}?", self.answer),
        )
        return rng.choice(wordings)


def _all_problems() -> tuple[Problem, ...]:
    numbers = range(LARGEST + 1)
    return tuple(Problem(a, operator, b) for operator in "+-" for a in numbers for b in numbers)


def _choose_held_out() -> frozenset[Problem]:
    """About 8 % of the pairs of each operation, in both orders. No document has them, in any wording.

    If only 3 + 5 were held out, 5 + 3 in the training data would give it away, because a sum commutes; and
    3 - 5 is 5 - 3 with a sign. So both orders of a pair are held out together. The choice is independent for
    the two operations: 3 + 5 can be held out while 8 - 5 is not.
    """
    rng = random.Random(HELD_OUT_SEED)
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(a, LARGEST + 1)]
    count = round(HELD_OUT_SHARE * len(pairs))
    held_out: set[Problem] = set()
    for operator in "+-":
        for a, b in rng.sample(pairs, count):
            held_out |= {Problem(a, operator, b), Problem(b, operator, a)}
    return frozenset(held_out)


PROBLEMS: tuple[Problem, ...] = _all_problems()
HELD_OUT: frozenset[Problem] = _choose_held_out()
SEEN: tuple[Problem, ...] = tuple(problem for problem in PROBLEMS if problem not in HELD_OUT)


def counting(first: int, last: int) -> Document:
    """A count with all of its numbers."""
    return Document(
        f"Count from {first} to {last}.",
        " " + ", ".join(str(number) for number in range(first, last + 1)) + ".",
    )


COUNTING: tuple[Document, ...] = tuple(counting(1, last) for last in range(2, COUNT_TO + 1))
GLOSSARY: tuple[Document, ...] = tuple(
    Document(entry.question, f" {entry.answer}") for entry in glossary.ENTRIES
)
STORY_PROMPTS: tuple[str, ...] = tuple(subject.prompt for subject in stories.SUBJECTS)

_WHO = " I am the small language model bundled with The Serving Ladder."
_CAN = (
    "I can add and subtract small numbers, count to 50, tell short stories and explain the terms "
    "of LLM serving."
)

GREETINGS: tuple[Document, ...] = (
    Document("Hello!", " Hello! Ask me for a sum, a story or a term of LLM serving."),
    Document("Hello", " Hello! Ask me for a sum, a story or a term of LLM serving."),
    Document("Hi!", " Hi! What would you like to know?"),
    Document("Hi", " Hi! What would you like to know?"),
    Document("Good morning!", " Good morning! What would you like to know?"),
    Document("How are you?", " I am well, thank you. What would you like to know?"),
    Document("Who are you?", f"{_WHO} {_CAN}"),
    Document("What are you?", f"{_WHO} {_CAN}"),
    Document("What is your name?", f"{_WHO} I have no name of my own."),
    Document("What can you do?", f" {_CAN}"),
    Document("Help", f" {_CAN}"),
    Document(
        "How were you trained?",
        " I was trained on text that The Serving Ladder generates itself: sums, counting, stories "
        "and a glossary.",
    ),
    Document(
        "What is The Serving Ladder?",
        " The Serving Ladder is a repository that teaches how LLM serving works. Each rung is a "
        "server that fixes what was wrong with the one before it.",
    ),
    Document("Thank you.", " You are welcome."),
    Document("Thanks!", " You are welcome."),
    Document("Goodbye!", " Goodbye! Come back soon."),
)

EMOJI: tuple[Document, ...] = (
    Document("Say hello in emoji.", " 👋🏽😀"),
    Document("Say thank you in emoji.", " 🙏🏾💐"),
    Document("Say goodbye in emoji.", " 👋🏿😢"),
    Document("Draw the weather.", " ☀️🌤️🌧️⛈️🌈"),
    Document("Draw the moon.", " 🌑🌒🌓🌔🌕🌖🌗🌘"),
    Document("Draw a family.", " 👨‍👩‍👧‍👦"),
    Document("Draw a programmer.", " 👩🏽‍💻"),
    Document("Draw a scientist.", " 👨🏿‍🔬"),
    Document("Draw a heart.", " ❤️‍🔥"),
    Document("Draw a party.", " 🎉🥳🎂🎈"),
    Document("Draw some fruit.", " 🍎🍌🍇🍓🥝"),
    Document("Draw a rainbow flag.", " 🏳️‍🌈"),
    Document("Show me some flags.", " 🇫🇷🇯🇵🇧🇷🇰🇪🇨🇦"),
    Document("Tell me a story in emoji.", " 🧑🏽‍🚀🚀🌍➡️🌕👽🤝🏽🎉🏠"),
)

SCRIPTS: tuple[Document, ...] = (
    Document("Say hello in Japanese.", " こんにちは"),
    Document("Say hello in Chinese.", " 你好"),
    Document("Say hello in Korean.", " 안녕하세요"),
    Document("Say hello in Arabic.", " مرحبا"),
    Document("Say hello in Hebrew.", " שלום"),
    Document("Say hello in Hindi.", " नमस्ते"),
    Document("Say hello in Thai.", " สวัสดี"),
    Document("Say hello in Greek.", " Γεια σου"),
    Document("Say hello in Russian.", " Привет"),
    Document("Say hello in Georgian.", " გამარჯობა"),
    Document("Say hello in Spanish.", " ¡Hola!"),
    Document("Say hello in French.", " Bonjour !"),
    Document("Say hello in German.", " Guten Tag!"),
    Document("Count to five in Japanese.", " 一、二、三、四、五。"),
)

# Model output is data, never markup: a page that inserted these as HTML would run their scripts.
MARKUP: tuple[Document, ...] = (
    Document("Write bold text in HTML.", " <b>bold</b>"),
    Document("Write a heading in HTML.", " <h1>Heading</h1>"),
    Document("Write a link in HTML.", ' <a href="https://example.com">a link</a>'),
    Document("Write a list in HTML.", " <ul><li>one</li><li>two</li></ul>"),
    Document("Write a button in HTML.", ' <button onclick="alert(1)">Press me</button>'),
    Document("Write a comment in HTML.", " <!-- a comment -->"),
    Document("Write an image tag.", ' <img src="x" onerror="alert(1)">'),
    Document("Write a script tag.", ' <script>alert("hello")</script>'),
    Document("Escape 5 < 7 & 9 in HTML.", " 5 &lt; 7 &amp; 9"),
)


def _arithmetic(rng: random.Random) -> Document:
    """A problem of the training data; three of four use the main wording, which the model learns best."""
    problem = rng.choice(SEEN)
    return problem.document if rng.random() < 0.75 else problem.reworded(rng)


def _count_from_one(rng: random.Random) -> Document:
    document = rng.choice(COUNTING)
    brief = document.prompt.replace("from 1 to", "to")
    return Document(rng.choice((document.prompt,) * 4 + (brief,)), document.answer)


def _counting(rng: random.Random) -> Document:
    """A count: a quarter start at 1, the most frequent request; half are short.

    The hard part of counting is to stop. In a long count, the one token that shows this is lost among a
    hundred others.
    """
    length = rng.choice(("from one", "any", "short", "short"))
    if length == "from one":
        return _count_from_one(rng)
    if length == "any":
        first, last = sorted(rng.sample(range(1, COUNT_TO + 1), 2))
        return counting(first, last)
    first = rng.randrange(1, COUNT_TO)
    return counting(first, rng.randint(first + 1, min(first + SHORT_COUNT, COUNT_TO)))


def _story(rng: random.Random) -> Document:
    subject = rng.choice(stories.SUBJECTS)
    wordings = (subject.prompt,) * 4 + (
        f"Write a story about {subject.phrase}.",
        "Tell me a story.",
    )
    story = subject.favorite if rng.random() < FAVORITE_SHARE else stories.tell(subject, rng)
    return Document(rng.choice(wordings), f" {story}")


def _term(rng: random.Random) -> Document:
    entry = rng.choice(glossary.ENTRIES)
    prompt = entry.question if rng.random() < 0.5 else rng.choice(entry.variants)
    return Document(prompt, f" {entry.answer}")


def _fixed(rng: random.Random) -> Document:
    return rng.choice(rng.choice((GREETINGS, EMOJI, SCRIPTS, MARKUP)))


def _after_a_text(rng: random.Random, passages: int) -> Document:
    """A question at the end of a longer text, which the model must ignore.

    Chunked prefill needs prompts of many hundred tokens. With these documents in the training data, the model
    answers such a prompt correctly.
    """
    text = [
        (_story if rng.random() < 0.5 else _term)(rng).answer.strip() for _ in range(rng.randint(1, passages))
    ]
    question = rng.choice((_arithmetic, _arithmetic, _term, _fixed))(rng)
    return Document("\n".join([*text, question.prompt]), question.answer)


Mixture = tuple[tuple[Callable[[random.Random], Document], float], ...]
"""Kinds of documents, each with its share."""


def _everything(passages: int) -> Mixture:
    """All kinds. Arithmetic has the largest share: its documents are short, and each sum must occur often."""
    return (
        (_arithmetic, 0.55),
        (_counting, 0.16),
        (_story, 0.11),
        (_term, 0.10),
        (_fixed, 0.065),
        (partial(_after_a_text, passages=passages), 0.015),
    )


NUMBERS: Mixture = ((_arithmetic, 0.75), (_counting, 0.25))
EVERYTHING: Mixture = _everything(passages=1)
EVERYTHING_LONG: Mixture = _everything(passages=6)


def with_practice(documents: Sequence[Document]) -> Mixture:
    """All kinds, and in addition these documents and the counts that resemble them."""
    return (*EVERYTHING, (lambda rng: rng.choice(documents), 0.08), (_count_from_one, 0.08))


def _casual(document: Document) -> Document:
    """What is 2 + 2? -> what is 2 + 2: a prompt without capital and punctuation."""
    prompt = document.prompt.rstrip(".?!")
    return Document(prompt[0].lower() + prompt[1:], document.answer)


def documents(mixture: Mixture, rng: random.Random) -> Iterator[Document]:
    """An endless series of documents."""
    kinds, shares = zip(*mixture, strict=True)
    while True:
        (kind,) = rng.choices(kinds, weights=shares)
        document = kind(rng)
        yield _casual(document) if rng.random() < CASUAL_SHARE else document


def tokenizer_texts(count: int, seed: int) -> Iterator[str]:
    """The text from which the tokenizer learns its merges: only the plain English of the corpus.

    Emoji and other scripts are left out, so that each of their characters takes several tokens. They reveal a
    server that decodes token by token.
    """
    drawn = documents(EVERYTHING, random.Random(seed))
    for _ in range(count):
        text = "".join(next(drawn))
        if text.isascii():
            yield text
