// Models on the Hub: those in its cache are offered everywhere; a search asks the Hub, if the studio may.
import { button, element, field, say } from "./elements.js";
import { start } from "./jobs.js";

// All models for a choice, in groups; `also` are paths that are chosen and may be none of them.
export function modelOptions(library, also = [], empty = null) {
  const base = library.models.find((path) => /(^|[/_-])base/.test(path)) ?? library.models[0];
  const adapters = base ? [...library.adapters, ...library.cached_adapters].map((path) => [`${base}+${path}`, `${path}, on ${base}`]) : [];
  const groups = [
    [`Below ${library.root}`, library.models.map((path) => [path, path])],
    ["Adapters", adapters],
    ["In the Hub's cache", library.cached.map((name) => [name, name])],
  ];
  const known = new Set(groups.flatMap(([, options]) => options.map(([value]) => value)));
  const others = [...new Set(also)].filter((path) => path && !known.has(path)).map((path) => [path, path]);
  if (others.length) groups.push(["In the recipe", others]);
  const filled = groups.filter(([, options]) => options.length);
  const listed = filled.length === 1 ? filled[0][1] : filled.map(([label, options]) => ({ label, options }));
  return empty === null ? listed : [["", empty], ...listed];
}

const count = (number) => number === null ? "" : Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(number);

// A panel that searches the Hub; calls use with the name of a model in its cache.
export function hubPanel(library, use) {
  const found = element("div", { "aria-live": "polite" });
  const text = element("input", { type: "search", maxlength: "100", placeholder: "qwen2.5-1.5b" });
  const fetched = (name, into) => {
    into.replaceChildren(element("span", { class: "quiet busy" }, "downloading …"));
    start({ kind: "fetch", repository: name }, (job) => {
      if (job.state === "done") { use(name); into.replaceChildren(element("span", { class: "full" }, "added")); }
      else into.replaceChildren(element("span", { class: "none" }, job.lines.at(-1) ?? job.state));
    }).then((job) => { if (!job) into.replaceChildren(); });
  };
  const show = (models) => {
    if (!models.length) { found.replaceChildren(element("p", { class: "quiet" }, "No model has that in its name.")); return; }
    found.replaceChildren(element("ul", { class: "list" }, models.map((model) => {
      const act = element("span", {});
      const get = model.cached ? button("Use", () => use(model.name)) : button("Download", () => fetched(model.name, act));
      get.setAttribute("aria-label", get.textContent + " " + model.name);
      act.append(get);
      const facts = [model.parameters && count(model.parameters) + " parameters", model.downloads !== null && count(model.downloads) + " downloads",
        model.gated && "gated", model.adapter && "adapter"].filter(Boolean).join(" · ");
      return element("li", {}, element("span", {}, element("strong", {}, model.name), " ", element("span", { class: "quiet" }, facts)), act);
    })));
  };
  const search = async () => {
    if (!text.value.trim()) { text.focus(); say("Give a part of the model's name."); return; }
    found.replaceChildren(element("p", { class: "quiet busy" }, "Asking the Hub …"));
    const job = await start({ kind: "search", text: text.value.trim() }, (ended) => {
      if (ended.state === "done") show(ended.result);
      else found.replaceChildren(element("p", { class: "problem" }, ended.lines.at(-1) ?? ended.state));
    });
    if (!job) found.replaceChildren();
  };
  text.addEventListener("keydown", (event) => { if (event.key === "Enter") search(); });
  const inside = library.network
    ? [element("div", { class: "row" }, field("Part of its name", text), button("Search the Hub", search)), found]
    : [element("p", { class: "note" }, "Offline: the studio was started without --network. Models in the Hub's cache are listed with the others.")];
  return element("details", { class: "more" }, element("summary", {}, "Find a model on the Hub"), ...inside);
}
