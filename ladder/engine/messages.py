"""What the two halves of a server tell each other: the web side, and the engine that runs the model.

From rung 04 on the engine knows tokens but no text. A `Job` goes in and comes back as one `Token` after the
other; tokenizing and detokenizing are the web side's work. The halves may share a process (rung 04) or not
(rung 05), so these are plain data that msgspec writes as msgpack and checks on reading.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ladder import FinishReason
from ladder.cli import EngineConfig
from ladder.llm.sampling import SamplingSettings


class Job(Struct, frozen=True, tag=True):
    """A request as the engine sees it."""

    id: int
    prompt_ids: list[int]
    max_tokens: int
    settings: SamplingSettings
    stop_ids: frozenset[int]

    @property
    def size(self) -> int:
        """The most tokens that it can come to."""
        return len(self.prompt_ids) + self.max_tokens

    def finish_reason(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Whether these tokens are the whole answer. Both halves ask this, and come to the same end."""
        if token_ids[-1] in self.stop_ids:
            return "stop"
        return "length" if len(token_ids) == self.max_tokens else None


class Abort(Struct, frozen=True, tag=True):
    """Nobody waits for this job any more."""

    id: int


class Token(Struct, frozen=True):
    """The next token of a job, and how long the engine worked for it."""

    id: int
    token_id: int
    milliseconds: float


class Failed(Struct, frozen=True):
    """The end of a job that the engine could not go on with."""

    id: int
    kind: str
    message: str


class Status(Struct, frozen=True):
    """How busy the engine is; `SlotHealth` says what the fields mean."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    tokens: int = 0
    prefilling: int = 0
    slots: int = 0
    slot_size: int = 0


class Start(Struct, frozen=True, tag=True):
    """The first message to an engine in a process of its own: which model to load, and how to run it."""

    config: EngineConfig
    overlapped: bool


class Ready(Struct, frozen=True, tag=True):
    """The engine has loaded its model. The web side needs of it only what turns text into tokens and back."""

    pid: int
    model: str
    context: int
    stop_ids: frozenset[int]
    tokenizer: str  # as the tokenizers library writes it, in JSON
    status: Status


class Unusable(Struct, frozen=True, tag=True):
    """The engine cannot start, and why, in words for whoever started it."""

    reason: str


class Update(Struct, frozen=True, tag=True):
    """What one step has brought. `dropped` are the jobs that ended because of an `Abort`."""

    tokens: list[Token] = []
    failures: list[Failed] = []
    dropped: list[int] = []
    status: Status = Status()


class Beat(Struct, frozen=True, tag=True):
    """Sent several times a second, whatever the engine is doing: it is alive."""

    doing: str


Command = Start | Job | Abort
Report = Ready | Unusable | Update | Beat
