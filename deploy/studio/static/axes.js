// Axes: where values lie on them, and which of them are marked.

// Marks of an axis: 1, 2 and 5 times powers of ten, few of them.
export function marks(low, high, logarithmic) {
  if (logarithmic) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const times of [1, 2, 5]) {
        const mark = times * 10 ** power;
        if (mark >= low && mark <= high) found.push(mark);
      }
    }
    if (found.length > 8) return found.filter(mark => Math.abs(Math.log10(mark) - Math.round(Math.log10(mark))) < 1e-9);
    if (found.length >= 2) return found;
  }
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(times => times * power >= rough) * power;
  const found = [];
  for (let mark = Math.ceil(low / step) * step; mark <= high + step * 1e-9; mark += step) found.push(+mark.toPrecision(12));
  return found;
}

// From values to places between two ends, with a margin.
export function scale(values, from, to, logarithmic) {
  let low = Math.min(...values), high = Math.max(...values);
  if (logarithmic) {
    const margin = Math.max(1.02, (high / low) ** .06);
    [low, high] = [low / margin, high * margin];
    const span = Math.log(high / low);
    return { low, high, at: value => from + (to - from) * Math.log(value / low) / span };
  }
  const margin = (high - low || Math.abs(high) || 1) * .06;
  [low, high] = [low - margin, high + margin];
  return { low, high, at: value => from + (to - from) * (value - low) / (high - low) };
}
