/**
 * Boot real Linux micro-VMs inside this process.
 *
 * Importing this module loads no addon and works on any platform; {@link doctor} says whether VMs
 * can run.
 *
 * @packageDocumentation
 */

export type { ConnectOptions, ForwardOptions, WaitForPortOptions } from './connections.js';
export { type DoctorCheck, type DoctorReport, doctor } from './doctor.js';
export {
  ExecError,
  VM_ERROR_CODES,
  VmError,
  type VmErrorCode,
} from './errors.js';
export type {
  ExecCommand,
  ExecOptions,
  ExecProcess,
  ExecResult,
  ExecStatus,
  LimitName,
  LimitValue,
  TerminalSize,
} from './exec.js';
export type {
  AppendFileOptions,
  DownloadOptions,
  EncodingOptions,
  FileContents,
  FileTime,
  FileWatcher,
  FsOptions,
  GuestFs,
  GuestPath,
  HostPath,
  MkdirOptions,
  ReaddirOptions,
  ReadFileOptions,
  ReadStreamOptions,
  RmOptions,
  StatOptions,
  TransferSummary,
  WatchOptions,
  WriteFileOptions,
  WriteStreamOptions,
} from './guest-fs.js';
export type { DiagnosticsMessage } from './internal/base/diagnostics.js';
export type { ForkCapacity } from './internal/snapshot/fork-limits.js';
export type { VmOptions } from './options.js';
export type { ParkedCallOptions, ParkedProgram } from './parked.js';
export type { PortForward } from './port-forward.js';
export {
  type ForkOptions,
  type LoadOptions,
  type SaveOptions,
  Snapshot,
  type SnapshotOptions,
  type SnapshotProgress,
  type SnapshotRecipe,
} from './snapshot.js';
export { GiB, MiB } from './units.js';
export {
  type BootTimings,
  type ForkTimings,
  type ProcessInfo,
  Vm,
  type VmEvents,
  type VmExit,
  type VmStats,
  type VmTimings,
} from './vm.js';
