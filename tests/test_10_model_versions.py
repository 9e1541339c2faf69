"""Tests of rung 10: which version answers, in how many passes, and what a change does to open requests."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import os
import re
import subprocess
import sys
import threading
import typing
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
import pytest

from ladder import ROOT
from ladder.errors import UserError
from ladder.lab.client import Client
from ladder.predict import batches
from ladder.predict.batches import PORTION
from ladder.predict.cache import Cache
from ladder.predict.experiment import arm_of
from ladder.predict.predictor import PREDICTORS, Rows, accuracy, load_digits, read_index
from ladder.predict.protocols import PredictionEngine, VersionRegistry, VersionsRung
from ladder.predict.versions import VersionStore
from ladder.predict.wire import BatchInput
from tests.faults import fault
from tests.predicting import (
    HELD_OUT,
    IMAGES,
    ROW,
    Hold,
    bundled,
    copy_of_predictors,
    engine_serving,
    expected,
    until_ready,
    watch,
)
from tests.support import (
    Answer,
    RungServer,
    Server,
    ServerPool,
    edit_json,
    eventually,
    import_rung,
    one_line,
    own_rung,
    run_rung,
    serving,
)

SCRIPT = "10_model_versions.py"
rung = import_rung(SCRIPT)

ROW_PATHS = ["/predict", "/models/digits/predict", "/predict/ab-test?user_id=me"]
BATCH_PATHS = ["/predict/batch", "/predict/batch/async", "/predict/stream"]


@pytest.fixture
def server(pool: ServerPool) -> RungServer:
    return pool(SCRIPT)


def post(server: Server, path: str, body: Any) -> Answer:
    return server.request("POST", path, json.dumps(body).encode())


def predict(server: Server, row: list[float] = ROW, version: str = "default") -> Any:
    answer = post(server, f"/predict?version={version}", {"features": row})
    assert answer.status == 200, answer.body
    return answer.json()


def put(server: Server, path: str, body: Any = None) -> Answer:
    return server.request("PUT", path, json.dumps(body).encode() if body else None)


def swap(server: Server, version: str) -> Answer:
    return put(server, "/models/digits/default", {"version": version})


def unload(server: Server, version: str) -> Answer:
    return server.request("DELETE", f"/models/digits/versions/{version}")


def state(server: Server, version: str) -> Any:
    return server.request("GET", "/models").json()["digits"]["versions"][version]


async def until_waiting(server: Server, running: int) -> None:
    await server.health_when(lambda health: health["running"] == running)


# What a version is


def test_the_bundled_versions_differ_clearly_in_accuracy_and_cost() -> None:
    first, second = bundled("v1"), bundled("v2")
    assert 0.93 < accuracy(first, HELD_OUT) < 0.97
    assert accuracy(second, HELD_OUT) > 0.985
    assert second.products > 100 * first.products
    pinned = read_index(PREDICTORS)["digits"].versions
    for number, predictor in {"v1": first, "v2": second}.items():
        assert pinned[number].held_out == pytest.approx(accuracy(predictor, HELD_OUT), abs=1e-4)


@pytest.mark.parametrize(
    ("requested", "answered"), [("v1", "v1"), ("v2", "v2"), ("latest", "v2"), ("default", "v1")]
)
def test_a_name_finds_its_version(server: RungServer, requested: str, answered: str) -> None:
    (outcome,) = expected(answered, [ROW])
    for path in ("/predict", "/models/digits/predict"):
        answer = post(server, f"{path}?version={requested}", {"features": ROW}).json()
        assert answer.pop("confidence") == pytest.approx(outcome.confidence, abs=1e-5)
        assert answer == {
            "prediction": outcome.prediction,
            "model": "digits",
            "version_requested": requested,
            "model_version": answered,
        }


def test_a_regressor_has_no_confidence(server: RungServer) -> None:
    row = [59.0, 2.0, 32.1, 101.0, 157.0, 93.2, 38.0, 4.0, 4.86, 87.0]
    answer = post(server, "/models/diabetes/predict", {"features": row}).json()
    assert answer["confidence"] is None
    assert answer["prediction"] == pytest.approx(expected("v1", [row], "diabetes")[0].prediction, rel=1e-5)
    assert 25 < answer["prediction"] < 346  # the range of the data


# What it lends to rung 11


def parameters(of: Any) -> list[tuple[str, object, bool, object]]:
    """Name, kind, whether it has a default, and type, of each parameter but `self`; then the result."""
    signature = inspect.signature(of)
    told = [
        (name, parameter.kind, parameter.default is not parameter.empty, parameter.annotation)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return [*told, ("return", None, False, signature.return_annotation)]


def test_the_protocol_describes_what_the_rung_lends() -> None:
    """A type checker compares the engine with its protocol, but a module it cannot."""
    assert typing.get_type_hints(VersionsRung) == {"MAIN": type(rung.MAIN)}
    lent = [name for name in vars(VersionsRung) if not name.startswith("_")]
    assert lent == ["Engine", "create_app"]
    assert parameters(rung.create_app) == parameters(VersionsRung.create_app)
    *made_of, _ = parameters(rung.Engine)
    assert [*made_of, ("return", None, False, "PredictionEngine")] == parameters(VersionsRung.Engine)


@pytest.mark.parametrize(("protocol", "part"), [(VersionRegistry, "Registry"), (PredictionEngine, "Engine")])
def test_the_methods_of_a_protocol_are_those_of_the_rung(protocol: type, part: str) -> None:
    """Names, kinds and defaults of their parameters."""
    lent = {name: member for name, member in vars(protocol).items() if inspect.isfunction(member)}
    for name, member in lent.items():
        if not name.startswith("_"):
            own = parameters(getattr(getattr(rung, part), name))
            assert [one[:3] for one in own] == [one[:3] for one in parameters(member)], name


# Batches


@pytest.mark.parametrize("path", ["/predict/batch", "/predict/batch/async"])
def test_a_thousand_rows_are_one_pass(server: RungServer, path: str) -> None:
    rows = (IMAGES * 3)[:1000]
    before = server.health()
    answer = post(server, f"{path}?version=v2", {"instances": rows}).json()
    after = server.health()
    assert (after["calls"] - before["calls"], after["rows"] - before["rows"]) == (1, 1000)
    assert answer["count"] == 1000
    assert answer["predictions"] == [outcome.prediction for outcome in expected("v2", rows)]
    assert answer["confidences"] == pytest.approx(
        [outcome.confidence for outcome in expected("v2", rows)], abs=1e-5
    )
    assert answer["model_version"] == "v2"


def test_rows_that_wait_together_share_a_pass() -> None:
    hold = Hold()
    with engine_serving(rung) as (engine, server), ThreadPoolExecutor(12) as clients:
        watch(engine, "v1", hold)
        first = clients.submit(post, server, "/predict/batch/async", {"instances": IMAGES[:3]})
        assert hold.reached.wait(timeout=60)
        others = [
            clients.submit(post, server, "/predict/batch/async", {"instances": IMAGES[place : place + 5]})
            for place in range(3, 53, 5)
        ]
        asyncio.run(server.health_when(lambda health: health["waiting"] == 50))
        hold.opened.set()
        answers = [task.result().json()["predictions"] for task in (first, *others)]
        assert hold.passes == [3, 50]
        assert list(chain.from_iterable(answers)) == [
            outcome.prediction for outcome in expected("v1", IMAGES[:53])
        ]


@pytest.mark.parametrize("path", BATCH_PATHS)
@fault(
    "Batches of 1000 rows at once",
    "parsed one at a time, in portions; between two, others are served",
    "10–11",
)
def test_a_batch_does_not_hold_the_event_loop(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Counts the turns of the event loop while each body is parsed, and the bodies that are being parsed."""
    turns: list[int] = []
    together: list[int] = []
    parsing: set[object] = set()
    parse = batches.parse

    async def watched(body: bytes) -> Rows:
        task = asyncio.create_task(parse(body))
        parsing.add(task)
        together.append(len(parsing))
        turns.append(0)
        while not task.done():
            turns[-1] += 1
            await asyncio.sleep(0)
        parsing.remove(task)
        return await task

    monkeypatch.setattr(batches, "parse", watched)
    rows = (IMAGES * 3)[:1000]
    with engine_serving(rung) as (_, server), ThreadPoolExecutor(4) as clients:
        posted = [clients.submit(post, server, path, {"instances": rows}) for _ in range(4)]
        assert {task.result().status for task in posted} == {200}
    assert min(turns) > len(rows) / PORTION
    assert together == [1] * 4


