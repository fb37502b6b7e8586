"use strict";
// Moves thresholds on the sample that lies in the page: counts, histograms and thumbnails follow.
// Estimate = what the verdicts say + (sample at the moved thresholds - sample as it was) * judged / sample.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = document.getElementById("svg").namespaceURI;
const NEAREST = 8, WIDTH = 1000, HEIGHT = 112;

const number = (v, digits = 4) => Number(v.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
const count = v => Math.round(v).toLocaleString("en");
// A picture that stands in the page's text is not in the data again.
const picture = slot => DATA.pictures[slot][1] || document.querySelector(`img[data-slot="${slot}"]`).src;
const share = (a, b) => b ? `${(100 * a / b).toFixed(1).replace(".0", "")}%` : "";
const met = { ">": (a, b) => a > b, ">=": (a, b) => a >= b, "<": (a, b) => a < b, "<=": (a, b) => a <= b, "=": (a, b) => a === b, "<>": (a, b) => a !== b };

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

// Where a value lies on a column's axis, 0..1, and back.
class Axis {
  constructor(column) {
    this.log = column.log;
    this.integer = column.integer;
    this.low = column.edges[0];
    this.high = column.edges[column.edges.length - 1];
    const span = this.log ? Math.log(this.high / this.low) : this.high - this.low;
    this.span = span || 1;
    const fine = 10 ** Math.floor(Math.log10(this.span / 200));
    this.step = this.log ? 0.005 : this.integer ? 1 : fine * [1, 2, 5, 10].find(k => k * fine >= this.span / 400);
  }
  at(value) {
    return Math.min(1, Math.max(0, (this.log ? Math.log(value / this.low) : value - this.low) / this.span));
  }
  value(at) {
    const raw = this.log ? this.low * Math.exp(at * this.span) : this.low + at * this.span;
    if (this.integer) return Math.round(raw);
    return this.log ? Number(raw.toPrecision(3)) : Number((Math.round(raw / this.step) * this.step).toPrecision(10));
  }
}

class Select {
  constructor(section, data) {
    this.section = section;
    this.data = data;
    this.moved = data.moved;
    this.judged = data.moved.judged;
    this.scale = this.judged / data.moved.sample;
    this.copies = null;  // of `distinct`, whether each row of the sample is a copy, at the thresholds as they stand
    this.thresholds = data.moved.thresholds.map(t => ({ ...t, start: t.value }));
    this.start = this.tally();
    this.cells = [...section.querySelectorAll("[data-rule]")].map(row =>
      Object.fromEntries([...row.querySelectorAll("[data-cell]")].map(cell => [cell.dataset.cell, cell])));
    this.build(section.querySelector("[data-columns]"));
    section.querySelector("[data-reset]").addEventListener("click", () => {
      for (const t of this.thresholds) t.value = t.start;
      this.update();
    });
    this.update();
  }

  isMoved(part) {
    return this.thresholds.some(t => (part === undefined || t.part === part) && t.value !== t.start);
  }

  // Whether row i fails a rule, at the thresholds as they stand. Where there is no number, the verdict stays.
  fails(i, part, moved) {
    const before = this.moved.unmet[i][part] === "1";
    if (this.copies && part === this.parts().length && i < this.copies.length) return this.copies[i];
    if (!moved) return before;
    for (const t of this.thresholds) {
      if (t.part !== part) continue;
      const value = this.moved.values[t.column][i];
      if (value === null) return before;
      if (!met[t.operator](value, t.value)) return true;
    }
    return false;
  }

  // The rules of `where`: all but `distinct`, which is the last.
  parts() {
    return this.moved.distinct ? this.moved.parts.slice(0, -1) : this.moved.parts;
  }

  // Of the rows that meet `where`, those that are not the best of their group. Where the page holds a sample alone, a
  // copy of a row that may lie outside of it stays one.
  elect(moved) {
    const { distinct, sample, unmet } = this.moved, last = this.parts().length, best = new Map(), meets = [];
    for (let i = 0; i < sample; i++) {
      meets[i] = this.parts().every((_, p) => !this.fails(i, p, moved[p])) && (sample === this.judged || unmet[i][last] !== "1");
      const other = best.get(distinct.root[i]);
      if (meets[i] && (other === undefined || distinct.place[i] < distinct.place[other])) best.set(distinct.root[i], i);
    }
    return meets.map((good, i) => good ? best.get(distinct.root[i]) !== i : sample !== this.judged && unmet[i][last] === "1");
  }

  // Sample counts: per rule, per pair of rules, and kept per bin of each column.
  tally() {
    const { parts, columns, values, sample } = this.moved;
    const moved = parts.map((_, p) => this.isMoved(p));
    if (this.moved.distinct) this.copies = this.elect(moved);
    const zero = () => parts.map(() => 0);
    const out = { kept: 0, fails: zero(), first: zero(), unique: zero(), joint: parts.map(zero), bins: columns.map(c => c.kept.map(() => 0)) };
    this.bins ||= columns.map((c, k) => Array.from({ length: sample }, (_, i) => bin(c, values[k][i])));
    for (let i = 0; i < sample; i++) {
      const unmet = parts.map((_, p) => p).filter(p => this.fails(i, p, moved[p]));
      if (unmet.length) out.first[unmet[0]]++;
      else {
        out.kept++;
        this.bins.forEach((bins, k) => { if (bins[i] >= 0) out.bins[k][bins[i]]++; });
      }
      if (unmet.length === 1) out.unique[unmet[0]]++;
      for (const p of unmet) {
        out.fails[p]++;
        for (const q of unmet) out.joint[p][q]++;
      }
    }
    return out;
  }

  estimate(exact, now, before, most = this.judged) {
    return Math.min(most, Math.max(0, exact + (now - before) * this.scale));
  }

  build(place) {
    this.charts = this.moved.columns.map((column, k) => {
      const axis = new Axis(column);
      const mine = this.thresholds.filter(t => t.column === k);
      const card = element("div", { class: "column", "data-column": column.name });
      const extra = [column.log ? "logarithmic" : "", column.missing ? `${count(column.missing)} rows without a number` : ""].filter(Boolean).join(" · ");
      card.append(element("h4", {}, `${column.name} `, element("small", {}, extra)));
      const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `histogram of ${column.name}` }, card);
      const chart = { column, axis, card, svg, thresholds: mine, bars: bars(column, axis, svg) };
      card.append(ticks(axis));
      for (const t of mine) {
        t.line = shape("line", { class: t.alone ? "mark" : "mark fixed", y1: 0, y2: HEIGHT, "vector-effect": "non-scaling-stroke" }, svg);
        this.control(t, chart);
      }
      this.draggable(chart);
      place.append(card);
      return chart;
    });
  }

  // Number, slider and the pictures on both sides of one threshold.
  control(t, { column, axis, card }) {
    const label = `${column.name} ${t.operator}`;
    const box = element("div", { class: "threshold" });
    if (t.alone) {
      t.input = element("input", { type: "number", step: "any", "aria-label": label });
      const [low, high] = axis.log ? [0, 1] : [axis.low, axis.high];
      t.slider = element("input", { type: "range", min: low, max: high, step: axis.step, "aria-label": label });
      t.slider.addEventListener("input", () => this.move(t, axis.log ? axis.value(t.slider.valueAsNumber) : t.slider.valueAsNumber));
      t.input.addEventListener("input", () => { if (Number.isFinite(t.input.valueAsNumber)) this.move(t, t.input.valueAsNumber, t.input); });
      t.was = element("span", { class: "dim" });
      box.append(t.slider, element("div", { class: "set" }, element("code", {}, label), t.input, t.was));
    } else {
      box.append(element("div", { class: "set" }, element("code", {}, `${label} ${number(t.value, 7)}`), element("span", { class: "dim" }, `part of: ${this.moved.parts[t.part]}`)));
    }
    t.sides = [false, true].map(up => {
      const title = element("p"), strip = element("div", { class: "strip" });
      return { up, title, strip, node: element("div", { class: "side" }, title, strip) };
    });
    box.append(element("div", { class: "sides" }, ...t.sides.map(side => side.node)));
    card.append(box);
  }

  draggable({ axis, svg, thresholds }) {
    const free = thresholds.filter(t => t.alone);
    if (!free.length) return;
    svg.classList.add("drag");
    let held = null;
    const at = event => { const box = svg.getBoundingClientRect(); return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)); };
    svg.addEventListener("pointerdown", event => {
      held = free.reduce((a, b) => Math.abs(axis.at(b.value) - at(event)) < Math.abs(axis.at(a.value) - at(event)) ? b : a);
      svg.setPointerCapture(event.pointerId);
      this.move(held, axis.value(at(event)));
    });
    svg.addEventListener("pointermove", event => { if (held) this.move(held, axis.value(at(event))); });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { held = null; });
  }

  move(t, value, typed) {
    t.value = value;
    this.typed = typed;
    this.due ||= requestAnimationFrame(() => { this.due = 0; this.update(); });
  }

  update() {
    const now = this.tally(), anywhere = this.isMoved(), { section, data } = this;
    const about = anywhere && this.moved.sample < this.judged ? "≈ " : "";
    const kept = this.estimate(data.kept, now.kept, this.start.kept);
    const live = name => section.querySelector(`[data-live="${name}"]`);
    live("kept").textContent = about + count(kept);
    live("share").textContent = share(kept, this.judged) || "0%";
    live("bar").style.width = this.judged ? `${100 * kept / this.judged}%` : "0";
    const change = Math.round(kept) - data.kept;
    live("change").textContent = anywhere ? (change < 0 ? `−${count(-change)}` : `+${count(change)}`) : "";
    section.querySelector("[data-reset]").hidden = !anywhere;
    this.tables(now, about);
    section.querySelector(".where").textContent = `where: ${JSON.stringify(this.rule())}`;
    for (const chart of this.charts) this.draw(chart, now.bins[this.moved.columns.indexOf(chart.column)]);
  }

  tables(now, about) {
    let left = this.judged;
    this.data.rules.forEach((rule, p) => {
      const values = {};
      for (const name of ["fails", "first", "unique"]) values[name] = this.estimate(rule[name], now[name][p], this.start[name][p]);
      values.after = left = Math.max(0, left - values.first);
      const cells = this.cells[p];
      for (const [name, value] of Object.entries(values)) cells[name].textContent = about + count(value);
      cells.share.textContent = share(values.fails, this.judged);
      cells.fails.parentNode.classList.toggle("moved", this.isMoved(p));
    });
    for (const cell of this.section.querySelectorAll("[data-joint]")) {
      const [p, q] = cell.dataset.joint.split(",").map(Number);
      const both = this.estimate(this.data.joint[p][q], now.joint[p][q], this.start.joint[p][q]);
      const all = this.estimate(this.data.joint[p][p], now.joint[p][p], this.start.joint[p][p]);
      cell.textContent = about + count(both);
      cell.style.setProperty("--heat", p !== q && all ? Math.min(1, both / all) : 0);
    }
  }

  // The whole rule with the moved numbers in it.
  rule() {
    return this.parts().map((text, p) => {
      if (!this.isMoved(p)) return /\bor\b/i.test(text) && this.parts().length > 1 ? `(${text})` : text;
      return this.thresholds.filter(t => t.part === p).map(t => `${this.moved.columns[t.column].name} ${t.operator} ${t.value}`).join(" and ");
    }).join(" and ");
  }

  draw({ column, axis, bars, thresholds }, bins) {
    const start = this.start.bins[this.moved.columns.indexOf(column)];
    const total = column.kept.map((n, b) => n + column.rejected[b]);
    const top = Math.max(1, ...total);
    column.kept.forEach((exact, b) => {
      const kept = this.estimate(exact, bins[b], start[b], total[b]);
      const high = total[b] ? Math.max(1.5, HEIGHT * 0.96 * total[b] / top) : 0, green = total[b] ? high * kept / total[b] : 0;
      bars[b].k.setAttribute("y", HEIGHT - green);
      bars[b].k.setAttribute("height", green);
      bars[b].r.setAttribute("y", HEIGHT - high);
      bars[b].r.setAttribute("height", Math.max(0, high - green));
      const beyond = b === 0 ? ", with all below" : b === total.length - 1 ? ", with all above" : "";
      bars[b].title.textContent = `${number(column.edges[b])} to ${number(column.edges[b + 1])}${beyond}: ${count(kept)} kept, ${count(total[b] - kept)} rejected`;
    });
    for (const t of thresholds) {
      const edge = axis.integer && (t.operator === ">" || t.operator === "<=") ? t.value + 1 : t.value;
      const x = axis.at(edge) * WIDTH;
      t.line.setAttribute("x1", x);
      t.line.setAttribute("x2", x);
      if (t.alone) {
        if (this.typed !== t.input) t.input.value = t.value;
        t.slider.value = axis.log ? axis.at(t.value) : t.value;
        t.slider.setAttribute("aria-valuetext", number(t.value, 7));
        t.was.textContent = t.value === t.start ? "" : `was ${number(t.start, 7)}`;
      }
      this.pictures(t);
    }
  }

  // The rows with a picture next to the threshold: below it on the left, above on the right.
  pictures(t) {
    const values = this.moved.values[t.column], moved = this.moved.parts.map((_, p) => this.isMoved(p));
    const equal = t.operator === "=" || t.operator === "<>";
    for (const side of t.sides) {
      const inside = equal ? side.up === (t.operator === "=") : t.operator.startsWith(">") === side.up;
      const rows = [];
      this.moved.slots.forEach((slot, i) => {
        if (slot in DATA.pictures && values[i] !== null && met[t.operator](values[i], t.value) === inside) rows.push(i);
      });
      rows.sort((a, b) => Math.abs(values[a] - t.value) - Math.abs(values[b] - t.value) || a - b);
      const name = equal ? (side.up ? "equal" : "others") : side.up ? "above" : "below";
      side.title.replaceChildren(t.alone ? element("b", {}, inside ? "passes" : "fails") : "", ` ${name}`);
      side.node.className = `side ${inside ? "in" : "out"}`;
      side.strip.replaceChildren(...rows.slice(0, NEAREST).map(i => {
        const slot = this.moved.slots[i], [key] = DATA.pictures[slot];
        const others = this.moved.parts.filter((_, p) => p !== t.part && this.fails(i, p, moved[p]));
        const title = others.length ? `${key}\nalso removed by: ${others.join(", ")}` : key;
        return element("figure", { title, class: others.length ? "other" : "" },
          element("img", { src: picture(slot), alt: key }), element("figcaption", {}, number(values[i])));
      }));
      if (!rows.length) side.strip.append(element("span", { class: "dim" }, "no picture here"));
    }
  }
}

