#!/usr/bin/env bash
# Start or stop a Ray cluster on this machine, with its dashboard and job server on the loopback address.
#   cluster/local.sh start [CPUS [OPTION…]]   options go to `ray start`: --port, --dashboard-port, --temp-dir, --block
#   cluster/local.sh stop                     stops every Ray of this user on this machine
# then:
#   polypersona submit RECIPE --address http://127.0.0.1:8265 --set out="$PWD/runs"
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ray=$here/.venv/bin/ray
[ -x "$ray" ] || ray=$(command -v ray) || { echo "Ray is not installed: run make setup first." >&2; exit 2; }

case "${1:-}" in
  start)
    shift
    cpus=$(nproc)
    if [ $# -gt 0 ] && [[ $1 != -* ]]; then
      cpus=$1
      shift
    fi
    PATH=$(dirname "$ray"):$PATH  # a job's `python` is the first one that the cluster finds
    export PATH
    # Ray's own token in ~/.ray, made if there is none: whoever reaches the port can run programs as this user.
    export RAY_AUTH_MODE=token
    "$ray" get-auth-token --generate >/dev/null
    OMP_NUM_THREADS=1 exec "$ray" start --head --num-cpus "$cpus" --dashboard-host 127.0.0.1 --dashboard-port 8265 \
      --disable-usage-stats "$@"
    ;;
  stop)
    "$ray" stop
    ;;
  *)
    echo "usage: cluster/local.sh start [CPUS [OPTION…]] | stop" >&2
    exit 2
    ;;
esac
