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
