import type { AgentConnection } from '../agent/connection.js';
import type { Environment } from '../base/validate.js';

/** What commands and files need to know of the VM that they belong to. */
export interface Guest {
  readonly id: string;
  readonly parentId: string | null;
  /** Another one after a reset. */
  readonly agent: AgentConnection;
  /** Environment of every command: the defaults and the VM's own. */
  readonly env: Environment;
  /** The VM's handle: whoever has work pending keeps it from being collected. */
  readonly owner: object;
  /** A name for the next command, which no other has. */
  nextCommandId(): string;
}
