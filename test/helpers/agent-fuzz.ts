// Random and mutated frames for the agent, which is confined to an empty directory meanwhile.

import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import * as protocol from '../../lib/internal/protocol/protocol.js';
import { type AgentExit, HostAgent } from './host-agent.js';
import { Random } from './random.js';
import { validTree } from './tree-streams.js';

const { FrameType, Tag } = protocol;
const BUSYBOX = '/bin/busybox';

/** A directory for the agent to live in, with a shell where the host has a static one. */
export function makeCage(): string {
  const cage = mkdtempSync(join(tmpdir(), 'forklet-fuzz-'));
  mkdirSync(join(cage, 'bin'));
  if (existsSync(BUSYBOX)) {
    copyFileSync(BUSYBOX, join(cage, 'bin/busybox'));
    for (const name of ['sh', 'cat', 'sleep', 'yes', 'true']) {
      symlinkSync('busybox', join(cage, 'bin', name));
    }
  }
  mkdirSync(join(cage, 'tmp/d/e'), { recursive: true });
  for (const name of ['tmp', 'tmp/d', 'tmp/d/e', '.']) chmodSync(join(cage, name), 0o777);
  return cage;
}

export function removeCage(cage: string): void {
  rmSync(cage, { recursive: true, force: true });
}

/** Whether this user may confine a process. */
export function canConfine(agent: string): boolean {
  const cage = makeCage();
  try {
    execFileSync('/bin/sh', ['-c', 'exec "$0" "$1" 3<>/dev/null', agent, cage], { stdio: 'pipe' });
    return true;
  } catch (error) {
    return !String((error as { stderr?: Buffer }).stderr).includes('unshare');
  } finally {
    removeCage(cage);
  }
}

const PATHS = [
  '/',
  '',
  '/tmp/a',
  '/tmp/d',
  '/tmp/d/e/f',
  '/tmp/b',
  '/tmp/../bin',
  '/bin/busybox',
  '/no/where',
  'x'.repeat(5000),
];
const COMMANDS = [
  ['true'],
  ['cat'],
  ['sleep', '0.05'],
  ['sh', '-c', 'echo out; echo err >&2; exit 3'],
  ['sh', '-c', 'yes | head -c 100000'],
  ['sh', '-c', 'sleep 0.1 & echo started'],
  ['missing'],
  [''],
];

/** A frame that makes sense: a request with the new id, or one more for an operation of before. */
function sensibleFrame(random: Random, newId: number): Buffer {
  const id = newId - random.below(20);
  const path = random.pick(PATHS);
  const other = random.pick(PATHS);
  const limit = random.pick([0, 1, 100, 65536, 2 ** 40]);
  const flag = () => random.below(2) === 1;
  const choices: (() => Buffer)[] = [
    () => protocol.encodePing(newId),
    () => protocol.encodeConfigure(newId, { hostname: random.pick(['', 'host', 'x'.repeat(300)]) }),
    () =>
      protocol.encodeExec(newId, {
        args: random.pick(COMMANDS),
        env: ['PATH=/bin', 'A=b'],
        ...(flag() && { cwd: path }),
        stdin: flag(),
        stdout: flag(),
        stderr: flag(),
        lazyStart: flag(),
        ...(random.below(4) === 0 && { terminal: { columns: random.below(70_000), rows: 24 } }),
        killTree: random.below(8) === 0,
        outputLimit: limit,
        errorLimit: random.pick([0, 2 ** 40]),
        ...(flag() && { user: random.pick(['root', 'nobody', '', 65534, 0]) }),
        ...(random.below(4) === 0 && { groups: random.pick([[], ['root', 7], [65534]]) }),
        ...(random.below(4) === 0 && { umask: random.below(0o2000) }),
        ...(random.below(4) === 0 && {
          limits: [{ resource: random.below(20), soft: random.below(100), hard: 100 }],
        }),
      }),
    () => protocol.encodeSignal(id, random.pick([0, 2, 9, 15, 18, 19, 64, 65, 2 ** 31])),
    () => protocol.encodeResize(id, { columns: random.below(0x1_0000), rows: random.below(99) }),
    () => protocol.encodeCancel(id, flag() ? protocol.Cancel.close : protocol.Cancel.reset),
    () => protocol.encodeConnect(newId, random.pick([1, 80, 65535]), limit),
    () => protocol.encodeWaitPort(newId, random.pick([1, 80, 65535]), random.pick([1, 1000])),
    () => protocol.encodePark(newId, flag() ? 1 : 0),
    () => protocol.encodeRenew(),
    () =>
      protocol.encodeData(
        id,
        random.pick([0, 0, 1, 65536]),
        Buffer.alloc(random.pick([1, 1000, 65536])),
      ),
    () => protocol.encodeEnd(id, random.pick([0, 0, 1, 65536])),
    () => protocol.encodeWindow(id, flag() ? 1 : 2, limit),
    () =>
      protocol.encodeReadFile(newId, path, {
        outputLimit: limit,
        start: random.below(3),
        byteCount: random.below(5000),
      }),
    () =>
      protocol.encodeWriteFile(newId, path, {
        append: random.below(4) === 0,
        update: random.below(4) === 0,
        atomic: random.below(4) === 0,
        exclusive: flag(),
        ...(flag() && { start: random.pick([0, 5, 2 ** 40]) }),
        mode: random.below(0o1000),
      }),
    () => protocol.encodeStat(newId, path, { followLinks: flag() }),
    () => protocol.encodeReaddir(newId, path, { outputLimit: limit, recursive: flag() }),
    () => protocol.encodeWatch(newId, path, { outputLimit: limit, recursive: flag() }),
    () => protocol.encodeMkdir(newId, path, { recursive: flag(), mode: 0o777 }),
    () => protocol.encodeRename(newId, path, other),
    () => protocol.encodeCopyFile(newId, path, other, { exclusive: flag() }),
    () => protocol.encodePack(newId, path, { outputLimit: limit }),
    () => protocol.encodeUnpack(newId, path),
    () => protocol.encodeData(id, 0, validTree(random, [path])),
    () => protocol.encodeLink(newId, path, other),
    () => protocol.encodeSymlink(newId, path, other),
    () => protocol.encodeReadlink(newId, path),
    () => protocol.encodeRealpath(newId, path),
    () => protocol.encodeAccess(newId, path, random.below(9)),
    () => protocol.encodeChmod(newId, path, 0o600 + random.below(0o200)),
    () =>
      protocol.encodeChown(newId, path, {
        user: random.pick([0, 65534, 2 ** 32 - 1]),
        group: random.pick([0, 65534, 2 ** 32 - 1]),
        followLinks: flag(),
      }),
    () =>
      protocol.encodeUtimes(newId, path, {
        accessedNs: random.pick([0n, -1n, 2n ** 63n - 1n, -(2n ** 63n)]),
        modifiedNs: BigInt(random.below(2 ** 32)),
        followLinks: flag(),
      }),
    () => protocol.encodeTruncate(newId, path, random.pick([0, 1, 70_000, 2 ** 40])),
    () =>
      protocol.encodeRemove(newId, path.startsWith('/tmp') ? path : '/tmp/d', {
        recursive: flag(),
        force: flag(),
      }),
  ];
  return random.pick(choices)();
}