@pytest.mark.parametrize("path", BATCH_PATHS)
def test_more_rows_than_may_wait_are_rejected_immediately(path: str) -> None:
    hold = Hold()
    with engine_serving(rung, max_queue=8) as (engine, server), ThreadPoolExecutor(2) as clients:
        watch(engine, "v1", hold)
        running = clients.submit(post, server, "/predict/batch/async", {"instances": IMAGES[:2]})
        assert hold.reached.wait(timeout=60)
        waiting = clients.submit(post, server, path, {"instances": IMAGES[:7]})
        asyncio.run(server.health_when(lambda health: health["waiting"] == 7))
        for other in BATCH_PATHS:
            refused = post(server, other, {"instances": IMAGES[:2]})
            assert refused.status == 503
            assert refused.json()["error"]["type"] == "QueueFull"
            assert int(refused.headers["retry-after"]) >= 1
        hold.opened.set()
        assert (running.result().status, waiting.result().status) == (200, 200)
        assert server.idle()["waiting"] == 0


def test_a_stream_gives_each_row_in_order_and_ends(server: RungServer) -> None:
    answer = post(server, "/predict/stream?version=v2", {"instances": IMAGES[:20]})
    *events, last = answer.events()
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [json.loads(event.data) for event in events] == [
        {"index": index, "prediction": outcome.prediction}
        for index, outcome in enumerate(expected("v2", IMAGES[:20]))
    ]
    assert last.data == "[DONE]"


