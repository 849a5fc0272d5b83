// How the demo prints, and how it fails.

export const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
export const milliseconds = (ms) => `${ms.toFixed(ms < 10 ? 2 : 0)} ms`;
export const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** Runs one step and prints what it was, what came out and how long it took. */
export async function step(title, run) {
  process.stdout.write(`\n\x1b[1m${title}\x1b[0m\n`);
  const { result: lines, ms } = await timed(run);
  for (const line of lines) console.log(`  ${line}`);
  console.log(`  \x1b[2m${seconds(ms)}\x1b[0m`);
}

/** What a call resolves with, and how long that took. */
export async function timed(run) {
  const start = performance.now();
  const result = await run();
  return { result, ms: performance.now() - start };
}

/** Ends the demo with an error unless the two are the same text. */
export function expectSame(what, found, wanted) {
  if (found === wanted) return;
  throw new Error(`${what} should be '${wanted}', and is '${found}'`);
}
