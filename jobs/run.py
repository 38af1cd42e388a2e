"""The whole run, or some of its stages, as a Ray job; the job is the command line.

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/run.py jobs/smoke.yaml --from generate --set out="$PWD/runs"

`polypersona submit` does the same from anywhere, sends the package along and ends with the job's exit code:

    polypersona submit jobs/smoke.yaml --address http://127.0.0.1:8265 --from generate --set out="$PWD/runs"

A job runs in a copy of the working directory that Ray deletes, so `out` must be an absolute path or a URL; a relative
one is refused. The driver needs one CPU and about 1 GB; what the stages need is in `polypersona plan RECIPE`. Submit
the same line again after a failure: what is committed stays, only what is missing is computed. Exit code 3: finished
with too many quarantined cells; 4: stopped at `generate.max_hours`; do not retry those.
"""

from __future__ import annotations

import sys

from polypersona.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
