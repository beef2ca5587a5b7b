"""The page in a browser: every task by clicks and by keys, and what keeps it safe and usable."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, expect

import llmkit.server.page
from llmkit.engines.transformers.joined_batch import JoinedBatch
from llmkit.server.app import make_app
from llmkit.server.models import load_models
from llmkit.server.page import PATHS
from llmkit.server.settings import ServeSettings
from tests.conftest import Checkpoint
from tests.server.conftest import CPU, Serve
from tests.server.page_driver import (
    NAMES,
    REFUSED,
    Visit,
    ask,
    axe_source,
    chromium,
    finished,
    listening,
    run_command,
    tab_to,
)

FILES = [path for path in Path(llmkit.server.page.__file__).parent.iterdir() if path.suffix in {".html", ".css", ".js"}]
CONTEXT = "😀 今天天气很好 👨‍👩‍👧 The quick brown fox jumps over the lazy dog."


# Without a browser.


def test_the_page_is_small_and_has_no_inline_code() -> None:
    assert sum(path.stat().st_size for path in FILES) <= 60_000
    assert len(FILES) + 1 <= 5  # and the list of models

    class Inline(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            assert tag != "style"
            assert tag != "script" or given.get("src")
            assert not [name for name in given if name == "style" or name.startswith("on")]

    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        if path.suffix == ".html":
            Inline().feed(text)


def test_the_page_needs_no_key_and_allows_nothing_from_elsewhere(checkpoint: Checkpoint, serve: Serve) -> None:
    client = serve(checkpoint("bert"), key="secret")
    assert len(PATHS) == len(FILES)
    for path in PATHS:
        found = client.get(path)
        assert found.status_code == 200
        assert "default-src 'self';" in found.headers["Content-Security-Policy"]
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 403
        assert client.post(path).status_code in {401, 405}
    for path in ("/v1/models", "/page", "/page/", "/page/__init__.py", "/page/../v1/models", "/index.html"):
        assert client.get(path).status_code == 401


def test_a_mounted_application_has_the_page_too(checkpoint: Checkpoint, serve: Serve) -> None:
    outer = FastAPI()
    outer.mount("/llm", serve(checkpoint("bert"), key="secret").app)
    client = TestClient(outer, base_url="http://127.0.0.1:8000")
    assert [client.get(f"/llm{path}").status_code for path in ("", "/", "/page/page.js", "/health")] == [200] * 4
    assert [client.get(f"/llm{path}").status_code for path in ("/v1/models", "/llm/health", "//health")] == [401] * 3


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def folders(checkpoint: Checkpoint) -> dict[str, str]:
    made = {
        "base": checkpoint("llama", chat=True, max_position_embeddings=2048),
        "tuned": checkpoint("qwen3", chat=True, max_position_embeddings=160),
        "span": checkpoint("bert"),
        "t5": checkpoint("t5"),
        "m2m": checkpoint("m2m_100"),
    }
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture(scope="module")
def served(folders: dict[str, str]) -> Iterator[Any]:
    models = load_models(list(folders.values()), CPU, ServeSettings())
    yield models
    for model in models.values():
        model.worker.close(timeout=10)


@pytest.fixture(scope="module")
def address(served: Any) -> Iterator[str]:
    with listening(make_app(served, ServeSettings())) as found:
        yield found


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[..., Visit]]:
    visits: list[tuple[Visit, str | None]] = []

    def start(path: str = "", *, allowed: str | None = None, **options: Any) -> Visit:
        visits.append((Visit(browser, address, path, **options), allowed))
        return visits[-1][0].ready()

    yield start
    for each, allowed in visits:
        each.close(allowed)


browsed = pytest.mark.browser


@browsed
def test_loading_takes_five_requests(visit: Callable[..., Visit], address: str) -> None:
    opened = visit()
    paths = [url.removeprefix(address) for url in opened.requests]
    assert sorted(paths) == ["", "page/page.css", "page/page.js", "page/texts.js", "v1/models"]
    assert opened.page.title() == "Chat – llmkit"


@browsed
@pytest.mark.parametrize(
    ("name", "model"),
    [("Chat", "base"), ("Generate", "base"), ("Summarize", "t5"), ("Answer", "base"), ("Answer", "span"),
     ("Translate", "m2m"), ("Next token", "base")],
)  # fmt: skip
def test_every_task_by_clicks(name: str, model: str, visit: Callable[..., Visit], folders: dict[str, str]) -> None:
    opened = visit()
    task = opened.task(name)
    opened.choose(folders[model])
    task.get_by_role("button", name="Use an example").click()
    if name != "Next token" and model != "span":
        task.get_by_text("Settings").click()
        task.get_by_label("Temperature").fill("0")
        task.get_by_label("At most").fill("12")
    task.get_by_role("button", name=re.compile("Run|Send")).click()
    card = finished(task)
    expect(task.locator(".error")).to_have_count(0)

    card.get_by_role("button", name="Copy as curl").click()
    expect(card.get_by_role("button", name="Copied")).to_be_visible()
    command = opened.clipboard()
    answer = json.loads(opened.saved(card.get_by_role("button", name="JSON").click))
    text = opened.saved(card.get_by_role("button", name="Download").click)
    if name == "Chat":
        command = command.replace('"stream":true,"stream_options":{"include_usage":true}', '"stream":false')
        again = run_command(command)
        assert answer["messages"][-1] == {"role": "assistant", "content": again["choices"][0]["message"]["content"]}
        assert f"{again['usage']['completion_tokens']} tokens out" in card.inner_text()
        shown = answer["messages"][-1]["content"]
    else:
        again = run_command(command)
        again.get("usage", {}).pop("cached_tokens", None)  # of the prompt that the page has just sent
        assert again == answer
        shown = None if name == "Next token" else answer["text"]
    if shown is not None:
        assert card.locator(":scope > .text").text_content() == text == shown
    for note in () if name == "Chat" else answer.get("notes", ()):
        expect(card.locator(".notes")).to_contain_text(note["text"])
    card.get_by_role("button", name="Copy", exact=True).click()
    expect(card.get_by_role("button", name="Copied").first).to_be_visible()
    assert opened.clipboard() == text


@browsed
def test_every_task_by_keyboard_alone(visit: Callable[..., Visit], folders: dict[str, str]) -> None:
    page = visit().page
    for name in NAMES:
        page.evaluate("document.activeElement.blur()")
        tab_to(page, name)
        page.keyboard.press("Enter")
        tab_to(page, "Use an example")
        page.keyboard.press("Enter")  # the focus goes to the button that runs
        page.keyboard.press("Enter")
        task = page.locator(".task:visible")
        if name == "Next token":
            expect(task.locator("tbody tr")).to_have_count(10)
        else:
            expect(task.locator(".card")).to_have_count(1)
            page.keyboard.press("Escape")
            expect(task.locator(".busy")).to_have_count(0)
        expect(task.locator(".error")).to_have_count(0)
    tab_to(page, "Copy")


@browsed
def test_stop_ends_the_request_and_keeps_what_there_is(
    visit: Callable[..., Visit], served: Any, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, go, steps = JoinedBatch.advance, threading.Event(), iter(range(10**6))

    def wait_after_eight(batch: JoinedBatch) -> None:
        if next(steps) >= 8:
            go.wait(60)
        advance(batch)

    opened = visit()
    task = opened.task("Generate")
    task.get_by_label("Prompt").fill("The fox")
    with monkeypatch.context() as patch:
        patch.setattr(JoinedBatch, "advance", wait_after_eight)
        task.get_by_role("button", name="Run").click()
        text = task.locator(".card > .text")
        expect(text).not_to_be_empty()
        task.get_by_role("button", name="Stop").click()
        card = finished(task)
        go.set()
    expect(card).to_contain_text("stopped")
    assert text.text_content()
    expect(task.get_by_role("button", name="Stop")).to_be_hidden()
    assert ask(opened.address, "v1/generate", model=folders["base"], prompt="The fox", max_new_tokens=2)["text"]
    assert served[folders["base"]].worker.unfinished == 0


@browsed
def test_the_answer_is_marked_after_emoji_and_chinese(
    visit: Callable[..., Visit], address: str, folders: dict[str, str]
) -> None:
    opened = visit()
    task = opened.task("Answer")
    opened.choose(folders["span"])
    task.get_by_label("Question").fill("What jumps?")
    task.get_by_label("Text that contains").fill(CONTEXT)
    task.get_by_role("button", name="Run").click()
    card = finished(task)
    answer = ask(address, "v1/answer", model=folders["span"], question="What jumps?", context=CONTEXT)
    assert answer["start"] > CONTEXT.index("👨")  # a position in UTF-16 would differ
    assert card.locator(".context").text_content() == CONTEXT
    assert card.locator("mark").text_content() == CONTEXT[answer["start"] : answer["end"]] == answer["text"]


@browsed
def test_the_parts_of_a_long_summary_and_its_notes(
    visit: Callable[..., Visit], address: str, folders: dict[str, str]
) -> None:
    document = "😀 The quick brown fox jumps over the lazy dog. 今天天气很好，我们去公园散步。\n\n" * 6
    opened = visit()
    task = opened.task("Summarize")
    opened.choose(folders["tuned"])
    task.get_by_label("Text", exact=True).fill(document)
    task.get_by_text("Settings").click()
    task.get_by_label("At most").fill("8")
    task.get_by_role("button", name="Run").click()
    card = finished(task)
    answer = ask(address, "v1/summarize", model=folders["tuned"], document=document, max_new_tokens=8)
    parts = card.locator(".parts > li")
    expect(parts).to_have_count(len(answer["chunks"]))
    assert len(answer["chunks"]) > 1
    for index, chunk in enumerate(answer["chunks"]):
        summary, source = parts.nth(index).locator(".text").all()
        assert summary.text_content() == chunk["text"]
        assert source.text_content() == document[chunk["start"] : chunk["end"]].strip()
    for note in answer.get("notes", ()):
        expect(card.locator(".notes")).to_contain_text(note["text"])


@browsed
def test_two_models_side_by_side(visit: Callable[..., Visit], address: str, folders: dict[str, str]) -> None:
    opened = visit()
    task = opened.task("Generate")
    opened.choose(folders["base"], folders["tuned"])
    task.get_by_label("Prompt").fill("The fox")
    task.get_by_text("Settings").click()
    task.get_by_label("At most").fill("8")
    task.get_by_role("button", name="Run").click()
    cards = finished(task, 2)
    for index, name in enumerate(("base", "tuned")):
        answer = ask(address, "v1/generate", model=folders[name], prompt="The fox", max_new_tokens=8)
        expect(cards.nth(index).get_by_role("heading")).to_have_text(folders[name])
        assert cards.nth(index).locator(":scope > .text").text_content() == answer["text"]
    first, second = (cards.nth(index).bounding_box() for index in (0, 1))
    assert first is not None
    assert second is not None
    assert first["y"] == second["y"]


@browsed
def test_a_conversation_goes_on_and_starts_anew(visit: Callable[..., Visit], folders: dict[str, str]) -> None:
    opened = visit()
    task = opened.task("Chat")
    task.get_by_text("Settings").click()
    task.get_by_label("Instructions").fill("Be brief.")
    task.get_by_label("At most").fill("4")
    message = task.get_by_label("Message", exact=True)
    for index, text in enumerate(("Hello", "今天")):
        message.fill(text)
        # An input method that composes a character takes Enter for itself.
        message.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
        message.dispatch_event("keydown", {"key": "Enter", "keyCode": 229, "bubbles": True})
        expect(task.locator(".turn")).to_have_count(index)
        message.press("Enter")
        finished(task, index + 1)
    task.locator(".card").nth(1).get_by_role("button", name="Copy as curl").click()
    body = json.loads(opened.clipboard().splitlines()[1])
    assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [each["content"] for each in body["messages"]][0::3] == ["Be brief.", "今天"]
    task.get_by_role("button", name="New conversation").click()
    expect(task.locator(".card")).to_have_count(0)
    message.fill("Again")
    message.press("Shift+Enter")
    expect(message).to_have_value("Again\n")


HTML = "<img src=x onerror=alert(1)><b>bold</b>"


@browsed
def test_texts_of_models_are_never_html(visit: Callable[..., Visit]) -> None:
    opened = visit()
    note = {"code": "output_cut", "text": HTML}
    chunks = [{"start": 0, "end": 2, "text": HTML}]
    answer = {"task": HTML, "text": HTML, "reasoning": HTML, "finish_reason": "stop", "notes": [note], "chunks": chunks,
              "source_language": HTML, "target_language": HTML, "start": 0, "end": len(HTML), "score": 0.5,
              "usage": {"prompt_tokens": HTML, "completion_tokens": HTML}}  # fmt: skip
    events = [{"text": HTML}, {"reasoning": HTML}, answer]
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    opened.page.route("**/v1/answer", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    tokens = [{"text": HTML, "probability": 0.5}]
    opened.page.route("**/v1/next", lambda route: route.fulfill(json={"model": HTML, "tokens": tokens}))
    problem = f"data: {json.dumps({'error': {'message': HTML}})}\n\n"
    opened.page.route("**/v1/generate", lambda route: route.fulfill(body=problem, content_type="text/event-stream"))
    for name, label in (("Answer", "Text that contains"), ("Next token", "Prompt"), ("Generate", "Prompt")):
        task = opened.task(name)
        task.get_by_label(label).fill(HTML)
        if name == "Answer":
            task.get_by_label("Question").fill(HTML)
        task.get_by_role("button", name="Run").click()
        expect(finished(task)).to_contain_text(HTML.replace(" ", "␣") if name == "Next token" else HTML)
    assert opened.page.locator("main").locator("img, b").count() == 0


@browsed
def test_errors_are_shown(visit: Callable[..., Visit], folders: dict[str, str]) -> None:
    opened = visit(allowed="Failed to load resource")
    task = opened.task("Generate")
    opened.choose(folders["tuned"])
    task.get_by_label("Prompt").fill("The quick brown fox. " * 200)
    task.get_by_role("button", name="Run").click()
    expect(task.get_by_role("alert")).to_contain_text("the input has 1020 tokens")
    opened.page.route("**/v1/generate", lambda route: route.abort())
    task.get_by_role("button", name="Run").click()
    expect(task.get_by_role("alert")).to_contain_text("cannot be reached")
    opened.page.unroute("**/v1/generate")
    task.get_by_text("Settings").click()
    task.get_by_label("Temperature").fill("-1")
    task.get_by_text("Settings").click()
    task.get_by_role("button", name="Run").click()
    expect(task.get_by_label("Temperature")).to_be_focused()  # and in view
    task.get_by_label("Temperature").fill("")
    half = 'data: {"text": "half"}\n\n'
    opened.page.route("**/v1/generate", lambda route: route.fulfill(body=half, content_type="text/event-stream"))
    task.get_by_role("button", name="Run").click()
    expect(task.get_by_role("alert")).to_contain_text("ended before")
    expect(task.locator(".card > .text")).to_have_text("half")


@browsed
def test_the_key_is_asked_for_and_kept_in_the_tab(browser: Browser, served: Any, folders: dict[str, str]) -> None:
    with listening(make_app(served, ServeSettings(), "secret")) as address:
        opened = Visit(browser, address)
        page, field = opened.page, opened.page.locator("#key-value")
        field.fill("密钥")
        field.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("missing or wrong")
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("missing or wrong")
        field.fill("secret")
        page.get_by_role("button", name="Use this key").click()
        opened.ready()
        page.reload()
        opened.ready()
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert page.evaluate("JSON.stringify([{...localStorage}, document.cookie])") == '[{},""]'
        task = opened.task("Next token")
        task.get_by_label("Prompt").fill("The fox")
        task.get_by_role("button", name="Run").click()
        card = finished(task)
        card.get_by_role("button", name="Copy as curl").click()
        expect(card.get_by_role("button", name="Copied")).to_be_visible()
        assert "secret" not in opened.clipboard()
        assert run_command(f"export LLMKIT_API_KEY=secret; {opened.clipboard()}")["tokens"]
        page.get_by_role("button", name="API key").click()
        page.get_by_role("button", name="Forget the key").click()
        assert page.evaluate("sessionStorage.length") == 0
        opened.close(REFUSED)


@browsed
def test_files_are_opened_if_they_are_text(visit: Callable[..., Visit]) -> None:
    opened = visit()
    task = opened.task("Summarize")
    picker = task.locator("input[type=file]")
    text = "\ufeffLe café 😀\r\nest fermé."
    picker.set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": text.encode()})
    expect(task.get_by_label("Text", exact=True)).to_have_value("Le café 😀\nest fermé.")
    expect(task).to_contain_text("a.txt: 20 characters")
    picker.set_input_files({"name": "b.txt", "mimeType": "text/plain", "buffer": b"caf\xe9"})
    expect(task).to_contain_text("b.txt is not a UTF-8 text file")
    expect(task.get_by_label("Text", exact=True)).to_have_value("Le café 😀\nest fermé.")


@browsed
def test_copying_without_the_clipboard_of_secure_pages(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    task = opened.task("Next token")
    task.get_by_label("Prompt").fill("The fox")
    task.get_by_role("button", name="Run").click()
    finished(task).get_by_role("button", name="Copy as curl").click()
    expect(task.get_by_role("button", name="Copied")).to_be_visible()
    opened.page.evaluate("delete navigator.clipboard")
    assert opened.clipboard().startswith("curl")


@browsed
def test_both_languages_fit_a_narrow_window(visit: Callable[..., Visit]) -> None:
    narrow = {"viewport": {"width": 400, "height": 800}}
    for locale, name in (("zh-CN", "摘要"), ("en-US", "Summarize")):
        opened = visit("#summarize", locale=locale, **narrow)
        page = opened.page
        expect(page.get_by_role("heading", level=2)).to_have_text(name)
        assert page.evaluate("document.documentElement.lang").startswith(locale[:2])
        for link in page.locator("nav a").all():
            link.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.locator("#language").select_option("zh")
    expect(page.get_by_role("heading", level=2)).to_have_text("下一个词元")
    page.get_by_role("button", name="浅色").click()
    page.reload()
    expect(page.get_by_role("heading", level=2)).to_have_text("下一个词元")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


@browsed
def test_nothing_is_missing_in_a_language(visit: Callable[..., Visit]) -> None:
    texts = visit().page.evaluate("import('./page/texts.js').then(({TEXTS}) => TEXTS)")
    for name, pair in texts.items():
        assert len(pair) == 2, name
        assert all(pair), name
        assert set(re.findall(r"\{\d\}", pair[0])) == set(re.findall(r"\{\d\}", pair[1])), name


@browsed
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(theme: str, visit: Callable[..., Visit], folders: dict[str, str], axe: str) -> None:
    opened = visit(color_scheme=theme)
    opened.page.evaluate(axe)
    for name, label in (("Chat", "Message"), ("Next token", "Prompt"), ("Answer", "Text that contains"),
                        ("Summarize", "Text"), ("Translate", "Text"), ("Generate", "Prompt")):  # fmt: skip
        task = opened.task(name)
        opened.choose(folders["span" if name == "Answer" else "tuned"])
        task.get_by_label(label, exact=label != "Text that contains").fill("The quick brown fox. " * 8)
        if name == "Answer":
            task.get_by_label("Question").fill("What?")
        task.get_by_role("button", name=re.compile("Run|Send")).click()
        expect(task.locator(".card, .error").first).to_be_visible()
        expect(task.locator(".busy")).to_have_count(0)
        only = "{}" if theme == "light" else "{runOnly: ['cat.color']}"
        found = opened.page.evaluate(f"axe.run({only}).then(({{violations}}) => violations)")
        serious = [each for each in found if each["impact"] in {"serious", "critical"}]
        assert serious == [], [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_source(tmp_path_factory.mktemp("axe"))
