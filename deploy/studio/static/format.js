// How numbers, durations and sizes are written, everywhere alike.

export const number = (value, digits = 4) => {
  if (value === null || value === undefined) return "–";
  const plain = value === 0 || Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6;
  return plain ? String(+value.toPrecision(digits)) : value.toExponential(2).replace(/\.?0+e/, "e");
};

export const count = value => value === null || value === undefined ? "–" : value.toLocaleString("en");

export const percent = value => value === null || value === undefined ? "–" : `${value.toFixed(value < 10 && value % 1 ? 1 : 0)}%`;

export const duration = seconds => {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
};

export const ago = when => when === null || when === undefined ? "–" : `${duration(Date.now() / 1000 - when)} ago`;

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
export const bytes = value => {
  if (value === null || value === undefined) return "–";
  const power = value < 1 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log2(value) / 10));
  return `${number(value / 1024 ** power, 3)} ${UNITS[power]}`;
};

const CENTS = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
export const price = dollars => dollars < 0.01 ? "< $0.01" : `$${dollars.toLocaleString("en", CENTS)}`;

// A hyperparameter's value, in one line.
export const value = one => {
  if (one === null || one === undefined) return "–";
  return typeof one === "object" ? JSON.stringify(one) : typeof one === "number" ? number(one, 6) : String(one);
};
