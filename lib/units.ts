/** Bytes in a mebibyte, 2^20: `memoryBytes: 256 * MiB`. */
export const MiB = 1024 * 1024;

/** Bytes in a gibibyte, 2^30: `memoryBytes: 4 * GiB`. */
export const GiB = 1024 * MiB;
