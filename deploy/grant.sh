#!/usr/bin/env bash
# Grants what acls.txt lists:  deploy/grant.sh my-job --bootstrap-server broker:9092 --command-config admin.properties
# Needs kafka-acls.sh of a Kafka distribution in PATH. Granting twice changes nothing.
set -euo pipefail
job=${1:?name the job}
shift
sed 's/#.*//' "$(dirname "$0")/acls.txt" | while read -r principal kind name operations; do
  [ -n "$principal" ] || continue
  args=(--add --allow-principal "User:$principal" "--$kind")
  case $name in
    *'*') args+=("${name%'*'}" --resource-pattern-type prefixed) ;;
    *) args+=("$name") ;;
  esac
  for operation in ${operations//,/ }; do args+=(--operation "$operation"); done
  kafka-acls.sh "$@" "${args[@]//JOB/$job}" </dev/null
done
