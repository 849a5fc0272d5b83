// Who a command runs as, and within which limits.

import type { ExecOptions, LimitName } from '../../exec.js';
import {
  checkInteger,
  checkOptions,
  checkText,
  type Environment,
  nearest,
  show,
  wrongType,
} from '../base/validate.js';
import { type LoginVariable, MAX_GROUPS, type ResourceLimit } from '../protocol/protocol.js';

/** What of an exec request is about users and limits; nothing of it costs the guest anything. */
export interface ExecIdentity {
  readonly user?: string | number;
  readonly group?: string | number;
  readonly groups?: readonly (string | number)[];
  /** Variables that the agent adds. */
  readonly login?: readonly LoginVariable[];
  readonly umask?: number;
  readonly limits?: readonly ResourceLimit[];
}

/** Linux on x86-64; every other number of the kernel's is of no use to a caller. */
const RESOURCES: Readonly<Record<LimitName, number>> = {
  cpu: 0,
  fsize: 1,
  data: 2,
  stack: 3,
  core: 4,
  nproc: 6,
  nofile: 7,
  memlock: 8,
  as: 9,
};

const LOGIN_VARIABLES = {
  HOME: 'home',
  USER: 'user',
  LOGNAME: 'logname',
} as const satisfies Readonly<Record<string, LoginVariable>>;

/** The largest number of a user or group; the one above means none. */
const MAX_ID = 2 ** 32 - 2;

const MAX_NAME_LENGTH = 256;

function checkPrincipal(option: string, value: unknown): string | number {
  if (typeof value === 'number') return checkInteger(option, value, { min: 0, max: MAX_ID });
  if (typeof value !== 'string') throw wrongType(option, 'a name or a number', value);
  const name = checkText(option, value);
  if (name === '' || name.length > MAX_NAME_LENGTH || /[:\n]/.test(name)) {
    throw new TypeError(
      `Option "${option}" must be a name of 1 to ${MAX_NAME_LENGTH} characters without ":" and ` +
        `line breaks; got ${show(value)}`,
    );
  }
  return name;
}

function checkGroups(value: unknown): readonly (string | number)[] {
  if (!Array.isArray(value)) throw wrongType('groups', 'an array of names and numbers', value);
  if (value.length > MAX_GROUPS) {
    throw new RangeError(
      `Option "groups" must have at most ${MAX_GROUPS} elements; got ${value.length}`,
    );
  }
  return value.map((group, index) => checkPrincipal(`groups[${index}]`, group));
}

function checkLimitValue(option: string, value: unknown): number {
  if (value === 'unlimited') return Infinity;
  if (typeof value !== 'number') throw wrongType(option, "a number or 'unlimited'", value);
  return checkInteger(option, value, { min: 0, max: Number.MAX_SAFE_INTEGER });
}

function checkLimit(name: LimitName, value: unknown): ResourceLimit {
  const option = `limits.${name}`;
  const resource = RESOURCES[name];
  if (typeof value !== 'object' || value === null) {
    const both = checkLimitValue(option, value);
    return { resource, soft: both, hard: both };
  }
  const given = checkOptions<{ soft: unknown; hard: unknown }>(option, value as never, [
    'soft',
    'hard',
  ]);
  const soft = checkLimitValue(`${option}.soft`, given.soft);
  const hard = checkLimitValue(`${option}.hard`, given.hard);
  if (soft > hard) {
    throw new RangeError(
      `Option "${option}" must have a soft limit up to the hard one; got ${show(value)}`,
    );
  }
  return { resource, soft, hard };
}

function checkLimits(value: unknown): readonly ResourceLimit[] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw wrongType('limits', 'an object', value);
  }
  const known = Object.keys(RESOURCES);
  return Object.entries(value).flatMap(([name, limit]) => {
    if (!known.includes(name)) {
      const near = nearest(name, known);
      const hint = near === undefined ? `: use ${known.join(', ')}` : `; did you mean "${near}"?`;
      throw new TypeError(`Unknown resource "${name}" of option "limits"${hint}`);
    }
    return limit === undefined ? [] : [checkLimit(name as LimitName, limit)];
  });
}

/** Checks the options that say who runs a command. Throws TypeError or RangeError. */
export function checkIdentity(given: Partial<ExecOptions>, env: Environment): ExecIdentity {
  const { user, group, groups, umask, limits } = given;
  const login = Object.entries(LOGIN_VARIABLES).flatMap(([name, variable]) =>
    Object.hasOwn(env, name) ? [] : [variable],
  );
  return {
    ...(user !== undefined && { user: checkPrincipal('user', user), login }),
    ...(group !== undefined && { group: checkPrincipal('group', group) }),
    ...(groups !== undefined && { groups: checkGroups(groups) }),
    ...(umask !== undefined && { umask: checkInteger('umask', umask, { min: 0, max: 0o777 }) }),
    ...(limits !== undefined && { limits: checkLimits(limits) }),
  };
}

/** What a command takes over of the VM's environment: another user's home is not its own. */
export function inherited(vmEnv: Environment, { user }: ExecIdentity): Environment {
  if (user === undefined) return vmEnv;
  const names = Object.keys(LOGIN_VARIABLES);
  return Object.fromEntries(Object.entries(vmEnv).filter(([name]) => !names.includes(name)));
}
