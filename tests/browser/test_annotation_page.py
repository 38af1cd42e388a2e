"""The rating page in a real browser, over its real server: `pytest -m browser tests/browser`."""

import os
import threading
import time
from pathlib import Path

import pytest
from annotated_runs import annotated_run
from devtools import open_browser

from polypersona.annotation.server import AnnotationServer
from polypersona.annotation.session import open_session
from polypersona.annotation.store import load_rater

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
NUM_ENTRIES = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return annotated_run(tmp_path_factory.mktemp("rated"), texts=dict.fromkeys(range(240), HOSTILE))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture
def page(browser, tmp_path):
    run = annotated_run(tmp_path)
    with serving(run, "anna") as server:
        browser.resize(1280, 900)
        browser.prefer("light")
        show(browser, server)
        browser.annotated = run
        yield browser


class serving:
    def __init__(self, run, rater):
        self.server = AnnotationServer(open_session(run, NUM_ENTRIES, rater))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self):
        self.thread.start()
        return self.server

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


def show(page, server):
    page.problems.clear()
    page.requests.clear()
    page.open(server.url)
    wait(page, "!document.getElementById('bar').hidden")


def wait(page, condition):
    deadline = time.monotonic() + 10
    while not page.run(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def text(page, name):
    return page.run(f"document.getElementById({name!r}).textContent")


def press(page, *keys):
    for key in keys:
        page.press(key)


def rate(page, number, *keys):
    press(page, *keys, "Enter")
    wait(page, f"document.getElementById('status').textContent.startsWith('Saved. {number} ')")


def keep(page, name):
    """Write a picture of the page where `SCREENSHOTS` says so, for somebody to look at."""
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder, f"{name}.png").write_bytes(page.screenshot())


def test_a_sample_is_rated_with_the_keyboard_alone_and_every_rating_is_saved(page):
    keep(page, "first")
    assert text(page, "place") == "Answer 1 of 6"
    for number in range(1, NUM_ENTRIES + 1):
        rate(page, number, "4", "2", "1" if number % 2 else "2")
        assert len(load_rater(page.annotated, "anna").ratings) == number
    assert page.run("document.activeElement.id") == "done-title"
    assert text(page, "done-text") == "6 answers are rated by anna."
    assert (text(page, "place"), text(page, "rated")) == ("Finished", "6 rated · anna")
    time.sleep(0.3)
    keep(page, "done")
    ratings = list(load_rater(page.annotated, "anna").ratings.values())
    assert [one.guess for one in ratings] == ["human", "synthetic"] * 3
    assert {(one.realism, one.consistency) for one in ratings} == {(4, 2)}
    assert page.problems == []
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in page.requests)


def test_an_incomplete_rating_is_not_saved_and_what_is_missing_is_said(page):
    press(page, "3", "Enter")
    assert text(page, "alert") == "Answer all three first: consistency is missing."
    assert page.run("document.querySelector('fieldset.marked').dataset.scale") == "consistency"
    assert load_rater(page.annotated, "anna").ratings == {}
    keep(page, "missing")


def test_the_left_arrow_goes_back_and_a_rating_can_be_corrected(page):
    rate(page, 1, "4", "2", "1")
    assert text(page, "place") == "Answer 2 of 6"
    press(page, "ArrowRight")
    assert text(page, "place") == "Answer 2 of 6"  # it is not rated yet
    press(page, "ArrowLeft")
    checked = "[...document.querySelectorAll(':checked')].filter((one) => one.type === 'radio').map((one) => one.value)"
    assert page.run(checked) == ["4", "2", "human"]
    keep(page, "back")
    press(page, "ArrowDown", "5", "Enter")
    wait(page, "document.getElementById('place').textContent === 'Answer 2 of 6'")
    (rating,) = load_rater(page.annotated, "anna").ratings.values()
    assert (rating.realism, rating.consistency) == (4, 5)


def test_a_closed_page_goes_on_where_it_ended(page):
    rate(page, 1, "4", "2", "1")
    page.open("about:blank")
    with serving(page.annotated, "anna") as server:
        show(page, server)
        assert text(page, "place") == "Answer 2 of 6"
        assert text(page, "rated") == "1 rated · anna"
    with serving(page.annotated, "bo") as server:
        show(page, server)
        assert text(page, "rated") == "0 rated · bo"


