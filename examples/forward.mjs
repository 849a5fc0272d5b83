// Reaches servers inside a guest that has no network: over a stream, through a port of this host, and
// in forks that each go on with a server of their own.
//
//   node examples/forward.mjs
import { text } from 'node:stream/consumers';

import { Vm } from 'forklet';

const vm = await Vm.create();
try {
  await vm.exec('mkdir /www; echo "hello from the guest" >/www/index.html', { check: true });
  await vm.exec('httpd -p 8080 -h /www', { check: true });
  await vm.waitForPort(8080);

  // A connection is a stream.
  const socket = await vm.connect(8080);
  socket.write('GET / HTTP/1.0\r\n\r\n');
  console.log(`connect: ${/^HTTP\S+ (.*)/.exec(await text(socket))?.[1]}`);

  // Or any client of this host goes through a port of it.
  const options = { headers: { connection: 'close' } };
  const web = await vm.forward({ guestPort: 8080 });
  const response = await fetch(`http://${web.host}:${web.port}/index.html`, options);
  console.log(`forward: ${(await response.text()).trim()}`);

  // The server runs on in forks, each with files of its own.
  const forks = await vm.forkMany(2);
  for (const [index, fork] of forks.entries()) {
    await fork.fs.writeFile('/www/index.html', `hello from fork ${index}\n`);
    const { host, port } = await fork.forward({ guestPort: 8080 });
    const page = await fetch(`http://${host}:${port}/index.html`, options);
    console.log(`fork ${index}: ${(await page.text()).trim()}`);
    // Closes the forward as well.
    await fork.close();
  }
  await web.close();
} finally {
  await vm.close();
}
