"""Tests the page of rungs 01 to 05 in a real browser: what it shows, and what it sends to the server.

No test depends on time. Where a test needs a running generation, a gate stops the model. The page itself
reports the latency of /health.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from benchmarks.screenshots import PICTURES, SHARPNESS, WIDTH, take
from ladder.llm.loading import Model, load_model
from ladder.web.page_clients import MOST_CLIENTS
from ladder.web.schema import GenerateRequest, Health, TokenEvent
from ladder.web.server import Lifecycle
from tests.browsing import NARROW, WIDE, Open, Ready, assert_accessible
from tests.support import (
    QUESTION,
    RUNGS,
    SCRIPTS,
    STORY,
    Gate,
    Passes,
    RungServer,
    Server,
    ServerPool,
    import_rung,
    own_rung,
    serving,
    serving_flask,
    watched,
)
from tests.test_sse import CASES, FRAGMENTS, by_the_standard, cut

rung_01 = import_rung("01_flask_blocking.py")
rung_02 = import_rung("02_async_streaming.py")


@pytest.fixture
def ready() -> Ready:
    return lambda page: expect(page.locator("#start")).to_be_enabled()


@pytest.fixture(scope="module")
def endless_model(endless: Path) -> Model:
    return load_model(str(endless), dtype="float32", device="cpu")


def start_clients(page: Page, clients: int, prompt: str = STORY, **settings: Any) -> None:
    """Fill in the form and start."""
    page.locator("#prompt").fill(prompt)
    for name, value in settings.items():
        page.locator(f"#{name.replace('_', '-')}").fill(str(value))
    page.locator("#clients").fill(str(clients))
    page.locator("#start").click()


def lanes(page: Page, state: str | None = None) -> Locator:
    return page.locator(f".lane[data-state={state}]" if state else ".lane")


def idle(server: Server) -> dict[str, Any]:
    """`server.idle` in another thread, because Playwright runs an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(server.idle).result()


def wait_for_health_responses(page: Page, number: int) -> None:
    for _ in range(number):
        with page.expect_response("**/health", timeout=20_000):
            pass


def test_the_header_names_the_rung(server: RungServer, open_page: Open) -> None:
    page = open_page(server)
    expect(page.locator("h1")).to_contain_text(f"Rung {server.number}")
    doc = (import_rung(server.script).__doc__ or "").splitlines()[0]
    expect(page.locator("#idea")).to_have_text(doc.partition(": ")[2])
    expect(page.locator("#source")).to_have_text(server.script)
    expect(page.locator("#model")).to_have_text("tiny")
    expect(page.locator("#docs")).to_be_visible(visible=server.streams)
    expect(page.locator("#stream")).to_be_enabled(enabled=server.streams)
    expect(page.locator("#stream-hint")).to_be_visible(visible=not server.streams)
    expect(page.locator(".batch")).to_be_visible(visible=server.number >= "04")
    ladders = page.locator(".ladder .track")
    drawn = "ladder => [...ladder.querySelectorAll('[data-rung]')].map(step => step.dataset.rung)"
    assert [ladder.evaluate(drawn) for ladder in ladders.all()] == [
        [script[:2] for script in track] for track in (RUNGS, SCRIPTS[len(RUNGS) :])
    ]
    steps = page.locator(".ladder [data-rung]")
    strokes = steps.evaluate_all(
        "all => all.map(step => [step.dataset.rung, getComputedStyle(step).strokeWidth])"
    )
    assert [rung for rung, stroke in strokes if stroke == "5px"] == [server.number]


def test_the_sse_parser_follows_the_standard(pool: ServerPool, open_page: Open) -> None:
    page = open_page(pool(RUNGS[0]))
    chosen = random.Random(0)
    streams = ["".join(chosen.choices(FRAGMENTS, k=chosen.randint(0, 40))).encode() for _ in range(500)]
    cases = [(stream, events) for stream, events in CASES] + [(one, by_the_standard(one)) for one in streams]
    inputs, expected = [], []
    for stream, events in cases:
        byte_by_byte = [bytes([byte]) for byte in stream]
        somewhere = cut(stream, chosen.choices(range(200), k=6))
        for pieces in (byte_by_byte, somewhere):
            inputs.append([list(piece) for piece in pieces])
            expected.append([[event.data, event.name, event.id] for event in events])
    seen = page.evaluate(
        """async (inputs) => {
            const { EventParser } = await import("/page/shared/sse.js");
            return inputs.map((pieces) => {
                const parser = new EventParser();
                const events = pieces.flatMap((piece) => parser.feed(Uint8Array.from(piece)));
                return events.map(({ data, name, id }) => [data, name, id]);
            });
        }""",
        inputs,
    )
    assert seen == expected


