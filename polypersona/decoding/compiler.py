"""Which C compiler makes the kernels of this package, if the machine has one."""

from __future__ import annotations

import shutil

COMPILERS = ("cc", "gcc", "clang")


def find_compiler() -> str | None:
    """Return the path of the first compiler found; None where there is none."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)
