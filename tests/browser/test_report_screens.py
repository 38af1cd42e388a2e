"""Every screen of a report in a real browser: axe, saving tables, people beside the run, respondents by attribute."""

import json
from importlib.resources import files

import pytest
from devtools import open_browser
from report.made_up import write_adapters, write_battery, write_ratings
from report.people_runs import compared_run
from toy_runs import toy_items, toy_personas, toy_recipe, write_run

from polypersona.recipe import build_recipe
from polypersona.report import stage
from polypersona.storage import load_run

pytestmark = pytest.mark.browser

# Violations of axe's rules with what a reader of the failure needs; details are opened, so that nothing is left out.
_VIOLATIONS = """(async () => {
  document.querySelectorAll('details').forEach((node) => { node.open = true; });
  const found = await axe.run(document, {resultTypes: ['violations']});
  return found.violations.map((one) => `${one.id} (${one.impact}): ${one.nodes[0].html.slice(0, 120)}`);
})()"""
# What a click saves: the text that the page hands to the browser, and the name it gives the file.
_CATCH = """(() => {
  window.saved = null;
  URL.createObjectURL = (blob) => { window.saved = blob; return 'blob:none'; };
  HTMLAnchorElement.prototype.click = function () { window.savedName = this.download; };
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run with everything beside two others, and a run beside people."""
    folder = tmp_path_factory.mktemp("screens")
    recipe = toy_recipe(folder)
    run = write_run(recipe, toy_personas(40), toy_items(), texts={5: '=HYPERLINK("x"), he said'})
    write_adapters(run, ["finance", "healthcare"])
    write_battery(run, broken_control=True)
    write_ratings(run, folder)
    others = [
        write_run(toy_recipe(folder, name, seed=seed), toy_personas(20), toy_items()).path()
        for name, seed in (("second", 8), ("third", 9))
    ]
    beside = stage.run(recipe, others)["report"]
    people = compared_run(folder)
    report = stage.run(build_recipe(load_run(people)["recipe"]), directory=people)["report"]
    with open_browser(folder / "profile") as page:
        yield page, {"beside": f"file://{beside}", "people": f"file://{report}"}


def show(pages, name, width=1280, scheme="light"):
    page, addresses = pages
    page.resize(width, 900, is_phone=width < 600)
    page.prefer(scheme)
    page.open(addresses[name])
    return page


def saved(page):
    return page.run("window.saved.text()").lstrip("\ufeff").split("\r\n")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
@pytest.mark.parametrize("name", ["beside", "people"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(pages, name, width, scheme):
    page = show(pages, name, width, scheme)
    page.run(f"{files('axe_core_python').joinpath('axe.min.js').read_text(encoding='utf-8')};0")
    assert page.run(_VIOLATIONS) == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.problems == []


@pytest.mark.parametrize("name", ["beside", "people"])
def test_no_table_is_wider_than_a_sheet_of_paper(pages, name):
    page = show(pages, name, 690)  # A4 without its margins, in CSS pixels
    page.prefer("light", "print")
    is_wide = "(table) => table.checkVisibility() && table.getBoundingClientRect().right > 690"
    wide = f"[...document.querySelectorAll('table')].filter({is_wide})"
    assert page.run(f"{wide}.map((t) => t.caption.textContent)") == []


def test_every_table_but_the_questions_has_a_button_that_saves_it(pages):
    page = show(pages, "beside")
    tables = page.run("[...document.querySelectorAll('table')].filter((t) => !t.closest('[data-item]')).length")
    assert page.run("document.querySelectorAll('button.csv').length") == tables > 10


def test_a_saved_table_has_unrounded_numbers_an_interval_in_two_columns_and_says_synthetic(pages):
    page = show(pages, "beside")
    page.run(_CATCH)
    page.run("document.querySelector('[aria-label^=\"Save the table “BLEU by run\"]').click()")
    head, first, *_ = saved(page)
    assert head == "Run,BLEU,low,high,Floor,n,data"
    name, score, low, high, floor, n, data = first.split(",")
    assert (name, n, data) == ("toy", "357", "synthetic")
    assert 0 < float(low) < float(score) < float(high)
    assert float(floor) > 0
    assert page.run("window.savedName") == "synthetic-toy-bleu-by-run.csv"


def test_saved_answers_are_those_found_and_no_formula_runs(pages):
    page = show(pages, "beside")
    page.run(_CATCH)
    page.run("(() => { const box = document.getElementById('search'); box.value = 'hyperlink'; })()")
    page.run("document.getElementById('answers-csv').click()")
    head, row, end = saved(page)
    assert head.endswith("outcome,answer,reference,data")
    assert '"\'=HYPERLINK(""x""), he said"' in row
    assert end == ""


def test_all_closed_questions_are_saved_as_one_table(pages):
    page = show(pages, "beside")
    page.run(_CATCH)
    page.run("document.getElementById('items-csv').click()")
    lines = saved(page)
    assert lines[0].startswith("item,question,Option,Code,Answers,Share")
    items = page.run("document.querySelectorAll('[data-item]').length")
    assert len({line.split(",")[0] for line in lines[1:-1]}) == items


def test_respondents_are_chosen_by_an_attribute_of_their_card(pages):
    page = show(pages, "beside")
    everybody = page.run("document.getElementById('found').textContent")
    choose(page, "filter-attribute", "Gender")
    values = page.run("[...document.getElementById('filter-value').options].map((one) => one.textContent)")
    assert values[0] == "all"
    assert {"female", "male"} <= set(values)
    choose(page, "filter-value", "female")
    cards = page.run("[...document.querySelectorAll('#respondents h3')].map((node) => node.textContent)")
    assert cards
    assert all(", female, " in card for card in cards)
    page.run("document.getElementById('filter-clear').click()")
    page.run("new Promise((done) => setTimeout(done, 50))")
    assert page.run("document.getElementById('found').textContent") == everybody


def test_people_and_run_stand_beside_each_other_for_the_chosen_question_and_group(pages):
    page = show(pages, "people")
    text = "document.getElementById('pair').textContent"
    assert "123 people, 123 synthetic answers" in page.run(text)
    page.run("document.getElementById('pair-next').click()")
    assert "How often do you walk?" in page.run(text)
    groups = json.loads(page.run("document.getElementById('people-data').textContent"))["groups"]
    assert ["Area", "island"] not in groups
    choose(page, "pair-group", str(groups.index(["Area", "city"])))
    assert "70 people, 70 synthetic answers" in page.run(text)
    page.run(_CATCH)
    page.run("document.querySelector('#pair button.csv').click()")
    assert saved(page)[0] == 'Option,"People, %",people_low,people_high,"Run, %",run_low,run_high,data'
    assert "beside human data: made up for tests" in saved(page)[1]


def choose(page, select, value):
    page.run(
        f"(() => {{ const box = document.getElementById({select!r}); box.value = {value!r};"
        " box.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