def test_rung_01_does_not_respond_while_it_generates(bundled: Model, open_page: Open) -> None:
    gate = Gate()
    with serving_flask(rung_01.create_app(rung_01.Engine(watched(bundled, gate))), workers=1) as server:
        page = open_page(server)
        pulse = page.locator("#heartbeat")
        expect(pulse).to_have_attribute("data-state", "good")
        answered: list[str] = []
        start_clients(page, 1, QUESTION)
        gate.reached.wait(timeout=60)
        expect(pulse).to_have_attribute("data-state", "slow")
        page.on("response", lambda response: answered.append(response.url))
        expect(pulse).to_have_attribute("data-state", "lost")  # after two seconds
        expect(pulse.locator(".reading")).to_have_text(re.compile(r"no response for [\d.]+ s"))
        expect(lanes(page, "waiting")).to_have_count(1)
        assert answered == []
        gate.opened.set()
        expect(pulse).to_have_attribute("data-state", "good")
        expect(lanes(page, "done")).to_have_count(1)
        # Every probe that was due counts, not only the one that was in flight.
        figures = re.compile(r"/health, median(\d{3} ms|[\d.]+ s).*/health, maximum[\d.]+ s\d\d+ probes")
        expect(page.locator("#summary-figures")).to_have_text(figures)
        page.context.close()


def test_rung_02_responds_while_it_generates(bundled: Model, open_page: Open) -> None:
    gate = Gate()
    engine = rung_02.Engine(watched(bundled, gate))
    with serving(rung_02.create_app(engine), engine) as server:
        page = open_page(server)
        start_clients(page, 1, QUESTION)
        gate.reached.wait(timeout=60)
        wait_for_health_responses(page, 10)
        expect(page.locator("[data-figure=running]")).to_have_text("1")
        expect(page.locator("#heartbeat")).to_have_attribute("data-state", "good")
        expect(lanes(page, "streaming").locator(".output")).not_to_be_empty()
        gate.opened.set()
        expect(lanes(page, "done")).to_have_count(1)
        page.context.close()


def test_each_client_gets_its_output(server: RungServer, open_page: Open) -> None:
    page = open_page(server)
    start_clients(page, 7, QUESTION, temperature=0, max_tokens=20)
    expect(lanes(page, "done")).to_have_count(7)
    text = server.generate(QUESTION, temperature=0, max_tokens=20).json()["text"]
    expect(page.locator(".output")).to_have_text([text.strip()] * 7)
    expect(page.locator(".ttft").first).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(page.locator(".total").last).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(page.locator("#status")).to_have_text("7 clients: 7 done.")


def test_the_browsers_connections_limit_requests_to_rung_01(bundled: Model, open_page: Open) -> None:
    gate = Gate()
    with serving_flask(rung_01.create_app(rung_01.Engine(watched(bundled, gate))), workers=1) as server:
        page = open_page(server)
        start_clients(page, 7, QUESTION, max_tokens=4)
        gate.reached.wait(timeout=60)
        expect(page.locator("#clients-hint")).to_be_visible()
        expect(lanes(page, "waiting")).to_have_count(5)
        expect(lanes(page, "unsent")).to_have_count(2)
        gate.opened.set()
        expect(lanes(page, "done")).to_have_count(7)
        page.context.close()


@pytest.mark.parametrize("stream", [True, False])
def test_stop_stops_all_requests(endless_server: RungServer, open_page: Open, stream: bool) -> None:
    page = open_page(endless_server)
    page.locator("#stream").set_checked(stream)
    start_clients(page, 6, max_tokens=3000)
    page.wait_for_function(  # on rung 03 some may wait for the next batch
        """() => ["running", "waiting"].reduce((sum, name) =>
            sum + Number(document.querySelector(`[data-figure=${name}]`).textContent), 0) === 6"""
    )
    page.locator("#stop").click()
    expect(lanes(page, "stopped")).to_have_count(6)
    assert idle(endless_server)["running"] == 0
    expect(page.locator("[data-figure=running]")).to_have_text("0")
    expect(page.locator("#copy")).to_be_enabled()


def test_a_reload_stops_all_requests(pool: ServerPool, endless: Path, open_page: Open) -> None:
    server = pool(RUNGS[-1], "--model", str(endless))
    page = open_page(server)
    start_clients(page, 4, max_tokens=3000)
    expect(lanes(page, "streaming")).to_have_count(4)
    page.reload()
    expect(page.locator("#start")).to_be_enabled()
    assert idle(server)["running"] == 0


