// What it means that the agent could not start a command.

import { show } from '../base/validate.js';
import { ExecStage, type ReplyMessage } from '../protocol/protocol.js';
import type { CheckedExec } from './options.js';

const ENOENT = 2;
const EOPNOTSUPP = 95;

/** Where a start failed. */
export interface StartFailure {
  readonly syscall: string;
  /** What it was about, behind the errno. */
  readonly what: string;
  /** A sentence without its subject, where the errno alone would mislead. */
  readonly problem?: string;
}

export function startFailure(exec: CheckedExec, reply: ReplyMessage): StartFailure {
  const { user, group, groups = [] } = exec.identity;
  const missing = reply.errno === ENOENT;
  switch (reply.stage) {
    case ExecStage.cwd:
      return { syscall: 'chdir', what: `cwd ${show(exec.cwd ?? '/')}` };
    case ExecStage.execute:
      return { syscall: 'execve', what: show(exec.args[0]) };
    case ExecStage.user:
      return missing
        ? missingEntry('getpwnam', 'user', [user])
        : { syscall: 'setuid', what: `user ${show(user)}` };
    case ExecStage.group:
      return missing
        ? missingEntry('getgrnam', 'group', [group])
        : { syscall: 'setgid', what: `group ${show(group)}` };
    case ExecStage.groups:
      return missing
        ? missingEntry(
            'getgrnam',
            'group',
            groups.filter((name) => typeof name === 'string'),
          )
        : { syscall: 'setgroups', what: 'supplementary groups' };
    case ExecStage.limits:
      return { syscall: 'setrlimit', what: 'limits' };
    case ExecStage.tree:
      return {
        syscall: 'mkdir',
        what: 'killTree',
        ...(reply.errno === EOPNOTSUPP && {
          problem:
            'killTree needs cgroup2 at /sys/fs/cgroup and Linux 5.14 or later, ' +
            'which this guest does not have',
        }),
      };
    case ExecStage.terminal:
      return { syscall: 'open', what: 'no terminal from /dev/ptmx' };
    default:
      return { syscall: 'fork', what: 'no process' };
  }
}

/** One of these names is not in the guest's /etc/passwd or /etc/group. */
function missingEntry(
  syscall: string,
  kind: 'user' | 'group',
  names: readonly unknown[],
): StartFailure {
  const shown = names.map(show).join(' or ');
  return { syscall, what: shown, problem: `no ${kind} ${shown} in the guest` };
}
