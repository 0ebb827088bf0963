// One stream for the whole tab. It carries the channels that something on the page listens to, and goes on where it broke off.
import { useEffect, useRef } from "./view.js";

const WAIT = 40; // milliseconds in which what a new page listens to is gathered
const listeners = new Set(); // of {patterns, hear}
const watchers = new Set(); // of the stream's state
let stream = null, carried = "", last = null, waiting = null;

const fits = (channel, pattern) => pattern.endsWith("*") ? channel.startsWith(pattern.slice(0, -1)) : channel === pattern;

function wanted() {
  const patterns = new Set([...listeners].flatMap(one => one.patterns));
  const covered = one => [...patterns].some(other => other !== one && other.endsWith("*") && fits(one, other));
  return [...patterns].filter(one => !covered(one)).sort().join(",");
}

function tell(state) {
  for (const watcher of watchers) watcher(state);
}

function open() {
  waiting = null;
  const channels = wanted();
  if (channels === carried && stream && stream.readyState !== EventSource.CLOSED) return;
  stream?.close();
  stream = null;
  carried = channels;
  if (!channels) return;
  stream = new EventSource(`api/v1/events?${new URLSearchParams({ channels, ...(last ? { last } : {}) })}`);
  stream.onopen = () => tell("open");
  stream.onerror = () => {
    tell("broken");
    if (stream?.readyState === EventSource.CLOSED && waiting === null) waiting = setTimeout(open, 2000); // the service refused: ask again
  };
  stream.onmessage = message => {
    if (message.lastEventId) last = message.lastEventId;
    hear(JSON.parse(message.data));
  };
}

function hear(message) {
  const all = message.event === "resync"; // whoever may have missed something reads again
  for (const one of [...listeners]) {
    if (all || one.patterns.some(pattern => fits(message.channel, pattern))) one.hear(message);
  }
}

export function listen(patterns, hear) {
  const one = { patterns, hear };
  listeners.add(one);
  waiting ??= setTimeout(open, WAIT);
  return () => {
    listeners.delete(one);
    waiting ??= setTimeout(open, WAIT);
  };
}

// Calls `hear` with {channel, event, data} while the component is shown.
export function useLive(patterns, hear) {
  const newest = useRef(hear);
  newest.current = hear;
  useEffect(() => patterns.length ? listen(patterns, message => newest.current(message)) : undefined, [patterns.join()]);
}

export function watch(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}