def test_the_error_of_one_client_does_not_stop_the_others(endless_model: Model, open_page: Open) -> None:
    engine = rung_02.Engine(watched(endless_model, Passes(fail_at=20)))
    with serving(rung_02.create_app(engine), engine) as server:
        page = open_page(server)
        start_clients(page, 3, max_tokens=30)
        expect(lanes(page, "done")).to_have_count(2)
        expect(lanes(page, "failed").locator(".problem")).to_have_text("the model broke")
        expect(page.locator("#status")).to_have_text("3 clients: 2 done, 1 failed.")
        page.context.close()


def test_a_rejected_request_shows_the_reason(server: RungServer, open_page: Open) -> None:
    page = open_page(server)
    start_clients(page, 2, max_tokens=100_000)
    expect(lanes(page, "failed")).to_have_count(2)
    expect(page.locator(".problem").first).to_contain_text("422")
    expect(page.locator(".problem").first).to_contain_text("max_tokens")


def test_a_truncated_response_shows_an_error_and_no_output(pool: ServerPool, open_page: Open) -> None:
    page = open_page(pool("04_continuous_batching.py"))
    began = json.dumps({"client": 0, "status": 200, "type": "application/json"})
    page.route(
        "**/page/clients",
        lambda route: route.fulfill(content_type="text/event-stream", body=f"data: {began}\n\n"),
    )
    page.locator("#stream").uncheck()
    start_clients(page, 1, QUESTION)
    expect(lanes(page, "failed").locator(".problem")).to_have_text("the connection to the server is lost")
    expect(page.locator(".output")).to_be_empty()


MARKUP = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script><b>bold</b>"


class Injector(Lifecycle):
    """An engine whose model writes HTML."""

    def submit(self, request: GenerateRequest) -> Any:
        return request

    async def events(self, _sequence: Any) -> AsyncIterator[TokenEvent]:
        for piece in (MARKUP[:30], MARKUP[30:]):
            yield TokenEvent(token=piece, token_id=1)

    def abort(self, _sequence: Any) -> None: ...

    def health(self) -> Health:
        return Health(rung="02", model=MARKUP, running=0, waiting=0, steps=0, tokens=0, pid=1)


def test_model_output_is_shown_as_text_not_as_markup(open_page: Open) -> None:
    engine = Injector()
    with serving(rung_02.create_app(engine), engine) as server:
        page = open_page(server)
        start_clients(page, 2, MARKUP)
        expect(lanes(page, "done")).to_have_count(2)
        expect(page.locator(".output")).to_have_text([MARKUP] * 2)
        expect(page.locator("#model")).to_have_text(MARKUP)
        expect(page.locator("img, b, body script")).to_have_count(0)
        expect(page).to_have_title("Rung 02: async streaming")
        page.context.close()


def test_the_page_recovers_after_a_server_restart(open_page: Open) -> None:
    with own_rung("02_async_streaming.py") as server:
        page = open_page(server)
        page.locator("#stream").uncheck()
        port = str(urlsplit(server.url).port)
        server.process.stop()
        expect(page.locator("#lost")).to_have_text(
            re.compile(r"No response from the server since .+ Still trying")
        )
        expect(page.locator("#heartbeat")).to_have_attribute("data-state", "lost")
        expect(page.locator("[data-figure=steps]")).to_have_text("–")
        start_clients(page, 2, QUESTION)
        expect(lanes(page, "failed")).to_have_count(2)
        expect(page.locator(".problem").first).to_have_text("the connection to the server is lost")
    with own_rung("03_batching.py", "--port", port):
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator("h1")).to_contain_text("Rung 03")
        expect(page.locator("#stream")).not_to_be_checked()
        start_clients(page, 2, QUESTION)
        expect(lanes(page, "done")).to_have_count(2)
        page.context.close()


def test_the_page_works_with_the_keyboard_alone(pool: ServerPool, endless: Path, open_page: Open) -> None:
    server = pool("04_continuous_batching.py", "--model", str(endless))
    page = open_page(server)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.press("Control+A")
    page.keyboard.type("Count from 1 to 30.")
    page.keyboard.press("Enter")
    expect(lanes(page, "streaming")).to_have_count(4)
    page.keyboard.press("Escape")
    expect(lanes(page, "stopped")).to_have_count(4)
    expect(page.locator("#copy")).to_be_enabled()
    seen: list[str] = []
    while seen.count("text") < 4:
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert len(seen) < 40
    expected = ["clients", "max-tokens", "temperature", "seed", "stream", "start", "copy", *["text"] * 4]
    assert [one for one in seen if one] == expected
    assert idle(server)["running"] == 0


