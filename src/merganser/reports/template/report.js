"use strict";
// Tables: a click on a heading, or Enter or Space, sorts by its column.
function value(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text);
  return text === "" || text === "–" ? null : Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) =>
        a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
// Completions: every text goes in as text, never as markup.
function element(name, text, kind) {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
const held = document.getElementById("samples");
if (held) {
  const problems = JSON.parse(held.textContent);
  const select = document.getElementById("problem");
  const question = document.getElementById("question");
  const answers = document.getElementById("answers");
  for (const problem of problems) select.append(element("option", problem.title));
  const show = () => {
    const problem = problems[select.selectedIndex];
    question.replaceChildren(element("pre", problem.question));
    if (problem.answer !== null) question.append(element("p", "Answer: " + problem.answer));
    answers.replaceChildren(...problem.completions.map((each) => {
      const card = element("article", "", "answer");
      const facts = element("p", "");
      const told = Object.entries(each.scores).filter(([name, score]) => name !== "tokens" || score !== each.tokens);
      for (const [name, score] of told) {
        const kind = score === 1 ? "full" : score === 0 ? "none" : "";
        facts.append(element("span", name + " " + Number(score.toPrecision(3)), kind), " · ");
      }
      facts.append(element("span", each.tokens + " tokens" + (each.cut ? ", cut off" : ""), "quiet"));
      const text = element("pre", each.text);
      text.tabIndex = 0;
      const heading = element("h3", each.short);
      heading.title = each.name;
      card.append(heading, facts, text);
      return card;
    }));
  };
  const step = (by) => {
    select.selectedIndex = (select.selectedIndex + by + problems.length) % problems.length;
    show();
  };
  select.addEventListener("change", show);
  document.getElementById("before").addEventListener("click", () => step(-1));
  document.getElementById("after").addEventListener("click", () => step(1));
  show();
}
