// Lua 5.4, warmed up and parked: each piece of Lua source is evaluated in a fork of its own, which
// is made for it and thrown away. Nothing that one does is there for the next.
//
//   node examples/parked-lua.mjs [SOURCE...]
//
// The interpreter is guest/park/examples/lua.c, built by guest/park/build.
import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import { Vm } from 'forklet';

const build = fileURLToPath(new URL('../guest/park/build', import.meta.url));
const lua = execFileSync(build, ['lua'], { encoding: 'utf8' }).trim();

const sources = process.argv.slice(2);
if (sources.length === 0) {
  sources.push(
    '1 + 2',
    'local t = {} for i = 1, 5 do t[i] = i * i end return table.concat(t, " ")',
    'string.upper = nil return "broke upper"',
    '("still here"):upper()',
    'error("a chunk that fails")',
  );
}

const vm = await Vm.create();
try {
  await vm.fs.writeFile('/usr/bin/lua-parked', await readFile(lua), { mode: 0o755 });
  // It parks when it is warm, and is frozen there.
  vm.exec(['/usr/bin/lua-parked']);
  const snapshot = await vm.snapshot({ at: 'program' });
  const answers = await Promise.all(
    sources.map(async (source) => {
      // The fork answers in the middle of the interpreter, before anything of its kernel has run.
      // What is unique to it is up to the program, which has nothing but the seed of math.random.
      const fork = await snapshot.fork({ input: Buffer.from(source), unique: 'program' });
      try {
        return `${source}\n  = ${await fork.parked.first}`;
      } catch (error) {
        return `${source}\n  ! ${error.message}`;
      } finally {
        await fork.close();
      }
    }),
  );
  console.log(answers.join('\n'));
  await snapshot.close();
} finally {
  await vm.close();
}
