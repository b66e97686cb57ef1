"use strict";
// Curves of runs, asked for again every few seconds; what comes from the server is put in as text.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const EVERY = 3000;
let chosen = "train/loss";
const hidden = new Set();

const colour = (index) => `hsl(${(index * 137.5) % 360} 65% 50%)`;
const cell = (text) => Object.assign(document.createElement("td"), { textContent: text });
const drawn = (name, values, text) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const duration = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  return minutes >= 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : minutes ? `${minutes} min` : `${Math.round(seconds)} s`;
};

function table(runs) {
  $("runs").querySelector("tbody").replaceChildren(...runs.map((run, index) => {
    const row = document.createElement("tr"), name = cell(""), label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hidden.has(run.name) });
    const mark = drawn("svg", { width: 12, height: 12, class: "mark" });
    mark.append(drawn("circle", { cx: 6, cy: 6, r: 5, fill: colour(index) }));
    box.onchange = () => { box.checked ? hidden.delete(run.name) : hidden.add(run.name); chart(runs); };
    label.append(box, mark, ` ${run.name}`);
    name.append(label);
    const scores = Object.entries(run.scores).map(([key, value]) => `${key.replace(/^val\//, "")} ${value.toFixed(4)}`).join(", ");
    row.append(name, cell(run.state), cell(run.step === null ? "" : `${run.step}${run.steps ? ` / ${run.steps}` : ""}`),
      cell(run.left === null ? "" : duration(run.left)), cell(run.loss === null ? "" : run.loss.toFixed(4)), cell(scores));
    return row;
  }));
}

function keys(runs) {
  const found = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))].sort();
  if (found.length && !found.includes(chosen)) chosen = found[0];
  if ([...$("key").options].map((each) => each.value).join() === found.join()) return;
  $("key").replaceChildren(...found.map((key) => new Option(key, key, false, key === chosen)));
}

function chart(runs) {
  const lines = runs.map((run, index) => ({ index, name: run.name, points: run.curves[chosen] || [] }))
    .filter((line) => line.points.length && !hidden.has(line.name));
  const all = lines.flatMap((line) => line.points), parts = [], width = Math.max($("chart").clientWidth, 280);
  $("chart").setAttribute("viewBox", `0 0 ${width} 300`);  // so that text has its size on narrow screens
  if (all.length) {
    const [left, right, top, bottom] = [56, width - 10, 12, 270];
    const far = Math.max(...all.map((point) => point[0]), 1);
    let low = Math.min(...all.map((point) => point[1])), high = Math.max(...all.map((point) => point[1]));
    if (low === high) { low -= 0.5; high += 0.5; }
    const x = (step) => left + (right - left) * step / far, y = (value) => bottom - (bottom - top) * (value - low) / (high - low);
    for (let i = 0; i <= 4; i++) {
      const value = low + (high - low) * i / 4, step = Math.round(far * i / 4);
      parts.push(drawn("line", { x1: left, x2: right, y1: y(value), y2: y(value), class: "grid" }));
      parts.push(drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toPrecision(3)));
      parts.push(drawn("text", { x: x(far * i / 4), y: bottom + 20, "text-anchor": i === 4 ? "end" : "middle" }, String(step)));
    }
    for (const line of lines) {
      const path = line.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
      parts.push(drawn("polyline", { points: path, fill: "none", stroke: colour(line.index), "stroke-width": 1.6, "data-run": line.name }));
      const [step, value] = line.points[line.points.length - 1];
      const dot = drawn("circle", { cx: x(step), cy: y(value), r: 3, fill: colour(line.index) });
      dot.append(drawn("title", {}, `${line.name}: ${value.toPrecision(4)} at step ${step}`));
      parts.push(dot);
    }
  } else parts.push(drawn("text", { x: width / 2, y: 150, "text-anchor": "middle" }, "nothing has been logged yet"));
  $("chart").replaceChildren(...parts);
}

async function look() {
  try {
    const { runs } = await (await fetch("/runs")).json();
    const done = runs.filter((run) => run.state === "finished").length;
    const left = runs.reduce((sum, run) => sum + (run.left || 0), 0);
    const training = runs.filter((run) => run.state === "training").length;
    $("about").textContent = `${done} of ${runs.length} runs finished, ${training} training` +
      (left ? `; about ${duration(left)} of training to go in those that have begun` : "");
    $("error").textContent = "";
    keys(runs);
    table(runs);
    chart(runs);
    $("key").onchange = () => { chosen = $("key").value; chart(runs); };
  } catch (error) {
    $("error").textContent = `The server does not answer (${error.message}); is dslight watch still running?`;
  }
  setTimeout(look, EVERY);
}
look();
