"""An unexpected failure on the screen: its whole traceback, without the secrets that foreign messages may hold."""

from __future__ import annotations

import os
import threading
import traceback

import click

from polypersona.location import mask_environment


def show_failure(error: BaseException) -> None:
    """Write the traceback of an exception to stderr; secrets in URLs and in the environment are masked."""
    text = "".join(traceback.format_exception(error))
    click.echo(mask_environment(text, os.environ), err=True, nl=False)


def show_thread_failure(failure: threading.ExceptHookArgs) -> None:
    """Do the same for what ends a thread; a hook of `threading`."""
    if failure.exc_value is not None and not isinstance(failure.exc_value, SystemExit):
        show_failure(failure.exc_value)
