// Prints the manifest of the published package: the checkout's, without what serves development
// alone. An install script or a binding.gyp hint left in it would make npm compile at install.
import { readFileSync } from 'node:fs';

const manifest = JSON.parse(readFileSync(process.argv[2] ?? 'package.json', 'utf8'));
delete manifest.scripts;
delete manifest.devDependencies;
delete manifest.binary;
console.log(JSON.stringify(manifest, null, 2));
