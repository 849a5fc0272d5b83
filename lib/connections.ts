/** Options of `vm.connect()`. */
export interface ConnectOptions {
  /**
   * Longest time until the connection is there, in milliseconds, 1 to 2^31 - 1; afterwards it may
   * last as long as it likes.
   *
   * @defaultValue 30 000
   */
  readonly timeoutMs?: number;
  /** Gives up connecting; without effect on a connection that is there. */
  readonly signal?: AbortSignal;
  /**
   * Bytes that are buffered in each direction before it waits, 1 to 2^30; the guest's window
   * follows it.
   *
   * @defaultValue 65 536
   */
  readonly highWaterMark?: number;
  /**
   * Whether this end may go on writing after the guest has ended its own, as with node:net; it has
   * to be ended by the caller then.
   *
   * @defaultValue false
   */
  readonly allowHalfOpen?: boolean;
}

/** Options of `vm.waitForPort()`. */
export interface WaitForPortOptions {
  /** Longest wait, in milliseconds, 1 to 2^31 - 1. @defaultValue 60 000 */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  /**
   * Longest pause between two looks inside the guest, in milliseconds, 1 to 2^31 - 1. Pauses begin
   * with 10 ms, or this if it is less, and double.
   *
   * @defaultValue 250
   */
  readonly intervalMs?: number;
}

/** Options of `vm.forward()`. */
export interface ForwardOptions {
  /** TCP port on the guest's loopback, 1 to 65 535. */
  readonly guestPort: number;
  /** TCP port of this host, 0 to 65 535; 0 is any that is free. @defaultValue 0 */
  readonly hostPort?: number;
  /** Address of this host that is listened at: a loopback one. @defaultValue '127.0.0.1' */
  readonly host?: '127.0.0.1' | '::1';
}
