// Writes the default root: node pack.mjs BUSYBOX OUTPUT. Called by `build`.

import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';

import { CpioWriter, FileKind } from '../../dist/internal/boot/cpio.js';

const [busyboxPath, outputPath] = process.argv.slice(2);

const directories = [
  ['bin', 0o755],
  ['dev', 0o755],
  ['etc', 0o755],
  ['home', 0o755],
  ['mnt', 0o755],
  ['opt', 0o755],
  ['proc', 0o555],
  ['root', 0o700],
  ['run', 0o755],
  ['srv', 0o755],
  ['sys', 0o555],
  ['tmp', 0o1777],
  ['usr', 0o755],
  ['usr/local', 0o755],
  ['usr/local/bin', 0o755],
  ['var', 0o755],
  ['var/log', 0o755],
  ['var/tmp', 0o1777],
];

const files = {
  'etc/passwd':
    'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n',
  // tty (5) owns the pseudo terminals of /dev/pts.
  'etc/group': 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n',
  'etc/hosts': '127.0.0.1\tlocalhost\n::1\tlocalhost\n',
  'etc/nsswitch.conf': 'passwd: files\ngroup: files\nhosts: files dns\n',
  'etc/os-release': 'ID=forklet\nNAME=forklet\nPRETTY_NAME="forklet default root"\n',
};

const links = {
  lib: 'usr/lib',
  sbin: 'bin',
  'usr/bin': '../bin',
  'usr/sbin': '../bin',
  'var/run': '../run',
};

/** True for a program that names a dynamic loader (PT_INTERP), which this root does not have. */
function needsLoader(elf) {
  const PT_INTERP = 3;
  const table = Number(elf.readBigUInt64LE(32));
  const entryBytes = elf.readUInt16LE(54);
  const count = elf.readUInt16LE(56);
  return Array.from({ length: count }, (_, i) => elf.readUInt32LE(table + i * entryBytes)).includes(
    PT_INTERP,
  );
}

const busybox = readFileSync(busyboxPath);
if (needsLoader(busybox)) {
  throw new Error(`${busyboxPath} is not static: install busybox-static`);
}
const available = new Set(
  execFileSync(busyboxPath, ['--list'], { encoding: 'utf8' }).trim().split('\n'),
);
const applets = readFileSync(new URL('applets.txt', import.meta.url), 'utf8')
  .replace(/^#.*$/gm, '')
  .trim()
  .split(/\s+/)
  .filter((name) => available.has(name));
if (!applets.includes('sh')) throw new Error(`${busyboxPath} has no shell`);

const writer = new CpioWriter();
const pieces = [];
let bytes = 0;
function add(path, mode, data) {
  const piece = writer.entry({ path, mode, data }, bytes);
  pieces.push(piece);
  bytes += piece.byteLength;
}
for (const [path, permissions] of directories) add(path, FileKind.directory | permissions);
add('usr/lib', FileKind.directory | 0o755);
for (const [path, target] of Object.entries(links)) {
  add(path, FileKind.symlink | 0o777, Buffer.from(target));
}
for (const [path, text] of Object.entries(files)) {
  add(path, FileKind.regular | 0o644, Buffer.from(text));
}
add('bin/busybox', FileKind.regular | 0o755, busybox);
for (const name of applets) add(`bin/${name}`, FileKind.symlink | 0o777, Buffer.from('busybox'));
pieces.push(writer.trailer());
writeFileSync(outputPath, Buffer.concat(pieces));
