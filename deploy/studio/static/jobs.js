// Work that the service itself does, such as an import or a steering: followed until it ends.
import { html, useEffect, useState } from "./view.js";
import { get } from "./api.js";
import { useLive } from "./live.js";
import { Bar, Command } from "./parts.js";

// The newest state of a job; `hear` gets what comes while it runs.
export function useJob(started, hear) {
  const [job, set] = useState(started), [problem, setProblem] = useState(null), id = started?.id;
  const read = () => get(`jobs/${encodeURIComponent(id)}`).then(found => { set(found); setProblem(null); }, setProblem);
  useEffect(() => { set(started); setProblem(null); if (id) read(); }, [id]);
  useLive(id ? [`job/${id}`] : [], message => {
    if (message.channel !== `job/${id}` || ["completed", "failed"].includes(message.event)) read();
    else if (message.event === "progress") set(now => ({ ...now, ...message.data }));
    else hear?.(message);
  });
  return { job: job?.id === id ? job : started, problem };
}

export function Job({ job, problem, what }) {
  if (!job) return null;
  const percent = job.state === "completed" ? 100 : job.total ? 100 * job.done / job.total : undefined;
  return html`<section aria-label=${what}><div class="progress wide">
    ${job.state === "running" && html`<${Bar} percent=${percent} label=${what} />`}
    <span role="status" class=${job.state}>${what}: ${job.state}${job.total ? `, ${job.done} of ${job.total}` : ""}</span></div>
    ${job.reason && html`<p class="wrong sentences" role="alert">${job.reason}</p>`}${problem && html`<p
      class="wrong sentences" role="alert">${problem.message}</p>`}
    ${job.kind === "import" && html`<${Command}>${job.command}<//>`}</section>`;
}
