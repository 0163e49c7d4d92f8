#!/usr/bin/env bash
# Writes the generated code of proto/ below the folder given: the Go module, and the OpenAPI document that the gateway embeds.
set -euo pipefail
out=$1
bin/buf lint
rm -rf "$out/proto/gen/go/billing"
bin/buf generate -o "$out"