/** The same frame with some of it changed. */
function mutate(random: Random, frame: Buffer): Buffer {
  const bytes = Buffer.from(frame);
  for (let i = random.below(4); i >= 0; i--) {
    const at = random.below(bytes.length);
    bytes[at] = random.pick([0, 1, 0x7f, 0x80, 0xff, random.below(256)]);
  }
  return bytes;
}

/** A well-formed frame with random records. */
function randomFrame(random: Random, id: number): Buffer {
  const tags = [...Object.values(Tag), 0, 99];
  const payload = Array.from({ length: random.below(6) }, () =>
    protocol.encodeRecord(
      random.pick(tags),
      Buffer.from(Array.from({ length: random.pick([0, 4, 8, 16, 33]) }, () => random.below(256))),
    ),
  );
  return protocol.encodeFrame({
    type: random.pick([...Object.values(FrameType), random.below(65536)]),
    stream: random.pick([0, 1, 2, 3, 65535]),
    id,
    value: random.pick([random.below(20), 2 ** 32 - 1]),
    offset: random.pick([0, 1, 65536, Number.MAX_SAFE_INTEGER]),
    payload,
  });
}

/**
 * Runs one agent until it has had `frames` frames, or has closed the connection for one of them.
 * Resolves with how it ended.
 */
export async function fuzzAgent(
  path: string,
  cage: string,
  seed: number,
  frames: number,
): Promise<AgentExit> {
  const random = new Random(seed);
  const agent = new HostAgent(path, [cage]);
  let gone = false;
  void agent.exited.then(() => {
    gone = true;
  });
  for (let i = 0; i < frames && !gone; i++) {
    const id = 100 + i;
    const kind = random.below(10);
    const sensible = sensibleFrame(random, id);
    const frame =
      kind < 6 ? sensible : kind < 8 ? randomFrame(random, id) : mutate(random, sensible);
    // In two pieces now and then, or cut off.
    const cut = random.below(20) === 0 ? random.below(frame.length) : frame.length;
    agent.socket.write(frame.subarray(0, cut));
    if (random.below(4) === 0) await new Promise((resolve) => setImmediate(resolve));
    if (cut < frame.length && random.below(8) > 0) agent.socket.write(frame.subarray(cut));
  }
  await new Promise((resolve) => setTimeout(resolve, random.below(30)));
  return agent.close();
}
