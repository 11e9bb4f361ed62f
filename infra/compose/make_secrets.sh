#!/bin/sh
# Writes the secrets of infra/compose.yaml into infra/secrets, which git and the image leave out; prints none of them.
#
#   infra/compose/make_secrets.sh           # what is there stays: PostgreSQL keeps its first password
#
# To give your own S3 server or login, edit the files. Only their owner can read them, and the containers run as the
# owner: export ALIGN_UID=$(id -u) ALIGN_GID=$(id -g).
#
# Run by tests/integration/test_compose.py and tests/unit/infra/test_compose.py, linted by
# tests/integration/test_validators.py.
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
# The same as a header, for the proxy of accounts.yaml; people's logins are a file of their own, empty at first.
printf 'Basic %s' "$(base64 < "$folder/PREFECT_API_AUTH_STRING" | tr -d '\n')" | write proxy_authorization
echo '# NAME HASH of each person; the hash by: caddy hash-password' | write accounts
# Who searches can do nothing else; the search service reads MLflow and changes nothing there.
random | sed 's/^/align:/' | write ALIGN_SEARCH_LOGIN
random | write MLFLOW_READER_PASSWORD
# A key of the S3 server for each role: runs use the bucket, MLflow its part of it; neither makes or removes buckets.
if [ ! -e "$folder/s3.json" ] || [ ! -e "$folder/aws_credentials" ] || [ ! -e "$folder/aws_credentials_mlflow" ]; then
  rm -f "$folder/s3.json" "$folder/aws_credentials" "$folder/aws_credentials_mlflow" # they hold the same keys
  runs=$(random)
  mlflow=$(random)
  printf '[default]\naws_access_key_id = align\naws_secret_access_key = %s\n' "$runs" | write aws_credentials
  printf '[default]\naws_access_key_id = mlflow\naws_secret_access_key = %s\n' "$mlflow" | write aws_credentials_mlflow
  identity='{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],
    "actions": ["Read:%s", "Write:%s", "List:%s", "Tagging:%s"]}'
  # shellcheck disable=SC2059 # the format is ours
  {
    printf '{"identities": ['
    printf "$identity, " align align "$runs" align align align align
    printf "$identity" mlflow mlflow "$mlflow" 'align/mlflow/*' 'align/mlflow/*' 'align/mlflow/*' 'align/mlflow/*'
    printf ']}\n'
  } | write s3.json
fi
