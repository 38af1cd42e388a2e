"""Whether an answer that names an option alone is read back as that option: the check of an item's labels.

Matters where answers are text (`closed: text`, records made elsewhere); a scored option is never read.
"""

from __future__ import annotations

from polypersona.chatml import ShowOptions, render_choice, shown_place
from polypersona.coding import code_answer, disposition_of
from polypersona.records import Item


def misread_options(item: Item, show: ShowOptions = "labels") -> dict[str, str]:
    """Return, by label, how the options are misread that are not read back; `show` is how the prompt shows them."""
    order, has_letters = item.shown or None, show == "letters"
    found = {}
    for index, label in enumerate(item.options):
        text = render_choice(label, show, shown_place(index, order))
        if code_answer(item, text, order, has_letters=has_letters) != item.codes[index]:
            found[label] = "cannot be told apart from another one in an answer"
        elif (read_as := disposition_of(item, text, order=order, has_letters=has_letters)) != "complete":
            found[label] = f"would be read as {read_as.replace('_', ' ')}"
    return found
