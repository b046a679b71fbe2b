"use strict";
// The data is in #data (trace/view.py makes it). All text from it goes through textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { about, places, records } = data;
  const $ = (id) => document.getElementById(id);
  const placeOf = new Map(places.map((place) => [place.name, place]));
  const prefixed = about.prefix !== null;
  const T = about.tokens.length;
  let now = 0;

  const make = (tag, attributes = {}, ...inside) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === false || value == null) continue;
      element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...inside);
    return element;
  };
  const link = (n, text, more = {}) =>
    make("a", { href: hashOf(records[n]), ...more }, text);
  const hashOf = (record) => "#" + encodeURI(record.link).replace("#", "%23");
  const times = (shape) => (shape.length ? shape.join(" × ") : "one number");

  // ---- numbers --------------------------------------------------------------------------------

  const unpacked = new Map();

  // 3 digits of value[i], kept as float16 times a power of two
  function values(record) {
    if (!unpacked.has(record.value)) {
      const [power, text] = data.values[record.value];
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      const size = 2 ** power;
      const numbers = new Float64Array(bytes.length / 2);
      const nearly = new Set(); // subnormal: digits were lost
      for (let i = 0; i < numbers.length; i++) {
        const half = view.getUint16(2 * i, true);
        const exponent = (half >> 10) & 31, fraction = half & 1023;
        let x = exponent === 0 ? fraction * 2 ** -24
          : exponent === 31 ? (fraction ? NaN : Infinity)
          : (1 + fraction / 1024) * 2 ** (exponent - 15);
        if (exponent === 0 && fraction) nearly.add(i);
        numbers[i] = (half & 0x8000 ? -x : x) * size;
      }
      unpacked.set(record.value, { numbers, nearly, least: 2 ** -14 * size });
    }
    return unpacked.get(record.value);
  }

  function say(x, digits = 3) {
    if (x === null || Number.isNaN(x)) return "NaN";
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
    if (x === 0) return "0";
    const a = Math.abs(x);
    const text = a >= 1e-3 && a < 1e5 ? String(Number(x.toPrecision(digits)))
      : x.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
    return text.replace("-", "−").replace("e-", "e−");
  }

  function sayAt(record, i) {
    const { numbers, nearly, least } = values(record);
    return nearly.has(i) ? `nearly 0 (under ${say(least)})` : say(numbers[i]);
  }

  // ---- what an index means --------------------------------------------------------------------

  const quoted = (text) => `“${text}”`;
  const token = (n) => `token ${n} ${quoted(about.tokens[n])}`;

  // The token of the stream that row i of this record is of; of some only the predicting rows are
  // computed.
  const rowToken = (record, i, axis) =>
    record.shape[axis] === T && !record.from ? i : about.rows[i + (record.from || 0)];

  function index(record, axis, i, row) {
    const name = record.axes[axis];
    if (name === "NH") return `head ${i}`;
    if (name === "P") return `prefix slot ${i}`;
    if (name === "P+T") {
      const P = record.shape[axis] - T;
      return i < P ? `on prefix slot ${i}` : `on ${token(i - P)}`;
    }
    if (["N", "T", "M"].includes(name)) return token(rowToken(record, i, axis));
    if (record.top !== undefined && name === "V") {
      const id = data.picked[record.top][row][i];
      return `${i ? "" : "the target, "}${quoted(data.words[id])} (id ${id})`;
    }
    if (record.ids && name === "V") {
      return `${quoted(data.words[record.ids[i]])} (id ${record.ids[i]})`;
    }
    return `${name || "index"} ${i}`;
  }

  // The axes of the drawn (planes, rows, columns) in those of the tensor; -1: there is none.
  function drawnAxes(record) {
    const n = record.shape.length;
    if (n === 3) return record.axes[1] === "NH" ? [1, 0, 2] : [0, 1, 2];
    return n === 2 ? [-1, 0, 1] : [-1, -1, n - 1];
  }

  function hiddenCell(record, row, column) {
    const P = record.shape[2] - record.shape[1];
    return keysOf(record) && column > row + P;
  }
  const keysOf = (record) => record.axes[2] === "P+T";

  function describe(record, plane, row, column) {
    const at = drawnAxes(record);
    const words = [plane, row, column]
      .map((i, k) => (at[k] < 0 || record.axes[at[k]] === "1" ? "" : index(record, at[k], i, row)))
      .filter(Boolean);
    const [, rows, columns] = record.drawn;
    const value = sayAt(record, (plane * rows + row) * columns + column);
    const hidden = hiddenCell(record, row, column) ? ": hidden by the mask" : "";
    return [value, words.join(", ") + hidden];
  }

  function sentence(record) {
    const [least, most, mean, std, bad, zero] = record.summary;
    if (!record.shape.length) return `${say(least)}.`;
    return `From ${say(least)} to ${say(most)}, mean ${say(mean)}, deviation ${say(std)}` +
      (zero ? `, ${zero} zeros` : "") + (bad ? `, ${bad} not finite` : "") + ".";
  }

  // ---- colour ---------------------------------------------------------------------------------

  // Two scales, of which the lightness rises all the way: they say the same in grey. From blue
  // through grey, which is 0, to orange: the hue says the sign, and no kind of colour blindness
  // confuses these two. Where no number is negative, from dark, which is 0.
  const scale = (stops) => Array.from({ length: 513 }, (_, i) => {
    const x = (i / 512) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(x));
    return stops[k].map((a, j) => Math.round(a + (stops[k + 1][j] - a) * (x - k)));
  });
  const signedRamp = scale(
    [[0, 22, 84], [36, 94, 178], [142, 144, 148], [233, 158, 66], [255, 243, 188]]);
  const positiveRamp = scale(
    [[52, 50, 64], [112, 54, 96], [196, 82, 66], [243, 160, 64], [255, 243, 188]]);
  const rgb = (c) => `rgb(${c.join(",")})`;
  const isSigned = (record) => record.summary[0] < 0;
  function colour(x, largest, signed) {
    if (!Number.isFinite(x)) return [255, 0, 190];
    const part = largest ? Math.min(1, Math.sqrt(Math.abs(x) / largest)) : 0;
    return signed ? signedRamp[256 + Math.round(256 * Math.sign(x) * part)]
      : positiveRamp[Math.round(512 * part)];
  }
  const largestOf = (record) => Math.max(Math.abs(record.summary[0]), Math.abs(record.summary[1]));

  function drawLegend(record) {
    const box = $("legend"), largest = largestOf(record);
    box.replaceChildren();
    if (!record.shape.length || !largest) return;
    const signed = isSigned(record), ramp = signed ? signedRamp : positiveRamp;
    const parts = signed ? [-1, -0.25, 0, 0.25, 1] : [0, 0.0625, 0.25, 0.5625, 1];
    const strip = make("div", { class: "ramp" });
    const colours = Array.from({ length: 33 }, (_, i) => rgb(ramp[i * 16]));
    strip.style.background = `linear-gradient(to right, ${colours.join(",")})`;
    const ticks = make("div", { class: "ticks" });
    parts.forEach((part, i) => {
      const tick = make("span", {}, say(part * largest, 2));
      tick.style.left = `${25 * i}%`;
      ticks.append(tick);
    });
    box.append(make("div", { class: "scale" }, strip, ticks),
      make("span", { class: "words" }, "square-root scale"));
    if (record.summary[4]) box.append(make("span", { class: "words" }, "pink: not finite"));
    if (keysOf(record)) {
      box.append(make("span", { class: "words" }, make("span", { class: "hidden-key" }),
        " hidden by the causal mask"));
    }
  }

  // ---- heat maps ------------------------------------------------------------------------------

  const GAP = 7; // between the prefix's columns and the tokens'
  const HEADING = 18;

  const ink = (name) => {
    const probe = make("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };

  function layout(record, width) {
    const [planes, rows, columns] = record.drawn;
    const at = drawnAxes(record);
    const rowName = record.axes[at[1]];
    const P = keysOf(record) ? record.shape[2] - record.shape[1] : 0;
    const labels = at[1] >= 0 && ["N", "T", "M", "P", "P+T"].includes(rowName) || record.ids;
    const height = rows === 1 ? 30 : rows <= 64 ? 15 : Math.max(2, Math.floor(900 / rows));
    const small = width < 420;
    const left = labels && height >= 13 ? (small ? 70 : 92) : 0;
    const share = record.share ? (small ? 70 : 84) : 0;
    const room = width - left - share - (P ? GAP : 0);
    const least = record.top !== undefined ? 58 : 1.5;
    const most = record.top !== undefined ? 84 : columns === 1 ? 60 : planes > 1 ? 12 : 18;
    const cell = Math.max(least, Math.min(most, room / columns));
    const top = keysOf(record) || record.top !== undefined ? HEADING : 0;
    return {
      rows, columns, P, height, left, cell, top,
      x: (c) => left + c * cell + (P && c >= P ? GAP : 0),
      y: (r) => top + r * height,
      strip: share - 44, // of the share's bar; its number needs the rest
      width: left + columns * cell + (P ? GAP : 0) + share,
      total: top + rows * height,
    };
  }

  function clipped(context, text, x, y, width) {
    if (context.measureText(text).width > width) {
      while (text && context.measureText(text + "…").width > width) {
        text = [...text].slice(0, -1).join("");
      }
      text += "…";
    }
    context.fillText(text, x, y);
  }

  function paint(canvas, record, plane, l, inks) {
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(l.width * scale);
    canvas.height = Math.round(l.total * scale);
    canvas.style.width = `${l.width}px`;
    canvas.style.height = `${l.total}px`;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const { numbers } = values(record), largest = largestOf(record);
    const { soft, strong, violet, paper } = inks, signed = isSigned(record);
    const at = drawnAxes(record);
    context.textBaseline = "middle";
    for (let r = 0; r < l.rows; r++) {
      for (let c = 0; c < l.columns; c++) {
        const shade = colour(numbers[(plane * l.rows + r) * l.columns + c], largest, signed);
        context.fillStyle = rgb(shade);
        const x = l.x(c), y = l.y(r);
        // to the next cell's edge, rounded to whole pixels: no seams
        const right = Math.round((x + l.cell) * scale) / scale, x0 = Math.round(x * scale) / scale;
        context.fillRect(x0, y, right - x0, l.height);
        if (hiddenCell(record, r, c)) {
          context.fillStyle = paper;
          context.globalAlpha = 0.82;
          context.fillRect(x0, y, right - x0, l.height);
          context.globalAlpha = 1;
        }
        if (record.top !== undefined && l.height >= 13) {
          const light = 0.3 * shade[0] + 0.6 * shade[1] + 0.1 * shade[2] > 125;
          context.fillStyle = light ? "#000" : "#fff";
          context.font = "12px " + MONO;
          const word = data.words[data.picked[record.top][r][c]];
          clipped(context, word, x + 3, y + l.height / 2 + 1, l.cell - 5);
        }
      }
      if (l.left) {
        context.fillStyle = record.axes[at[1]] === "P" ? violet : strong;
        context.font = "12px " + MONO;
        clipped(context, rowLabel(record, r, at[1]), 0, l.y(r) + l.height / 2 + 1, l.left - 6);
      }
      if (record.share) {
        const part = record.share[plane][r], x = l.x(l.columns) + 6, y = l.y(r);
        context.fillStyle = violet;
        context.fillRect(x, y + 3, Math.max(1, part * l.strip), l.height - 6);
        context.fillStyle = strong;
        context.font = "12px " + MONO;
        context.fillText(`${Math.round(part * 100)}%`, x + l.strip + 5, y + l.height / 2 + 1);
      }
    }
    context.font = "12px system-ui, sans-serif";
    if (l.P) {
      context.fillStyle = violet;
      clipped(context, "prefix", l.x(0), 8, l.P * l.cell + GAP);
    }
    context.fillStyle = soft;
    if (keysOf(record)) clipped(context, "tokens →", l.x(l.P), 8, (l.columns - l.P) * l.cell);
    if (record.share) context.fillText("on prefix", l.x(l.columns) + 6, 8);
    if (record.top !== undefined) {
      context.fillText("target", l.x(0), 8);
      context.fillText("likeliest first →", l.x(1), 8);
    }
    canvas.cells = { record, plane, l };
  }
  const MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";

  function rowLabel(record, r, axis) {
    if (record.ids) return data.words[record.ids[r]];
    if (record.axes[axis] === "P") return `slot ${r}`;
    if (record.axes[axis] === "P+T") {
      const P = record.shape[axis] - T;
      return r < P ? `slot ${r}` : about.tokens[r - P];
    }
    return about.tokens[rowToken(record, r, axis)];
  }

  function mean(row) {
    return row.reduce((a, b) => a + b, 0) / row.length;
  }
  const percent = (x) => `${Math.round(100 * x)}%`;

  function drawMaps(record) {
    const box = $("maps");
    box.replaceChildren();
    if (!record.shape.length) {
      box.append(make("p", { class: "one" }, say(values(record).numbers[0])));
      return;
    }
    const planes = record.drawn[0], room = Math.max(260, box.clientWidth - 4);
    const l = layout(record, planes > 1 ? Math.min(room, Math.max(300, (room - 24) / 2)) : room);
    const inks = {
      soft: ink("soft"), strong: ink("ink"), violet: ink("prefix"), paper: ink("paper"),
    };
    for (let plane = 0; plane < planes; plane++) {
      let name = `heat map of ${record.link}, ${times(record.shape)}`;
      const figure = make("figure");
      if (planes > 1) {
        let caption = `head ${plane}`;
        if (record.share) {
          caption += `: ${percent(mean(record.share[plane]))} of its attention falls on the prefix`;
        }
        figure.append(make("figcaption", {}, caption));
        name += `, ${caption}`;
      }
      const canvas = make("canvas", {
        role: "img", tabindex: 0,
        "aria-label": `${name}. ${sentence(record)} The arrow keys read its cells.`,
      });
      const frame = make("div", { class: "frame" }, canvas);
      figure.append(make("div", { class: "scrolls" }, frame));
      box.append(figure);
      paint(canvas, record, plane, l, inks);
      listen(canvas, frame);
    }
  }

  // ---- a cell under the pointer, or under the arrow keys ----

  function cellAt(canvas, x, y) {
    const { l } = canvas.cells;
    const row = Math.floor((y - l.top) / l.height);
    const right = l.P && x >= l.x(l.P);
    const column = Math.floor((x - l.left - (right ? GAP : 0)) / l.cell);
    if (row < 0 || row >= l.rows || column < 0 || column >= l.columns) return null;
    if (l.P && !right && column >= l.P) return null; // between the two
    return [row, column];
  }

  function show(canvas, frame, row, column, x, y) {
    const { record, plane, l } = canvas.cells;
    const [value, words] = describe(record, plane, row, column);
    let cursor = frame.querySelector(".cursor");
    if (!cursor) frame.append((cursor = make("div", { class: "cursor" })));
    Object.assign(cursor.style, {
      left: `${l.x(column)}px`, top: `${l.y(row)}px`,
      width: `${Math.max(3, l.cell)}px`, height: `${Math.max(3, l.height)}px`,
    });
    const tip = $("tip");
    tip.replaceChildren(make("b", {}, value), words);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18}px`;
    return `${value}: ${words}`;
  }

  function hide() {
    $("tip").hidden = true;
    for (const cursor of document.querySelectorAll(".cursor")) cursor.remove();
  }

  function listen(canvas, frame) {
    let cell = [0, 0];
    const point = (event) => {
      const found = cellAt(canvas, event.offsetX, event.offsetY);
      if (!found) return hide();
      hideOthers(frame);
      cell = found;
      show(canvas, frame, ...found, event.clientX, event.clientY);
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    canvas.addEventListener("blur", hide);
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return canvas.blur();
      const steps = {
        ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
      };
      const step = steps[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const { l } = canvas.cells, shown = frame.querySelector(".cursor");
      if (shown) {
        cell = [Math.min(l.rows - 1, Math.max(0, cell[0] + step[0])),
          Math.min(l.columns - 1, Math.max(0, cell[1] + step[1]))];
      }
      const scroller = frame.parentElement, x = l.x(cell[1]);
      if (x < scroller.scrollLeft || x + l.cell > scroller.scrollLeft + scroller.clientWidth) {
        scroller.scrollLeft = x - scroller.clientWidth / 2;
      }
      const box = canvas.getBoundingClientRect();
      $("cell").textContent = show(canvas, frame, ...cell, box.left + x, box.top + l.y(cell[0]));
    });
  }

  function hideOthers(frame) {
    for (const cursor of document.querySelectorAll(".cursor")) {
      if (cursor.parentElement !== frame) cursor.remove();
    }
  }

  // ---- the column of ops ----------------------------------------------------------------------

  const rowsOf = new Map();

  function blockOf(name) {
    const found = /^blocks\.(\d+)\./.exec(name);
    return found ? Number(found[1]) : null;
  }

  function drawColumn() {
    const nav = document.querySelector("nav");
    let block = -1, list = null;
    for (const place of places) {
      const at = blockOf(place.name);
      if (at !== block) {
        block = at;
        list = make("ol");
        if (at !== null) nav.append(make("h3", {}, `block ${at}`));
        else if (rowsOf.size) nav.append(make("h3", {}, "the head"));
        nav.append(list);
      }
      const short = at === null ? place.name : place.name.replace(/^blocks\.\d+\./, "");
      const of = (backward) =>
        records.findIndex((r) => r.place === place.name && r.backward === backward);
      const forward = of(false), backward = of(true);
      const there = link(forward, "→", { "aria-label": `${place.name}, forward` });
      const back = backward >= 0
        ? link(backward, "←", { class: "back", "aria-label": `${place.name}, backward` })
        : make("span", { class: "none", title: whyNot(place) }, "·",
          make("span", { class: "visually-hidden" }, whyNot(place)));
      const op = make("span", { class: "op" }, place.op);
      if (prefixed && place.weights.length) {
        op.append(make("span", { class: "frozen", title: "its weights are frozen" }, " ❄"));
      }
      const item = make("li", {}, there, make("span", { class: "mono" }, short), op, back);
      if (place.op === "attention" && prefixed) item.append(make("span", { class: "arrival" }));
      if (prefixed && place.name === `blocks.${about.lowest}.attn`) {
        list.append(make("li", { class: "stop" }, "❄ the gradient stops here"));
      }
      list.append(item);
      rowsOf.set(place.name, { item, there, back, forward, backward });
    }
  }

  function whyNot(place) {
    return place.op === "add" ? "the gradient passes unchanged"
      : "the backward does not reach this op";
  }

  function markColumn(record) {
    for (const [name, { item, there, back, forward, backward }] of rowsOf) {
      there.classList.toggle("done", forward <= now);
      if (backward >= 0) back.classList.toggle("done", backward <= now);
      if (name === record.place) {
        item.setAttribute("aria-current", "step");
        bringIntoView(item);
      } else item.removeAttribute("aria-current");
      const arrival = item.querySelector(".arrival");
      if (arrival) {
        const layer = blockOf(name);
        const come = data.arriving.filter((a) => a.layer === layer && a.record <= now);
        arrival.textContent = come.length
          ? `dprefix: ${come.map((a) => `${a.of} ${say(a.norm)}`).join(", ")}` : "";
      }
    }
  }

  // Within the column, which the walk's bar may hide in part; the page itself stays where it is.
  function bringIntoView(item) {
    const nav = document.querySelector("nav"), at = item.getBoundingClientRect();
    const top = nav.getBoundingClientRect().top;
    const walk = $("walk").getBoundingClientRect().top;
    const bottom = Math.min(nav.getBoundingClientRect().bottom, walk);
    if (bottom - top < 100 || (at.top > top + 30 && at.bottom < bottom - 30)) return;
    nav.scrollTop += at.top - (top + bottom) / 2;
  }

  // ---- one step -------------------------------------------------------------------------------

  // forward line -> the backward lines that mirror it
  const mirrorsOf = new Map();
  records.forEach((record, n) => {
    if (record.mirror && record.mirror.record !== null) {
      if (!mirrorsOf.has(record.mirror.record)) mirrorsOf.set(record.mirror.record, []);
      mirrorsOf.get(record.mirror.record).push(n);
    }
  });

  const last = records.length - 1;
  const turn = records.findIndex((record) => record.backward);

  function drawNotes(record) {
    const box = $("notes"), place = placeOf.get(record.place);
    box.replaceChildren();
    const note = (...inside) => box.append(make("p", {}, ...inside));
    const notice = (...inside) => box.append(make("p", { class: "notice ice" }, ...inside));
    if (record.mirror) {
      if (record.mirror.words) note(record.mirror.words + ".");
    }
    if (record.ids) note("Only the rows of this text's tokens are shown; the others are 0.");
    if (record.top !== undefined) {
      note("Each row shows, of the whole vocabulary, its target and the ",
        `${record.drawn[2] - 1} tokens with the highest logits.`);
    }
    if (record.cut) {
      note(`Only the first ${times(record.drawn.filter((n, i) => i || n > 1))} are shown.`);
    }
    if (prefixed && record.op.endsWith("_backward") && place.weights.length) {
      const names = place.weights.map(([name, shape]) => `${name} (${times(shape)})`).join(" and ");
      const one = place.weights.length === 1;
      notice(`❄ ${names} ${one ? "is" : "are"} frozen: the backward does not compute ` +
        `${one ? "its gradient" : "their gradients"}. Only the gradient of the op's input goes on.`);
    }
    if (now === last) {
      notice(prefixed
        ? about.lowest < about.layers
          ? `❄ The gradient stops here. Below the attention of block ${about.lowest} there are ` +
            "only frozen weights and no prefix, so nothing can learn."
          : "❄ The gradient stops here: no layer has a prefix."
        : "The gradient has reached the embedding: every weight has its gradient.");
    }
  }

  // The line that computed it, and those of the other direction that belong to it.
  function drawLines(record) {
    const row = (n, words, kind) => {
      const of = records[n], text = lineOf(of);
      const name = n === now ? words : link(n, of.link.split(".").pop());
      return make("p", { class: kind }, make("span", {}, `${of.backward ? "←" : "→"} `, name),
        make("code", {}, text));
    };
    const others = record.mirror ? [record.mirror.record].filter((n) => n !== null)
      : mirrorsOf.get(now) || [];
    $("lines").replaceChildren(row(now, `${data.code[codeOf(record)].file}:${record.line}`, null),
      ...others.map((n) => row(n, null, "mirrored")));
  }

  function lineOf(record) {
    const code = data.code[codeOf(record)];
    for (const [start, lines] of code.functions) {
      const text = lines[record.line - start];
      if (text !== undefined) return text.trim();
    }
    return "";
  }
  const codeOf = (record) => record.op === "add" && record.backward ? "add_backward" : record.op;

  function drawReads(record) {
    const items = record.inputs.map((of) => {
      if (typeof of === "string") {
        const found = places.flatMap((p) => p.weights).find(([name]) => name === of);
        const shape = found ? `  ${times(found[1])}` : "";
        return make("li", {}, of, make("span", { class: "shape" }, shape + (prefixed ? " ❄" : "")));
      }
      const from = records[of];
      const shape = make("span", { class: "shape" }, `  ${times(from.shape)}`);
      return make("li", {}, link(of, from.link), shape);
    });
    const none = make("li", {}, "nothing on this page");
    $("reads").replaceChildren(...(items.length ? items : [none]));
  }

  function listing(title, code, here, mirrored) {
    const box = make("div", { class: "listing", tabindex: 0, role: "region", "aria-label": title });
    code.functions.forEach(([start, lines], k) => {
      if (k) box.append(make("div", { class: "gap" }));
      lines.forEach((text, i) => {
        const number = start + i;
        const kind = number === here ? "here" : mirrored.includes(number) ? "mirrored" : "";
        const at = text.trim().startsWith("#") ? text.indexOf("#") : text.indexOf("  # ");
        const body = make("span", { class: "text" }, at < 0 ? text : text.slice(0, at));
        if (at >= 0) body.append(make("span", { class: "comment" }, text.slice(at)));
        const line = make("div", { class: `line ${kind}`.trim() },
          make("span", { class: "number", "aria-hidden": "true" }, String(number)), body);
        if (kind === "here") line.setAttribute("aria-current", "step");
        if (kind) line.prepend(make("span", { class: "visually-hidden" },
          kind === "here" ? "This line: " : "The line it mirrors: "));
        box.append(line);
      });
    });
    return box;
  }

  function drawCode(record) {
    const box = $("code");
    box.replaceChildren();
    const base = record.op.replace(/_params$/, "").replace(/_backward$/, "");
    const { mirror: to } = record;
    const mirror = to && to.record !== null ? records[to.record] : null;
    const backs = (mirrorsOf.get(now) || []).map((n) => records[n]);
    const panel = (words, code, here, mirrored) => {
      if (!code) return;
      const title = `${words}: ${code.file}`;
      const list = listing(title, code, here, mirrored);
      box.append(make("div", {}, make("h4", {}, title), list));
      const line = list.querySelector(".here") || list.querySelector(".mirrored");
      if (line) list.scrollTop = line.offsetTop - list.clientHeight / 2;
    };
    const line = record.line;
    const add = record.op === "add";
    if (record.backward) {
      panel("forward", data.code[add ? "add" : base === "join" ? "split" : base], null,
        [to.line || (mirror && mirror.line)]);
      panel("backward", data.code[add ? "add_backward" : record.op], line, []);
    } else {
      // both halves of its own backward, as far as they are run; of what the model does its line
      const other = { add: "add_backward", split: "join" }[base] || `${base}_backward`;
      const own = [...new Set(backs.map(codeOf))].filter((op) => op.startsWith(other));
      panel("forward", data.code[record.op], line, []);
      for (const back of own.length ? own : [other]) {
        const mirrored = backs.filter((r) => codeOf(r) === back).map((r) => r.line);
        panel("backward", data.code[back], null, mirrored);
      }
    }
  }

  function drawSummary(record) {
    const box = $("summary"), histogram = record.summary[6], most = Math.max(...histogram);
    box.replaceChildren();
    if (!record.shape.length) return;
    const bars = make("span", {
      class: "bars", role: "img",
      "aria-label": `histogram, 10 bins from least to most: ${histogram.join(", ")}`,
    });
    for (const n of histogram) {
      const bar = make("i");
      bar.style.height = `${most ? Math.max(n ? 2 : 0, (22 * n) / most) : 0}px`;
      bars.append(bar);
    }
    box.append(sentence(record), bars);
  }

  // ---- the prefix -----------------------------------------------------------------------------

  function bar(part, text) {
    const strip = make("span", { class: "bar" });
    strip.style.width = `${Math.round(110 * part)}px`;
    return [strip, make("span", { class: "number" }, text)];
  }

  function drawArriving() {
    const largest = Math.max(...data.arriving.map((a) => a.norm));
    const layers = [...new Set(data.arriving.map((a) => a.layer))].sort((a, b) => b - a);
    const body = make("tbody");
    for (const layer of layers) {
      const row = make("tr", {}, make("th", { scope: "row" }, `block ${layer}`));
      for (const of of ["k", "v"]) {
        const found = data.arriving.find((a) => a.layer === layer && a.of === of);
        const come = found.record <= now;
        const cell = make("td");
        if (come) cell.append(...bar(largest ? found.norm / largest : 0, say(found.norm)));
        cell.append(" ", link(found.record, come ? "see" : "not yet: go there",
          { "aria-label": `${records[found.record].key}: ${come ? say(found.norm) : "not yet"}` }));
        row.append(cell);
      }
      body.append(row);
    }
    const head = make("tr", {}, ...["layer", "‖dprefix_k‖", "‖dprefix_v‖"].map((text) =>
      make("th", { scope: "col" }, text)));
    $("arriving-table").replaceChildren(make("table", {}, make("thead", {}, head), body));
  }

  function drawShare() {
    const found = records.map((record, n) => [record, n]).filter(([record]) =>
      record.share && record.shape[2] > record.shape[1]);
    const heads = found.length ? found[0][0].share.length : 0;
    const head = make("tr", {}, make("th", { scope: "col" }, "layer"),
      ...Array.from({ length: heads }, (_, h) => make("th", { scope: "col" }, `head ${h}`)));
    const body = make("tbody");
    for (const [record, n] of found) {
      const row = make("tr", {}, make("th", { scope: "row" },
        link(n, record.place.replace(/^blocks\.(\d+)\.attn$/, "block $1"))));
      for (const shares of record.share) {
        const part = mean(shares), strip = make("span", { class: "bar" });
        strip.style.width = `${Math.round(46 * part)}px`;
        row.append(make("td", {}, strip, make("span", { class: "number" }, percent(part))));
      }
      body.append(row);
    }
    $("share-table").replaceChildren(make("table", {}, make("thead", {}, head), body));
    $("share").hidden = !found.length;
  }

  // ---- walking --------------------------------------------------------------------------------

  function drawStep() {
    const record = records[now];
    hide();
    $("where").textContent = record.backward ? "← backward" : "→ forward";
    document.querySelector("main").classList.toggle("backward", record.backward);
    $("where").className = record.backward ? "bwd" : "fwd";
    $("where").append(make("span", { class: "frozen" }, `  ${record.place} · ${record.op}` +
      (record.inside ? " · inside the op" : "")));
    $("name").textContent = record.link;
    $("self").href = hashOf(record);
    const [formula, origin] = record.formula;
    $("formula").replaceChildren(formula, origin ? make("cite", {}, origin) : "");
    drawLines(record);
    const axes = record.axes.filter(Boolean).join(", ");
    $("facts").textContent = `${times(record.shape)}` +
      (record.shape.length && axes ? ` (${axes})` : "") + ` · ${record.dtype}`;
    drawNotes(record);
    drawLegend(record);
    drawMaps(record);
    drawSummary(record);
    drawReads(record);
    drawCode(record);
    markColumn(record);
    if (data.arriving.length) drawArriving();
    const slider = $("slider"), way = record.backward ? "backward" : "forward";
    slider.value = now;
    slider.setAttribute("aria-valuetext",
      `${now + 1} of ${records.length}, ${way}: ${record.link}`);
    $("count").textContent = `${now + 1} / ${records.length}`;
    $("previous").disabled = $("previous-op").disabled = now === 0;
    $("next").disabled = $("next-op").disabled = now === last;
    document.title = `${record.link} · GPT-2, forward and backward`;
  }

  function go(n) {
    now = Math.max(0, Math.min(last, n));
    $("missing").hidden = true;
    history.replaceState(null, "", hashOf(records[now]));
    drawStep();
  }

  function goOp(step) {
    const same = (a, b) =>
      records[a].place === records[b].place && records[a].backward === records[b].backward;
    let n = now;
    while (n + step >= 0 && n + step <= last && same(n, now)) n += step;
    if (step < 0) while (n > 0 && same(n - 1, n)) n--; // to the first line of that op
    go(n);
  }

  function goMirror() {
    const record = records[now];
    const to = record.mirror ? record.mirror.record : (mirrorsOf.get(now) || [null])[0];
    if (to !== null) go(to);
  }

  // Three records whose names begin and end most alike.
  function nearest(name) {
    const alike = (a, b) => {
      let n = 0;
      while (n < Math.min(a.length, b.length) && a[n] === b[n]) n++;
      return n;
    };
    const back = (text) => [...text].reverse();
    const score = ({ link: other }) =>
      alike(name, other) + alike(back(name), back(other)) - Math.abs(name.length - other.length);
    const scores = records.map((record, n) => [score(record), n]);
    return scores.sort(([a, i], [b, j]) => b - a || i - j).slice(0, 3).map(([, n]) => n);
  }

  function follow() {
    let name = location.hash.slice(1);
    try {
      name = decodeURIComponent(name);
    } catch { /* as it stands */ }
    if (!name) return drawStep();
    let n = records.findIndex((record) => record.link === name);
    if (n < 0) n = records.findIndex(({ key }) => key === name || key.split("#")[0] === name);
    $("missing").hidden = n >= 0;
    if (n < 0) {
      const near = nearest(name).flatMap((i) => [" ", link(i, records[i].link)]);
      $("missing").replaceChildren(`Nothing here is called ${quoted(name)}. The nearest are:`, ...near);
    }
    now = n < 0 ? now : n;
    drawStep();
  }

  function listenToKeys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest(".listing, .scrolls")) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && event.shiftKey) goOp(step);
    else if (step) go(now + step);
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(last);
    else if (event.key === "m" || event.key === "M") goMirror();
    else return;
    event.preventDefault();
  }

  // ---- light and dark -------------------------------------------------------------------------

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);

  function setTheme(theme) {
    if (theme) root.dataset.theme = theme;
    const word = make("span", {}, isDark() ? " Light" : " Dark");
    $("theme").replaceChildren(isDark() ? "☀" : "☾", word);
    $("theme").setAttribute("aria-label", isDark() ? "Switch to light" : "Switch to dark");
  }

  // ---- the start ------------------------------------------------------------------------------

  function drawHeader() {
    $("about").append(make("span", {}, about.model),
      make("span", {},
        about.prefix || "Without a prefix: plain GPT-2, every weight with its gradient"));
    const M = about.rows.length;
    $("mean-loss").textContent =
      `Loss ${say(about.loss)}, the mean over ${M} predicted token${M === 1 ? "" : "s"} ` +
      "(underlined).";
    const targets = new Set(about.rows.map((row) => row + 1));
    if (prefixed) {
      const pattern = records.find((record) => record.share && record.shape[2] > record.shape[1]);
      const P = pattern ? pattern.shape[2] - pattern.shape[1] : 0;
      $("tokens").append(make("li", { class: "slots" }, `prefix × ${P}`));
    }
    about.tokens.forEach((text, n) => $("tokens").append(
      make("li", { class: targets.has(n) ? "target" : null, title: `token ${n}` }, text)));
    $("frozen-key").hidden = !prefixed;
    $("arriving").hidden = !data.arriving.length;
    const backward = records.length - turn;
    $("end-forward").style.flexGrow = turn;
    $("end-backward").style.flexGrow = backward;
    $("arriving-words").textContent =
      `It comes from the top, block ${about.layers - 1} first. It stops below block ` +
      `${about.lowest}, because nothing there can learn.`;
  }

  drawHeader();
  drawColumn();
  drawShare();
  setTheme(null);
  const narrow = matchMedia("(max-width: 860px)");
  const fold = () => { $("model").open = !narrow.matches; };
  fold();
  $("slider").max = last;
  $("slider").addEventListener("input", () => go(Number($("slider").value)));
  $("previous").addEventListener("click", () => go(now - 1));
  $("next").addEventListener("click", () => go(now + 1));
  $("previous-op").addEventListener("click", () => goOp(-1));
  $("next-op").addEventListener("click", () => goOp(1));
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.querySelector("main").focus();
  });
  $("theme").addEventListener("click", () => {
    setTheme(isDark() ? "light" : "dark");
    drawMaps(records[now]);
  });
  dark.addEventListener("change", () => { setTheme(null); drawMaps(records[now]); });
  narrow.addEventListener("change", fold);
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => drawMaps(records[now]), 120);
  });
  addEventListener("scroll", hide, { passive: true });
  addEventListener("hashchange", follow);
  document.addEventListener("keydown", listenToKeys);
  follow();
  root.dataset.ready = Math.round(performance.now());
})();
