"""The scenarios of the benchmark and the servers that run them.

A scenario is played once per round for each contender and setting. Its settings are the same for every
contender: the same prompts, the same arrival times, the same number of output tokens.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from benchmarks.metrics import Played, Record
from ladder.lab.client import Client, Measurement, clock
from ladder.lab.scenes import Request, beside_a_long_prompt, disconnect_figures, observe

Setting = Mapping[str, Any]
"""The parameters of one run, as JSON in its record. `label` is the setting's name in the result."""

SEED = 7
WORDS = (
    "a",
    "the",
    "and",
    "to",
    "was",
    "said",
    "is",
    "it",
    "in",
    "of",
    "one",
    "day",
    "little",
    "then",
    "he",
    "she",
)
"""Each is one token of the bundled vocabulary, and of most others."""


@dataclass(frozen=True)
class Contender:
    """A rung, its flags, and whether its clients stream."""

    script: str
    flags: tuple[str, ...] = ()
    streams: bool = True


CONTENDERS = {
    "01": Contender("01_flask_blocking.py", streams=False),
    "02": Contender("02_async_streaming.py"),
    "02, whole": Contender("02_async_streaming.py", streams=False),
    "03": Contender("03_batching.py", ("--max-batch", "32")),
    "04": Contender("04_continuous_batching.py"),
    "04, prompts whole": Contender("04_continuous_batching.py", ("--prefill-chunk", "100000")),
    "05": Contender("05_async_scheduling.py"),
}
"""Rung 03 gets as many rows as 04 and 05 have by default."""

RUNGS = ("01", "02", "03", "04", "05")
STREAMING = RUNGS[1:]


@dataclass(frozen=True)
class Server:
    """A running contender, and the requests that it gets."""

    url: str
    streams: bool = True

    @property
    def counts_passes(self) -> bool:
        return not Client(self.url).speaks_openai

    def request(self, prompt_tokens: int, output_tokens: int, number: int) -> Request:
        """Each number has its own prompt, so that no server can reuse cached work."""
        words = random.Random(f"{SEED} {number}").choices(WORDS, k=prompt_tokens)
        prompt = "".join(f" {word}" for word in words)
        return {"prompt": prompt, "temperature": 0, "max_tokens": output_tokens, "stream": self.streams}

    def requests(self, count: int, prompt_tokens: int, output_tokens: int) -> list[Request]:
        return [self.request(prompt_tokens, output_tokens, number) for number in range(count)]


async def one_client(server: Server, setting: Setting) -> Played:
    """One request alone, with /health probes; then a client that disconnects after a quarter of the time."""
    request = server.request(64, setting["output_tokens"], 0)
    seen = await observe(server.url, [request])
    figures = await disconnect_figures(server.url, request, [seen]) if server.counts_passes else {}
    return Played({"": seen.measurements}, seen.health, figures)


async def burst(server: Server, setting: Setting) -> Played:
    """Many requests at once, with /health probes beside them."""
    seen = await observe(server.url, server.requests(setting["clients"], 64, setting["output_tokens"]))
    return Played({"": seen.measurements}, seen.health)


EIGHT = [(0.0, 60), (0.1, 12), (0.2, 24), (0.4, 8), (0.5, 32), (0.7, 8), (0.8, 16), (1.0, 12)]
"""When each request is sent, in seconds, and its number of output tokens."""


async def eight(server: Server, setting: Setting) -> Played:
    """Eight requests with different output lengths, sent within one second."""
    requests = [server.request(64, tokens, number) for number, (_, tokens) in enumerate(EIGHT)]
    return Played({"": await send_at(server.url, [when for when, _ in EIGHT], requests)})


async def send_at(url: str, times: Sequence[float], requests: Sequence[Request]) -> list[Measurement]:
    """An open loop: each request is sent at its time, however many are still in flight.

    Latency counts from the time when a request was due. So a client that sends late does not hide any of it.
    """
    async with Client(url) as client:
        started = clock()

        async def send(when: float, request: Request) -> Measurement:
            await asyncio.sleep(started + when - clock())
            measurement = await client.generate(**request)
            measurement.sent = started + when
            return measurement

        return await asyncio.gather(*map(send, times, requests))


async def keep_busy(url: str, clients: int, requests: Sequence[Request]) -> list[Measurement]:
    """A closed loop: each of the clients sends its next request when it has its response."""
    left = iter(requests)
    async with Client(url) as client:

        async def one_after_the_other() -> list[Measurement]:
            return [await client.generate(**request) for request in left]

        by_client = await asyncio.gather(*(one_after_the_other() for _ in range(clients)))
    return [measurement for measurements in by_client for measurement in measurements]