def test_a_stream_stops_when_its_client_disconnects() -> None:
    hold = Hold()
    with engine_serving(rung) as (engine, server):
        watch(engine, "v1", hold)
        body = json.dumps({"instances": IMAGES}).encode()
        with server.raw() as connection:
            lines = ["POST /predict/stream HTTP/1.1", "host: localhost", "content-type: application/json"]
            lines += [f"content-length: {len(body)}", "", ""]
            connection.sendall("\r\n".join(lines).encode() + body)
            assert hold.reached.wait(timeout=60)
            assert server.health()["running"] == 1
        # The pass of this row is held, so the server sees the disconnect before the row is done.
        asyncio.run(server.health_when(lambda health: health["running"] == 0))
        hold.opened.set()
        assert post(server, "/predict/batch", {"instances": IMAGES[:2]}).status == 200
        assert hold.passes == [1, 2]
        assert server.idle()["waiting"] == 0


# Requests that cannot be served

WRONG_ROWS = {
    "NaN": "[NaN]",
    "infinite": "[Infinity]",
    "larger than any float": "[1e999]",
    "too large": "[1e30]",
    "a word": '["secret"]',
    "a truth": "[true]",
    "nothing": "[null]",
    "empty": "[]",
    "no list": '"secret"',
    "a list of lists": "[[1.0]]",
    "too short": json.dumps(ROW[:63]),
    "too long": json.dumps([*ROW, 0.0]),
    "far too long": json.dumps([0.0] * 2000),
}


