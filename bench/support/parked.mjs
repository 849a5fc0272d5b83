// A prewarmed fork and its first answer, which first-store and parked-call have in common.

import { compare } from './compare.mjs';
import { expectTouched, touch } from './fixture.mjs';

const TOGETHER = 10;

/** `how` is that of `compare`; `pages` is the number of pages that the program writes to. */
export async function comparePrewarmedCall(bench, pages, how) {
  const snapshot = await bench.fixture.snapshot();
  await snapshot.prewarm(TOGETHER);
  const input = touch(pages);
  let vm;
  let answer;
  let privateBytes;
  const task = {
    // Resolves when as many are ready.
    beforeEach: () => snapshot.prewarm(TOGETHER),
    async run() {
      vm = await snapshot.fork({ pool: 'require', unique: 'program', input });
      answer = await vm.parked.first;
    },
    async afterEach() {
      expectTouched(answer, pages);
      privateBytes = (await vm.stats()).memoryAllocatedBytes;
      await vm.close();
    },
  };
  const result = await compare(bench, task, { perRound: 50, ...how });
  await snapshot.prewarm(0);
  return { ...result, privateBytes };
}