async def concurrency(server: Server, setting: Setting) -> Played:
    """A closed loop: clients send requests of different output lengths, one after the other.

    With one request per client, or with equal lengths, all requests would begin and end together. In such a
    burst, a static batch has no disadvantage.
    """
    output_lengths = lengths(setting["num_prompts"], setting["output_tokens"], setting["range_ratio"])
    requests = [server.request(64, tokens, number) for number, tokens in enumerate(output_lengths)]
    return Played({"": await keep_busy(server.url, setting["max_concurrency"], requests)})


def lengths(count: int, mean: int, ratio: float) -> list[int]:
    """Output lengths between `mean * (1 - ratio)` and `mean * (1 + ratio)`, the same in every run.

    They are evenly spread and then shuffled, so that their mean does not depend on the count.
    """
    shares = [2 * number / max(1, count - 1) - 1 for number in range(count)]
    found = [round(mean * (1 + ratio * share)) for share in shares]
    random.Random(SEED).shuffle(found)
    return found


def no_faster_together(setting: Setting, runs: Sequence[Record]) -> bool:
    """Whether five levels of concurrency gave hardly more tokens/s than one client: skip higher levels."""
    lower = [run for run in runs if run["max_concurrency"] < setting["max_concurrency"]]
    speeds = [run["output_throughput"] for run in lower]
    return len(speeds) >= 5 and max(speeds) < 1.5 * speeds[0]


def poisson(rate: float, count: int) -> list[float]:
    """The arrival times of a Poisson process; the same times for the same rate.

    The gaps are drawn, then scaled so that their mean is exactly the rate's: that of a few dozen draws may be
    far off.
    """
    chance = random.Random(SEED)
    gaps = [chance.expovariate(1) for _ in range(count)]
    stretch = count / rate / sum(gaps)
    return [stretch * moment for moment in accumulate(gaps, initial=0.0)][:count]


ARRIVING = 32
"""Output tokens of each request in an open loop."""


async def arrivals(server: Server, setting: Setting) -> Played:
    """Requests arrive at random, at a rate that the server cannot control."""
    times = poisson(setting["request_rate"], setting["num_prompts"])
    requests = server.requests(len(times), 64, ARRIVING)
    return Played({"": await send_at(server.url, times, requests)})


def past_the_knee(setting: Setting, runs: Sequence[Record]) -> bool:
    """Whether at two lower rates most requests missed the latency target: skip higher rates."""
    lower = [run for run in runs if run["request_rate"] < setting["request_rate"]]
    return len([run for run in lower if run["good_percent"] < 50]) >= 2


async def loops(server: Server, setting: Setting) -> Played:
    """Four clients in a closed loop; then an open loop at the same rate, and at 1.5 times that rate."""
    count = setting["num_prompts"]
    requests = server.requests(count, 64, ARRIVING)
    closed = await keep_busy(server.url, 4, requests)
    rate = count / (max(one.ended for one in closed) - min(one.sent for one in closed))
    as_often = await send_at(server.url, poisson(rate, count), requests)
    oftener = await send_at(server.url, poisson(1.5 * rate, count), requests)
    return Played({"closed": closed, "as often": as_often, "half as much again": oftener})


async def mixed(server: Server, setting: Setting) -> Played:
    """Many short requests at once; then the same beside a few long ones."""
    long = server.requests(2, 64, setting["long_tokens"])
    short = server.requests(8, 16, 8)
    alone = await observe(server.url, short, interval=None)
    seen = await observe(server.url, [*long, *short], interval=None)
    groups = {
        "short alone": alone.measurements,
        "short": seen.measurements[2:],
        "long": seen.measurements[:2],
    }
    return Played(groups)


async def long_prompt(server: Server, setting: Setting) -> Played:
    """Four streams, and beside them a request with a long prompt."""
    long = server.request(setting["prompt_tokens"], 1, 0)
    requests = server.requests(4, 64, setting["output_tokens"])
    streams, prompted = await beside_a_long_prompt(server.url, requests, long)
    return Played({"streams": streams, "long prompt": [prompted]})


async def slow_reader(server: Server, setting: Setting) -> Played:
    """Eight streams that are read without delay, and a ninth whose client pauses after every token."""
    first, *others = server.requests(9, 16, setting["output_tokens"])
    async with Client(server.url) as client:
        slow, *fast = await asyncio.gather(
            client.generate(**first, pause=setting["pause"]),
            *(client.generate(**request) for request in others),
        )
    return Played({"fast": fast, "slow": [slow]})


