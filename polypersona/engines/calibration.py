"""Option probabilities without the model's liking for a place, a letter or a label.

`permute` scores a question with its options in every rotation, so that each option stands once in each place, and
averages log-probabilities: what the model adds for a place or a letter is then the same for all options and cancels.
`content_free` divides by the probabilities of the same options after a question without content (Zhao et al., 2021,
*Calibrate Before Use*), which removes what the labels get on their own, whatever is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from polypersona.chatml import build_messages, encode_prompt
from polypersona.decoding.prompts import Prompt, Written
from polypersona.engines.cells import AskedCell, CellReader
from polypersona.records import Persona

_NO_CONTENT = "N/A"


def rotations(reader: CellReader, asked: AskedCell) -> list[Prompt]:
    """Return prompts that score the cell with its options in each rotation of the order in which it shows them.

    Every prompt's options stand in the item's own order, so that scores can be averaged index by index. A cell with a
    rotation that does not fit the context gets that as its error.
    """
    cell = asked.cell
    order = cell.order or tuple(range(len(cell.item.options)))
    prompts = []
    for turn in range(len(order)):
        turned = cell._replace(order=order[turn:] + order[:turn])
        prompt = reader.prompt(reader.encode(asked.persona, turned), turned)
        prompts.append(replace(prompt, max_new_tokens=0, choices=()))
        asked.error = asked.error or reader.too_long(len(prompt.ids), turned)
    return prompts


def content_free_prompt(reader: CellReader, asked: AskedCell) -> Prompt:
    """Return a prompt that scores the cell's options for a respondent and a question that say nothing."""
    cell = asked.cell._replace(item=replace(asked.cell.item, stem=_NO_CONTENT), seed=0)
    messages = build_messages(
        Persona(_NO_CONTENT, text=_NO_CONTENT), cell.item, reader.settings.show_options, cell.order
    )
    return replace(reader.prompt(encode_prompt(reader.tokenizer, messages), cell), max_new_tokens=0, choices=())


def calibrate(asked: AskedCell, found: Sequence[Written], empty: Written | None) -> list[float]:
    """Return one number per option whose softmax is the calibrated distribution."""
    lengths = [len(option) if asked.prompt.length_norm else 1 for option in asked.prompt.options]
    totals = [sum(written.log_probs[index] for written in found) / len(found) for index in range(len(lengths))]
    if empty is not None:
        totals = [total - prior for total, prior in zip(totals, empty.log_probs, strict=True)]
    return [total / length for total, length in zip(totals, lengths, strict=True)]
