// A model card as the Hub shows it. It is a text of strangers: it becomes elements here, never markup.
import { element } from "./elements.js";

// Parts of a line: code, bold, links as text.
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|!?\[[^\]]*\]\([^)]*\))/).map((part) => {
    if (/^`[^`]+`$/.test(part)) return element("code", {}, part.slice(1, -1));
    if (/^\*\*[^*]+\*\*$/.test(part)) return element("strong", {}, part.slice(2, -2));
    if (/^\*[^*]+\*$/.test(part)) return element("em", {}, part.slice(1, -1));
    const link = /^!?\[([^\]]*)\]\(([^)]*)\)$/.exec(part);
    if (link) return element("span", { class: "link", title: link[2] }, link[1] + (part.startsWith("!") ? " (picture)" : ""));
    return part;
  });
}

const plain = (text) => text.trim().replace(/^(['"])(.*)\1$/, "$2");

// The flat keys of a card's metadata, and its lists of texts.
export function metadata(lines) {
  const found = {};
  let key = null;
  for (const line of lines) {
    const pair = /^([A-Za-z_-]+):(.*)$/.exec(line);
    const item = /^\s*- (?!\w+:)(.*)$/.exec(line);
    if (pair) {
      key = pair[1];
      const listed = /^\s*\[(.*)\]\s*$/.exec(pair[2]);
      found[key] = listed ? listed[1].split(",").map(plain).filter(Boolean) : pair[2].trim() ? [plain(pair[2])] : [];
    } else if (item && key) found[key].push(plain(item[1]));
  }
  return found;
}

function table(rows, number) {
  const parts = rows.filter((row) => !/^\|[\s:|-]+\|?$/.test(row)).map((row) => row.replace(/^\||\|\s*$/g, "").split("|"));
  const cells = (row, name) => element("tr", {}, row.map((cell) => element(name, name === "th" ? { scope: "col" } : {}, inline(cell.trim()))));
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Table ${number} of the card` },
    element("table", {}, element("thead", {}, cells(parts[0] ?? [], "th")), element("tbody", {}, parts.slice(1).map((row) => cells(row, "td")))));
}

// The head of the Hub's page: name, tags, parents.
function head(repository, facts, isPrivate) {
  const tags = [...(facts.pipeline_tag ?? []), ...(facts.library_name ?? []), ...(facts.tags ?? []), ...(facts.license ?? []).map((name) => "license: " + name)];
  const parents = facts.base_model ?? [];
  return element("div", { class: "hub" },
    element("p", { class: "repository" }, element("strong", {}, repository || "org/name"), element("span", { class: "tag" }, isPrivate ? "private" : "public")),
    element("p", { class: "tags" }, [...new Set(tags)].map((tag) => element("span", { class: "tag" }, tag))),
    parents.length ? element("p", { class: "note" }, `Model tree: ${(facts.base_model_relation ?? ["merge"])[0]} of ${parents.join(", ")}`) : null);
}

export function card(text, repository, isPrivate) {
  const box = element("article", { class: "card", "aria-label": "The card", tabindex: "0" });
  let lines = text.split("\n");
  const end = lines[0] === "---" ? lines.indexOf("---", 1) : -1;
  const front = end > 0 ? lines.slice(1, end) : [];
  if (end > 0) lines = lines.slice(end + 1);
  box.append(head(repository, metadata(front), isPrivate));
  let tables = 0;
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
      box.append(table(rows, ++tables));
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
  if (front.length) box.append(element("details", { class: "more" }, element("summary", {}, "Its metadata, which the Hub reads"), element("pre", { tabindex: "0" }, front.join("\n"))));
  return box;
}
