import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';

import { MiB } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { sharedVm } from '../helpers/shared-vm.js';

/** What goes through each stream: a gibibyte takes minutes where a guest is emulated in any way. */
const LARGE_BYTES = Number(process.env['FORKLET_TEST_LARGE_MIB'] ?? '8') * MiB;

/** More than the windows and buffers on the way hold together, and far less than all of it. */
const ON_THE_WAY_BYTES = MiB;

const LONG_MS = patience(120_000) + LARGE_BYTES / 512;

const everyByte = Buffer.from(Array.from({ length: 256 }, (_, i) => i));

describe.runIf(hasKvm)('commands of a VM', () => {
  const shared = sharedVm();

  describe('have streams that', () => {
    /** What the guest has sent since `from`, in bytes of packets. */
    async function sent(from = 0): Promise<number> {
      return (await shared.vm.stats()).vsockBytesFromGuest - from;
    }

    test(
      'carry its output through a reader that sleeps, and hold it back meanwhile',
      async () => {
        const before = await sent();
        const residentBefore = process.memoryUsage.rss();
        const { stdout } = shared.vm.exec(`yes | head -c ${LARGE_BYTES}`);
        let bytes = 0;
        let resident = 0;
        let wrong = 0;
        let asleep = 0;

        for await (const chunk of stdout as AsyncIterable<Buffer>) {
          if (bytes === 0) {
            // Another command is not held up by this one.
            expect(await shared.vm.exec('echo meanwhile')).toMatchObject({ stdout: 'meanwhile\n' });
            await delay(patience(500));
            asleep = await sent(before);
          }
          const expected = (bytes % 2 === 0 ? 'y\n' : '\ny').repeat(Math.ceil(chunk.length / 2));
          if (chunk.compare(Buffer.from(expected), 0, chunk.length) !== 0) wrong++;
          bytes += chunk.length;
          if (bytes % (4 * MiB) < chunk.length) {
            await delay(patience(20));
            resident = Math.max(resident, process.memoryUsage.rss());
          }
        }

        expect({ bytes, wrong }).toEqual({ bytes: LARGE_BYTES, wrong: 0 });
        expect(asleep).toBeLessThan(ON_THE_WAY_BYTES);
        expect(resident - residentBefore).toBeLessThan(128 * MiB);
      },
      LONG_MS,
    );

    test(
      'carry its input, and hold the writer back while it sleeps',
      async () => {
        const block = Buffer.concat(Array.from({ length: 256 }, () => everyByte));
        const hash = createHash('md5');
        let taken = 0;
        const blocks = (function* () {
          while (taken < LARGE_BYTES) {
            hash.update(block);
            taken += block.length;
            yield block;
          }
        })();
        const stdin = Readable.from(blocks, { objectMode: false, highWaterMark: block.length });

        const summing = shared.vm.exec('until [ -e /tmp/awake ]; do sleep 0.1; done; md5sum', {
          stdin,
        });
        await summing.started;
        await delay(patience(500));
        const takenAsleep = taken;
        await shared.vm.fs.writeFile('/tmp/awake', '');
        const { stdout } = await summing;

        expect(takenAsleep).toBeLessThan(ON_THE_WAY_BYTES);
        expect(taken).toBe(LARGE_BYTES);
        expect(stdout).toBe(`${hash.digest('hex')}  -\n`);
      },
      LONG_MS,
    );

    test('carry every byte value both ways', async () => {
      const input = Buffer.concat([everyByte, Buffer.from(everyByte).reverse(), everyByte]);

      const { stdout, stderr } = await shared.vm.exec('tee /dev/stderr', {
        stdin: input,
        encoding: 'buffer',
      });

      expect(stdout.equals(input)).toBe(true);
      expect(stderr.equals(input)).toBe(true);
    });

    test('that nobody reads stop the command, and neither the agent nor others', async () => {
      const before = await sent();
      const stalled = shared.vm.exec('yes');
      await stalled.started;
      const streams = [stalled.stdout, stalled.stderr];

      const others = await Promise.all([1, 2, 3].map((i) => shared.vm.exec(`echo ${i}`)));
      await delay(patience(300));

      expect(others.map(({ stdout }) => stdout)).toEqual(['1\n', '2\n', '3\n']);
      expect(await sent(before)).toBeLessThan(ON_THE_WAY_BYTES);
      expect((await shared.vm.processes()).length).toBe(1);
      stalled.kill('SIGKILL');
      for (const stream of streams) stream.resume();
      expect(await stalled.exited).toEqual({ exitCode: null, signal: 'SIGKILL' });
    });
  });

  describe('go on or end:', () => {
    /** Processes whose command line contains it. */
    async function count(text: string): Promise<number> {
      const pattern = `[${text[0]}]${text.slice(1)}`;
      return Number((await shared.vm.exec(`ps -o args | grep -c "${pattern}"`)).stdout);
    }

    test('one that ignores SIGTERM ends with its deadline', async () => {
      const stubborn = shared.vm.exec(
        'trap "" TERM; echo ready; while :; do sleep 921; echo again; done',
        { timeoutMs: patience(4000) },
      );
      const { stdout } = stubborn;
      const failure = stubborn.catch((error: unknown) => error);
      expect(String((await once(stdout, 'data'))[0])).toBe('ready\n');
      expect(stubborn.kill('SIGTERM')).toBe(true);

      expect(await failure).toMatchObject({ code: 'ERR_VM_TIMEOUT', signal: 'SIGKILL' });
      expect(await count('sleep 921')).toBe(0);
    });

    test('one that leaves daemons is over without them, and they go on undisturbed', async () => {
      const daemon = 'i=0; while [ $i -lt 3 ]; do echo late; i=$((i+1)); done; touch /tmp/wrote';

      const { stdout, exitCode } = await shared.vm.exec(
        `(setsid sh -c 'exec sleep 922' &) ; (setsid sh -c 'sleep 1; ${daemon}' &) ; echo over`,
      );

      expect({ stdout, exitCode }).toEqual({ stdout: 'over\n', exitCode: 0 });
      // It may be in the middle of an execve, where it has no arguments.
      await expect.poll(() => count('sleep 922'), { timeout: patience(10_000) }).toBe(1);
      expect(await shared.vm.processes()).toEqual([]);
      // What it says when nobody listens any more neither stops nor kills it.
      const deadline = Date.now() + patience(30_000);
      const wrote = () =>
        shared.vm.fs.access('/tmp/wrote').then(
          () => true,
          () => false,
        );
      while (!(await wrote()) && Date.now() < deadline) await delay(patience(100));
      expect(await wrote()).toBe(true);
    });

    test('64 at once, each with its answer', async () => {
      const numbers = Array.from({ length: 64 }, (_, i) => i);

      const results = await Promise.all(
        numbers.map((i) => shared.vm.exec(['/bin/echo', `number ${i}`], { check: true })),
      );

      expect(results.map(({ stdout }) => stdout)).toEqual(numbers.map((i) => `number ${i}\n`));
    });
  });
});
