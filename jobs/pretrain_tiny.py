"""Pretrain the embedded tiny model on the project's synthetic corpus.

    python jobs/pretrain_tiny.py --out polypersona/models/tiny

Needs two cores and most of an hour; no GPU, no network, no Ray. `--interviews 2000` makes a quick, poor model. The
shipped weights come from two calls, the second with `--resume` and `--start`; the model's card says which. One call
from the start makes another model, and the one that was measured was worse: see the card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from polypersona.models.pretraining import PretrainSettings, pretrain

DEFAULTS = PretrainSettings()


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the model.")
@click.option("--interviews", default=DEFAULTS.num_interviews, show_default=True, help="Respondents to train on.")
@click.option("--learning-rate", default=DEFAULTS.learning_rate, show_default=True)
@click.option("--batch", default=DEFAULTS.batch, show_default=True, help="Respondents per step.")
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--seed", default=DEFAULTS.seed, show_default=True)
@click.option("--resume", default="", metavar="FOLDER", help="Go on from this model.")
@click.option("--start", default=0.0, show_default=True, help="Share of the training at which to go on.")
@click.option(
    "--dtype", type=click.Choice(("bf16", "fp32")), default=DEFAULTS.dtype, show_default=True, help="Of products."
)
def main(
    out: Path,
    interviews: int,
    learning_rate: float,
    batch: int,
    threads: int,
    seed: int,
    resume: str,
    start: float,
    dtype: Literal["bf16", "fp32"],
) -> None:
    """Train tokenizer and weights and write the model's folder."""
    settings = PretrainSettings(
        seed=seed,
        num_interviews=interviews,
        learning_rate=learning_rate,
        batch=batch,
        resume=resume,
        start=start,
        dtype=dtype,
    )
    pretrain(settings, out, threads=threads, report=click.echo)
    click.echo(out)


if __name__ == "__main__":
    main()
