// Figures as people read them.

const digits = (value) => (value >= 100 ? 0 : value >= 10 ? 1 : 2);
const show = (value) => value.toFixed(digits(Math.abs(value)));

/**
 * A target: of which figure, and how large it may be at most, absolutely (`most`) or as a multiple
 * of the reference's median (`ratio`).
 */
function judge({ of, ratio, most }, row) {
  const value = row.summary[of];
  const limit = most ?? ratio * row.reference.summary.p50;
  return { of, ...(most === undefined ? { ratio } : { most }), limit, met: value <= limit };
}

/** Completes a row that a bench has reported: ratios, and whether it met its targets. */
export function complete(row) {
  const median = row.reference?.summary.p50;
  return {
    ...row,
    ...(median !== undefined && {
      ratios: Object.fromEntries(['p50', 'p90', 'p99'].map((of) => [of, row.summary[of] / median])),
    }),
    targets: (row.targets ?? []).map((target) => judge(target, row)),
  };
}

function targetText({ of, ratio, most }, unit) {
  return most === undefined ? `${of} <= ${ratio}x` : `${of} <= ${most} ${unit}`;
}

const columns = [
  ['metric', (row) => row.label],
  ['unit', (row) => row.unit],
  ['p50', (row) => show(row.summary.p50)],
  ['p90', (row) => show(row.summary.p90)],
  ['p99', (row) => show(row.summary.p99)],
  ['n', (row) => String(row.summary.n)],
  ['reference p50', (row) => (row.reference ? show(row.reference.summary.p50) : '')],
  ['ratio p50', (row) => (row.ratios ? `${row.ratios.p50.toFixed(2)}x` : '')],
  ['ratio p99', (row) => (row.ratios ? `${row.ratios.p99.toFixed(2)}x` : '')],
  ['target', (row) => row.targets.map((target) => targetText(target, row.unit)).join(', ')],
  ['met', (row) => row.targets.map(({ met }) => (met ? 'yes' : 'NO')).join(', ')],
];

/** A Markdown table, which is also readable as it is. */
export function table(rows) {
  const cells = [
    columns.map(([title]) => title),
    ...rows.map((row) => columns.map(([, cell]) => cell(row))),
  ];
  const widths = columns.map((_, i) => Math.max(...cells.map((line) => line[i].length)));
  const lines = cells.map(
    (line) => `| ${line.map((cell, i) => cell.padEnd(widths[i])).join(' | ')} |`,
  );
  lines.splice(1, 0, `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`);
  return lines.join('\n');
}
