// Publish: the card as the Hub shows it, what will be public, and the push itself where the network is allowed.
import { button, bytes, checkbox, commandLine, element, field, nothing, select, tiles } from "./elements.js";
import { card } from "./card.js";
import { start } from "./jobs.js";
import { read } from "./server.js";

const given = { folder: "", repository: "", private: true, public: true };

// What a dry run has listed.
function listed(data) {
  return data.repositories.map((repository) => {
    const files = Object.entries(repository.files);
    const total = files.reduce((sum, [, size]) => sum + size, 0);
    const licenses = Object.entries(repository.licenses);
    const paths = repository.local_paths;
    const box = element("section", { class: "panel" }, element("h2", {}, `What will be ${data.private ? "sent" : "public"}`),
      tiles([["Repository", repository.name, data.private ? "private" : "public"], ["Files", String(files.length)], ["Size", bytes(total)]]));
    if (paths.length) {
      box.append(element("p", { class: "warning" }, `${paths.length} local path${paths.length === 1 ? "" : "s"} would be sent, such as ${paths[0].path} in ${paths[0].file}. Tick "Names in place of local paths".`));
    }
    box.append(
      element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Files" }, element("table", {},
        element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "File"), element("th", { scope: "col", class: "number" }, "Size"))),
        element("tbody", {}, files.map(([name, size]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", { class: "number" }, bytes(size))))))),
      licenses.length ? element("p", { class: "note" }, "Licences of the parents: " + licenses.map(([name, license]) => `${name}: ${license ?? "none stated"}`).join("; ")) : null);
    return box;
  });
}

export function screen(library) {
  const preview = element("div", { "aria-live": "polite" });
  const seen = element("div", { "aria-live": "polite" });
  const command = element("div", {});
  const act = element("div", {});
  let text = null;
  let looked = ""; // the command whose dry run is shown

  const words = () => ["merganser", "push", given.folder || "FOLDER", given.repository || "ORG/NAME", ...(given.private ? ["--private"] : []), ...(given.public ? ["--hide-paths"] : [])].join(" ");
  const drawCard = () => {
    if (text === null) preview.replaceChildren(nothing(given.folder ? "No card" : "No folder is chosen", given.folder ? "Only merges that Merganser wrote have a card and can be published." : "The card of a merge is shown here as the Hub shows it."));
    else preview.replaceChildren(card(text, given.repository, given.private));
  };
  const change = () => {
    command.replaceChildren(commandLine(words()));
    drawCard();
    if (looked !== words()) { looked = ""; act.replaceChildren(); seen.replaceChildren(); }
  };
  const push = () => {
    act.replaceChildren(element("p", { class: "quiet busy", role: "status" }, "Sending …"));
    start({ kind: "publish", ...given, send: true }, (ended) => {
      const good = ended.state === "done";
      act.replaceChildren(element("p", { class: good ? "full" : "problem", role: "status" }, good ? "Published: " : "Not published: ", ended.lines.at(-1) ?? ended.state));
    }).then((job) => { if (!job) act.replaceChildren(); });
  };
  const confirm = () => {
    const yes = button(`Yes, send it to ${given.repository}`, push, "main");
    act.replaceChildren(element("div", { class: "panel ask", role: "group", "aria-label": "Confirm" },
      element("p", {}, `Everything above goes to ${given.repository} on the Hub${given.private ? ", as a private repository" : ", for everybody to see"}.`),
      element("div", { class: "row" }, yes, button("No", offer))));
    yes.focus();
  };
  const offer = () => {
    if (!library.network) {
      act.replaceChildren(element("p", { class: "note" }, "Offline: the studio was started without --network. The command above sends it; it asks first."));
      return;
    }
    act.replaceChildren(element("div", { class: "row" }, button("Push …", confirm, "main")));
  };
  const look = button("Show what will be public", async () => {
    if (!given.folder) { chosen.focus(); return; }
    if (!given.repository) { name.focus(); return; }
    const asked = words();
    act.replaceChildren();
    seen.replaceChildren(element("p", { class: "quiet busy", role: "status" }, "Checking every file …"));
    const job = await start({ kind: "publish", ...given }, (ended) => {
      if (asked !== words()) return;
      if (ended.state !== "done") { seen.replaceChildren(element("p", { class: "problem" }, ended.lines.at(-1) ?? ended.state)); return; }
      looked = asked;
      seen.replaceChildren(...listed(ended.result));
      offer();
    });
    if (!job) seen.replaceChildren();
  }, "main");
  const options = [["", "choose …"], ...library.merged.map((path) => [path, path])];
  const chosen = select(options, library.merged.includes(given.folder) ? given.folder : "", async (place) => {
    given.folder = place;
    text = null;
    change();
    if (!place) return;
    try { text = (await read("/studio/card", { place })).text; } catch { text = null; }
    if (place === given.folder) drawCard();
  });
  const name = element("input", { type: "text", placeholder: "org/name", autocomplete: "off", spellcheck: "false", value: given.repository, oninput: () => { given.repository = name.value.trim(); change(); } });
  change();
  if (chosen.value) chosen.dispatchEvent(new Event("change"));
  const form = element("section", { class: "panel" },
    element("div", { class: "row" }, field("Merge", chosen), field("Repository", name)),
    element("div", { class: "row" },
      checkbox("Private", given.private, (on) => { given.private = on; change(); }),
      checkbox("Names in place of local paths", given.public, (on) => { given.public = on; change(); })),
    element("div", { class: "row" }, look), command);
  if (!library.merged.length) {
    return { view: element("div", {}, element("h1", {}, "Publish"), nothing("Nothing to publish yet", "Write a blend first: only merges that Merganser wrote have a card and a manifest.",
      element("p", {}, element("a", { href: "#blend" }, "Go to Blend")))) };
  }
  return { view: element("div", {}, element("h1", {}, "Publish"), element("div", { class: "split" }, element("div", {}, form, seen, act), preview)) };
}
