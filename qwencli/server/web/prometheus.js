// Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/): name -> {value, help}.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)/;

// Values of one name with different labels are added up.
export function parseMetrics(text) {
  const metrics = new Map();
  const metric = (name) => metrics.get(name) ?? metrics.set(name, { value: 0, help: "" }).get(name);
  for (const line of text.split("\n")) {
    const [, name, help] = /^# HELP (\S+) (.*)/.exec(line) ?? [];
    if (name) metric(name).help = help;
    const [, of, value] = LINE.exec(line) ?? [];
    if (of) metric(of).value += Number(value) || 0;
  }
  return metrics;
}
