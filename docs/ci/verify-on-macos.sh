#!/bin/sh
# Upgrades the Core ML artifacts of a finished build from reference-verified to device-verified. Run it on a Mac:
#
#     docs/ci/verify-on-macos.sh BUILD_FOLDER [CHECKOUT]
#
# BUILD_FOLDER is what `edgewright build -o` wrote, copied over whole. CHECKOUT is edgewright's source (default: here).
# Exit code 0: every artifact agrees with the source on every compute unit, and report.json says so. 1: one does not.
set -eu

build=${1:?give the output folder of a build}
checkout=${2:-$(cd "$(dirname "$0")/../.." && pwd)}
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT

python3 -m venv "$environment"
"$environment/bin/python" -m pip install --quiet "$checkout[compiler,coreml,images]"
"$environment/bin/edgewright" verify "$build"
