// Places of the page: everything after the address' #, so that a reload, a bookmark and the back button lead there again.

export function place() {
  const [path, parameters = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name = "", ...rest] = path.split("/").map(decodeURIComponent);
  return { name: name || "trainings", rest, parameters: Object.fromEntries(new URLSearchParams(parameters)) };
}

export function link(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  return `#/${path}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

// Goes to a place; what only refines the place shown replaces it in the history.
export function go(path, parameters = {}, replaces = false) {
  const target = link(path, parameters);
  if (!replaces) { location.hash = target; return; }
  history.replaceState(null, "", target);
  dispatchEvent(new HashChangeEvent("hashchange"));
}