@pytest.mark.parametrize("row", WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_a_wrong_row_is_rejected_before_any_pass(server: RungServer, row: str) -> None:
    before = server.health()["calls"]
    whole = row.replace("[", f"[{', '.join(map(str, ROW[1:]))}, ", 1) if row in ("[NaN]", "[1e999]") else row
    bodies = dict.fromkeys(ROW_PATHS, f'{{"features": {whole}}}')
    bodies |= {path: f'{{"instances": [{json.dumps(ROW)}, {whole}]}}' for path in BATCH_PATHS}
    for path, body in bodies.items():
        answer = server.request("POST", path, body.encode())
        assert answer.status == 422, (path, answer.body)
        assert answer.json()["detail"][0]["loc"][:1] == ["body"]
        assert b"secret" not in answer.body
    assert server.health()["calls"] == before


@pytest.mark.parametrize("path", BATCH_PATHS)
@pytest.mark.parametrize("instances", [[], [ROW] * 1001, [ROW, ROW[1:]], [[]], ROW, None])
def test_a_wrong_batch_is_rejected(server: RungServer, path: str, instances: Any) -> None:
    answer = post(server, path, {"instances": instances})
    assert answer.status == 422
    assert len(answer.body) < 2000


@pytest.mark.parametrize("path", [*ROW_PATHS, *BATCH_PATHS])
def test_unknown_fields_and_invalid_json_are_rejected(server: RungServer, path: str) -> None:
    for body in (b"{", b"[]", b'"x"', b"\xff", b'{"features": [1], "instances": [[1]], "more": 1}'):
        assert server.request("POST", path, body).status == 422


@pytest.mark.parametrize("path", ["/predict", "/predict/ab-test", "/predict/batch", "/feedback"])
def test_a_body_that_is_not_sent_as_json_is_rejected(server: RungServer, path: str) -> None:
    body = json.dumps({"features": ROW}).encode()
    answer = server.request("POST", path, body, **{"content-type": "application/x-www-form-urlencoded"})
    assert answer.status == 415
    assert "content-type: application/json" in answer.json()["detail"]


BODIES = [
    *(f'{{"instances": [[1], {row}]}}'.encode() for row in WRONG_ROWS.values()),
    *(
        f'{{"instances": [[{number}]]}}'.encode()
        for number in ("1e6", "-1e6", "1000001", "-1e6000", "1e-9000")
    ),
    *(
        f'{{"instances": [[{number}]]}}'.encode()
        for number in ("-0", "1E2", "01", "1.", ".5", "+1", "9" * 400)
    ),
    *(
        f'{{"instances": {rows}}}'.encode()
        for rows in ("[[1], [2, 3]]", "[[1, 2], [3]]", "[]", "{}", "null", "7")
    ),
    *(
        json.dumps({"instances": [[1.5] * 3] * rows}).encode()
        for rows in (1, PORTION, PORTION + 1, 1000, 1001)
    ),
    *('{"instances": [[0.1, 16777217]]}'.encode(coding) for coding in ("utf-8-sig", "utf-16", "utf-32")),
    b'{"instances": [[1]], "instances": [[2]]}',
    b'{"inst\\u0061nces": [[1]]}',
    b'{"instances": [[1]], "more": "\xff"}',
    b'{"instances": [[1]]} [',
    b'{"instances": [[1,]]}',
    b'{"instances": ' + b"[" * 100_000,
    b"{}",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:60]))
def test_a_batch_is_checked_as_its_schema_says(body: bytes) -> None:
    """The fast parser accepts nothing that the schema rejects, and reads the same numbers."""

    async def parse() -> list[list[float]] | None:
        try:
            rows: list[list[float]] = (await batches.parse(body)).tolist()
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return rows

    def read_by_schema() -> list[list[float]] | None:
        try:
            instances = BatchInput.model_validate(json.loads(body)).instances
        except (ValueError, RecursionError):
            return None
        return [np.array(row, np.float32).tolist() for row in instances]

    fast = asyncio.run(parse())
    assert fast is None or fast == read_by_schema()


@pytest.mark.parametrize("version", ["v3", "v0", "v01", "", "V1", "../v1", "%00", "None"])
def test_an_unknown_version_is_not_found(server: RungServer, version: str) -> None:
    for path in ("/predict", "/models/digits/predict"):
        assert post(server, f"{path}?version={version}", {"features": ROW}).status == 404
    for path in BATCH_PATHS:
        assert post(server, f"{path}?version={version}", {"instances": [ROW]}).status == 404


def test_an_unknown_model_is_not_found(server: RungServer) -> None:
    for name in ("letters", "..", "digits%2Fx", "index.json"):
        assert post(server, f"/models/{name}/predict", {"features": ROW}).status == 404
        assert put(server, f"/models/{name}/default", {"version": "v1"}).status == 404
        assert put(server, f"/models/{name}/versions/v1").status == 404
        assert server.request("DELETE", f"/models/{name}/versions/v1").status == 404
    assert put(server, "/models/digits/versions/v9").status == 404
    assert swap(server, "v9").status == 404
    assert server.request("GET", "/models").json().keys() == {"digits", "diabetes"}


def test_a_user_must_be_named(server: RungServer) -> None:
    for query in ("", "?user_id=", f"?user_id={'x' * 201}"):
        answer = post(server, f"/predict/ab-test{query}", {"features": ROW})
        assert answer.status == 422
        assert [finding["loc"] for finding in answer.json()["detail"]] == [["query", "user_id"]]