def test_a_server_that_has_ended_loses_nothing_and_is_named(browser, tmp_path):
    run = annotated_run(tmp_path)
    with serving(run, "anna") as server:
        show(browser, server)
        rate(browser, 1, "4", "2", "1")
    press(browser, "1", "1", "1", "Enter")
    wait(browser, "document.getElementById('alert').textContent.startsWith('Not saved: the program')")
    assert text(browser, "place") == "Answer 2 of 6"
    assert browser.run("document.querySelectorAll('form :checked[type=radio]').length") == 3
    assert len(load_rater(run, "anna").ratings) == 1


def test_shortcuts_can_be_turned_off(page):
    page.run("document.getElementById('keys').click()")
    press(page, "4", "2", "1")
    assert page.run("document.querySelectorAll('form :checked[type=radio]').length") == 0


def test_it_works_with_the_mouse_too(page):
    for scale, place in (("realism", 4), ("consistency", 0), ("guess", 1)):
        page.run(f"document.querySelectorAll('[data-scale={scale}] input')[{place}].click()")
    page.run("document.getElementById('save').click()")
    wait(page, "document.getElementById('place').textContent === 'Answer 2 of 6'")
    (rating,) = load_rater(page.annotated, "anna").ratings.values()
    assert (rating.realism, rating.consistency, rating.guess) == (5, 1, "synthetic")


def test_answers_are_shown_as_text_whatever_they_hold(browser, made):
    with serving(made, "anna") as server:
        show(browser, server)
        assert text(browser, "answer") == HOSTILE
        assert browser.run("document.querySelectorAll('img').length") == 0
        assert browser.run("document.title").startswith("Rate answers")


def test_the_frame_says_synthetic_or_human_and_nothing_tells_which(page):
    page.run("window.scrollTo(0, document.documentElement.scrollHeight)")
    top = page.run("document.elementFromPoint(innerWidth / 2, 5).closest('.banner').textContent")
    assert "Synthetic or human You are not told which an answer is." in top
    assert page.run('JSON.stringify(session).match(/shuffled|"kind"|model/)') is None


def test_every_control_has_a_name_and_the_new_answer_is_announced(page):
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in ("radio", "button", "checkbox", "group", "progressbar")
    ]
    assert [name for role, name in named if not name.strip()] == []
    assert [name for role, name in named if role == "radio"][:5] == [
        "1 Not at all", "2 Hardly", "3 Perhaps", "4 Likely", "5 Certainly",
    ]  # fmt: skip
    assert [name for role, name in named if role == "group"][:3] == [
        "Realism Could a real person have said this?", "Consistency Does it fit this person?",
        "Your guess Who wrote it?",
    ]  # fmt: skip
    rate(page, 1, "4", "2", "1")
    assert page.run("document.activeElement.textContent") == "Answer 2 of 6"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (320, 568), (1280, 900)])
def test_it_fits_phones_and_screens_and_text_has_contrast(page, scheme, width, height):
    page.resize(width, height, is_phone=width < 1000)
    page.prefer(scheme)
    press(page, "4", "2")
    time.sleep(0.3)
    keep(page, f"{width}-{scheme}")
    if width < 1000:
        page.run("window.scrollTo({top: 1e6, behavior: 'instant'})")
        keep(page, f"{width}-{scheme}-end")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(_LOWEST_CONTRAST) >= 4.5
    if width < 1000:
        heights = "[...document.querySelectorAll('.choices label, #form button')].map((one) => one.offsetHeight)"
        assert min(page.run(heights)) >= 44


# The lowest contrast ratio (WCAG 2) of visible text against the nearest background.
_LOWEST_CONTRAST = """(() => {
  const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
  const part = (v) => (v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  let lowest = 21;
  for (const node of document.querySelectorAll('body *')) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility() || node.matches('script, noscript, :disabled, :disabled *')) continue;
    let back = node;
    while (back && (rgb(getComputedStyle(back).backgroundColor)[3] ?? 1) === 0) back = back.parentElement;
    const [one, other] = [light(rgb(getComputedStyle(node).color)), light(rgb(getComputedStyle(back).backgroundColor))];
    lowest = Math.min(lowest, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05));
  }
  return lowest;
})()"""
