"""Writes the pictures of the page: ``llmkit serve starter minilm-squad &``, then ``python docs/write_page_images.py``.

Needs Debian's packages chromium, fonts-noto-cjk and fonts-noto-color-emoji.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

ADDRESS = "http://127.0.0.1:8000/"
WIDE, NARROW = {"width": 1180, "height": 740}, {"width": 400, "height": 860}


def run(page: Page, results: int = 1) -> None:
    page.get_by_role("button", name=re.compile("^(Run|Send|运行)$")).locator("visible=true").click()
    expect(page.locator(".card:visible:not(.busy)")).to_have_count(results, timeout=120_000)
    page.mouse.move(0, 0)


def answer(page: Page) -> None:
    page.locator("#model").select_option("minilm-squad")
    page.locator("#other").select_option("starter")
    page.get_by_role("button", name="Use an example").locator("visible=true").click()
    run(page, 2)


def chat(page: Page) -> None:
    for text in ("What is a coral reef? Answer in one sentence.", "And where is the largest one?"):
        page.get_by_label("Message", exact=True).fill(text)
        run(page, page.locator(".card").count() + 1)
    page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")


def summarize(page: Page) -> None:
    page.get_by_role("button", name="Use an example").locator("visible=true").click()
    run(page)


def next_token(page: Page) -> None:
    page.get_by_label("提示").locator("visible=true").fill("The capital of France is")
    run(page)


PICTURES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "light": (answer, "answer", {"viewport": WIDE}),
    "dark": (chat, "chat", {"viewport": {"width": 1180, "height": 920}, "color_scheme": "dark"}),
    "narrow": (summarize, "summarize", {"viewport": NARROW}),
    "chinese": (next_token, "next", {"viewport": WIDE, "locale": "zh-CN"}),
}

if __name__ == "__main__":
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        for name, (act, task, options) in PICTURES.items():
            page = browser.new_page(**{"locale": "en-US"} | options)
            page.goto(f"{ADDRESS}#{task}")
            page.locator("#model option").first.wait_for(state="attached")
            act(page)
            page.screenshot(path=Path(__file__).parent / f"page-{name}.png", full_page=name == "narrow")
