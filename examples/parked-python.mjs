// A Python program that takes long to get ready is got ready once: it parks, is frozen there, and
// answers each request in a fork of its own.
//
//   node examples/parked-python.mjs
//
// Needs Debian's python3, which examples/python-root.sh copies. Where KVM emulates the guest's
// kernel (`doctor()` reports the quirk emulated-supervisor), starting Python takes minutes.
import { execFileSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { MiB, Vm } from 'forklet';

const MODEL = `
import json, random
import forklet_park

squares = {n: n * n for n in range(100_000)}  # What takes long

def answer(request):
    n = json.loads(request)["n"]
    return json.dumps({"square": squares[n], "lot": random.getrandbits(64)})

forklet_park.serve(answer)
`;

const root = await mkdtemp(join(tmpdir(), 'forklet-python-'));
let vm;
try {
  execFileSync(fileURLToPath(new URL('python-root.sh', import.meta.url)), [root, 'json']);
  vm = await Vm.create({ root, memoryBytes: 256 * MiB });
  vm.exec(['/usr/bin/python3', '-I', '-B', '-c', MODEL], { stderr: 'inherit' });
  const snapshot = await vm.snapshot({ at: 'program', timeoutMs: 600_000 });
  const answers = await Promise.all(
    [3, 4, 5, 6].map(async (n) => {
      const fork = await snapshot.fork({ unique: 'program' });
      const answer = await fork.parked.call(Buffer.from(`{ "n": ${n} }`));
      await fork.close();
      return JSON.parse(answer);
    }),
  );
  console.log(`squares: ${answers.map(({ square }) => square).join(' ')}`);
  // forklet_park seeds Python's random anew in each fork.
  console.log(`different random numbers: ${new Set(answers.map(({ lot }) => lot)).size}`);
  await snapshot.close();
} finally {
  await vm?.close();
  await rm(root, { recursive: true });
}
