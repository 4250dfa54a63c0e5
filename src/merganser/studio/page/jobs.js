// Commands that the server runs: their lines, and stop.
import { button, commandLine, element, say } from "./elements.js";
import { read, send } from "./server.js";

const seen = new Map(); // number → [element, state, lines]
const waiting = new Map(); // number → what to do when it has ended
const running = new Set();
let newest = [];
// Events "begin" and "end" for each command that has begun or ended, and "library" once it is read anew.
export const ends = new EventTarget();
let timer = null;

export function states() { return newest; }

// Start a command; calls onEnd with the job, once it has ended.
export async function start(asked, onEnd = () => {}) {
  try {
    const job = await send("/studio/jobs", asked);
    waiting.set(job.job, onEnd);
    newest = [...newest, job];
    ends.dispatchEvent(new CustomEvent("begin", { detail: job }));
    await update();
    return job;
  } catch (error) {
    say(error.message);
    return null;
  }
}

export async function stop(number) {
  await send(`/studio/jobs/${number}/stop`).catch((error) => say(error.message));
  await update();
}

export async function update() {
  clearTimeout(timer);
  const { jobs } = await read("/studio/jobs").catch(() => ({ jobs: newest }));
  newest = jobs;
  document.getElementById("commands").hidden = !jobs.length;
  const list = document.getElementById("jobs");
  for (const job of jobs) {
    const key = job.state + job.lines.length + (job.lines.at(-1) ?? "");
    const known = seen.get(job.job);
    if (known?.key === key) continue;
    const made = show(job, known?.made.querySelector("details")?.open);
    if (known) known.made.replaceWith(made);
    else list.prepend(made);
    seen.set(job.job, { made, key });
    if (job.state === "running") running.add(job.job);
    else if (running.delete(job.job) || waiting.has(job.job)) ends.dispatchEvent(new CustomEvent("end", { detail: job }));
    if (job.state !== "running" && waiting.has(job.job)) {
      const ended = waiting.get(job.job);
      waiting.delete(job.job);
      ended(await read("/studio/jobs/" + job.job));
    }
  }
  if (jobs.some((job) => job.state === "running") || waiting.size) timer = setTimeout(update, 700);
}

const WORDS = { running: "running …", done: "done", failed: "failed", stopped: "stopped" };

function show(job, opened) {
  const after = job.state === "running" ? "" : ` after ${job.seconds.toFixed(1)} s`;
  const line = element("div", { class: "row" }, element("span", { role: "status" }, element("strong", {}, job.title), `: ${WORDS[job.state]}${after}`));
  if (job.state === "running") {
    const end = button("Stop", () => stop(job.job));
    end.setAttribute("aria-label", "Stop: " + job.title);
    line.append(end);
  }
  if (job.kind === "sweep" && (job.state === "stopped" || job.state === "failed")) {
    const again = button("Resume", () => start({ kind: "again", name: job.folder }));
    again.setAttribute("aria-label", "Resume: " + job.title);
    line.append(again);
  }
  const made = element("li", { class: job.state }, line, commandLine(job.command));
  if (job.lines.length) {
    const text = element("pre", { tabindex: "0", role: "group", "aria-label": `Output of command ${job.job}` }, job.lines.join("\n"));
    const details = element("details", {}, element("summary", {}, job.lines.at(-1)), text);
    details.open = opened ?? job.state === "failed";
    details.addEventListener("toggle", () => { text.scrollTop = text.scrollHeight; });
    made.append(details);
    requestAnimationFrame(() => { text.scrollTop = text.scrollHeight; });
  }
  return made;
}