def never(_setting: Setting, _runs: Sequence[Record]) -> bool:
    return False


@dataclass(frozen=True)
class Scenario:
    """What is sent to which contenders, with which settings."""

    play: Callable[[Server, Setting], Coroutine[Any, Any, Played]]
    settings: Sequence[Setting]
    rounds: int
    contenders: Sequence[str] = RUNGS
    model: str = ""  # instead of the run's
    skip: Callable[[Setting, Sequence[Record]], bool] = (
        never  # decides by this contender's records of the round
    )

    @property
    def question(self) -> str:
        return (self.play.__doc__ or "").splitlines()[0]


def scenarios(quick: bool) -> dict[str, Scenario]:
    """All scenarios; with `quick`, smaller ones."""
    rounds, tokens = (1, 32) if quick else (3, 64)
    once = [{"label": "alone", "output_tokens": 100}]
    all_at_once = {"label": "burst", "clients": 8 if quick else 16, "output_tokens": tokens}
    all_contenders = (*RUNGS[:2], "02, whole", *RUNGS[2:])
    plan = {
        "one_client": Scenario(one_client, once, rounds, all_contenders),
        "burst": Scenario(burst, [all_at_once], rounds),
        "eight": Scenario(eight, [{"label": "eight"}], rounds),
        "concurrency": Scenario(concurrency, levels(quick), 1 if quick else 2, skip=no_faster_together),
        "arrivals": Scenario(arrivals, rates(quick), 1 if quick else 2, skip=past_the_knee),
        "loops": Scenario(
            loops,
            [{"label": "loops", "num_prompts": 8 if quick else 24}],
            rounds,
            ["02"] if quick else ["01", "02", "04"],
        ),
        "mixed": Scenario(mixed, [{"label": "mixed", "long_tokens": 64 if quick else 128}], rounds),
        "long_prompt": Scenario(
            long_prompt,
            [{"label": "1024", "prompt_tokens": 1024, "output_tokens": tokens}],
            rounds,
            (*STREAMING, "04, prompts whole"),
        ),
        "slow_reader": Scenario(
            slow_reader,
            [
                {"label": "nobody slow", "pause": 0, "output_tokens": tokens},
                {"label": "one slow", "pause": 0.1, "output_tokens": tokens},
            ],
            rounds,
            STREAMING,
        ),
    }
    if not quick:
        plan["one_client_1b"] = Scenario(one_client, once, 2, all_contenders, model="random:tinyllama-1.1b")
    return plan


def levels(quick: bool) -> list[Setting]:
    """Levels of concurrency with three requests per client, in a quick run two; lengths of 40 ± 24 tokens."""
    clients, times, tokens, ratio = ((1, 4, 16), 2, 12, 0.5) if quick else ((1, 2, 4, 8, 16, 32), 3, 40, 0.6)
    return [
        {
            "label": str(each),
            "max_concurrency": each,
            "num_prompts": max(times * each, 2 if quick else 4),
            "output_tokens": tokens,
            "range_ratio": ratio,
        }
        for each in clients
    ]


def rates(quick: bool) -> list[Setting]:
    """Request rates, each for eight seconds, in a quick run two, but with at least eight requests."""
    each_second, seconds = ((2, 4, 12), 2) if quick else ((0.5, 1, 2, 4, 6, 8, 12, 16), 8)
    return [
        {"label": str(rate), "request_rate": rate, "num_prompts": max(8, round(rate * seconds))}
        for rate in each_second
    ]


class TurnKey(NamedTuple):
    """Identifies a turn within a run."""

    scenario: str
    contender: str
    round: int
    label: str


@dataclass(frozen=True)
class Turn:
    """One contender plays one setting, once."""

    scenario: str
    contender: str
    round: int
    setting: Setting

    @property
    def key(self) -> TurnKey:
        return TurnKey(self.scenario, self.contender, self.round, self.setting["label"])


def turns(plan: Mapping[str, Scenario]) -> list[Turn]:
    """Round by round and setting by setting, so that a drift of the machine's speed affects all contenders.

    A scenario with a model of its own goes contender by contender, so that only one large model is loaded.
    """
    found = []
    for name, scenario in plan.items():
        of_one = [
            Turn(name, contender, number, setting)
            for number in range(1, scenario.rounds + 1)
            for setting in scenario.settings
            for contender in scenario.contenders
        ]
        if scenario.model:
            of_one.sort(key=lambda turn: CONTENDERS[turn.contender].script)
        found += of_one
    return found
