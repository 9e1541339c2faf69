"""Tests the server side of the pages: files, headers, and several clients in one connection."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ladder import ROOT
from ladder.lab.client import Client, read_events
from ladder.web.page_clients import MOST_CLIENTS
from ladder.web.pages import MEDIA_TYPES, PAGES, Rung, document, tracks
from tests.support import (
    QUESTION,
    SCRIPTS as RUNG_SCRIPTS,
    STORY,
    Answer,
    RungServer,
    ServerPool,
    import_rung,
)

FILES = sorted(path for path in PAGES.rglob("*") if path.is_file())
NAMES = sorted({path.parent.name for path in FILES} - {"shared"})
ADDRESSES = [f"/page/{path.relative_to(PAGES).as_posix()}" for path in FILES if path.suffix in MEDIA_TYPES]


def test_every_file_is_served_with_a_strict_content_security_policy(server: RungServer) -> None:
    for path in ("/", "/rung", "/source", *ADDRESSES):
        answer = server.request("GET", path)
        assert answer.status == 200, path
        assert answer.body, path
        policy = dict(
            directive.strip().partition(" ")[::2]
            for directive in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/page/generate/main.js"])
def test_an_unchanged_file_is_a_304(server: RungServer, path: str) -> None:
    first = server.request("GET", path)
    assert first.headers["cache-control"] == "no-cache"
    again = server.request("GET", path, None, **{"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    other = server.request("GET", path, None, **{"if-none-match": '"another"'})
    assert (other.status, other.body) == (200, first.body)
    head = server.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(first.body))


def test_files_have_their_content_type(server: RungServer) -> None:
    kinds = {
        path: server.request("GET", path).headers["content-type"]
        for path in ("/", "/page/generate/main.js", "/source")
    }
    assert kinds == {
        "/": "text/html; charset=utf-8",
        "/page/generate/main.js": "text/javascript; charset=utf-8",
        "/source": "text/plain; charset=utf-8",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/missing.js",
        "/page/shared/shell.html",
        "/page/../web/pages.py",
        "/page/%2e%2e/web/pages.py",
    ],
)
def test_other_paths_are_a_404(server: RungServer, path: str) -> None:
    assert server.request("GET", path).status == 404


def test_a_rung_is_described_by_its_own_source(server: RungServer) -> None:
    about = server.request("GET", "/rung").json()
    doc = (import_rung(server.script).__doc__ or "").splitlines()[0]
    assert f"Rung {about['number']}: {about['idea']}" == doc
    assert about["source"] == server.script
    assert about["streams"] == server.streams
    assert about["page"] == "generate"
    assert [number for track in about["tracks"] for number in track] == [
        script[:2] for script in RUNG_SCRIPTS
    ]
    assert server.request("GET", "/source").body.decode().startswith(f'"""{doc}')


def test_loading_the_page_runs_no_engine_step(server: RungServer) -> None:
    before = server.idle()["steps"]
    for path in ("/", "/rung", "/source", *ADDRESSES):
        server.request("GET", path)
    assert server.idle()["steps"] == before


def ask_together(server: RungServer, *requests: dict[str, Any]) -> list[Answer]:
    """The response of each client in a shared connection, joined from its parts."""
    response = server.request("POST", "/page/clients", json.dumps({"requests": requests}).encode())
    assert response.status == 200
    parts = [json.loads(event.data) for event in response.events()]
    answers = []
    for client in range(len(requests)):
        first, *bodies, last = (part for part in parts if part["client"] == client)
        assert last["ended"]
        body = "".join(part["body"] for part in bodies).encode("latin-1")
        answers.append(Answer(first["status"], {"content-type": first["type"]}, body))
    return answers


def test_clients_in_one_connection_get_the_same_responses_as_alone(streaming_server: RungServer) -> None:
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


def test_the_responses_of_several_clients_overlap(streaming_server: RungServer) -> None:
    request = {"prompt": STORY, "max_tokens": 40, "stream": True, "seed": 1}
    response = streaming_server.request(
        "POST", "/page/clients", json.dumps({"requests": [request, request]}).encode()
    )
    order = [json.loads(event.data)["client"] for event in response.events()]
    last_of_the_first = len(order) - 1 - order[::-1].index(0)
    assert order.index(1) < last_of_the_first, "the second began before the first was done"


@pytest.mark.parametrize("clients", [0, MOST_CLIENTS + 1])
def test_too_few_or_too_many_clients_are_rejected(streaming_server: RungServer, clients: int) -> None:
    body = json.dumps({"requests": [{"prompt": QUESTION}] * clients}).encode()
    assert streaming_server.request("POST", "/page/clients", body).status == 422


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_ends_the_requests_of_all_clients(endless_server: RungServer, stream: bool) -> None:
    request = {"prompt": STORY, "max_tokens": 3000, "stream": stream}

    async def disconnect() -> None:
        async with Client(endless_server.url) as client:
            json_body = {"requests": [request, request, {**request, "stream": True}]}
            async with client.session.post("/page/clients", json=json_body) as response:
                await anext(read_events(response))
                await endless_server.health_when(lambda health: health["running"] + health["waiting"] == 3)
                response.close()

    asyncio.run(disconnect())
    assert endless_server.idle()["running"] == 0


