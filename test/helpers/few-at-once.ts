import { availableParallelism } from 'node:os';

// Where guest kernel code is emulated, a VM that gets less than a processor to itself is kept from
// its work by the timer interrupts that it falls behind with: 32 forks that become ready one after
// the other take a second, and all at once 20.
const AT_ONCE = Math.min(4, availableParallelism());

/** As `Promise.all(items.map(work))`, with a few at work at a time. */
export async function mapFewAtOnce<Item, Result>(
  items: readonly Item[],
  work: (item: Item, index: number) => Promise<Result>,
): Promise<Result[]> {
  const results: Result[] = [];
  const left = items.entries();
  const workOn = async (): Promise<void> => {
    for (const [index, item] of left) results[index] = await work(item, index);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, workOn));
  return results;
}
