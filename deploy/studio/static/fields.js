// A sweep file's fields as text: from the JSON schema to inputs, and from what is typed to the mapping that the service checks.

export const SECTIONS = { // the fields that stand outside the advanced part
  "": { title: "Name", main: ["name"] },
  model: { title: "Language model", main: ["name", "dtype"] },
  corpus: { title: "Corpus", main: ["source", "format", "column"] },
  harvest: { title: "Hooks and rows", main: ["layers", "tokens", "sites"] },
  train: { title: "SAEs", main: ["template", "architecture", "widths", "sparsities", "tokens", "batch_size", "learning_rate"] },
  evaluation: { title: "Evaluation", main: ["sequences"] },
  evidence: { title: "Evidence of latents", main: [] },
  server: { title: "Activation server", main: [] },
};

const GRID = ["widths", "sparsities"]; // needed unless each variant has them

function resolved(schema, field) {
  const options = (field.anyOf ?? [field]).map(one => one.$ref ? schema.$defs[one.$ref.split("/").pop()] : one);
  const known = options.filter(one => one.type !== "null");
  return { all: known.some(one => one.const === "all"), one: known.find(one => one.const !== "all") ?? {} };
}

// How a field is typed in: {kind, options, all}.
function kindOf(schema, field) {
  const { one, all } = resolved(schema, field);
  if (one.enum) return { kind: "choice", options: one.enum };
  if (one.type === "boolean") return { kind: "choice", options: ["true", "false"], flag: true };
  if (one.type === "integer" || one.type === "number") return { kind: "number" };
  if (one.type === "array") {
    const items = one.items?.$ref ? { type: "object" } : one.items ?? {};
    if (items.enum) return { kind: "choices", options: items.enum, all };
    if (items.type === "integer" || items.type === "number") return { kind: "numbers", all };
    return items.type === "string" ? { kind: "words", all } : { kind: "json" };
  }
  return one.type === "string" ? { kind: "text" } : { kind: "json" };
}

// All fields by section: [{path, name, kind, options, hint, standard, needed, main}].
export function fieldsOf(schema) {
  const found = {};
  for (const [section, { main }] of Object.entries(SECTIONS)) {
    const about = section ? resolved(schema, schema.properties[section]).one : schema;
    const names = Object.keys(about.properties).filter(name => section || !(name in SECTIONS) && name !== "bucket");
    names.sort((a, b) => rank(main, a) - rank(main, b));
    found[section] = names.map(name => {
      const field = about.properties[name], templated = section === "train" && Boolean(field.readBy);
      const required = (about.required ?? []).includes(name) && !templated;
      return {
        path: section ? `${section}.${name}` : name, name, ...kindOf(schema, field), readBy: field.readBy, templated,
        hint: (field.description ?? "").replaceAll("`", ""), standard: written(field.default),
        needed: required || section === "train" && GRID.includes(name), main: main.includes(name),
      };
    });
  }
  return found;
}

const rank = (main, name) => main.includes(name) ? main.indexOf(name) : main.length;

// A value as it stands in an input.
export function written(value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value) && value.every(one => typeof one !== "object")) return value.join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const numeric = text => {
  const plain = text.trim().replaceAll("_", "");
  return plain !== "" && Number.isFinite(Number(plain)) ? Number(plain) : text.trim();
};

// What an input means; what cannot be read stays text, and the service says what is wrong with it.
export function read(field, text) {
  const given = text.trim();
  if (field.all && given === "all") return "all";
  if (field.flag) return given === "true";
  if (field.kind === "number") return numeric(given);
  if (field.kind === "numbers") return given.split(/[\s,]+/).filter(Boolean).map(numeric);
  if (field.kind === "choices" || field.kind === "words") return given.split(/\s*,\s*/).filter(Boolean);
  if (field.kind === "json") { try { return JSON.parse(given); } catch { return given; } }
  return given;
}

// The mapping of all that is typed; `evidence` tells whether latents get evidence.
export function configOf(fields, typed, evidence) {
  const config = {};
  for (const [section, list] of Object.entries(fields)) {
    if (section === "evidence" && !evidence) continue;
    const filled = list.filter(field => (typed[field.path] ?? "").trim());
    const given = Object.fromEntries(filled.map(field => [field.name, read(field, typed[field.path])]));
    if (!section) Object.assign(config, given);
    else if (Object.keys(given).length || section === "evidence") config[section] = given;
  }
  return config;
}

// What is typed if a mapping was; what is a default anyway is left out.
export function typedOf(fields, config) {
  const typed = {};
  for (const [section, list] of Object.entries(fields)) {
    const given = section ? config?.[section] : config, mapping = typeof given === "string" ? { name: given } : given ?? {};
    for (const field of list) {
      const text = written(mapping[field.name]);
      if (text && (text !== field.standard || field.main)) typed[field.path] = text;
    }
  }
  return typed;
}

// Sentences by field, as "harvest.tokens"; what belongs to no field is under "".
export function problemsBy(fields, sentences) {
  const paths = new Set(Object.values(fields).flat().map(field => field.path)), found = {};
  for (const sentence of sentences) {
    const [, full, reason] = /(?:^|: )([a-z][\w.[\]]*): (.*)$/s.exec(sentence) ?? [];
    const path = (full ?? "").replace(/\[.*$/, ""), short = path.split(".").slice(0, 2).join(".");
    const owner = paths.has(path) ? path : paths.has(short) ? short : path in SECTIONS ? path : "";
    (found[owner] ??= []).push(owner ? `${full.length > owner.length ? `${full}: ` : ""}${reason}` : sentence);
  }
  return found;
}