def test_the_swagger_page_has_no_content_security_policy(streaming_server: RungServer) -> None:
    """It loads scripts from other servers, which the policy of our pages forbids."""
    docs = streaming_server.request("GET", "/docs")
    assert docs.status == 200
    assert "content-security-policy" not in docs.headers
    paths = streaming_server.request("GET", "/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


@pytest.mark.parametrize("script", [script for script in RUNG_SCRIPTS if script != "01_flask_blocking.py"])
def test_the_page_links_an_api_description_that_works_offline(
    pool: ServerPool, script: str, tmp_path: Path
) -> None:
    server = pool(script, *(["--uploads", str(tmp_path)] if script.startswith("12") else []))
    docs = server.request("GET", "/docs").body.decode()
    assert re.findall(r'<script src="(\w+:)', docs) == ["https:"]
    page = server.request("GET", "/").body.decode()
    (description,) = re.findall(r'<a href="/docs">/docs</a> \(needs internet\), <a href="(.+?)">', page)
    assert server.request("GET", description).json()["paths"]


def imports(file: Path) -> list[str]:
    """The files that a script imports: `from "…"`, `import("…")`."""
    return re.findall(r"""(?:\bfrom |\bimport\()["']([^"']+)["']""", file.read_text("utf-8"))


def test_every_import_names_a_file_that_exists() -> None:
    wrong = [
        (str(file), name)
        for file in FILES
        if file.suffix == ".js"
        for name in imports(file)
        if not (name.startswith(".") and (file.parent / name).is_file())
    ]
    assert wrong == []


def test_imports_are_detected(tmp_path: Path) -> None:
    file = tmp_path / "a.js"
    file.write_text(
        'import { a } from "./b.js";\n/** @type {import("../c.js").D} */ let d;\n@import "./e.css";'
    )
    assert imports(file) == ["./b.js", "../c.js"]


def test_pages_import_only_their_own_and_shared_files() -> None:
    """Exception: rung 11's page imports from rung 10's page, because it extends that page."""
    beyond = {
        (file.parent.name, target.parent.name)
        for file in FILES
        if file.suffix == ".js"
        for name in imports(file)
        if (target := (file.parent / name).resolve()).parent != file.parent and target.parent.name != "shared"
    }
    assert beyond == {("realtime", "models")}


def test_every_shared_script_is_used_by_two_pages() -> None:
    """Directly, or through another file of shared/."""
    used: dict[Path, set[str]] = {}
    for page in NAMES:
        left = [path for path in FILES if path.parent.name == page and path.suffix == ".js"]
        while left:
            for name in imports(file := left.pop()):
                target = (file.parent / name).resolve()
                if page not in used.setdefault(target, set()):
                    used[target].add(page)
                    left.append(target)
    scripts = [path for path in FILES if path.parent.name == "shared" and path.suffix == ".js"]
    assert {path.name for path in scripts if len(used.get(path, ())) < 2} == set()


ABOUT = Rung("07", "a <name>", 'an "idea" & more', "07_a.py", True)


@pytest.mark.parametrize("page", NAMES)
def test_a_page_is_the_shell_with_its_own_content(page: str) -> None:
    text = document(ABOUT, page)
    assert "<title>Rung 07: a &lt;name&gt;</title>" in text
    assert 'content="an &quot;idea&quot; &amp; more"' in text
    assert not re.search(r"\$\w|<!-- include", text)
    for address in re.findall(r'(?:href|src)="(/page/[^"]+)"', text):
        assert address in ADDRESSES
    for part in (
        "<!doctype html>",
        '<meta charset="utf-8">',
        "</header>",
        'id="lost"',
        'id="heartbeat"',
        "</main>",
    ):
        assert text.count(part) == 1
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert sorted(ids) == sorted(set(ids))


def test_no_part_of_the_html_is_duplicated() -> None:
    """Five equal lines in a row in two files are a duplicate. They belong in a file of their own."""
    seen: dict[tuple[str, ...], str] = {}
    for file in (path for path in FILES if path.suffix == ".html"):
        lines = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
        for start in range(len(lines) - 4):
            assert seen.setdefault(tuple(lines[start : start + 5]), str(file)) == str(file)


def test_the_ladder_has_two_tracks() -> None:
    scripts = [path.name for path in ROOT.glob("[0-9][0-9]_*.py")]
    first, second = tracks([*scripts, "09_added.py"])
    assert first[0] == "01"
    assert first[-1] == "09"
    assert second == ["10", "11", "12"]
