import { expect } from 'vitest';

import { vmTest } from './forklet.js';

// The machine that every test starts from: a small "service" with its data in place.
const test = vmTest({
  key: 'notes 1',
  options: { bootTimeoutMs: 110_000 },
  async prepare(vm) {
    await vm.fs.writeFile('/srv/notes', 'first\nsecond\n');
    // What runs when the VM is frozen runs on in each fork.
    vm.exec('while :; do date +%s >/srv/alive; sleep 1; done').exited.catch(() => {});
  },
});

test('a test may break everything', async ({ vm }) => {
  await vm.exec('rm -rf /srv /bin/ls', { check: true });

  await expect(vm.fs.readFile('/srv/notes')).rejects.toMatchObject({ code: 'ENOENT' });
});

test('and the next one does not notice', async ({ vm }) => {
  expect((await vm.exec('sort -r /srv/notes')).stdout).toBe('second\nfirst\n');
  expect(await vm.processes()).toHaveLength(1);
});

test.for([1, 2, 3])('a VM that is reset is as good as new, time %d', async (_, { resetVm }) => {
  await resetVm.fs.writeFile('/srv/notes', 'third\n', { flag: 'a' });

  expect(await resetVm.fs.readFile('/srv/notes', 'utf8')).toBe('first\nsecond\nthird\n');
});

test('a test can go on from where another machine is', async ({ vm }) => {
  await vm.fs.writeFile('/srv/notes', 'mine\n');
  const branches = await vm.forkMany(2);
  try {
    await Promise.all(branches.map((branch, i) => branch.fs.writeFile('/srv/notes', `${i}\n`)));

    expect(await vm.fs.readFile('/srv/notes', 'utf8')).toBe('mine\n');
  } finally {
    await Promise.all(branches.map((branch) => branch.close()));
  }
});
