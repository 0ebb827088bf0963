// What is shown, as files: points as CSV, and a picture as SVG or PNG that looks the same in any program.
import { download } from "./parts.js";

const SVG = "http://www.w3.org/2000/svg";
const LOOKS = ["fill", "stroke", "stroke-width", "font-family", "font-size", "opacity"];
const COLUMNS = ["id", "name", "group", "sparsity", "l0", "fvu", "delta_loss", "measured", "pareto_fvu", "pareto_delta_loss"];
const cell = value => {
  const text = String(value ?? "");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
export const csv = points => [COLUMNS.join(), ...points.map(point => COLUMNS.map(name => cell(point[name])).join()), ""].join("\n");

const set = (node, attributes) => { for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value); };

// The picture with its colours written into it.
export function standalone(svg, size) {
  const copy = svg.cloneNode(true), from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((node, i) => {
    const look = getComputedStyle(node);
    for (const name of LOOKS) to[i].setAttribute(name, look.getPropertyValue(name));
    to[i].removeAttribute("style");
    to[i].removeAttribute("class");
  });
  set(copy, { xmlns: SVG, ...size });
  for (const anchor of copy.querySelectorAll("a")) anchor.replaceWith(...anchor.childNodes);
  const ground = document.createElementNS(SVG, "rect");
  set(ground, { ...size, fill: getComputedStyle(document.body).backgroundColor });
  copy.prepend(ground);
  return new XMLSerializer().serializeToString(copy);
}

export function png(svg, size, name) {
  const image = new Image(), source = URL.createObjectURL(new Blob([standalone(svg, size)], { type: "image/svg+xml" }));
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * size.width, 2 * size.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(blob => download(name, blob));
    URL.revokeObjectURL(source);
  };
  image.src = source;
}
