// Small parts that many pages show: states, notices, dialogs, commands.
import { html, useEffect, useRef, useState } from "./view.js";

// What is loaded: {value, problem, loading}, again whenever one of `on` changes or `again()` is called.
export function useLoaded(load, on) {
  const [state, set] = useState({ value: null, problem: null, loading: true });
  const [turn, setTurn] = useState(0), newest = useRef(null);
  const key = JSON.stringify(on);
  useEffect(() => {
    const stop = new AbortController();
    set(now => ({ value: newest.current === key ? now.value : null, problem: null, loading: true }));
    newest.current = key;
    load(stop.signal).then(
      value => { if (!stop.signal.aborted) set({ value, problem: null, loading: false }); },
      problem => { if (!stop.signal.aborted) set(now => ({ value: now.value, problem, loading: false })); },
    );
    return () => stop.abort();
  }, [key, turn]);
  return { ...state, again: () => setTurn(now => now + 1), set: value => set(now => ({ ...now, value })) };
}

// Calls a function at most once in so many milliseconds, the last time for certain.
export function useThrottled(call, milliseconds) {
  const newest = useRef(call), waiting = useRef(0);
  newest.current = call;
  useEffect(() => () => clearTimeout(waiting.current), []);
  return () => { waiting.current ||= setTimeout(() => { waiting.current = 0; newest.current(); }, milliseconds); };
}

export const Wrong = ({ problem, again }) => html`<div class="wrong" role="alert">
  <p class="sentences">${problem.message}</p>${again && html`<button type="button" onClick=${again}>Try again</button>`}</div>`;

export const Loading = ({ what }) => html`<p class="muted loading" role="status">Loading ${what}…</p>`;

// Turns the pages of a list; says how much there is.
export function Pages({ page, size, total, what, turn }) {
  const last = Math.max(0, Math.ceil(total / size) - 1);
  return html`<nav class="buttons" aria-label="Pages">
    <button type="button" disabled=${page === 0} onClick=${() => turn(page - 1)}>Previous</button>
    <span>${total.toLocaleString("en")} ${what}, page ${page + 1} of ${last + 1}</span>
    <button type="button" disabled=${page >= last} onClick=${() => turn(page + 1)}>Next</button></nav>`;
}

export const Empty = ({ children }) => html`<div class="empty">${children}</div>`;

export const State = ({ state, reason }) => html`<span class=${`state ${state}`} title=${reason}>${state}</span>`;

export const Bar = ({ percent, label }) => html`<progress max="100" value=${percent ?? 0} aria-label=${label}>${percent}%</progress>`;

const notices = { list: [], show: () => {} };
let counted = 0;

// Tells the user something for some seconds; a problem stays until it is closed.
export function notice(text, kind = "done") {
  const id = ++counted;
  const close = () => { notices.list = notices.list.filter(one => one.id !== id); notices.show(notices.list); };
  notices.list = [...notices.list.slice(-3), { id, text, kind, close }];
  notices.show(notices.list);
  if (kind !== "problem") setTimeout(close, 6000);
}

export function Notices() {
  const [list, set] = useState(notices.list);
  notices.show = set;
  return html`<div class="notices" role="status" aria-live="polite">${list.map(one => html`<div key=${one.id} class=${`notice ${one.kind}`}>
    <span class="sentences">${one.text}</span><button type="button" class="plain" aria-label="Close the notice"
      onClick=${one.close}>×</button></div>`)}</div>`;
}

// Does something, and shows as a notice what came of it.
export async function attempt(work, done) {
  try {
    const result = await work();
    if (done) notice(typeof done === "function" ? done(result) : done);
    return result;
  } catch (problem) {
    notice(problem.message, "problem");
    return undefined;
  }
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // without TLS beyond loopback browsers have no clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  notice("Copied.");
}

export const Copy = ({ text, label = "Copy" }) => html`<button type="button"
  onClick=${() => copy(typeof text === "function" ? text() : text)}>${label}</button>`;

// The command line that does the same.
export const Command = ({ children, label = "The same on the command line" }) => html`<div class="command" role="group" aria-label=${label}>
  <span class="muted">${label}</span><code tabindex="0">${children}</code><${Copy} text=${children} /></div>`;

let asking = null;

// Asks before something is lost: resolves to true or false.
export const confirm = question => new Promise(resolve => asking?.({ ...question, resolve }));

export function Confirm() {
  const [question, ask] = useState(null), dialog = useRef(null);
  asking = ask;
  useEffect(() => { if (question) dialog.current.showModal(); }, [question]);
  if (!question) return null;
  const answer = yes => { question.resolve(yes); ask(null); };
  return html`<dialog ref=${dialog} aria-labelledby="question" onCancel=${() => answer(false)}>
    <h2 id="question">${question.title}</h2><p>${question.text}</p>
    ${question.names && html`<ul class="names">${question.names.slice(0, 8).map(name => html`<li>${name}</li>`)}
      ${question.names.length > 8 && html`<li>and ${question.names.length - 8} more</li>`}</ul>`}
    ${question.command && html`<${Command}>${question.command}<//>`}
    <div class="buttons"><button type="button" autofocus onClick=${() => answer(false)}>Cancel</button>
    <button type="button" class="danger" onClick=${() => answer(true)}>${question.action}</button></div></dialog>`;
}

// A file that the user keeps.
export function download(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
