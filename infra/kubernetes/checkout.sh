#!/bin/sh
# Makes the working directory a checkout of $ALIGN_REPOSITORY at $ALIGN_REVISION, once: what is there stays. The folder
# may hold other files (lost+found), and a start that was killed is done again.
#
# Run by tests/unit/infra/test_scripts.py, linted by tests/unit/infra/test_validators.py.
set -eu

git rev-parse --quiet --verify HEAD > /dev/null && exit
git init --quiet
git fetch --quiet "$ALIGN_REPOSITORY" "$ALIGN_REVISION"
git checkout --quiet -B main FETCH_HEAD