function bin({ edges, kept }, value) {
  if (value === null) return -1;
  let low = 0, high = edges.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= value) low = middle + 1; else high = middle;
  }
  return Math.min(kept.length - 1, Math.max(0, low - 1));
}

function bars(column, axis, svg) {
  return column.kept.map((_, b) => {
    const x = axis.at(column.edges[b]) * WIDTH, width = axis.at(column.edges[b + 1]) * WIDTH - x;
    const group = shape("g", {}, svg), place = { x: x + width * 0.04, width: width * 0.92 };
    return { title: shape("title", {}, group), r: shape("rect", { class: "r", ...place }, group), k: shape("rect", { class: "k", ...place }, group) };
  });
}

function ticks(axis) {
  const row = element("div", { class: "ticks", "aria-hidden": "true" });
  for (const at of [0, 0.25, 0.5, 0.75, 1]) {
    const raw = axis.log ? axis.low * Math.exp(at * axis.span) : axis.low + at * axis.span;
    row.append(element("span", { style: `left:${100 * at}%` }, number(axis.integer ? Math.round(raw) : raw, 3)));
  }
  return row;
}

for (const section of document.querySelectorAll("section.select")) {
  const data = DATA.selects.find(s => s.step === section.dataset.step);
  if (data) new Select(section, data);
}
