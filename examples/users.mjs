// Commands as another user than root, within limits, and killed with all that they have started.
//
//   node examples/users.mjs
import { Vm } from 'forklet';

const vm = await Vm.create();
try {
  await vm.fs.appendFile('/etc/passwd', 'builder:x:1000:1000::/home/builder:/bin/sh\n');
  await vm.fs.appendFile('/etc/group', 'builder:x:1000:\n');
  await vm.fs.mkdir('/home/builder');
  await vm.fs.chown('/home/builder', 1000, 1000);
  const builder = { user: 'builder', cwd: '/home/builder' };

  const { stdout: id } = await vm.exec('id', builder);
  console.log(`runs as ${id.trim()}`);

  // HOME comes from /etc/passwd.
  const { stdout: home } = await vm.exec('touch file; echo $HOME', { ...builder, umask: 0o077 });
  const { mode } = await vm.fs.stat('/home/builder/file');
  console.log(`home ${home.trim()}, files of mode ${(mode & 0o777).toString(8)}`);

  const { stderr } = await vm.exec('echo x >/etc/passwd', builder);
  console.log(`may not write to /etc: ${stderr.trim().split(': ').pop()}`);

  const limits = { nofile: 64, core: 0, cpu: { soft: 10, hard: 12 } };
  const { stdout: descriptors } = await vm.exec('ulimit -n', { ...builder, limits });
  console.log(`descriptors: ${descriptors.trim()}`);

  await vm.exec('true', { user: 'nobody else' }).catch(({ code }) => {
    console.log(`no user there: ${code}`);
  });

  // A daemon leaves the process group of its command, and goes with it all the same.
  const daemon = '(setsid sh -c "echo \\$\\$; exec sleep 1000" &); sleep 1000';
  let pid;
  for await (const line of vm.exec(daemon, { ...builder, killTree: true }).lines()) {
    pid = line;
    break;
  }
  const left = (await vm.fs.readdir('/proc')).filter((name) => name === pid);
  console.log(`daemons left: ${left.length}`);
} finally {
  await vm.close();
}
