// Steering: a prompt continued unsteered, steered and randomly pushed, side by side with what was measured.
import { html, useState } from "./view.js";
import { post } from "./api.js";
import { shell } from "./actions.js";
import { Job, useJob } from "./jobs.js";
import { folder, SaeChoice } from "./latents.js";
import { attempt, Command, download } from "./parts.js";
import { link } from "./routes.js";
import { Columns } from "./steered.js";

const OPS = ["add", "scale", "clamp", "ablate"], WHERE = ["all", "prompt", "generated"];
const FIRST = { length: "48", temperature: "0.7", seed: "0", samples: "1", doses: false, model: "" };
const fresh = (sae = "", latent = "") => ({ sae, latent, op: "add", amount: "2", unit: "maximum", where: "all", when: "" });

// An edit as the service takes it.
const edit = ({ sae, latent, op, where, amount, unit, when }) => ({
  sae, latent: Number(latent), op, where,
  ...(op === "ablate" ? {} : { amount: Number(amount) }), ...(["add", "clamp"].includes(op) ? { unit } : {}),
  ...(when === "" ? {} : { when: { latent: Number(when) } }),
});

const request = (edits, prompt, text, options) => ({
  prompt, configurations: { steered: edits.map(edit) }, samples: Number(options.samples), doses: options.doses,
  text: text.trim() || null, model: options.model.trim() || null,
  sampling: { length: Number(options.length), temperature: Number(options.temperature), seed: Number(options.seed) },
});

// The command that does the same: several edits come from a file.
function commandOf(edits, prompt, options, about) {
  const [one] = edits, alone = edits.length === 1 && one.when === "";
  const own = alone && [
    folder(about, one.sae), `--latent ${one.latent || "N"} --op ${one.op}`, one.op !== "ablate" && `--amount ${one.amount}`,
    one.unit === "raw" && "--unit raw", `--where ${one.where}`,
  ];
  const rest = [
    `--prompt ${shell(prompt || "…")} --length ${options.length} --temperature ${options.temperature} --seed ${options.seed}`,
    `--samples ${options.samples}`, options.doses && "--doses", options.model.trim() && `--model ${shell(options.model.trim())}`,
  ];
  return ["scopemill steer", ...(own || ["--file edits.json"]), ...rest].filter(Boolean).join(" ");
}

export function Steer({ parameters, about }) {
  const [edits, setEdits] = useState([fresh(parameters.sae, parameters.latent)]), [options, setOptions] = useState(FIRST);
  const [prompt, setPrompt] = useState(""), [text, setText] = useState("");
  const [started, start] = useState(null), [written, write] = useState({});
  const { job, problem } = useJob(started, ({ event, data: { name, sample, text: piece } }) => {
    if (event === "text") write(now => ({ ...now, [name]: { ...now[name], [sample]: (now[name]?.[sample] ?? "") + piece } }));
  });
  const change = (i, fields) => setEdits(now => now.map((one, at) => at === i ? { ...one, ...fields } : one));
  const remove = edits.length > 1 ? i => setEdits(now => now.filter((_, at) => at !== i)) : null;
  const run = async event => {
    event.preventDefault();
    write({});
    const begun = await attempt(() => post("steer", request(edits, prompt, text, options)));
    if (begun) start(begun);
  };
  const save = () => {
    const steered = edits.map(one => ({ ...edit(one), sae: `${about?.bucket}/${one.sae}` }));
    download("edits.json", JSON.stringify({ steered }, null, 1), "application/json");
  };
  const steering = job?.state === "running";
  return html`<h1 class="title">Steer</h1><form onSubmit=${run}>
    <label class="block"><span class="muted">Prompt</span><textarea rows="3" required value=${prompt}
      onInput=${event => setPrompt(event.target.value)} /></label>
    ${edits.map((one, i) => html`<${Edit} key=${i} ...${{ one, i, change, remove }} />`)}
    <${Options} options=${options} set=${fields => setOptions(now => ({ ...now, ...fields }))} />
    <details><summary>Text to measure on</summary><label class="block">
      <span class="muted">Absent: what the model itself writes after the prompt</span><textarea rows="3" value=${text}
      onInput=${event => setText(event.target.value)} /></label></details>
    <div class="buttons"><button class="primary" disabled=${steering || about?.read_only}>${steering ? "Steering…" : "Steer"}</button>
      <button type="button" onClick=${() => setEdits(now => [...now, fresh(now[0].sae)])}>Add an edit</button>
      <button type="button" onClick=${save}>Download the edits</button></div>
    <${Command}>${commandOf(edits, prompt, options, about)}<//></form>
    <${Job} job=${job} problem=${problem} what="Steering" />
    <${Columns} result=${job?.result} written=${written} prompt=${prompt} />`;
}

function Edit({ one, i, change, remove }) {
  const set = name => event => change(i, { [name]: event.target.value });
  const choice = (name, title, all) => html`<label><span class="muted">${title}</span> <select value=${one[name]} onChange=${set(name)}>
    ${all.map(value => html`<option>${value}</option>`)}</select></label>`;
  return html`<fieldset class="filters"><legend>Edit ${i + 1}</legend>
    <${SaeChoice} sae=${one.sae} evidence=${false} change=${sae => change(i, { sae })} />
    <label><span class="muted">Latent</span> <input size="6" required inputmode="numeric" pattern="[0-9]+" value=${one.latent}
      onInput=${set("latent")} /></label>
    ${one.sae && one.latent !== "" && html`<a href=${link(`latent/${one.latent}`, { sae: one.sae })}>what it means</a>`}
    ${choice("op", "Operation", OPS)}
    ${one.op !== "ablate" && html`<label><span class="muted">${one.op === "scale" ? "Factor" : "Amount"}</span> <input size="5" required
      inputmode="decimal" value=${one.amount} onInput=${set("amount")} /></label>`}
    ${["add", "clamp"].includes(one.op) && html`<label><span class="muted">in</span> <select value=${one.unit} onChange=${set("unit")}>
      <option value="maximum">largest activations</option><option value="raw">raw activations</option></select></label>`}
    ${choice("where", "Where", WHERE)}
    <label><span class="muted">Only where latent</span> <input size="6" inputmode="numeric" pattern="[0-9]*" value=${one.when}
      onInput=${set("when")} /> <span class="muted">fires</span></label>
    ${remove && html`<button type="button" class="plain" aria-label=${`Remove edit ${i + 1}`} onClick=${() => remove(i)}>Remove</button>`}
    </fieldset>`;
}

function Options({ options, set }) {
  const option = (name, title) => html`<label><span class="muted">${title}</span> <input size="4" inputmode="decimal"
    value=${options[name]} onInput=${event => set({ [name]: event.target.value })} /></label>`;
  return html`<div class="filters">
    ${option("length", "Tokens")}${option("temperature", "Temperature")}${option("seed", "Seed")}${option("samples", "Texts")}
    <label><span class="muted">Language model</span> <input size="18" placeholder="the one that the SAE names" value=${options.model}
      onInput=${event => set({ model: event.target.value })} /></label>
    <label><input type="checkbox" checked=${options.doses} onChange=${event => set({ doses: event.target.checked })} />
      ${" "}doses, up to where text collapses</label></div>`;
}
