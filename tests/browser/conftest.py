"""A Chromium found on the PATH, or Playwright's own; without one these tests are skipped, loudly."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

from tests.loop.conftest import bucle, files, project  # noqa: F401 (fixtures)
from tests.loop.platform import Installation

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        except Error as error:
            pytest.skip(f"NO BROWSER: install chromium to run the browser tests ({error.message.splitlines()[0]})")
        yield chromium
        chromium.close()


@pytest.fixture
def sign_in(browser: Browser, bucle: Installation) -> Iterator[Callable[..., Page]]:  # noqa: F811
    """sign_in("bob", ...) -> a page of that person's own browser window, signed in through the form."""
    contexts = []

    def _sign_in(name: str, width: int = 1280, language: str = "en-GB") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, locale=language, base_url=bucle.url)
        contexts.append(context)
        page = context.new_page()
        page.goto("/")
        page.fill("input[name=login]", name)
        page.fill("input[name=password]", "a-long-passphrase")
        page.press("input[name=password]", "Enter")
        page.wait_for_url(bucle.url + "/")
        return page

    yield _sign_in
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def people(bucle: Installation, project: str) -> None:  # noqa: F811
    """alice manages, bob annotates."""
    bucle.shell(
        "from accounts.models import Project\nfrom accounts.services import add_member\n"
        f"project = Project.objects.get(slug='{project}')\n"
        "for name, role in [('alice', 'manager'), ('bob', 'annotator')]:\n"
        "    membership, made = add_member(project=project, username=name, role=role)\n"
        "    membership.user.set_password('a-long-passphrase')\n"
        "    membership.user.save()\n"
    )
