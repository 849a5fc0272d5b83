// Times as they are taken, and what is said of many of them.

/** Microseconds of CLOCK_MONOTONIC, which is what both Node and the reference read. */
export const nowUs = () => Number(process.hrtime.bigint()) / 1000;

/** The value that a share `q` of the samples does not exceed (nearest rank). */
function quantile(sorted, q) {
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];
}

/** @param {readonly number[]} samples */
export function summarize(samples) {
  if (samples.length === 0) throw new Error('There are no samples');
  const sorted = [...samples].sort((a, b) => a - b);
  return {
    n: sorted.length,
    min: sorted[0],
    p50: quantile(sorted, 0.5),
    p90: quantile(sorted, 0.9),
    p99: quantile(sorted, 0.99),
  };
}

/** Slope of the least-squares line through the points. */
export function slope(points) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const meanX = mean(points.map(([x]) => x));
  const meanY = mean(points.map(([, y]) => y));
  const covariance = points.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0);
  const variance = points.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0);
  return covariance / variance;
}
