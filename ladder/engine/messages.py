"""The messages between the two halves of a server: the web side, and the engine that runs the model.

From rung 03 on the engine knows tokens but no text. An `EngineRequest` goes in, and one `Token` after the
other comes back; tokenizing and detokenizing are the web side's work. The halves may share a process (rungs
03 and 04) or not (rung 05), so messages are plain data that msgspec writes as msgpack and checks on reading.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from ladder import FinishReason
from ladder.cli import EngineConfig
from ladder.llm.sampling import SamplingSettings


class EngineRequest(Struct, frozen=True, tag=True):
    """A request as the engine sees it."""

    id: int
    prompt_ids: list[int]
    max_tokens: int
    settings: SamplingSettings
    stop_ids: frozenset[int]

    @property
    def size(self) -> int:
        """The most tokens that prompt and output can have together."""
        return len(self.prompt_ids) + self.max_tokens

    def token(self, token_id: int, position: int, milliseconds: float) -> Token:
        """The message for the output's token at this position. Here it is decided whether it is the last."""
        reason: FinishReason | None = "length" if position + 1 == self.max_tokens else None
        if token_id in self.stop_ids:
            reason = "stop"
        return Token(self.id, token_id, milliseconds, reason)


class Abort(Struct, frozen=True, tag=True):
    """Stops a request, usually because its client disconnected."""

    id: int


class Token(Struct, frozen=True):
    """The next token of a request, and how long the engine worked for it."""

    id: int
    token_id: int
    milliseconds: float
    finish_reason: FinishReason | None = None


class Failed(Struct, frozen=True):
    """The end of a request that the engine could not continue."""

    id: int
    kind: str
    message: str

    @classmethod
    def of(cls, request_id: int, error: Exception) -> Failed:
        return cls(request_id, type(error).__name__, str(error))


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
    """The engine has loaded its model. The web side needs only what turns text into tokens and back."""

    pid: int
    model: str
    context: int
    stop_ids: frozenset[int]
    tokenizer: str  # as the tokenizers library writes it, in JSON
    status: Status


class Unusable(Struct, frozen=True, tag=True):
    """The engine cannot start or has failed. The reason is a line for the user who started the server."""

    reason: str


class Update(Struct, frozen=True, tag=True):
    """The results of one step. `aborted` are the requests that ended because of an `Abort`."""

    tokens: list[Token] = []
    failures: list[Failed] = []
    aborted: list[int] = []
    status: Status = Status()


class Heartbeat(Struct, frozen=True, tag=True):
    """Sent several times a second, whatever the engine is doing: its process is alive."""

    doing: str


Command = EngineRequest | Abort
Report = Ready | Unusable | Update | Heartbeat


class Inbox:
    """Commands on their way to an engine in another thread."""

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._commands)

    def put(self, command: Command) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def hand_over(self, handle: Callable[[Command], None], wait: Callable[[], bool]) -> bool:
        """Hand over every command; first wait for one, as long as `wait` says so. False once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._commands or self._closed or not wait())
        while self._commands:
            handle(self._commands[0])
            self._commands.popleft()  # only now: /health must find every request somewhere
        return not self._closed

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
