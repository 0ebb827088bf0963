// The REST interface: every error is a sentence that can be shown.

const ROOT = "api/v1/";

export class Problem extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function call(method, path, body, signal) {
  let answer;
  try {
    answer = await fetch(ROOT + path, {
      method, signal, credentials: "same-origin",
      ...(body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service does not answer. Is scopemill studio still running, and the tunnel to it open?");
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => null);
  throw new Problem(answer.status, problem?.detail ?? `The service answered ${answer.status} ${answer.statusText}.`);
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const post = (path, body = {}) => call("POST", path, body);
export const patch = (path, body) => call("PATCH", path, body);
export const remove = path => call("DELETE", path);

// A query string of what is given; a list repeats its name.
export const query = fields => {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== "" && one !== null && one !== undefined) found.append(name, one);
    }
  }
  return found.toString();
};
export const training = (id, rest = "") => `trainings/${encodeURIComponent(id)}${rest && `/${rest}`}`;

// Exchanges the token of the address, which no server sees, for a cookie that no script sees.
export async function signIn() {
  const token = /[#&]token=([^&]+)/.exec(location.hash)?.[1];
  if (!token) return;
  history.replaceState(null, "", `${location.pathname}#/`);
  await post("session", { token: decodeURIComponent(token) });
}
