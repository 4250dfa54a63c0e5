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
// Figures: the point under the pointer is named; Tab and the arrow keys name one after the other.
const hint = document.getElementById("hint");
const REACH = 22;
function middle(point) {
  const box = point.getBoundingClientRect();
  return [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
}
function unname() {
  hint.hidden = true;
  for (const point of document.querySelectorAll(".point.lit")) point.classList.remove("lit");
}
function say(points) {
  unname();
  const texts = new Set(points.map((point) => point.getAttribute("aria-label")));
  hint.replaceChildren(...[...texts].map((text) => element("p", text)));
  for (const point of points) point.classList.add("lit");
  hint.hidden = false;
  const [x, y] = middle(points[0]);
  const { width, height } = hint.getBoundingClientRect();
  hint.style.left = Math.max(8, Math.min(x + 14, innerWidth - width - 8)) + "px";
  hint.style.top = (y + 14 + height < innerHeight ? y + 14 : Math.max(8, y - height - 14)) + "px";
}
for (const picture of document.querySelectorAll(".picture")) {
  const points = [...picture.querySelectorAll(".point")];
  if (!points.length) continue;
  for (const point of points) {
    const title = point.querySelector("title");
    point.setAttribute("aria-label", title.textContent);
    point.setAttribute("tabindex", "-1");
    title.remove();
    point.addEventListener("focus", () => { if (point.matches(":focus-visible")) say([point]); });
    point.addEventListener("blur", unname);
  }
  points[0].setAttribute("tabindex", "0");
  const under = (event) => {
    const apart = points.map((point) => {
      const [x, y] = middle(point);
      return [Math.hypot(x - event.clientX, y - event.clientY), x, y, point];
    }).sort((a, b) => a[0] - b[0]);
    const [least, x, y] = apart[0];
    if (least > REACH) return unname();
    say(apart.filter((each) => Math.hypot(each[1] - x, each[2] - y) < 3).slice(0, 5).map((each) => each[3]));
  };
  picture.addEventListener("pointermove", under);
  picture.addEventListener("pointerdown", under);
  picture.addEventListener("pointerleave", unname);
  picture.addEventListener("keydown", (event) => {
    const at = points.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: points.length - 1 }[event.key];
    if (event.key === "Escape") unname();
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    const to = points[(next + points.length) % points.length];
    points[at].setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
  });
}
addEventListener("scroll", () => {
  const at = document.activeElement;
  if (at.matches(".point:focus-visible")) say([at]); else unname();
}, { passive: true, capture: true });
// A running study writes this page again: it is loaded again, and looks as before. The last page is not.
function remember() {
  const shown = [...document.querySelectorAll("section[id]")].filter((each) => each.getBoundingClientRect().top < 90).pop();
  const sorted = [...document.querySelectorAll("th[aria-sort]")].map((heading) =>
    [heading.closest("table").caption.textContent, heading.textContent, heading.getAttribute("aria-sort")]);
  const open = [...document.querySelectorAll("details")].map((each) => [each.querySelector("summary").textContent, each.open]);
  const place = shown ? [shown.id, shown.getBoundingClientRect().top] : ["", scrollY];
  history.replaceState({ place, sorted, open }, "");
}
function recall({ place, sorted, open }) {
  for (const each of document.querySelectorAll("details")) {
    const was = open.find(([title]) => title === each.querySelector("summary").textContent);
    if (was) each.open = was[1];
  }
  for (const [table, title, order] of sorted) {
    for (const heading of document.querySelectorAll("table.sortable th")) {
      if (heading.textContent !== title || heading.closest("table").caption.textContent !== table) continue;
      heading.querySelector("button").click();
      if (heading.getAttribute("aria-sort") !== order) heading.querySelector("button").click();
    }
  }
  const section = place[0] && document.getElementById(place[0]);
  const top = section ? scrollY + section.getBoundingClientRect().top - place[1] : place[0] ? scrollY : place[1];
  scrollTo({ top, behavior: "instant" });
}
const every = Number(document.documentElement.dataset.every);
if (history.state && history.state.place) recall(history.state);
history.replaceState(null, "");
if (every) {
  history.scrollRestoration = "manual";
  const again = () => {
    if (document.hidden || !hint.hidden || String(getSelection())) return setTimeout(again, 500);
    location.reload();
  };
  addEventListener("beforeunload", remember);
  setTimeout(again, 1000 * every);
} else {
  history.scrollRestoration = "auto";
}
