// Publish: the card, and what would be public. Sending is the printed command's.
import { button, checkbox, commandLine, element, field, say, select } from "./elements.js";
import { start } from "./jobs.js";
import { read } from "./server.js";

// Parts of a line: code, bold, links as text. A card is a text of strangers: it becomes no markup.
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|!?\[[^\]]*\]\([^)]*\))/).map((part) => {
    if (/^`[^`]+`$/.test(part)) return element("code", {}, part.slice(1, -1));
    if (/^\*\*[^*]+\*\*$/.test(part)) return element("strong", {}, part.slice(2, -2));
    if (/^\*[^*]+\*$/.test(part)) return element("em", {}, part.slice(1, -1));
    const link = /^!?\[([^\]]*)\]\(([^)]*)\)$/.exec(part);
    if (link) return element("span", { title: link[2] }, link[1] + (part.startsWith("!") ? " (picture)" : ""));
    return part;
  });
}

export function card(text) {
  const box = element("div", { class: "card", role: "document", "aria-label": "The card", tabindex: "0" });
  let lines = text.split("\n");
  if (lines[0] === "---") {
    const end = lines.indexOf("---", 1);
    if (end > 0) {
      box.append(element("details", {}, element("summary", {}, "What the Hub reads of the card"), element("pre", {}, lines.slice(1, end).join("\n"))));
      lines = lines.slice(end + 1);
    }
  }
  while (lines.length) {
    const line = lines.shift();
    if (line.startsWith("```")) {
      const body = [];
      while (lines.length && !lines[0].startsWith("```")) body.push(lines.shift());
      lines.shift();
      box.append(element("pre", { tabindex: "0" }, body.join("\n")));
    } else if (/^#{1,6} /.test(line)) {
      box.append(element("h" + Math.min(4, line.indexOf(" ") + 1), {}, inline(line.replace(/^#+ /, ""))));
    } else if (line.startsWith("|")) {
      const rows = [line];
      while (lines[0]?.startsWith("|")) rows.push(lines.shift());
      const parts = rows.filter((row) => !/^\|[\s:|-]+\|?$/.test(row)).map((row) => row.replace(/^\||\|\s*$/g, "").split("|"));
      box.append(element("table", {}, element("tbody", {}, parts.map((row, index) =>
        element("tr", {}, row.map((cell) => element(index ? "td" : "th", {}, inline(cell.trim()))))))));
    } else if (/^[-*] /.test(line)) {
      const items = [line];
      while (/^[-*] /.test(lines[0] ?? "")) items.push(lines.shift());
      box.append(element("ul", {}, items.map((item) => element("li", {}, inline(item.slice(2))))));
    } else if (line.trim()) {
      const paragraph = [line];
      while (lines[0]?.trim() && !/^(#|\||```|[-*] )/.test(lines[0])) paragraph.push(lines.shift());
      box.append(element("p", {}, inline(paragraph.join(" "))));
    }
  }
  return box;
}

export function screen(library) {
  const given = { folder: "", repository: "", private: true, public: true };
  const preview = element("div", { "aria-live": "polite" });
  const seen = element("div", { "aria-live": "polite" });
  const command = element("div", {});
  const words = () => ["merganser", "push", given.folder || "FOLDER", given.repository || "ORG/NAME", ...(given.private ? ["--private"] : []), ...(given.public ? ["--public"] : [])].join(" ");
  const show = () => command.replaceChildren(commandLine(words()));
  const chosen = select([["", "choose …"], ...library.models.map((path) => [path, path])], "", async (place) => {
    given.folder = place;
    show();
    preview.replaceChildren();
    if (!place) return;
    try {
      const { text } = await read("/studio/card", { place });
      preview.replaceChildren(element("h2", {}, "Card"), card(text));
    } catch (error) { preview.replaceChildren(element("p", { class: "quiet" }, "It has no card: only merges that Merganser wrote are published.")); }
  });
  const name = element("input", { type: "text", placeholder: "org/name", oninput: () => { given.repository = name.value.trim(); show(); } });
  const look = button("Show what will be public", async () => {
    if (!given.folder || !given.repository) { say("Choose a folder, and give the repository's name."); return; }
    seen.replaceChildren(element("p", { class: "quiet", role: "status" }, "Looking …"));
    const job = await start({ kind: "publish", ...given }, (ended) =>
      seen.replaceChildren(element("h2", {}, ended.state === "done" ? "This would be sent" : "This cannot be sent"), element("pre", { tabindex: "0" }, ended.lines.join("\n"))));
    if (!job) seen.replaceChildren();
  }, "main");
  show();
  return { view: element("div", {}, element("h1", {}, "Publish"),
    element("div", { class: "row" }, field("Folder", chosen), field("Repository", name)),
    element("div", { class: "row" },
      checkbox("Private", given.private, (on) => { given.private = on; show(); }),
      checkbox("Names in place of local paths", given.public, (on) => { given.public = on; show(); }), look),
    element("p", { class: "note" }, "The studio sends nothing. This command does; it shows everything once more, and asks:"),
    command, seen, preview) };
}
