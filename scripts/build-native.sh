#!/usr/bin/env bash
# Builds the addon as it ships, to build/Release/forklet.node.
# FORKLET_WERROR=1 turns warnings into errors, as CI does.
source "$(dirname "$0")/lib.sh"

headers="$(find_node_headers)"
node-gyp configure ${headers:+"--nodedir=$headers"} -- "-Dwerror=${FORKLET_WERROR:-0}"
node-gyp build --jobs "$(nproc)"
