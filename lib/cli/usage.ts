import {
  DEFAULT_BOOT_TIMEOUT_MS,
  DEFAULT_HOSTNAME,
  DEFAULT_MEMORY_BYTES,
  DEFAULT_VCPUS,
} from '../options.js';
import { MiB } from '../units.js';

export function usage(): string {
  return `Usage:
  forklet doctor [--json]
      Says whether this host can run VMs, and what to do if not. Exits with 0 if it can, 1 if not.

  forklet run [options] -- command [argument...]
      Boots a VM, runs one command in it with standard streams and signals connected, and exits
      with the command's exit code, or 128 + n if signal n ended it.

      --memory SIZE      guest memory: bytes, or a number with K, M or G (default ${DEFAULT_MEMORY_BYTES / MiB}M)
      --vcpus COUNT      number of vCPUs (default ${DEFAULT_VCPUS})
      --kernel PATH      kernel, an ELF vmlinux or a bzImage (default: forklet's own)
      --modules PATH     modules of that kernel, as in /lib/modules/RELEASE (default: none)
      --kernel-args TEXT appended to the kernel's command line
      --root PATH        what the guest finds at /: a directory or a cpio archive (default: busybox)
      --env NAME=VALUE   environment variable; may be given more than once
      --cwd PATH         working directory in the guest (default /)
      --user NAME        runs the command as that user of the guest, or number (default root)
      --hostname NAME    host name of the guest (default ${DEFAULT_HOSTNAME})
      --forward HOST:GUEST
                         takes connections to the TCP port HOST of 127.0.0.1 to the guest's port
                         GUEST; may be given more than once
      --timeout SECONDS  longest run of the command; exits with 124
      --boot-timeout SECONDS
                         longest boot (default ${DEFAULT_BOOT_TIMEOUT_MS / 1000})
      --console          copies the guest's serial console to standard error

      Exit codes of forklet itself: 124 the command ran too long, 125 forklet failed, 126 the
      command cannot be started, 127 the command was not found.

  forklet shell [options] [-- command [argument...]]
      Boots a VM and connects this terminal with a shell in it (/bin/sh), or with the command.
      Window changes are followed; what is typed goes to the guest, Ctrl-C included. Options and
      exit codes are those of 'forklet run'. A signal to forklet itself ends the VM.

  forklet snapshot build [options] KEY [-- command [argument...]]
      Makes a snapshot unless the cache has it: boots a VM, runs the command in it, freezes it.
      Prints the directory that it is in. KEY and command name what it is.

      --at PLACE         where it is frozen: agent, after the command; or program, when a program
                         of the guest, which the command is or starts, has parked (default agent)
      --output DIRECTORY also saves it there
      --overwrite        replaces what is in that directory
      and the options of 'forklet run' that describe a VM, --memory to --boot-timeout

  forklet snapshot ls [--json]
      Lists the cache: name, key, place, memory of the guest, size on disk, age.

  forklet snapshot rm NAME...
      Removes snapshots from the cache, by key, or by name or the beginning of one.

  forklet snapshot verify NAME...
      Checks every byte of snapshots, by key, name, or directory. Exits with 1 if one is damaged.

  forklet --help | --version
`;
}
