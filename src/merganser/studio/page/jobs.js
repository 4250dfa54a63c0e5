// Commands that the server runs: their lines, and stop.
import { button, commandLine, element, say } from "./elements.js";
import { read, send } from "./server.js";

const seen = new Map(); // number → [element, state, lines]
const waiting = new Map(); // number → what to do when it has ended
const running = new Set();
export const ends = new EventTarget(); // an event "end" for each command that has ended
let timer = null;

// Start a command; calls onEnd with the job, once it has ended.
export async function start(asked, onEnd = () => {}) {
  try {
    const job = await send("/studio/jobs", asked);
    waiting.set(job.job, onEnd);
    await update();
    return job;
  } catch (error) {
    say(error.message);
    return null;
  }
}

export async function update() {
  clearTimeout(timer);
  const { jobs } = await read("/studio/jobs").catch(() => ({ jobs: [] }));
  document.getElementById("commands").hidden = !jobs.length;
  const list = document.getElementById("jobs");
  for (const job of jobs) {
    const key = job.state + job.lines.length + (job.lines.at(-1) ?? "");
    const known = seen.get(job.job);
    if (known?.key === key) continue;
    const made = show(job);
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

function show(job) {
  const line = element("div", { class: "row" },
    element("strong", { role: "status" }, `${job.title}: ${job.state}${job.state === "running" ? " …" : ` after ${job.seconds.toFixed(1)} s`}`));
  if (job.state === "running") {
    const stop = button("Stop", async () => { await send(`/studio/jobs/${job.job}/stop`).catch((error) => say(error.message)); update(); });
    stop.setAttribute("aria-label", "Stop: " + job.title);
    line.append(stop);
  }
  const swept = /^merganser sweep (\S+)\.yml /.exec(job.command);
  if (swept && (job.state === "stopped" || job.state === "failed")) {
    line.append(button("Go on", () => start({ kind: "again", name: swept[1] })));
  }
  const made = element("li", { class: job.state }, line, commandLine(job.command));
  if (job.lines.length) {
    const text = element("pre", { tabindex: "0" }, job.lines.join("\n"));
    made.append(text);
    requestAnimationFrame(() => { text.scrollTop = text.scrollHeight; });
  }
  return made;
}
