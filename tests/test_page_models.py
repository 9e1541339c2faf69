"""Tests the pages of rungs 10 and 11 in a real browser."""

from __future__ import annotations

import json
import math
import re
import signal
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, WebSocket, expect

from ladder.predict.experiment import arm_of
from tests.browsing import NARROW, Open, Ready, assert_accessible
from tests.predicting import engine_serving, watch
from tests.support import import_rung, own_rung

rung_10 = import_rung("10_model_versions.py")
rung_11 = import_rung("11_realtime.py")


@pytest.fixture
def ready() -> Ready:
    return lambda page: expect(page.locator(".card")).to_have_count(2)


def reading(page: Page, version: str) -> Any:
    return page.locator(f".card[data-version={version}] .digit")


def pad_point(page: Page, x: float, y: float) -> tuple[float, float]:
    box = page.locator("#pad").bounding_box()
    assert box
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def draw(page: Page, points: list[tuple[float, float]], release: bool = True) -> None:
    page.locator("#pad").scroll_into_view_if_needed()
    page.mouse.move(*pad_point(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*pad_point(page, *point))
    if release:
        page.mouse.up()


ZERO = [(0.5 + 0.2 * math.sin(turn / 6), 0.5 - 0.35 * math.cos(turn / 6)) for turn in range(39)]
ONE = [(0.5, 0.15 + 0.07 * step) for step in range(11)]


@pytest.mark.parametrize("rung", [rung_10, rung_11], ids=["10", "11"])
def test_the_page_is_accessible(open_page: Open, rung: Any) -> None:
    with engine_serving(rung) as (_, server):
        page = open_page(server, reduced_motion="reduce")
        page.get_by_role("button", name="A handwritten 4").click()
        expect(reading(page, "v2")).to_have_text("4")
        assert_accessible(page)


@pytest.mark.parametrize("rung", [rung_10, rung_11], ids=["10", "11"])
def test_a_narrow_screen_shows_each_table_row_as_a_list(open_page: Open, rung: Any) -> None:
    """No part is cut off, each cell shows its column's title, and the ARIA roles are those of a table."""
    with engine_serving(rung) as (_, server):
        page = open_page(server, NARROW)
        box = page.locator(".scroll")
        rows = box.locator("tbody [role=row]")
        expect(rows).to_have_count(3)
        assert box.evaluate("box => box.scrollWidth - box.clientWidth") <= 0
        titles = box.locator("thead [role=columnheader]").all_text_contents()
        row = rows.nth(1)
        expect(row.locator("[role=rowheader]")).to_have_count(1)
        cells = row.locator("[role=cell]")
        assert cells.evaluate_all("all => all.map(cell => cell.dataset.label)") == titles[1:]
        shown = cells.first.evaluate("cell => getComputedStyle(cell, '::before').content")
        assert titles[1] in shown
        for part in [*cells.all(), *row.get_by_role("button").all()]:
            expect(part).to_be_visible()
            place = part.bounding_box()
            assert place
            assert 0 <= place["x"] < place["x"] + place["width"] <= NARROW["width"]


@pytest.mark.parametrize("rung", [rung_10, rung_11], ids=["10", "11"])
def test_a_drawing_is_predicted(open_page: Open, rung: Any) -> None:
    with engine_serving(rung) as (_, server):
        page = open_page(server)
        draw(page, ZERO)
        expect(reading(page, "v2")).to_have_text("0")
        page.get_by_role("button", name="Clear").click()
        expect(reading(page, "v2")).to_have_text("–")
        draw(page, ONE)
        expect(reading(page, "v2")).to_have_text("1")


def test_touch_draws(open_page: Open) -> None:
    """The page must not scroll on touches; the pad follows the finger."""
    with engine_serving(rung_11) as (_, server):
        page = open_page(server, NARROW, has_touch=True)
        page.locator("#pad").scroll_into_view_if_needed()
        kinds = "new Set(window.kinds)"
        page.evaluate(
            "window.kinds = []; pad.addEventListener('pointermove', (event) => kinds.push(event.pointerType))"
        )
        scrolled = page.evaluate("scrollY")
        fingers = page.context.new_cdp_session(page)

        def touch(kind: str, *points: tuple[float, float]) -> None:
            touches = [dict(zip("xy", pad_point(page, *point), strict=True)) for point in points]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

        touch("touchStart", ZERO[0])
        for point in ZERO[1:]:
            touch("touchMove", point)
        expect(reading(page, "v2")).to_have_text("0")
        touch("touchEnd")
        assert page.evaluate(f"[...{kinds}]") == ["touch"]
        assert page.evaluate("scrollY") == scrolled


def test_only_the_primary_mouse_button_draws(open_page: Open) -> None:
    with engine_serving(rung_10) as (_, server):
        page = open_page(server)
        predict = page.get_by_role("button", name="Predict the drawing")
        page.locator("#pad").click(button="right")
        expect(predict).to_be_disabled()
        page.locator("#pad").click()
        expect(predict).to_be_enabled()


def test_versions_can_be_loaded_unloaded_and_made_the_default(open_page: Open) -> None:
    with engine_serving(rung_10) as (engine, server):
        page = open_page(server)
        row = page.locator("tr[data-version='digits v2']")
        page.get_by_role("button", name="A handwritten 7").click()
        expect(reading(page, "v2")).to_have_text("7")
        page.get_by_role("button", name="Unload digits v2").click()
        expect(row).to_contain_text("unloaded")
        expect(page.locator(".card[data-version=v2] .note")).to_contain_text("has been unloaded")
        page.get_by_role("button", name="Load digits v2", exact=True).click()
        expect(row).to_contain_text("loaded")
        expect(reading(page, "v2")).to_have_text("7")
        page.get_by_role("button", name="Make digits v2 the default").click()
        expect(row).to_contain_text("default")
        assert engine.registry.models["digits"].default == "v2"
        expect(page.get_by_role("button", name="Unload digits v1")).to_be_visible()


def test_a_users_request_is_part_of_the_experiment(open_page: Open) -> None:
    with engine_serving(rung_10) as (engine, server):
        page = open_page(server)
        predict = page.get_by_role("button", name="Predict the drawing")
        expect(predict).to_be_disabled()
        expect(page.locator(".bars").first).to_be_hidden()
        page.get_by_role("button", name="A handwritten 3").click()
        user = "<b>Ödön</b>"
        page.get_by_label("User").fill(user)
        predict.click()
        arm = arm_of(user, engine.config)
        expect(page.locator("#arm")).to_have_text(
            f"{arm} is {user}'s version. It predicts 3. Which digit is it?"
        )
        page.get_by_role("button", name="It is a 3").click()
        report = page.locator("#report tr", has_text=arm)
        expect(report.locator("td").nth(0)).to_have_text("1")
        expect(report.locator("td").nth(1)).to_have_text("1")
        assert engine.experiment.arms[arm].labelled == 1


def test_the_experiment_status_is_correct_after_a_version_is_unloaded(open_page: Open) -> None:
    with engine_serving(rung_10) as (engine, server):
        assert arm_of("ada", engine.config) == "v2"
        page = open_page(server)
        arm, predict = page.locator("#arm"), page.get_by_role("button", name="Predict the drawing")
        page.get_by_role("button", name="A handwritten 7").click()
        predict.click()
        expect(arm).to_have_text("v2 is ada's version. It predicts 7. Which digit is it?")
        page.get_by_role("button", name="Unload digits v2").click()
        expect(page.locator("tr[data-version='digits v2']")).to_contain_text("unloaded")
        expect(arm).to_have_text("v2 is ada's version. It predicts 7. Which digit is it?")
        predict.click()
        expect(arm).to_have_text(
            "v1 predicts 8, because ada's version is unloaded. The experiment does not count this request."
        )
        expect(page.locator("#labels")).to_be_hidden()


def test_the_label_buttons_hide_when_the_drawing_changes(open_page: Open) -> None:
    with engine_serving(rung_10) as (_, server):
        page = open_page(server)
        for gone in ("A handwritten 4", "Clear"):
            page.get_by_role("button", name="A handwritten 3").click()
            page.get_by_role("button", name="Predict the drawing").click()
            expect(page.locator("#labels")).to_be_visible()
            page.get_by_role("button", name=gone).click()
            expect(page.locator("#labels")).to_be_hidden()
            expect(page.locator("#arm")).to_have_text("")


def test_a_label_can_be_sent_again_after_a_lost_connection(open_page: Open) -> None:
    with own_rung("10_model_versions.py") as server:
        port = str(urlsplit(server.url).port)
        page = open_page(server)
        page.get_by_role("button", name="A handwritten 3").click()
        predict = page.get_by_role("button", name="Predict the drawing")
        predict.click()
        expect(page.locator("#labels")).to_be_visible()
        server.process.stop(signal.SIGKILL)
        expect(page.locator("#lost")).to_be_visible()
        page.get_by_role("button", name="It is a 3").click()
        expect(page.locator("#arm")).to_have_text("the connection to the server is lost")
        expect(page.locator("#labels")).to_be_visible()
    with own_rung("10_model_versions.py", "--port", port):
        expect(page.locator("#lost")).to_be_hidden()
        page.get_by_role("button", name="It is a 3").click()
        expect(page.locator("#arm")).to_have_text("no prediction of that id waits for its label")
        expect(page.locator("#labels")).to_be_hidden()
        predict.click()
        expect(page.locator("#labels")).to_be_visible()
        page.context.close()


@pytest.mark.parametrize(
    ("script", "figure"), [("10_model_versions.py", "#calls"), ("11_realtime.py", "#cpu")], ids=["10", "11"]
)
def test_a_dead_servers_values_are_cleared_and_its_successor_predicts_the_drawing(
    open_page: Open, script: str, figure: str
) -> None:
    with own_rung(script) as server:
        port = str(urlsplit(server.url).port)
        page = open_page(server)
        page.get_by_role("button", name="A handwritten 4").click()
        expect(reading(page, "v2")).to_have_text("4")
        server.process.stop(signal.SIGKILL)
        expect(page.locator("#lost")).to_be_visible()
        expect(page.locator(".tiles dd").first).to_have_text("–")
        expect(page.locator(figure)).to_have_text("–")
        page.get_by_role("button", name="A handwritten 3").click()
        expect(reading(page, "v2")).to_have_text("–")
        note = page.locator(".card[data-version=v2] .note")
        expect(note).to_have_text("the connection to the server is lost")
    with own_rung(script, "--port", port):
        expect(reading(page, "v2")).to_have_text("3")
        expect(page.locator(figure)).not_to_have_text("–")
        page.context.close()


def test_an_unchanged_row_is_not_replaced(open_page: Open) -> None:
    """Otherwise a click is lost if the page polls /models between mouse down and mouse up."""
    with engine_serving(rung_10) as (_, server):
        page = open_page(server)
        unload = page.get_by_role("button", name="Unload digits v2")
        unload.hover()
        page.mouse.down()
        for _ in range(2):
            with page.expect_response("**/models"):
                pass
        page.mouse.up()
        expect(page.locator("tr[data-version='digits v2']")).to_contain_text("unloaded")


def test_another_rung_on_the_same_port_loads_its_own_page(open_page: Open) -> None:
    with own_rung("10_model_versions.py") as server:
        port = str(urlsplit(server.url).port)
        page = open_page(server)
        server.process.stop(signal.SIGKILL)
        expect(page.locator("#lost")).to_be_visible()
    with own_rung("02_async_streaming.py", "--port", port):
        expect(page.locator("h1")).to_contain_text("Rung 02")
        expect(page.locator("#start")).to_be_enabled()
        expect(page.locator("[data-figure=steps]")).to_have_text("0")
        page.context.close()


def test_a_drawing_is_predicted_while_it_is_drawn(open_page: Open) -> None:
    """Over a WebSocket, before the mouse button is released."""
    with engine_serving(rung_11) as (_, server):
        page = open_page(server)
        posts: list[str] = []
        page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
        draw(page, ZERO, release=False)
        expect(reading(page, "v1")).not_to_have_text("–")
        expect(reading(page, "v2")).to_have_text("0")
        expect(page.locator(".card[data-version=v2] .note")).to_contain_text("% confidence")
        assert posts == []
        page.mouse.up()


def test_the_monitor_shows_the_servers_own_figures(open_page: Open) -> None:
    with engine_serving(rung_11) as (engine, server):
        seen: list[Any] = []

        def note(payload: Any) -> None:
            seen.append(json.loads(payload))

        def watch(socket: WebSocket) -> None:
            if socket.url.endswith("/ws/monitor"):
                socket.on("framereceived", note)

        page = open_page(server)
        page.on("websocket", watch)
        page.reload()
        expect(page.locator("#cpu")).to_have_text(re.compile(r"\d+ %"))
        expect(page.locator("#connections")).to_have_text("2")
        expect(page.locator("#memory")).to_have_text(re.compile(r"[\d.]+ [MG]iB"))
        assert seen
        assert engine.managers["monitor"].connections


def test_a_training_shows_progress_and_its_version_predicts(open_page: Open) -> None:
    with engine_serving(rung_11) as (_, server):
        page = open_page(server)
        expect(page.get_by_text("No events yet.")).to_be_visible()
        page.get_by_role("button", name="A handwritten 5").click()
        page.get_by_label("Epochs").fill("6")
        page.get_by_role("button", name="Train").click()
        expect(page.locator("#progress")).to_contain_text("done: v3")
        expect(reading(page, "v3")).to_have_text("5")
        expect(page.locator("#events")).to_contain_text("digits v3: loaded")
        expect(page.get_by_text("No events yet.")).to_be_hidden()
        pixels = "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
        assert page.locator("#curve").evaluate(f"canvas => {pixels}.some(value => value > 0)")


def test_the_training_curve_has_axes_and_the_last_values(open_page: Open) -> None:
    run = [(1, 2.0, 0.5), (2, 1.0, 0.9)]
    epochs = [{"epoch": number, "epochs": 40, "loss": loss, "accuracy": right} for number, loss, right in run]
    stream = "".join(f"event: epoch\ndata: {json.dumps(epoch)}\n\n" for epoch in epochs)
    with engine_serving(rung_11) as (_, server):
        page = open_page(server)
        page.route(
            "**/train/stream*", lambda route: route.fulfill(content_type="text/event-stream", body=stream)
        )
        page.evaluate(
            """() => {
                const { fillText } = CanvasRenderingContext2D.prototype;
                window.written = new Set();
                CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
                    if (this.canvas.id === "curve") window.written.add(text);
                    fillText.call(this, text, ...place);
                };
            }"""
        )
        page.get_by_role("button", name="Train").click()
        expect(page.locator("#loss")).to_have_text("1.000")
        expect(page.locator("#accuracy")).to_have_text("90.0 %")
        written = page.evaluate("[...window.written]")
        assert set(written) == {"0", "1.00", "2.00", "0 %", "50 %", "100 %", "epoch 1", "40"}


def test_digits_and_bars_align_for_descriptions_of_any_length(open_page: Open) -> None:
    with engine_serving(rung_11) as (_, server):
        page = open_page(server, {"width": 900, "height": 800})
        page.get_by_role("button", name="A handwritten 4").click()
        expect(reading(page, "v2")).to_have_text("4")
        expect(page.locator(".bars").nth(1)).to_be_visible()

        for part in (".digit", ".note", ".bars"):
            tops = "all => all.map(one => one.getBoundingClientRect().top)"
            first, second = page.locator(f".card {part}").evaluate_all(tops)
            assert first == second


def test_a_training_can_be_stopped(open_page: Open) -> None:
    with engine_serving(rung_11) as (engine, server):
        page = open_page(server)
        page.get_by_label("Epochs").fill("200")
        page.get_by_role("button", name="Train").click()
        expect(page.locator("#progress")).to_contain_text("of 200")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#progress")).to_contain_text("stopped after")
        expect(page.get_by_role("button", name="Train")).to_be_enabled()
        assert engine.trainer.epochs < 200
        expect(page.locator(".card")).to_have_count(2)


def test_after_an_error_the_page_retries_once_per_pause(open_page: Open) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("the model broke")

    with engine_serving(rung_11) as (engine, server):
        watch(engine.predicting, "v2", broken)
        sent: list[Any] = []
        received: list[Any] = []
        page = open_page(server)

        def record_frames(socket: WebSocket) -> None:
            if "/ws/predict" in socket.url:
                socket.on("framesent", lambda frame: sent.append(frame))
                socket.on("framereceived", lambda frame: received.append(frame))

        page.on("websocket", record_frames)
        page.reload()
        expect(page.locator(".card")).to_have_count(2)
        page.clock.install(time=0)
        page.clock.pause_at(30)  # a jump beyond the page's timeout would end a request in flight
        note = page.locator(".card[data-version=v2] .note")
        for seconds in range(3):
            page.get_by_role("button", name="A handwritten 4").click() if not seconds else None
            expect(note).to_contain_text("log says why")
            expect(reading(page, "v1")).to_have_text("4")
            for _ in range(2000):  # each round trip to the browser delivers the events of its WebSockets
                page.evaluate("0")
                if len(received) == 2 + 2 * seconds:
                    break
            assert len(sent) == len(received) == 2 + 2 * seconds
            page.clock.run_for(1000)


def test_the_browser_measures_the_transports(open_page: Open) -> None:
    with engine_serving(rung_11) as (_, server):
        page = open_page(server)
        page.get_by_role("button", name="Measure here").click()
        for way in ("http", "socket", "events"):
            cells = page.locator(f"[data-way={way}] td")
            time = re.compile(r"^\d.* m?s$")
            expect(cells.nth(0)).to_have_text("one request for all" if way == "events" else time)
            expect(cells.nth(1)).to_have_text(time)
            expect(cells.nth(2)).to_have_text(re.compile(r"\d+ \+ \d+"))
            expect(cells.nth(3)).to_have_text(re.compile(r"\d.* ms"))
        expect(page.locator("#measured")).to_contain_text("python 11_realtime.py --demo on ")


def test_a_training_stream_that_ends_early_is_shown_as_ended(open_page: Open) -> None:
    epoch = {"epoch": 1, "epochs": 40, "loss": 1.0, "accuracy": 0.5}
    with engine_serving(rung_11) as (_, server):
        page = open_page(server)
        page.route(
            "**/train/stream*",
            lambda route: route.fulfill(
                content_type="text/event-stream", body=f"event: epoch\ndata: {json.dumps(epoch)}\n\n"
            ),
        )
        page.get_by_role("button", name="Train").click()
        expect(page.locator("#progress")).to_have_text("the stream ended early")
        expect(page.get_by_role("button", name="Train")).to_be_enabled()


def test_a_measurement_ends_when_its_websocket_does(open_page: Open) -> None:
    with engine_serving(rung_11) as (_, server):
        page = open_page(server)
        page.route_web_socket("**/ws/predict", lambda socket: socket.on_message(lambda _: socket.close()))
        page.reload()
        measure = page.get_by_role("button", name="Measure here")
        measure.click()
        expect(page.locator("#status")).to_have_text("the WebSocket was closed")
        expect(measure).to_be_enabled()
