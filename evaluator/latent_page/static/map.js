"use strict";
// The map of an SAE's clusters: a circle for each, near those whose latents are neighbours.
globalThis.clusterMap = (() => {
  const NAME = "http://www.w3.org/2000/svg", WIDE = 1000, HIGH = 640, EDGE = 40, NAMED = 60;
  const node = (name, attributes, ...children) => {
    const made = document.createElementNS(NAME, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // clusters: [{cluster, latents, x, y, words}], the largest first; address: the list of a cluster's latents.
  return (clusters, address) => {
    const svg = node("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "map", role: "list", "aria-label": "Clusters of latents" });
    const most = Math.max(...clusters.map(one => one.latents), 1);
    const circles = clusters.map((one, i) => {
      const x = EDGE + one.x * (WIDE - 2 * EDGE), y = EDGE + one.y * (HIGH - 2 * EDGE), r = 4 + 20 * Math.sqrt(one.latents / most);
      const about = `${one.latents} latents: ${one.words.map(latentParts.visible).join("  ")}`;
      const parts = [node("title", {}, about), node("circle", { cx: x, cy: y, r, style: `--hue: ${(i * 137.5) % 360}` })];
      if (i < NAMED && one.words.length) parts.push(node("text", { x, y: y - r - 2 }, latentParts.visible(one.words[0]).trim() || "␣"));
      return node("a", { href: address(one.cluster), role: "listitem", "aria-label": about }, ...parts);
    });
    svg.append(...circles);
    return svg;
  };
})();
