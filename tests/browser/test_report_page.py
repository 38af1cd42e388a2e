"""The report in a real browser: `pytest -m browser tests/browser`."""

import itertools
import re
import time

import pytest
from devtools import open_browser
from toy_runs import toy_items, toy_personas, toy_recipe, write_run

from polypersona.report import stage

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    recipe = toy_recipe(folder)
    run = write_run(recipe, toy_personas(24), toy_items(), texts={17: HOSTILE, 30: "Zanzibar suits me best."})
    stage.run(recipe)
    with open_browser(folder / "profile") as opened:
        opened.resize(1280, 900)
        opened.open(run.local_path("report.html").as_uri())
        yield opened


def found(page):
    time.sleep(0.3)  # the search waits for the typing to pause
    count = re.match(r"([\d,]+) synthetic answers", page.run("document.getElementById('found').textContent"))
    return int(count.group(1).replace(",", "")) if count else 0


def search(page, text):
    page.run(
        f"(() => {{ const box = document.getElementById('search'); box.value = {text!r};"
        " box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    return found(page)


def choose(page, select, value):
    page.run(
        f"(() => {{ const box = document.getElementById({select!r}); box.value = {value!r};"
        " box.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    return found(page)


def test_the_page_asks_the_network_for_nothing_and_reports_no_problem(page):
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in page.requests if url.startswith("file:")]) == 1
    assert page.problems == []


def test_every_screen_says_synthetic(page):
    assert "Synthetic" in page.run("document.title")
    for place in (0, 0.3, 0.6, 1):
        page.run(f"window.scrollTo({{top: document.documentElement.scrollHeight * {place}, behavior: 'instant'}})")
        top = page.run("document.elementFromPoint(innerWidth / 2, 5).closest('.banner')?.textContent")
        assert "synthetic" in (top or "").lower()


def test_search_and_filters_narrow_the_answers(page):
    everything = search(page, "")
    assert everything == 24 * 12 - 3
    assert search(page, "zanzibar") == 1
    assert page.run("document.querySelector('#respondents mark').textContent") == "Zanzibar"
    assert search(page, "no such words anywhere") == 0
    assert search(page, "") == everything
    finance = choose(page, "filter-domain", "finance")
    assert 0 < finance < everything
    assert 0 < choose(page, "filter-type", "open") < finance
    choose(page, "filter-type", "")
    assert choose(page, "filter-domain", "") == everything


def test_pages_turn(page):
    search(page, "")
    before = page.run("document.querySelector('#respondents .respondent').textContent")
    page.run("document.getElementById('page-next').click()")
    assert page.run("document.getElementById('page-place').textContent").startswith("Page 2 of 5")
    assert page.run("document.querySelector('#respondents .respondent').textContent") != before
    page.run("document.getElementById('page-back').click()")
    assert page.run("document.getElementById('page-back').disabled") is True


def test_answers_are_shown_as_text_whatever_they_hold(page):
    assert search(page, "onerror") == 1
    assert page.run("document.querySelector('#respondents .reply').textContent") == HOSTILE
    assert page.run("document.querySelectorAll('#respondents img, #respondents script').length") == 0
    assert page.run("document.title").startswith("Synthetic")
    search(page, "")


def test_one_closed_question_is_shown_at_a_time(page):
    visible = (
        "[...document.querySelectorAll('[data-item]')].filter((node) => !node.hidden).map((node) => node.dataset.item)"
    )
    assert page.run(visible) == ["0"]
    page.run("document.getElementById('item-next').click()")
    assert page.run(visible) == ["1"]
    page.run("document.getElementById('item-back').click()")
    assert page.run(visible) == ["0"]


def test_the_keyboard_reaches_the_content_first_and_every_control_has_a_name(page):
    page.run("(() => { document.body.tabIndex = -1; document.body.focus(); window.scrollTo(0, 0); })()")  # its begin
    page.press("Tab")
    page.run("document.body.removeAttribute('tabindex')")
    assert page.run("document.activeElement.className") == "skip"
    unnamed = page.run(
        "[...document.querySelectorAll('input, select, button, [role=region], [role=img]')].filter((node) =>"
        " !node.labels?.length && !node.getAttribute('aria-label') && !node.textContent.trim()).length"
    )
    assert unnamed == 0
    levels = page.run("[...document.querySelectorAll('h1, h2, h3, h4')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    bare = "(table) => !table.caption || table.querySelector('th:not([scope])')"
    assert page.run(f"[...document.querySelectorAll('table')].filter({bare}).length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_sideways_scrolling_and_text_has_contrast(page, scheme):
    page.resize(390, 844, is_phone=True)
    page.prefer(scheme)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run(_LOWEST_CONTRAST) >= 4.5
    page.resize(1280, 900)
    page.prefer("light")


def test_every_printed_page_says_synthetic(page):
    pdf = page.print_pdf()
    assert pdf.startswith(b"%PDF")
    page.prefer("light", "print")
    assert "synthetic" in page.run("getComputedStyle(document.body, '::after').content").lower()
    assert page.run("getComputedStyle(document.body, '::after').position") == "fixed"
    page.prefer("light")


# The lowest contrast ratio (WCAG 2) of visible text against the nearest background; images of options excluded.
_LOWEST_CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data; };
  const part = (v) => (v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  let lowest = 21;
  for (const node of document.querySelectorAll('body *')) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility() || node.disabled || node.closest('script, option')) continue;
    const style = getComputedStyle(node);
    let behind = node;
    while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const ground = getComputedStyle(behind || document.documentElement).backgroundColor;
    const color = node.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(rgba(color)), light(rgba(ground))].sort((x, y) => y - x);
    lowest = Math.min(lowest, (a + 0.05) / (b + 0.05));
  }
  return lowest;
})()"""
