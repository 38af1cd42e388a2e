#!/usr/bin/env bash
# The entrypoint of cluster/rayjob.yaml: `polypersona run` for a submitter that begins every failed job again.
#   polypersona-rayjob RECIPE [OPTION…]
# 3 (finished, too many quarantined) and 4 (stopped at max_hours) must not be begun again: they end as 0, and a line says
# so. It is a program and no line of shell in the YAML, for KubeRay hands an entrypoint to a shell of its own first.
set -uo pipefail
polypersona run "$@"
code=$?
case $code in
  3) echo "polypersona-rayjob: exit code 3, finished with too many quarantined; ends as 0, not to be begun again" >&2; exit 0 ;;
  4) echo "polypersona-rayjob: exit code 4, stopped at generate.max_hours; ends as 0, not to be begun again" >&2; exit 0 ;;
esac
exit $code
