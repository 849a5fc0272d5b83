import type { NativeVmStats } from '../../native.js';

/** Figures of one VM. Counters start at 0 when the VM is created. */
export interface VmStats {
  /** Guest memory that the host has allocated, in bytes (`st_blocks` of its memfd). */
  readonly memoryAllocatedBytes: number;
  /** CPU time of each vCPU's thread, in milliseconds (`CLOCK_THREAD_CPUTIME_ID`). */
  readonly vcpuCpuTimeMs: readonly number[];
  /** VM exits by reason, as counted by the vCPUs' run loops. */
  readonly exits: Readonly<Record<string, number>>;
  /** Instructions that KVM's emulator refused and the library completed. */
  readonly completedInstructions: number;
  /** Bytes that the guest has written to its serial console. */
  readonly consoleBytes: number;
  /** Payload bytes over vsock, to the guest. */
  readonly vsockBytesToGuest: number;
  /** Payload bytes over vsock, from the guest. */
  readonly vsockBytesFromGuest: number;
  /**
   * KVM's own statistics of the VM and its vCPUs, added up, under KVM's names and in KVM's units
   * (`KVM_GET_STATS_FD`); empty when the host's KVM has none.
   */
  readonly kvm: Readonly<Record<string, number>>;
}

const NS_PER_MS = 1e6;

export function toVmStats(stats: NativeVmStats): VmStats {
  const { vcpuCpuTimeNs, ...rest } = stats;
  return { ...rest, vcpuCpuTimeMs: vcpuCpuTimeNs.map((ns) => ns / NS_PER_MS) };
}
