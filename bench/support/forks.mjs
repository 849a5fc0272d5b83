// Tasks that fork, for `compare`.

/** Forks once and closes the fork outside of the timed span. `pool` is where it must come from. */
export function forkTask(snapshot, options, pool) {
  let vm;
  return {
    async run() {
      vm = await snapshot.fork({ start: 'on-demand', ...options });
    },
    async afterEach() {
      await vm.close();
      if (pool !== undefined && vm.timings.pool !== pool) {
        throw new Error(`The fork was made from '${vm.timings.pool}', not from '${pool}'`);
      }
    },
  };
}

const TOGETHER = 20;

/**
 * Takes forks that `prewarm` made ahead, as many in a row as it was told, and closes them outside
 * of the timed span. The caller ends prewarming.
 */
export function prewarmedTask(snapshot) {
  const vms = [];
  const closeAll = () => Promise.all(vms.splice(0).map((vm) => vm.close()));
  return {
    async beforeEach() {
      if (vms.length % TOGETHER !== 0) return;
      await closeAll();
      await snapshot.prewarm(TOGETHER);
    },
    async run() {
      vms.push(await snapshot.fork({ pool: 'require', start: 'on-demand' }));
    },
    after: closeAll,
  };
}