def test_each_finding_says_which_part_of_the_request_is_wrong(server: RungServer) -> None:
    answer = post(server, "/predict/ab-test", {"features": ["secret"]})
    assert {tuple(finding["loc"][:2]) for finding in answer.json()["detail"]} == {
        ("query", "user_id"),
        ("body", "features"),
    }


def test_a_body_that_is_too_large_is_rejected(server: RungServer) -> None:
    assert server.request("POST", "/predict/batch", b" " * (5 * 2**20)).status == 413


# The experiment

USERS = [f"user-{number}" for number in range(10_000)]
ARMS = """
import json
from ladder.cli import PredictionConfig
from ladder.predict.experiment import arm_of
print(json.dumps([arm_of(f"user-{number}", PredictionConfig()) for number in range(10_000)]))
"""


def arms(seed: str) -> list[str]:
    command, environment = [sys.executable, "-c", ARMS], os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    result: list[str] = json.loads(done.stdout)
    return result


def test_the_split_is_the_same_in_every_process_and_as_requested() -> None:
    with ThreadPoolExecutor(2) as processes:
        first, second = processes.map(arms, ("1", "2"))
    assert len(first) == 10_000
    assert first == second
    assert abs(Counter(first)["v2"] / 10_000 - 0.5) <= 0.02


@pytest.mark.parametrize("split", [0, 1, 20, 99, 100])
def test_the_split_can_be_chosen(split: int) -> None:
    config = rung.Config(split=split)
    share = sum(arm_of(user, config) == "v2" for user in USERS) / len(USERS)
    assert abs(share - split / 100) <= 0.02
    assert split not in (0, 100) or share == split / 100


@pytest.mark.parametrize("flag", ["control", "challenger"])
def test_an_error_about_an_unknown_version_names_the_flag(flag: str) -> None:
    with pytest.raises(UserError) as caught:
        VersionStore("bundled").must_have("digits", **{"control": "v1", "challenger": "v2", flag: "v9"})
    assert str(caught.value) == f"--{flag} v9: digits has no such version; it has v1, v2"


def test_an_error_about_missing_digits_names_the_flag() -> None:
    with pytest.raises(UserError, match="--models: there is no letters"):
        VersionStore("bundled").must_have("letters", control="v1")


def test_a_larger_split_moves_no_user_out_of_the_challengers_arm() -> None:
    some, more = rung.Config(split=20), rung.Config(split=60)
    assert all(arm_of(user, more) == "v2" for user in USERS if arm_of(user, some) == "v2")


def test_another_salt_assigns_users_anew() -> None:
    one, other = rung.Config(), rung.Config(salt="2")
    same = sum(arm_of(user, one) == arm_of(user, other) for user in USERS)
    assert abs(same / len(USERS) - 0.5) <= 0.02


def test_users_get_the_version_of_their_arm(server: RungServer) -> None:
    config = rung.Config()
    for user in [*USERS[:20], "Ödön", "a b&c", "👩🏽‍🚀"]:
        answer = post(server, f"/predict/ab-test?user_id={quote(user)}", {"features": ROW}).json()
        assert answer["model_version"] == arm_of(user, config)
        assert answer["user_id"] == user


def test_the_report_counts_the_labels() -> None:
    with own_rung(SCRIPT) as server:
        right: Counter[str] = Counter()
        labelled: Counter[str] = Counter()
        requests: Counter[str] = Counter()
        for user, (row, label) in enumerate(zip(IMAGES[:60], HELD_OUT.labels.tolist(), strict=False)):
            answer = post(server, f"/predict/ab-test?user_id={user}", {"features": row}).json()
            version = answer["model_version"]
            requests[version] += 1
            if user % 3:
                body = {"prediction_id": answer["prediction_id"], "label": label}
                assert post(server, "/feedback", body).status == 204
                assert post(server, "/feedback", body).status == 404  # one label per prediction
                labelled[version] += 1
                right[version] += answer["prediction"] == label
        report = server.request("GET", "/ab-test").json()
        assert (report["control"], report["challenger"], report["split_percent"]) == ("v1", "v2", 50)
        for version, arm in report["arms"].items():
            assert arm["requests"] == arm["computed"] == requests[version]
            assert (arm["labelled"], arm["correct"]) == (labelled[version], right[version])
            assert arm["accuracy"] == pytest.approx(right[version] / labelled[version])
            assert 0 < arm["latency_median_ms"] <= arm["latency_p95_ms"]
        assert post(server, "/feedback", {"prediction_id": "f" * 16, "label": 3}).status == 404


