#!/bin/sh
# Makes the work pool and deploys the flows of the checkout's prefect.yaml. Again and again, it changes nothing else.
#
# Run by tests/integration/test_compose.py, linted by tests/unit/infra/test_validators.py.
set -eu

prefect work-pool create local --type process --base-job-template "$(dirname "$0")/../work_pool.json" --overwrite
exec prefect deploy --all
