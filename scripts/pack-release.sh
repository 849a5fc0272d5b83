#!/usr/bin/env bash
# Makes the package that is published: out/package/forklet-VERSION.tgz.
#
# The package is staged in a directory of its own, with the compiled TypeScript, the prebuilt
# addon, and what a VM boots from. It has no binding.gyp and no install script: nothing is
# compiled where it is installed, so installing succeeds on any platform.
source "$(dirname "$0")/lib.sh"

bash scripts/setup.sh

readonly stage=out/package/forklet
readonly guest=$stage/prebuilt/linux-x64
rm -rf out/package
mkdir -p "$guest"

echo '==> prebuilt addon'
# In a copy, since prebuildify empties build/ and takes the addon out of it.
readonly source=out/package/source
mkdir -p "$source/guest"
cp -r binding.gyp package.json native "$source/"
cp -r guest/agent "$source/guest/agent"
headers="$(find_node_headers)"
if [ -n "$headers" ]; then
  export npm_config_nodedir="$headers"
fi
prebuildify --napi --strip --tag-libc --target "$(node -p process.versions.node)" \
  --cwd "$source" --out "$stage" >out/log/prebuildify.log 2>&1 || {
  tail -n 40 out/log/prebuildify.log >&2
  fail 'prebuildify failed'
}

echo '==> TypeScript'
tsc -p tsconfig.build.json --outDir "$stage/dist"
chmod +x "$stage/dist/cli/main.js"

echo '==> guest'
for artifact in vmlinux agent rootfs.cpio; do
  cp --dereference "prebuilt/linux-x64/$artifact" "$guest/$artifact"
done
chmod 755 "$guest/agent"
mkdir "$guest/park"
cp guest/park/forklet-park.h guest/park/forklet_park.py "$(guest/park/build forklet-park)" \
  "$guest/park/"
kernel="$(dirname "$(readlink -f prebuilt/linux-x64/vmlinux)")"
cp -r guest/kernel "$guest/kernel-source"
cp "$kernel/SOURCE.md" "$kernel/COPYING" "$kernel/GPL-2.0" "$guest/kernel-source/"
cp "$kernel/config" "$guest/kernel-source/config.full"

# What Debian's packages contributed to the binaries, with their licences.
mkdir -p "$guest/licenses"
{
  cat scripts/package-notice.md
  printf '\n| Debian package | version | source package | in |\n|---|---|---|---|\n'
  while read -r package where; do
    dpkg-query -W \
      -f "| \${Package} | \${Version} | \${source:Package} \${source:Version} | $where |\n" "$package"
    cp "/usr/share/doc/$package/copyright" "$guest/licenses/$package.txt"
  done <<'LIST'
zlib1g-dev addon
liblzma-dev addon
liblz4-dev addon
libzstd-dev addon
musl-dev agent, park/forklet-park
busybox-static rootfs.cpio
libc6 rootfs.cpio (inside busybox)
LIST
} >"$guest/NOTICE.md"
cp /usr/share/common-licenses/GPL-2 "$guest/licenses/GPL-2.txt"
cp /usr/share/common-licenses/LGPL-2.1 "$guest/licenses/LGPL-2.1.txt"

cp -r docs README.md LICENSE "$stage/"
node scripts/published-manifest.mjs package.json >"$stage/package.json"
(cd "$stage" && npm pack --silent --pack-destination ..)
ls -l out/package/*.tgz
