"use strict";
// What is shown of one latent, as elements: both by the page of latents on disk and by the studio. A script, not a module: browsers load no modules from disk.
globalThis.latentParts = (() => {
  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter(child => child !== null)); // text is always text, whatever it holds
    return node;
  };
  const number = value => value === null ? "–" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 || value === 0
    ? String(+value.toPrecision(4)) : value.toExponential(2);
  const visible = text => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍");
  const token = text => make("span", { class: "token" }, visible(text) || "∅");

  const histogram = latent => {
    const counts = latent.histogram, most = Math.log1p(Math.max(...counts, 1)), name = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(name, "svg");
    svg.setAttribute("viewBox", `0 0 ${counts.length} 100`); svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("class", "histogram"); svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Histogram of activations from 0 to ${latent.range}, counts on a logarithmic scale`);
    counts.forEach((count, i) => {
      const height = 100 * Math.log1p(count) / most, bar = document.createElementNS(name, "rect");
      for (const [key, value] of Object.entries({ x: i, y: 100 - height, width: .9, height })) bar.setAttribute(key, value);
      const title = document.createElementNS(name, "title");
      title.textContent = `${number(latent.range * i / counts.length)} to ${number(latent.range * (i + 1) / counts.length)}: ${count.toLocaleString()}`;
      bar.append(title); svg.append(bar);
    });
    return make("div", {}, svg, make("p", { class: "muted" }, `Activations from 0 to ${number(latent.range)}; counts on a logarithmic scale.`));
  };

  const context = (one, most) => {
    const [, value, place, position, peak, pieces, activations] = one;
    const line = make("span", { class: "text" });
    pieces.forEach((piece, i) => {
      const share = most ? activations[i] / most : 0;
      if (!(share > 0)) return line.append(visible(piece));
      const hot = make("span", { class: i === peak ? "peak" : null, title: number(activations[i]) }, visible(piece));
      hot.style.background = `rgba(var(--hot), ${(.15 + .75 * share).toFixed(3)})`; // a style attribute would be refused where a page has a policy
      line.append(hot);
    });
    return make("li", {}, make("span", { class: "value", title: `document ${place}, token ${position}` }, number(value)), line);
  };

  const pairs = (title, rows) => make("section", {}, make("h3", {}, title), rows.length
    ? make("ul", { class: "pairs" }, ...rows.map(([what, value]) => make("li", {}, what, make("span", { class: "muted" }, number(value)))))
    : make("p", { class: "muted" }, "none"));

  // In other SAEs: those that are on the same page are linked.
  const twins = (others, place) => others.length ? [make("h3", {}, "Twins in other SAEs"), ...others.map(one => {
    const name = other => one.sae === null ? `latent ${other}` : make("a", { href: place(other, one.sae) }, `latent ${other}`);
    const part = (title, key) => one[key] ? pairs(title, one[key].map(([other, value]) => [name(other), value])) : null;
    return make("section", { class: "twins" }, make("p", { class: "muted" }, one.title),
      make("div", { class: "columns" }, part("Cosine", "cosine"), part("Phi", "phi"), part("Splits into", "children")));
  })] : [];

  // A latent's elements: statistics, output tokens, neighbours, twins, histogram and contexts; `place` returns the address of
  // another latent, of the same SAE or of one that the page knows.
  const parts = (latent, intervals, place) => {
    const link = other => make("a", { href: place(other) }, `latent ${other}`);
    const sections = [];
    for (const interval of [-1, ...[...Array(intervals).keys()].reverse()]) {
      const shown = latent.contexts.filter(one => one[0] === interval);
      if (!shown.length) continue;
      const [low, high] = [interval, interval + 1].map(i => number(latent.range * i / intervals));
      sections.push(make("h3", {}, interval < 0 ? "Top contexts" : `Sampled from ${low} to ${high}`),
        make("ol", { class: "contexts" }, ...shown.map(one => context(one, latent.max))));
    }
    return [
      make("div", { class: "columns" },
        pairs("Activation", [["rows", latent.fired], ["density", latent.density], ["maximum", latent.max], ["mean", latent.mean], ["deviation", latent.std],
          ["cluster", latent.cluster],
          ...(latent.output_score === undefined ? [] : [["output score", latent.output_score], ["of a random direction", latent.output_score_random]]),
          ["encoder · decoder", latent.encoder_decoder_cosine], ["decoder norm", latent.decoder_norm]]),
        pairs("Promoted tokens", latent.promoted.map(([text, value]) => [token(text), value])),
        pairs("Suppressed tokens", latent.suppressed.map(([text, value]) => [token(text), value])),
        pairs("Nearest by decoder (cosine)", latent.nearest.map(([other, value]) => [link(other), value])),
        pairs("Fires together with (phi)", latent.cofiring.map(([other, value]) => [link(other), value]))),
      ...twins(latent.twins ?? [], place),
      make("h3", {}, "Histogram"), histogram(latent),
      ...(sections.length ? sections : [make("p", { class: "muted" }, "This latent never fired.")]),
    ];
  };

  return { make, number, visible, token, parts };
})();
