"""Ask again what a run has in quarantine, as a Ray job; the job is the command line.

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/retry.py "$PWD/runs/smoke"

The run is named by an absolute path or a URL that all nodes share. Needs what the run needed to generate. The same line
again goes on after a failure.
"""

from __future__ import annotations

import sys

from polypersona.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["retry"]
    main()
