// Light and dark, the keyboard, the search. Without it, every page can still be read.
"use strict";

(() => {
  const root = document.documentElement;
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("minprefix-theme", value);
      return localStorage.getItem("minprefix-theme");
    } catch {
      return null; // a browser may forbid it to files
    }
  };
  const theme = remembered();
  if (theme === "light" || theme === "dark") root.dataset.theme = theme; // before anything shows

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const dark = () =>
      (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      remembered(root.dataset.theme);
    });

    search(document.getElementById("search"), document.getElementById("found"));
    unfold();
    addEventListener("hashchange", unfold);
    addEventListener("keydown", keys);
    addEventListener("beforeprint", () => {
      for (const details of document.querySelectorAll("main details")) details.open = true;
    });
    hold();
    addEventListener("resize", hold);
    addEventListener("load", hold);
    for (const details of document.querySelectorAll("main details")) {
      details.addEventListener("toggle", hold);
    }
    const all = document.querySelector(".all");
    for (const left of ["click", "focusin"]) {
      addEventListener(left, (event) => {
        if (!all.contains(event.target)) all.open = false;
      });
    }
    root.dataset.ready = "";
  });

  /** What is linked to may be folded away. */
  function unfold() {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id ? document.getElementById(id) : null;
    for (let at = target?.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
    if (target) target.scrollIntoView();
  }

  /** Code that fits on the screen stays beside a longer text. */
  function hold() {
    for (const held of document.querySelectorAll(".held")) {
      held.classList.toggle("short", held.offsetHeight < innerHeight - 90);
    }
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const all = document.querySelector(".all");
    if (event.key === "Escape" && all.open) {
      all.open = false;
      all.querySelector("summary").focus();
    }
    if (event.target.closest("input, textarea, select")) return;
    if (event.key === "/") {
      event.preventDefault();
      document.getElementById("search").focus();
    }
    const rel = { n: "next", p: "prev" }[event.key];
    const link = rel && document.querySelector(`link[rel="${rel}"]`);
    if (link) location.href = link.href;
  }

  // ---- search -------------------------------------------------------------------------------

  const MOST = 20;

  /** The sections that hold all words, those first whose headings do. */
  function find(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return [];
    const hits = [];
    for (const section of window.lessonSections ?? []) {
      let score = 0;
      for (const word of words) {
        const here =
          8 * (section.title || section.lesson).toLowerCase().includes(word) +
          2 * section.text.toLowerCase().includes(word) +
          section.code.toLowerCase().includes(word) +
          0.5 * section.lesson.toLowerCase().includes(word);
        if (!here) {
          score = 0;
          break;
        }
        score += here;
      }
      if (score) hits.push({ section, score });
    }
    return hits.sort((a, b) => b.score - a.score).map((hit) => ({ ...hit, words }));
  }

  function search(input, found) {
    let at = -1;
    const links = () => [...found.querySelectorAll("a")];
    const show = (open) => {
      found.hidden = !open;
      input.setAttribute("aria-expanded", String(open));
    };
    const select = (n) => {
      const all = links();
      if (!all.length) return;
      at = (n + all.length) % all.length;
      all.forEach((link, i) => link.setAttribute("aria-selected", String(i === at)));
      all[at].scrollIntoView({ block: "nearest" });
      input.setAttribute("aria-activedescendant", all[at].id);
    };
    const answer = () => {
      at = -1;
      input.removeAttribute("aria-activedescendant");
      const hits = find(input.value);
      found.replaceChildren(...hits.slice(0, MOST).map(entry));
      if (input.value.trim() && !hits.length) say("Nothing found: try fewer words, or a part of one.");
      if (hits.length > MOST) say(`${hits.length - MOST} more: add a word.`);
      show(Boolean(input.value.trim()));
    };
    const say = (text) => found.append(Object.assign(document.createElement("p"), { textContent: text }));
    input.addEventListener("input", answer);
    input.addEventListener("focus", answer);
    input.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") select(at + 1);
      else if (event.key === "ArrowUp") select(at - 1);
      else if (event.key === "Enter") links()[Math.max(at, 0)]?.click();
      else if (event.key === "Escape") {
        if (found.hidden) input.blur();
        input.value = "";
        show(false);
      } else return;
      event.preventDefault();
    });
    addEventListener("click", (event) => {
      if (!event.target.closest(".search") || event.target.closest("#found a")) show(false);
    });
    addEventListener("focusin", (event) => {
      if (!event.target.closest(".search")) show(false);
    });
  }

  function entry({ section, words }, i) {
    const link = document.createElement("a");
    link.id = `found-${i}`;
    link.setAttribute("role", "option");
    link.href = document.body.dataset.root + section.page + (section.slug && `#${section.slug}`);
    const title = document.createElement("b");
    title.append(...marked(section.title || section.lesson, words));
    link.append(title);
    if (section.title) link.append(span(` ${section.lesson}`));
    for (const [text, name] of [[section.text, ""], [section.code, "in-code"]]) {
      const line = snippet(text, words, name);
      if (line) {
        const where = span("", name);
        where.append(...marked(line, words));
        link.append(where);
        break;
      }
    }
    return link;
  }

  function span(text, name = "") {
    return Object.assign(document.createElement("span"), { textContent: text, className: name });
  }

  /** Of a text, what stands around the first word; of code, its line. */
  function snippet(text, words, code) {
    const lower = text.toLowerCase();
    const places = words.map((word) => lower.indexOf(word)).filter((place) => place >= 0);
    if (!places.length) return "";
    const first = Math.min(...places);
    if (code) {
      const end = text.indexOf("\n", first);
      return text.slice(text.lastIndexOf("\n", first) + 1, end < 0 ? undefined : end).trim();
    }
    const start = first < 50 ? 0 : text.indexOf(" ", first - 50) + 1;
    return (start ? "… " : "") + text.slice(start, first + 110).replace(/\s+/g, " ") + " …";
  }

  /** Text nodes, and a <mark> for each word: never markup from the text. */
  function marked(text, words) {
    const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    return text.split(new RegExp(`(${escaped.join("|")})`, "i")).map((part, i) =>
      i % 2 ? Object.assign(document.createElement("mark"), { textContent: part }) : part,
    );
  }
})();
