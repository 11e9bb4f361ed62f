#!/bin/sh
# The image's entrypoint: each secret whose name is a variable's (PGPASSWORD) becomes that variable, then the command
# runs. Other secrets stay files (aws_credentials). So no secret stands in a file of this repository, or in `docker
# inspect`.
#
# Run by tests/integration/test_compose.py and tests/unit/infra/test_dockerfile.py, linted by
# tests/integration/test_validators.py.
set -eu

for file in "${ALIGN_SECRETS:-/run/secrets}"/*; do
  name=${file##*/}
  case $name in
    [0-9]* | *[!A-Z0-9_]*) continue ;; # also the pattern itself, where there is no secret
  esac
  if ! value=$(cat "$file"); then
    echo "align: error: secret $file cannot be read by user $(id -u): the container must run as its owner" >&2
    exit 1
  fi
  if [ -z "$value" ]; then # a server would take it for no password at all
    echo "align: error: secret $file is empty" >&2
    exit 1
  fi
  export "$name=$value"
done
exec "$@"
