#!/usr/bin/env bash
# Start or stop a Ray cluster on this machine, with its dashboard and job server on the loopback address.
#   cluster/local.sh start [CPUS]    then: RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/run.py RECIPE --set out="$PWD/runs"
#   cluster/local.sh stop
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ray=$here/.venv/bin/ray
[ -x "$ray" ] || ray=$(command -v ray) || { echo "Ray is not installed: run make setup first." >&2; exit 2; }

case "${1:-}" in
  start)
    PATH=$(dirname "$ray"):$PATH  # a job's `python` is the first one that the cluster finds
    export PATH
    # Ray's own token in ~/.ray, made if there is none: without the mode, `ray start` asks for a token that clients do not send.
    export RAY_AUTH_MODE=token
    "$ray" get-auth-token --generate >/dev/null
    OMP_NUM_THREADS=1 "$ray" start --head --num-cpus "${2:-$(nproc)}" --dashboard-host 127.0.0.1 --dashboard-port 8265 --disable-usage-stats
    ;;
  stop)
    "$ray" stop
    ;;
  *)
    echo "usage: cluster/local.sh start [CPUS] | stop" >&2
    exit 2
    ;;
esac
