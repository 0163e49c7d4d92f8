#!/usr/bin/env bash
# Fails if the committed generated code is not what proto/ generates.
set -euo pipefail
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
mkdir -p "$fresh/proto/gen/go"
deploy/scripts/generate.sh "$fresh"
stale=0
diff -r -q proto/gen/go/billing "$fresh/proto/gen/go/billing" || stale=1
diff -q services/gateway/openapi/billing.swagger.json "$fresh/services/gateway/openapi/billing.swagger.json" || stale=1
[ "$stale" = 0 ] || { echo "generated code is stale: run make generate"; exit 1; }
echo "generated code: ok"
