/**
 * How many times longer than usual everything may take: `FORKLET_TEST_SLOWDOWN`, which the svm
 * lane sets, where Node and the addon run under emulation.
 */
export const slowdown: number = parse(process.env['FORKLET_TEST_SLOWDOWN']);

/** A time limit or a pause, in milliseconds on an ordinary machine, for the one under us. */
export function patience(ms: number): number {
  return ms * slowdown;
}

function parse(text: string | undefined): number {
  const value = Number(text ?? '1');
  if (!Number.isInteger(value) || value < 1) {
    throw new RangeError(`FORKLET_TEST_SLOWDOWN is '${text}', not a positive integer`);
  }
  return value;
}
