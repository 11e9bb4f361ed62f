#!/bin/sh
# Writes the secrets of infra/compose.yaml into infra/secrets, which git and the image leave out; prints none of them.
#
#   infra/compose/make_secrets.sh           # what is there stays: PostgreSQL keeps its first password
#
# To give your own S3 server or login, edit the files. Only their owner can read them, and the containers run as the
# owner: export ALIGN_UID=$(id -u) ALIGN_GID=$(id -g).
#
# Run by tests/integration/test_compose.py and tests/unit/infra/test_compose.py, linted by
# tests/unit/infra/test_validators.py.
set -eu
umask 077

folder=${1:-$(dirname "$0")/../secrets}
mkdir -p "$folder"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# write NAME: stdin becomes the file, whole or not at all; one that exists stays
write() {
  if [ -e "$folder/$1" ]; then
    cat > /dev/null
  else
    cat > "$folder/.$1.part"
    [ -s "$folder/.$1.part" ] || { echo "$0: $1 would be empty" >&2 && exit 1; }
    mv "$folder/.$1.part" "$folder/$1"
    echo "wrote $folder/$1"
  fi
}

random | write POSTGRES_PASSWORD
random | write MLFLOW_TRACKING_PASSWORD
# One login for people: the same password in both.
printf 'align:%s' "$(cat "$folder/MLFLOW_TRACKING_PASSWORD")" | write PREFECT_API_AUTH_STRING
if [ ! -e "$folder/s3.json" ] || [ ! -e "$folder/aws_credentials" ]; then
  rm -f "$folder/s3.json" "$folder/aws_credentials" # they hold the same key
  key=$(random)
  printf '[default]\naws_access_key_id = align\naws_secret_access_key = %s\n' "$key" | write aws_credentials
  printf '{"identities": [{"name": "align", "credentials": [{"accessKey": "align", "secretKey": "%s"}], "actions": ["Admin"]}]}\n' \
    "$key" | write s3.json
fi
