"""A real browser in a newcomer's first ten minutes: an empty page, a model watched, cancelled, tried again, looked at."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon_kit import Home
from web_kit import client_of

pytestmark = pytest.mark.browser
PATIENCE = 90_000
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    found = os.environ.get("QCONVD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH (Debian: apt-get install chromium)")
    return found


class Browser:
    """A page of a real browser, and everything that its console complained of."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda asked: self.complaints.append(asked.url) if not asked.url.startswith(url) else None)

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)
        self.page.wait_for_selector("#live[data-live=on]")

    def sees(self, text: str, within: str = "main") -> None:
        self.page.locator(within, has_text=text).first.wait_for()

    def accessible(self) -> None:
        """axe finds nothing that is serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        bad = [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found if v["impact"] in ("serious", "critical")]
        assert bad == []

    def fits(self) -> None:
        """Nothing of the page is beyond its right edge."""
        wide, there = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= there


@pytest.fixture
def home_with_page(home: Home) -> Home:
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure("[fp16, gguf: {types: [q8_0, q4_0]}]")
    return home.start()


@pytest.fixture
def browser(home_with_page: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    executable = chromium()
    from playwright.sync_api import sync_playwright

    url = f"http://{client_of(home_with_page).address}"
    with sync_playwright() as playwright:
        # A container gives Chromium no sandbox of its own; what it opens here is ours.
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield Browser(started.new_page(), url)
        started.close()


def test_a_newcomer_s_first_ten_minutes(browser: Browser, home_with_page: Home, glass: Path) -> None:
    home, page = home_with_page, browser.page
    browser.open("/")
    browser.sees("Drop a model into", "#running")
    browser.sees(str(home.inbox), "#running")
    browser.accessible()

    # By the keyboard: the first stop leads past the header, and a slash to the form.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "model"

    # Nothing is reloaded from here on: what happens appears by itself.
    shutil.copytree(glass, home.root / "my-model")
    (home.root / "my-model").rename(home.inbox / "my-model")
    frozen = home.freeze("convert")
    browser.sees("converting", "#running")
    page.get_by_role("button", name="Cancel job 1, my-model").click()
    browser.sees("3 artifacts cancelled", "#toasts")
    browser.sees("cancelled", "#history")
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    page.get_by_role("button", name="Retry my-model fp16, gguf Q8_0, gguf Q4_0").click()
    browser.sees("3 artifacts will be tried again", "#toasts")
    browser.sees("done", "#history")
    home.done(3)
    page.locator("#history .badge.done").nth(2).wait_for()
    browser.accessible()

    page.get_by_role("link", name="my-model").first.click()
    page.wait_for_selector("#plot svg circle")
    assert page.locator("#plot svg circle").count() == 3
    page.locator("summary", has_text="4 files in").click()
    browser.sees("model.safetensors", "#targets")
    assert "verified and in its place" in page.locator("#log pre").inner_text()
    browser.accessible()

    page.locator("#theme").click()
    browser.accessible()
    page.set_viewport_size({"width": 360, "height": 740})
    browser.fits()
    browser.open("/")
    browser.fits()
    assert page.locator("header.top").bounding_box()["height"] < 60, "the header takes one line"
    browser.accessible()

    # A model by its name: the plan first, then the job.
    page.fill("#model", str(home.inbox / "my-model"))
    page.get_by_role("button", name="Show the plan").click()
    browser.sees("What would be made")
    browser.accessible()
    browser.fits()
    page.get_by_role("button", name="Convert it").click()
    page.wait_for_url("**/jobs/1")
    page.goto(f"{browser.url}/plan?model=/nowhere&recipe=everyday")
    browser.sees("there is nothing at this path")
    assert [c for c in browser.complaints if "400 (Bad Request)" not in c] == []


def test_a_page_finds_its_daemon_again(browser: Browser, home_with_page: Home) -> None:
    home = home_with_page
    browser.open("/")
    home.stop()
    browser.page.wait_for_selector("#live[data-live=off]")
    home.web = f"{{listen: '{browser.url.removeprefix('http://')}'}}"
    home.configure("[fp16]")
    home.start()
    browser.page.wait_for_selector("#live[data-live=on]")
    assert home.stop() == 0
