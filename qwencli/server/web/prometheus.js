// Parses Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/) into a Map of values by name.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)/;

// Values with the same name and different labels are added up.
export function parseMetrics(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const [, name, value] = LINE.exec(line) ?? [];
    if (name) metrics.set(name, (metrics.get(name) ?? 0) + (Number(value) || 0));
  }
  return metrics;
}
