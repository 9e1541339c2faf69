"""Holds the server's side of the page to account: files, headers, and many clients in one connection."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ladder.lab.client import Client, read_events
from ladder.web.pages import FOLDER, MOST_CLIENTS
from tests.support import (
    QUESTION,
    SCRIPTS as RUNG_SCRIPTS,
    STORY,
    Answer,
    RungServer,
    ServerPool,
    import_rung,
)

SCRIPTS = sorted(f"/page/{file.name}" for file in FOLDER.glob("*.js"))


@pytest.mark.parametrize("path", ["/", "/rung", "/source", "/page/style.css", "/page/icon.svg", *SCRIPTS])
def test_every_file_is_served_with_headers_that_let_nothing_else_in(server: RungServer, path: str) -> None:
    answer = server.request("GET", path)
    assert answer.status == 200
    assert answer.body
    policy = dict(
        directive.strip().partition(" ")[::2]
        for directive in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_a_file_that_has_not_changed_is_not_sent_again(server: RungServer, path: str) -> None:
    first = server.request("GET", path)
    assert first.headers["cache-control"] == "no-cache"
    again = server.request("GET", path, None, **{"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    other = server.request("GET", path, None, **{"if-none-match": '"another"'})
    assert (other.status, other.body) == (200, first.body)
    head = server.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(first.body))


def test_the_kinds_of_files_are_named(server: RungServer) -> None:
    kinds = {
        path: server.request("GET", path).headers["content-type"]
        for path in ("/", "/page/main.js", "/source")
    }
    assert kinds == {
        "/": "text/html; charset=utf-8",
        "/page/main.js": "text/javascript; charset=utf-8",
        "/source": "text/plain; charset=utf-8",
    }


@pytest.mark.parametrize("path", ["/page/", "/page/missing.js", "/page/../pages.py", "/page/%2e%2e/pages.py"])
def test_nothing_else_is_served(server: RungServer, path: str) -> None:
    assert server.request("GET", path).status == 404


def test_a_rung_is_described_by_its_own_source(server: RungServer) -> None:
    about = server.request("GET", "/rung").json()
    doc = (import_rung(server.script).__doc__ or "").splitlines()[0]
    assert f"Rung {about['number']}: {about['idea']}" == doc
    assert about["source"] == server.script
    assert about["streams"] == server.streams
    assert about["page"] == "page"
    assert server.request("GET", "/source").body.decode().startswith(f'"""{doc}')


def test_to_load_the_page_leaves_the_engine_alone(server: RungServer) -> None:
    before = server.idle()["steps"]
    for path in ("/", "/rung", "/source", *SCRIPTS):
        server.request("GET", path)
    assert server.idle()["steps"] == before


def ask_together(server: RungServer, *requests: dict[str, Any]) -> list[Answer]:
    """What each client of a shared connection gets, put together from its pieces."""
    response = server.request("POST", "/page/clients", json.dumps({"requests": requests}).encode())
    assert response.status == 200
    pieces = [json.loads(event.data) for event in response.events()]
    answers = []
    for client in range(len(requests)):
        first, *bodies, last = (piece for piece in pieces if piece["client"] == client)
        assert last["ended"]
        body = "".join(piece["body"] for piece in bodies).encode("latin-1")
        answers.append(Answer(first["status"], {"content-type": first["type"]}, body))
    return answers


def test_clients_in_one_connection_get_what_they_would_get_alone(streaming_server: RungServer) -> None:
    emoji: dict[str, Any] = {"prompt": "Say hello in emoji.", "temperature": 0, "max_tokens": 20}
    whole = {**emoji, "stream": False}
    wrong = {**emoji, "max_tokens": 0}
    streamed, at_once, refused = ask_together(streaming_server, {**emoji, "stream": True}, whole, wrong)
    alone = streaming_server.generate(**whole).json()
    assert "".join(token["token"] for token in streamed.tokens()) == alone["text"]
    assert streamed.events()[-1].data == "[DONE]"
    assert at_once.json()["text"] == alone["text"]
    assert refused.status == 422
    assert refused.json() == streaming_server.generate(**wrong).json()


def test_answers_come_side_by_side(streaming_server: RungServer) -> None:
    request = {"prompt": STORY, "max_tokens": 40, "stream": True, "seed": 1}
    response = streaming_server.request(
        "POST", "/page/clients", json.dumps({"requests": [request, request]}).encode()
    )
    order = [json.loads(event.data)["client"] for event in response.events()]
    assert order.index(1) < len(order) - 1 - order[::-1].index(0), (
        "the second began before the first was done"
    )


@pytest.mark.parametrize("clients", [0, MOST_CLIENTS + 1])
def test_so_many_clients_are_not_taken(streaming_server: RungServer, clients: int) -> None:
    body = json.dumps({"requests": [{"prompt": QUESTION}] * clients}).encode()
    assert streaming_server.request("POST", "/page/clients", body).status == 422


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_takes_all_clients_along(endless_server: RungServer, stream: bool) -> None:
    request = {"prompt": STORY, "max_tokens": 3000, "stream": stream}

    async def leave() -> None:
        async with Client(endless_server.url) as client:
            json_body = {"requests": [request, request, {**request, "stream": True}]}
            async with client.session.post("/page/clients", json=json_body) as response:
                await anext(read_events(response))
                await endless_server.health_when(lambda health: health["running"] + health["waiting"] == 3)
                response.close()

    asyncio.run(leave())
    assert endless_server.idle()["running"] == 0


def test_swaggers_page_is_left_as_it_is(streaming_server: RungServer) -> None:
    """It loads its parts from elsewhere, which the page's policy would forbid."""
    docs = streaming_server.request("GET", "/docs")
    assert docs.status == 200
    assert "content-security-policy" not in docs.headers
    paths = streaming_server.request("GET", "/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


@pytest.mark.parametrize("script", [script for script in RUNG_SCRIPTS if script != "01_flask_blocking.py"])
def test_who_has_no_internet_is_told_where_the_description_is(
    pool: ServerPool, script: str, tmp_path: Path
) -> None:
    server = pool(script, *(["--uploads", str(tmp_path)] if script.startswith("12") else []))
    docs = server.request("GET", "/docs").body.decode()
    assert re.findall(r'<script src="(\w+:)', docs) == ["https:"]
    page = server.request("GET", "/").body.decode()
    (description,) = re.findall(r'<a href="/docs">/docs</a> \(needs internet\), <a href="(.+?)">', page)
    assert server.request("GET", description).json()["paths"]
