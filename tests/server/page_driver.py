"""Debian's Chromium, and servers of tiny models that it opens."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

expect.set_options(timeout=60_000)
AXE = "axe-core@4.14.1"
NAMES = ("Chat", "Generate", "Summarize", "Answer", "Translate", "Next token")
REFUSED = "Failed to load resource: the server responded with a status of 4"
"""What Chromium logs when the server refuses a request."""


def absent(reason: str) -> NoReturn:
    """Skip, but where the browser tests are required."""
    (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)(reason)


@contextmanager
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        absent("Chromium is not installed (apt-get install chromium)")
    elsewhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[elsewhere])
        yield browser
        browser.close()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of an application."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


class Visit:
    """A page in a window of its own, and what it requested and logged."""

    def __init__(self, browser: Browser, address: str, path: str = "", **options: Any) -> None:
        self.address, self.requests, self.logged = address, list[str](), list[str]()
        self.context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1200, "height": 900}} | options)
        self.context.set_default_timeout(60_000)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.goto(f"{address}{path}")

    def ready(self) -> Visit:
        """Wait for the list of models."""
        self.page.locator("#model option").first.wait_for(state="attached")
        return self

    def task(self, name: str) -> Locator:
        """The visible task, chosen by a click."""
        self.page.get_by_role("link", name=name, exact=True).click()
        return self.page.locator(".task:visible")

    def choose(self, model: str, other: str = "") -> None:
        self.page.get_by_role("combobox", name="Model", exact=True).select_option(model)
        self.page.get_by_role("combobox", name="Compare with").select_option(other)

    def clipboard(self) -> str:
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    def saved(self, click: Callable[[], Any]) -> str:
        """What a click downloads."""
        with self.page.expect_download() as download:
            click()
        return Path(download.value.path()).read_text(encoding="utf-8")

    def close(self, allowed: str | None = None) -> None:
        """Close it; it must have requested nothing elsewhere, and logged nothing."""
        self.context.close()
        assert [url for url in self.requests if not url.startswith((self.address, "blob:", "data:"))] == []
        assert [text for text in self.logged if allowed is None or not text.startswith(allowed)] == []


def finished(task: Locator, count: int = 1) -> Locator:
    """The results of a task, when all of them are complete."""
    expect(task.locator(".card")).to_have_count(count)
    expect(task.locator(".busy")).to_have_count(0)
    return task.locator(".card")


def ask(address: str, path: str, **body: Any) -> Any:
    """The answer of the server itself."""
    response = httpx.post(f"{address}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def run_command(command: str) -> Any:
    """What a copied command answers: the object, or the last one of a stream."""
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    if not result.stdout.startswith("data: "):
        return json.loads(result.stdout)
    events = [line.removeprefix("data: ") for line in result.stdout.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return json.loads(events[-2])


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with this label or text has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "(({labels, textContent, ariaLabel}) => ariaLabel ?? labels?.[0]?.textContent ?? textContent)"
            "(document.activeElement)"
        )
        if str(found).strip() == name:
            return
    raise AssertionError(f"{name} cannot be reached by Tab")


def axe_source(folder: Path) -> str:
    """The source of axe-core, from the npm registry."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed; it fetches axe-core")
    packed = subprocess.run(["npm", "pack", "--silent", AXE], cwd=folder, capture_output=True, text=True, check=False)
    if packed.returncode:
        absent(f"axe-core cannot be fetched from the npm registry ({packed.stderr.strip()[-200:]})")
    with tarfile.open(folder / packed.stdout.strip()) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()