def test_the_summary_can_be_copied(pool: ServerPool, open_page: Open) -> None:
    page = open_page(pool("04_continuous_batching.py"), permissions=["clipboard-read", "clipboard-write"])
    start_clients(page, 3, seed=1)
    page.locator("#copy").click()
    expect(page.locator("#copied")).to_have_text("Copied.")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("Rung 04: continuous batching, model tiny\n3 clients: 3 done; streaming")
    for label in ("TTFT, median", "TTFT, maximum", "Tokens per second", "/health, median"):
        assert re.search(rf"^{label}: [\d.,]+", text, re.MULTILINE), text


def test_the_page_is_accessible(pool: ServerPool, open_page: Open) -> None:
    """Before and after a run."""
    page = open_page(pool("04_continuous_batching.py"), reduced_motion="reduce")
    for clients in (0, 3):
        if clients:
            start_clients(page, clients)
            expect(page.locator("#copy")).to_be_enabled()
        assert_accessible(page)
    assert page.evaluate("document.getAnimations().length") == 0


@pytest.mark.parametrize("width", [NARROW["width"], 1280, WIDE["width"]])
def test_the_slots_of_the_batch_form_even_rows(pool: ServerPool, open_page: Open, width: int) -> None:
    page = open_page(pool("04_continuous_batching.py"), {"width": width, "height": 900})
    slots = page.locator(".slots i")
    expect(slots).to_have_count(32)
    tops = slots.evaluate_all("all => all.map(slot => slot.getBoundingClientRect().top)")
    assert [tops.count(top) for top in sorted(set(tops))] == [16, 16]


def test_the_bars_of_a_run_follow_the_colour_scheme(pool: ServerPool, open_page: Open) -> None:
    page = open_page(pool("04_continuous_batching.py"), color_scheme="light")
    start_clients(page, 1, QUESTION)
    expect(page.locator("#copy")).to_be_enabled()
    token = """(dark) => {
        const canvas = document.querySelector(".lane canvas");
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const wanted = dark ? "95,176,232" : "31,120,180"; // --token
        for (let at = 0; at < pixels.length; at += 4)
            if (pixels.slice(at, at + 3).join() === wanted) return true;
    }"""
    page.wait_for_function(token, arg=False)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(token, arg=True)


@pytest.mark.parametrize(("motion", "least", "most"), [("reduce", 9, 10), ("no-preference", 100, 250)])
def test_the_heartbeat_respects_reduced_motion(
    pool: ServerPool, open_page: Open, motion: str, least: int, most: int
) -> None:
    """Counts redraws in ten seconds of the page's clock."""
    page = open_page(pool("04_continuous_batching.py"), reduced_motion=motion)
    page.clock.install()
    page.reload()
    expect(page.locator("#start")).to_be_enabled()
    page.evaluate(
        """() => {
            const { clearRect } = CanvasRenderingContext2D.prototype;
            window.drawn = 0;
            CanvasRenderingContext2D.prototype.clearRect = function (...box) {
                if (this.canvas.closest("#heartbeat")) window.drawn += 1;
                clearRect.apply(this, box);
            };
        }"""
    )
    page.clock.pause_at(page.evaluate("Date.now() / 1000 + 1"))
    before = page.evaluate("window.drawn")
    page.clock.run_for(10_000)
    assert least <= page.evaluate("window.drawn") - before <= most


def test_the_readme_screenshots_can_be_taken(browser: Browser, pool: ServerPool, tmp_path: Path) -> None:
    picture = PICTURES[-1]
    file = take(browser, picture, pool(picture.script).url, "dark", tmp_path)
    with Image.open(file) as image:
        assert image.width == WIDTH * SHARPNESS


LONGEST_TASK = 0.1
"""In seconds. A longer task delays typing and scrolling noticeably."""


def test_sixteen_lanes_cause_no_long_task(browser: Browser, pool: ServerPool, open_page: Open) -> None:
    """Measured with the browser's trace. Only a task's CPU time counts, because other processes, such as the
    model, use the same machine."""
    page = open_page(pool("04_continuous_batching.py"))
    browser.start_tracing(page=page, categories=["toplevel", "disabled-by-default-devtools.timeline"])
    start_clients(page, MOST_CLIENTS)
    expect(page.locator("#copy")).to_be_enabled()
    trace = json.loads(browser.stop_tracing())["traceEvents"]
    main_threads = {
        (event["pid"], event["tid"])
        for event in trace
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event
        for event in trace
        if event["name"] == "RunTask" and event["ph"] == "X" and (event["pid"], event["tid"]) in main_threads
    ]
    assert len(tasks) > 100
    # A task of a few microseconds may report no CPU time; one of a millisecond must report it.
    computed = [task["tdur"] / 1e6 for task in tasks if task["dur"] >= 1000]
    assert 0 < max(computed) < LONGEST_TASK
    expect(lanes(page, "done")).to_have_count(MOST_CLIENTS)