def test_cached_predictions_do_not_count_in_the_latency() -> None:
    with engine_serving(rung) as (engine, server):
        for _ in range(5):
            post(server, "/predict/ab-test?user_id=ada", {"features": ROW})
        arm = engine.experiment.arms[arm_of("ada", engine.config)]
        assert (arm.requests, arm.computed, len(arm.seconds)) == (5, 1, 1)


def test_while_a_users_version_is_unloaded_the_default_answers_and_nothing_is_counted() -> None:
    with engine_serving(rung, split=100) as (_, server):
        assert unload(server, "v2").status == 200
        answer = post(server, "/predict/ab-test?user_id=ada", {"features": ROW})
        assert answer.status == 200
        names = {"version_requested": "default", "model_version": "v1", "prediction_id": None}
        assert answer.json() == answer.json() | names
        arms = server.request("GET", "/ab-test").json()["arms"]
        assert [arm["requests"] for arm in arms.values()] == [0, 0]
        assert put(server, "/models/digits/versions/v2").status == 200
        answer = post(server, "/predict/ab-test?user_id=ada", {"features": ROW})
        assert answer.json()["model_version"] == "v2"
        assert answer.json()["prediction_id"]


# The cache


def test_equal_rows_are_computed_once_even_concurrently() -> None:
    hold = Hold()
    with engine_serving(rung) as (engine, server), ThreadPoolExecutor(12) as clients:
        watch(engine, "v1", hold)
        asked = [clients.submit(predict, server) for _ in range(12)]
        asyncio.run(until_waiting(server, 12))
        hold.opened.set()
        answers = [task.result() for task in asked]
        assert all(answer == answers[0] for answer in answers)
        assert hold.passes == [1]
        assert server.health()["cache"] == {"size": 1, "hits": 11, "misses": 1, "hit_rate": 11 / 12}


def test_the_cache_key_is_the_version_that_answered() -> None:
    with engine_serving(rung) as (_, server):
        for version in ("default", "v1", "latest", "v2"):
            predict(server, version=version)
        cache = server.health()["cache"]
        assert (cache["misses"], cache["hits"]) == (2, 2)
        assert swap(server, "v2").status == 200
        answer = predict(server)
        assert answer["model_version"] == "v2"
        assert answer["confidence"] == pytest.approx(expected("v2", [ROW])[0].confidence, abs=1e-5)


def test_the_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    with engine_serving(rung, max_cached=3) as (_, server):
        for row in (0, 1, 2, 0, 3, 0, 1):  # 3 pushes 1 out
            predict(server, IMAGES[row])
        cache = server.health()["cache"]
        assert (cache["size"], cache["hits"], cache["misses"]) == (3, 2, 5)


def test_a_failure_is_not_kept() -> None:
    failing = [True]

    def break_once(_: object) -> None:
        if failing.pop() if failing else False:
            raise RuntimeError("the model broke")

    with engine_serving(rung) as (engine, server):
        watch(engine, "v1", break_once)
        broken = post(server, "/predict", {"features": ROW})
        assert (broken.status, broken.json()["error"]["message"]) == (500, "the model broke")
        assert predict(server)["model_version"] == "v1"


