"use strict";
// Data files call these functions: data/saes.js, data/<sae>/table.js, data/<sae>/map.js, data/<sae>/latents-<chunk>.js.
const scopemill = (() => {
  const PAGE = 100; // rows of the list
  const { make, number, token, parts } = latentParts;
  const main = document.getElementById("main"), choice = document.getElementById("sae");
  let about = null;
  const tables = new Map(), maps = new Map(), chunks = new Map(), waiting = new Map();
  const list = { sort: "density", down: true, text: "", low: 0, high: 1, dead: false, cluster: null, page: 0 };

  const load = (path, key, store) => {
    if (store.has(key)) return Promise.resolve(store.get(key));
    return new Promise((resolve, reject) => {
      waiting.set(path, () => resolve(store.get(key)));
      const script = make("script", { src: path });
      script.onload = () => { script.remove(); const done = waiting.get(path); waiting.delete(path); store.has(key) ? done() : reject(path); };
      script.onerror = () => { script.remove(); reject(path); };
      document.head.append(script);
    });
  };
  const tableOf = sae => load(`data/${sae}/table.js`, sae, tables);
  const mapOf = sae => load(`data/${sae}/map.js`, sae, maps);
  const chunkOf = (sae, index) => load(`data/${sae}/latents-${String(index).padStart(5, "0")}.js`, `${sae}/${index}`, chunks);

  const show = (...nodes) => { main.replaceChildren(...nodes.filter(node => node !== null)); };
  const failed = path => show(make("p", { class: "error" }, `${path} is missing or damaged: write the page again with scopemill page.`));

  const facts = sae => {
    const one = about.saes[sae];
    return make("p", { class: "muted" }, `${one.model} · ${one.hooks} · ${one.architecture} · ${one.width.toLocaleString()} latents, ` +
      `${one.alive.toLocaleString()} of them fired · ${one.rows.toLocaleString()} rows from ${one.source}`);
  };

  const chosen = table => {
    const wanted = list.text.toLowerCase(), found = [];
    for (let i = 0; i < table.density.length; i++) {
      const density = table.density[i];
      if (!density && !list.dead || density < list.low || density > list.high) continue;
      if (list.cluster !== null && table.cluster[i] !== list.cluster) continue;
      if (wanted && !`${table.top[i]}\n${table.promotes[i]}\n${table.labels[i] ?? ""}`.toLowerCase().includes(wanted)) continue;
      found.push(i);
    }
    const of = { latent: i => i, label: i => table.scores[i] ?? -1, output: i => table.output[i] ?? -1 }[list.sort] ?? (i => table[list.sort][i]);
    const order = list.down ? -1 : 1;
    return found.sort((a, b) => order * (of(a) - of(b)) || a - b);
  };

  const heading = (title, sort, kind = "n") => make("th", { scope: "col", class: kind,
    "aria-sort": list.sort === sort ? (list.down ? "descending" : "ascending") : null },
    make("button", { type: "button", onclick: () => { list.down = list.sort === sort ? !list.down : true; list.sort = sort; list.page = 0; route(); } }, title));

  const showList = async sae => {
    const table = await tableOf(sae), found = chosen(table), labelled = Object.keys(table.labels).length > 0;
    const scored = Object.keys(table.output).length > 0, optional = value => value === undefined ? "" : number(value);
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    list.page = Math.min(list.page, last);
    const part = found.slice(list.page * PAGE, (list.page + 1) * PAGE);
    const row = i => make("tr", {},
      make("td", { class: "n" }, make("a", { href: `#/${sae}/${i}` }, String(i))), make("td", { class: "n" }, number(table.density[i])),
      make("td", { class: "n" }, number(table.max[i])), make("td", { class: "n" }, String(table.cluster[i] ?? "–")),
      scored ? make("td", { class: "n" }, optional(table.output[i])) : null,
      make("td", {}, token(table.top[i])), make("td", {}, token(table.promotes[i])),
      labelled ? make("td", { class: "label" }, table.labels[i] ?? "",
        table.scores[i] === undefined ? null : make("span", { class: "muted" }, ` ${number(table.scores[i])}`)) : null);
    const field = (title, attributes, set) => make("label", {}, `${title} `, make("input", { ...attributes,
      onchange: event => { set(event.target); list.page = 0; route(); } }));
    const turn = (title, step, off) => make("button", { type: "button", ...(off ? { disabled: "" } : {}), onclick: () => { list.page += step; route(); } }, title);
    show(make("h2", {}, about.saes[sae].name), facts(sae),
      make("p", {}, make("a", { href: `#/${sae}/map` }, "Map of clusters"),
        ...(list.cluster === null ? [] : [` · the latents of cluster ${list.cluster} alone; `, make("a", { href: `#/${sae}` }, "show all")])),
      make("div", { class: "filters" },
        field("Find", { type: "search", value: list.text, placeholder: "token or label" }, input => { list.text = input.value; }),
        field("Density from", { type: "number", step: "any", min: 0, max: 1, value: list.low }, input => { list.low = +input.value; }),
        field("to", { type: "number", step: "any", min: 0, max: 1, value: list.high }, input => { list.high = +input.value || 1; }),
        field("never fired", { type: "checkbox", ...(list.dead ? { checked: "" } : {}) }, input => { list.dead = input.checked; })),
      make("div", { class: "scroll" }, make("table", {},
        make("thead", {}, make("tr", {}, heading("Latent", "latent"), heading("Density", "density"), heading("Maximum", "max"),
          heading("Cluster", "cluster"), scored ? heading("Output score", "output") : null, make("th", { scope: "col" }, "Most frequent token"), make("th", { scope: "col" }, "Promotes"),
          labelled ? heading("Label", "label", "") : null)),
        make("tbody", {}, ...part.map(row)))),
      make("nav", { class: "turn", "aria-label": "Pages" }, turn("Previous", -1, list.page === 0),
        `${found.length.toLocaleString()} latents, page ${list.page + 1} of ${last + 1}`, turn("Next", 1, list.page === last)));
  };

  const showMap = async sae => {
    const clusters = await mapOf(sae);
    show(make("nav", { class: "turn" }, make("a", { href: `#/${sae}` }, "all latents")), make("h2", {}, `Clusters of ${about.saes[sae].name}`), facts(sae),
      make("p", { class: "muted" }, clusters.length ? "A circle is a cluster of latents that are alike by decoder cosine or fire together; its size is the number " +
        "of latents, its name the token on which most of them fire most. Near each other are clusters whose latents are neighbours; far distances mean little."
        : "This SAE has no cluster of two latents or more."),
      clusters.length ? make("div", { class: "scroll" }, clusterMap(clusters, cluster => `#/${sae}/cluster/${cluster}`)) : null);
  };

  const showLatent = async (sae, id) => {
    const width = about.saes[sae].width;
    if (!Number.isInteger(id) || id < 0 || id >= width) {
      return show(make("p", { class: "error" }, `This SAE has no such latent: its latents are 0 to ${width - 1}.`));
    }
    const [table, chunk] = await Promise.all([tableOf(sae), chunkOf(sae, Math.floor(id / about.chunk))]);
    const latent = chunk[id % about.chunk];
    const turn = (title, other) => other >= 0 && other < width ? make("a", { href: `#/${sae}/${other}` }, title) : null;
    show(make("nav", { class: "turn", "aria-label": "Latents" }, turn("← previous", id - 1), make("a", { href: `#/${sae}` }, "all latents"), turn("next →", id + 1)),
      make("h2", {}, `Latent ${id}`), table.labels[id] ? make("p", {}, table.labels[id], table.scores[id] === undefined ? ""
        : make("span", { class: "muted" }, ` (score ${number(table.scores[id])})`)) : null, facts(sae),
      ...parts({ ...latent, output_score: table.output[id], output_score_random: table.random[id] }, about.intervals, (other, of = sae) => `#/${of}/${other}`));
    document.title = `Latent ${id} · ${about.saes[sae].name}`;
  };

  const words = () => location.hash.replace(/^#\/?/, "").split("/").filter(Boolean);
  const place = () => words().map(Number);
  const route = async () => {
    const [sae = 0, latent] = place();
    if (!about.saes[sae]) return show(make("p", { class: "error" }, "There is no such SAE on this page."));
    choice.value = String(sae);
    const [, view, of] = words();
    const cluster = view === "cluster" ? Number(of) : null;
    if (cluster !== list.cluster) [list.cluster, list.page] = [cluster, 0];
    const shown = view === "map" ? showMap : view === undefined || cluster !== null ? showList : showLatent;
    try { await shown(sae, latent); } catch (path) {
      if (typeof path !== "string") throw path;
      failed(path);
    }
  };

  window.addEventListener("hashchange", () => { route(); window.scrollTo(0, 0); main.focus({ preventScroll: true }); });
  choice.addEventListener("change", () => { list.page = 0; location.hash = `#/${choice.value}`; });
  document.getElementById("go").addEventListener("submit", event => {
    event.preventDefault();
    location.hash = `#/${choice.value}/${document.getElementById("number").value.trim()}`;
  });
  document.addEventListener("keydown", event => {
    const [sae, latent] = place(), step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && latent !== undefined && !event.altKey && !event.ctrlKey && !event.metaKey && event.target.tagName !== "INPUT") {
      location.hash = `#/${sae}/${Math.min(Math.max(latent + step, 0), about.saes[sae].width - 1)}`;
    }
  });

  return {
    saes(given) {
      about = given;
      choice.replaceChildren(...given.saes.map((one, i) => make("option", { value: i }, one.name)));
      route();
    },
    table(sae, given) { tables.set(sae, given); },
    map(sae, given) { maps.set(sae, given); },
    latents(sae, index, given) { chunks.set(`${sae}/${index}`, given); },
  };
})();
