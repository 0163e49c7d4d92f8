#!/usr/bin/env bash
# Shows that the check for breaking changes can fail: a copy of the contracts without one field must be refused.
set -euo pipefail
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r proto buf.yaml "$copy/"
sed -i '/string amount = 6;/d' "$copy/proto/billing/transaction/v1/transaction.proto"
if said=$(bin/buf breaking "$copy" --against proto/baseline.binpb 2>&1); then
  echo "buf breaking did not notice a removed field"
  exit 1
fi
grep -q 'Previously present field "6"' <<<"$said" || { echo "buf breaking failed for another reason: $said"; exit 1; }