def test_a_cancelled_request_does_not_cancel_the_prediction_for_others() -> None:
    """Tested on the cache itself: rung 11 cancels the tasks of connections that it evicts."""
    outcome = expected("v1", [ROW])[0]
    computed: list[int] = []

    async def two_ask() -> None:
        cache, gate = Cache(8), asyncio.Event()

        async def compute() -> Any:
            computed.append(1)
            await gate.wait()
            return outcome

        leaves, stays = (asyncio.create_task(cache.get("row", compute)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        gate.set()
        assert await stays == outcome

    asyncio.run(two_ask())
    assert computed == [1]


# Load, swap, unload


def test_a_request_is_answered_by_the_version_it_started_with() -> None:
    hold = Hold()
    with engine_serving(rung) as (engine, server), ThreadPoolExecutor(2) as clients:
        watch(engine, "v1", hold)
        begun = clients.submit(predict, server)
        assert hold.reached.wait(timeout=60)
        assert swap(server, "v2").json()["default"] == "v2"
        assert unload(server, "v1").json()["versions"]["v1"]["state"] == "unloaded"
        later = clients.submit(predict, server)
        assert post(server, "/predict?version=v1", {"features": ROW}).status == 404
        assert state(server, "v1") == state(server, "v1") | {"bytes": 0, "in_flight": 1}
        hold.opened.set()
        assert begun.result()["model_version"] == "v1"
        assert begun.result()["confidence"] == pytest.approx(expected("v1", [ROW])[0].confidence, abs=1e-5)
        assert later.result()["model_version"] == "v2"
        assert put(server, "/models/digits/versions/v1").json()["versions"]["v1"]["state"] == "loaded"
        assert predict(server, version="v1")["model_version"] == "v1"


def test_the_error_for_an_unloaded_version_says_how_to_load_it() -> None:
    with engine_serving(rung) as (_, server):
        assert unload(server, "v2").status == 200
        asked = post(server, "/predict?version=v2", {"features": ROW})
        for answer in (asked, swap(server, "v2"), unload(server, "v2")):
            assert answer.status == 404
            assert "digits v2 has been unloaded" in answer.json()["detail"]
        method, path = re.findall(r"(PUT) (\S+)", asked.json()["detail"])[0]
        assert server.request(method, path).status == 200
        assert predict(server, version="v2")["model_version"] == "v2"


def test_the_default_cannot_be_unloaded(server: RungServer) -> None:
    assert unload(server, "v1").status == 409
    assert predict(server)["model_version"] == "v1"


@fault("The default version changes under load", "no request fails or gets a wrong version", "10")
def test_swaps_under_load_fail_no_request() -> None:
    """Sixteen clients send requests without a pause during forty rounds of load, swap and unload."""
    statuses: Counter[int] = Counter()
    answered: Counter[str] = Counter()

    async def all_clients(url: str) -> None:
        versions: asyncio.Queue[str] = asyncio.Queue()
        over = asyncio.Event()

        async def ask(rows: list[list[float]]) -> None:
            while not over.is_set():
                for row in rows:
                    async with client.session.post("/predict", json={"features": row}) as response:
                        statuses[response.status] += 1
                        versions.put_nowait((await response.json()).get("model_version"))

        async def change() -> None:
            for number in range(40):
                kept, other = ("v1", "v2") if number % 2 else ("v2", "v1")
                for method, path, body in (
                    ("PUT", f"versions/{kept}", None),
                    ("PUT", "default", {"version": kept}),
                    ("DELETE", f"versions/{other}", None),
                ):
                    async with client.session.request(
                        method, f"/models/digits/{path}", json=body
                    ) as response:
                        assert response.status == 200
                seen = 0
                while seen < 32:
                    version = await versions.get()
                    answered[version] += 1
                    seen += version == kept
            over.set()

        async with Client(url) as client:
            await asyncio.gather(change(), *(ask(IMAGES[place::16]) for place in range(16)))

    with own_rung(SCRIPT) as server:
        asyncio.run(all_clients(server.url))
        assert statuses.keys() == {200}
        assert answered.keys() == {"v1", "v2"}
        assert min(answered.values()) >= 20 * 32
        assert server.process.errors() == ""


def test_an_idle_version_is_dropped_and_read_again_once_for_all_requests() -> None:
    with engine_serving(rung, idle_seconds=3600) as (engine, server), ThreadPoolExecutor(8) as clients:
        version = engine.registry.models["digits"].versions["v2"]
        reads: list[int] = []
        gate, read = threading.Event(), version.read

        def watched_read() -> Any:
            reads.append(1)
            assert gate.wait(timeout=60)
            return read()

        version.read = watched_read
        engine.registry.drop_idle(3600)
        assert state(server, "v2")["state"] == "loaded"  # it was used a moment ago
        engine.registry.drop_idle(0)
        assert state(server, "v1")["state"] == "loaded"  # the default stays
        assert state(server, "v2")["state"] == "idle"
        assert state(server, "v2")["bytes"] == 0
        asked = [clients.submit(predict, server, row, "v2") for row in IMAGES[:8]]
        asyncio.run(until_waiting(server, 8))
        gate.set()
        assert {task.result()["model_version"] for task in asked} == {"v2"}
        assert reads == [1]
        assert state(server, "v2")["bytes"] == bundled("v2").bytes


def test_idle_versions_are_dropped_automatically() -> None:
    with own_rung(SCRIPT, "--idle-seconds", "1") as server:

        async def states() -> Any:
            return (await asyncio.to_thread(state, server, "v2"))["state"]

        assert asyncio.run(eventually(states, lambda now: now == "idle")) == "idle"
        assert predict(server, version="v2")["model_version"] == "v2"


def test_a_server_that_is_loading_is_alive_but_not_ready() -> None:
    engine = rung.Engine(rung.Config())
    version = engine.registry.models["digits"].versions["v1"]
    gate, read = threading.Event(), version.read

    def slow_read() -> Any:
        assert gate.wait(timeout=60)
        return read()

    version.read = slow_read
    with serving(rung.create_app(engine), engine) as server:
        assert server.health()["status"] == "ok"
        assert server.request("GET", "/ready").status == 503
        refused = post(server, "/predict", {"features": ROW})
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()
        asyncio.run(until_ready(server))
        assert predict(server)["model_version"] == "v1"


# What may be loaded


def start(folder: Path) -> str:
    """The error of a server that cannot start with these models."""
    done = run_rung(SCRIPT, "--port", "0", "--models", str(folder))
    assert done.returncode == 1
    assert done.stdout == ""
    return one_line(done.stderr)


def test_a_tampered_file_is_rejected_at_start(tmp_path: Path) -> None:
    folder = copy_of_predictors(tmp_path)
    file = folder / "digits-v2.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    line = start(folder)
    assert "digits-v2.safetensors" in line
    assert "SHA-256" in line


def test_tampered_digits_are_rejected(tmp_path: Path) -> None:
    """Rung 11 trains on them: changed digits would change its models."""
    folder = copy_of_predictors(tmp_path)
    file = folder / "digits.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"digits\.safetensors has been changed: its SHA-256"):
        load_digits(folder)


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    folder = copy_of_predictors(tmp_path)
    (folder / "digits-v1.safetensors").unlink()
    assert "digits-v1.safetensors" in start(folder)


@pytest.mark.parametrize("file", ["../secret.safetensors", "model.pkl", "/etc/passwd", "a/b.safetensors"])
def test_an_index_can_name_only_safetensors_files_in_its_folder(tmp_path: Path, file: str) -> None:
    folder = copy_of_predictors(tmp_path)
    models = json.loads((folder / "index.json").read_text())["models"]
    models["digits"]["versions"]["v1"]["file"] = file
    edit_json(folder / "index.json", models=models)
    with pytest.raises(UserError, match=r"index\.json"):
        read_index(folder)


@pytest.mark.parametrize("damage", ["{", "[]", '{"models": {}}', '{"models": {"digits": {}}}'])
def test_an_invalid_index_is_an_error_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = copy_of_predictors(tmp_path)
    (folder / "index.json").write_text(damage)
    with pytest.raises(UserError) as told:
        rung.Engine(rung.Config(models=str(folder)))
    assert "\n" not in str(told.value)


def test_the_error_names_a_missing_index(tmp_path: Path) -> None:
    assert "index.json" in start(tmp_path / "nothing")


@fault("The file of a version is changed while the server runs", "only requests to that version fail", "10")
def test_a_file_that_is_tampered_with_later_fails_only_its_own_requests(tmp_path: Path) -> None:
    folder = copy_of_predictors(tmp_path)
    with own_rung(SCRIPT, "--models", str(folder)) as server:
        assert unload(server, "v2").status == 200
        (folder / "digits-v2.safetensors").write_bytes(b"\x80\x04.")
        answer = put(server, "/models/digits/versions/v2")
        assert answer.status == 500
        assert str(folder) not in answer.body.decode()
        assert "SHA-256" in server.process.errors()
        assert post(server, "/predict?version=v2", {"features": ROW}).status == 404
        assert predict(server)["model_version"] == "v1"


def test_large_values_stay_finite() -> None:
    for version in ("v1", "v2"):
        for outcome in bundled(version).predict(np.full((2, 64), [[1e6], [-1e6]], np.float32)):
            assert outcome.confidence is not None
            assert math.isfinite(outcome.confidence)
